"""Settings of an SSH server, and the keys that it is entered with (S4)."""

import base64
import binascii
from collections.abc import Mapping

from clients.gen.backupmanager.v1 import storage_pb2
from controller.errors import InvalidField
from controller.services import check
from controller.services.storage_checks import fields
from controller.services.storage_checks.fields import expect

SSH_PORT = 22
KEY_BYTES_MAX = 32 << 10  # a PEM of RSA 16384 is 13 KiB
USERNAME_CHARACTERS_MAX = 64


def config(given: storage_pb2.SftpConfig) -> storage_pb2.SftpConfig:
    return storage_pb2.SftpConfig(
        host=fields.host("sftp.host", given.host),
        port=fields.port("sftp.port", given.port, SSH_PORT),
        username=_username(given.username),
        path=check.path("sftp.path", given.path),
        host_key=_host_key(given.host_key),
        bind_address=fields.bind_address("sftp.bind_address", given.bind_address),
    )


def secrets(known: Mapping[str, str]) -> None:
    """Look at the private key with its passphrase: opening one that has a passphrase is made to be slow."""
    private_key(known.get("sftp_private_key", ""), known.get("sftp_key_passphrase", ""))


def private_key(pem: str, passphrase: str) -> None:
    """Raise InvalidField unless `pem` is a private key that SSH can use, opened by `passphrase`. Takes up to a second."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    field = "secrets.sftp_private_key"
    expect(bool(pem), field, "is missing")
    expect(len(pem) <= KEY_BYTES_MAX, field, f"is longer than {KEY_BYTES_MAX} bytes")
    key = _load_key(pem.strip().encode() + b"\n", passphrase.encode() or None)
    curves = ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    usable = isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, curves)
    )
    expect(usable, field, "is neither RSA, ECDSA nor Ed25519")


def _load_key(data: bytes, passphrase: bytes | None) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    load = serialization.load_ssh_private_key if b"OPENSSH" in data[:64] else serialization.load_pem_private_key
    try:
        return load(data, passphrase)
    except TypeError:  # a passphrase where none is needed, or none where one is
        if passphrase is not None:
            return _load_key(data, None)
        raise InvalidField(field="secrets.sftp_key_passphrase", problem="is missing: the key has one") from None
    except (ValueError, UnsupportedAlgorithm):
        problem = "cannot be read, or its passphrase is wrong" if passphrase else "cannot be read"
        raise InvalidField(field="secrets.sftp_private_key", problem=problem) from None


def _username(text: str) -> str:
    fits = 0 < len(text) <= USERNAME_CHARACTERS_MAX and text.isprintable() and not set(text) & set(" :/")
    expect(
        fits, "sftp.username", f"must be 1 to {USERNAME_CHARACTERS_MAX} characters, none of them a space, ':' or '/'"
    )
    return text


def _host_key(text: str) -> str:
    """Return a public key as `type base64`, a comment dropped; "" stays ""."""
    if not text:
        return ""
    kind, _, rest = text.strip().partition(" ")
    encoded = rest.strip().partition(" ")[0]
    try:
        inside = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        inside = b""
    name = kind.encode()
    expect(
        bool(name) and inside[:4] == len(name).to_bytes(4, "big") and inside[4:].startswith(name),
        "sftp.host_key",
        "must be a public key of the form: type base64",
    )
    return f"{kind} {encoded}"
