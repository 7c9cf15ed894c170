"""What a storage's settings must look like before they are saved: a place that cannot be, or a key that cannot be read, is
found when it is entered and not at the first backup (S4, S26).
"""

import base64
import binascii
from typing import TypeAlias

from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2
from controller.addresses import PORT_MAX, is_address, is_host
from controller.errors import InvalidField
from controller.services import check, settings_check

SSH_PORT = 22
LEVEL_DEFAULT, LEVEL_MAX = 3, 19  # zstd's; above 19 it takes memory that no hypervisor has to spare
THREADS_MAX = 64
PASSPHRASE_CHARACTERS_MIN, PASSPHRASE_CHARACTERS_MAX = 8, 1024
KEY_BYTES_MAX = 32 << 10  # a PEM of RSA 16384 is 13 KiB
USERNAME_CHARACTERS_MAX = 64

Config: TypeAlias = storage_pb2.LocalConfig | storage_pb2.SftpConfig


def local(config: storage_pb2.LocalConfig) -> storage_pb2.LocalConfig:
    path = check.path("local.path", config.path)
    if path == "/":
        raise InvalidField(field="local.path", problem="must be a folder below /")
    return storage_pb2.LocalConfig(path=path)


def sftp(config: storage_pb2.SftpConfig) -> storage_pb2.SftpConfig:
    _expect(is_host(config.host), "sftp.host", "is neither a host name nor an address")
    _expect(not config.bind_address or is_address(config.bind_address), "sftp.bind_address", "is not an address")
    return storage_pb2.SftpConfig(
        host=config.host,
        port=check.number("sftp.port", config.port or SSH_PORT, 1, PORT_MAX),
        username=_username(config.username),
        path=check.path("sftp.path", config.path),
        host_key=_host_key(config.host_key),
        bind_address=config.bind_address,
    )


def compression(value: storage_pb2.Compression | None) -> storage_pb2.Compression:
    """Return compression with its defaults in place; None means on."""
    if value is None:
        value = storage_pb2.Compression(enabled=True)
    return storage_pb2.Compression(
        enabled=value.enabled,
        level=check.number("compression.level", value.level or LEVEL_DEFAULT, 1, LEVEL_MAX),
        threads=check.number("compression.threads", value.threads or 1, 1, THREADS_MAX),
    )


def limits(value: storage_pb2.StorageLimits) -> storage_pb2.StorageLimits:
    """Return limits as they are: what is not set stays so, that a schedule and the defaults can tell it from a wish."""
    check.number("limits.worker_threads", value.worker_threads, 0, settings_check.RANGES["worker_threads"][1])
    settings_check.rate("limits.bandwidth_bytes_per_second", value.bandwidth_bytes_per_second)
    settings_check.rate("limits.read_bytes_per_second", value.read_bytes_per_second)
    return value


def secrets(kind: str, given: storage_service_pb2.StorageSecrets) -> dict[str, str]:
    """Return the secrets that are given, by name; those that this type of storage has no use for are refused."""
    found = {field.name: str(value) for field, value in given.ListFields()}
    for name in found:
        _expect(kind == "sftp" or not name.startswith("sftp_"), f"secrets.{name}", f"is not for a {kind} storage")
    if "encryption_passphrase" in found:
        _passphrase(found["encryption_passphrase"])
    return found


def private_key(pem: str, passphrase: str) -> None:
    """Raise InvalidField unless `pem` is a private key that SSH can use, opened by `passphrase`. Takes up to a second."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    field = "secrets.sftp_private_key"
    _expect(bool(pem), field, "is missing")
    _expect(len(pem) <= KEY_BYTES_MAX, field, f"is longer than {KEY_BYTES_MAX} bytes")
    key = _load_key(pem.strip().encode() + b"\n", passphrase.encode() or None)
    curves = ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    usable = isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, curves)
    )
    _expect(usable, field, "is neither RSA, ECDSA nor Ed25519")


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
    _expect(
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
    _expect(
        bool(name) and inside[:4] == len(name).to_bytes(4, "big") and inside[4:].startswith(name),
        "sftp.host_key",
        "must be a public key of the form: type base64",
    )
    return f"{kind} {encoded}"


def _passphrase(text: str) -> None:
    fits = PASSPHRASE_CHARACTERS_MIN <= len(text) <= PASSPHRASE_CHARACTERS_MAX
    problem = f"must be {PASSPHRASE_CHARACTERS_MIN} to {PASSPHRASE_CHARACTERS_MAX} characters"
    _expect(fits, "secrets.encryption_passphrase", problem)


def _expect(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidField(field=field, problem=problem)
