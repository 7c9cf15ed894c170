"""Keys derived and bytes sealed. Everything secret passes through this file, and nothing here prints it.

    storage key ──HKDF, server id──► server key ──HKDF, file's salt, purpose──► one key for each sealed thing

A box is nonce (12 bytes), ciphertext, tag (16 bytes). Nonces are numbers: the frame number under a frames key, 0 under
keys that seal a single thing. All seals of the format go through `Aead`, which tells `seal_observer` about each, so that
a test sees that no key ever meets a nonce twice. Source: FORMAT.md, "Keys".

The library is imported by what uses it: it takes 8 MiB, which backups without encryption can do without.
"""

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from engine import ids
from engine.errors import InvalidSpec
from engine.storage.base import Buffer

KEY_BYTES = 32
SALT_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SEAL_BYTES = NONCE_BYTES + TAG_BYTES  # what sealing adds (T14)
CHECK_BYTES = 8
INFO = "backup-manager/1"

Purpose: TypeAlias = Literal["frames", "index", "manifest", "mac"]
Random: TypeAlias = Callable[[int], bytes]

# A test sets this to record every (key, nonce) that is sealed with. Never set in production.
seal_observer: Callable[[bytes, bytes], None] | None = None


class OpenFailed(Exception):
    """A box does not open: other key, other associated data, or damaged bytes. Callers turn this into a typed error."""


class Aead:
    """ChaCha20-Poly1305 under one key. May be shared by threads."""

    __slots__ = ("_cipher", "_key")

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._key = key
        self._cipher = ChaCha20Poly1305(key)

    def seal_into(self, nonce: bytes, plain: Buffer, context: bytes, target: memoryview) -> None:
        """Fill `target` with the box of `plain`; len(target) is len(plain) + SEAL_BYTES, and they do not overlap.

        The interpreter lock is free meanwhile. Sealing twice under one nonce is the caller's to prevent (see `layout`).
        """
        if seal_observer is not None:
            seal_observer(self._key, nonce)
        target[:NONCE_BYTES] = nonce
        self._cipher.encrypt_into(nonce, plain, context, target[NONCE_BYTES:])

    def seal(self, nonce: bytes, plain: Buffer, context: bytes) -> bytes:
        """Return the box of `plain`."""
        box = bytearray(len(plain) + SEAL_BYTES)
        self.seal_into(nonce, plain, context, memoryview(box))
        return bytes(box)

    def open_into(self, nonce: bytes | None, box: Buffer, context: bytes, target: memoryview) -> None:
        """Fill `target` with a box's plaintext; len(target) is len(box) - SEAL_BYTES.

        `nonce` is the one that must be in the box, None to take the box's. Raises OpenFailed; `target` is then undefined.
        """
        from cryptography.exceptions import InvalidTag

        view = memoryview(box)
        found = bytes(view[:NONCE_BYTES])
        if nonce not in {None, found}:
            raise OpenFailed
        try:
            self._cipher.decrypt_into(found, view[NONCE_BYTES:], context, target)
        except InvalidTag as error:
            raise OpenFailed from error

    def open(self, nonce: bytes | None, box: Buffer, context: bytes) -> bytes:
        """Return a box's plaintext. Raises OpenFailed."""
        if len(box) < SEAL_BYTES:
            raise OpenFailed
        plain = bytearray(len(box) - SEAL_BYTES)
        self.open_into(nonce, box, context, memoryview(plain))
        return bytes(plain)


@dataclass(frozen=True, slots=True)
class ServerKey:
    """What seals one server's backups; `key_id` is the storage key it came from. An agent gets these, never a storage key."""

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_key(self.key_id, self.secret)

    @property
    def check(self) -> bytes:
        """Eight bytes that tell keys apart and are no secret."""
        return _derive(self.secret, b"", f"{INFO}/check", CHECK_BYTES)

    def derive(self, salt: bytes, purpose: Purpose) -> bytes:
        """Return the 32-byte key for one purpose in the file with this salt."""
        return _derive(self.secret, salt, f"{INFO}/{purpose}")

    def mac(self, salt: bytes, data: bytes) -> bytes:
        """Return the HMAC-SHA256 of `data` under the MAC key of the file with this salt."""
        return hmac.digest(self.derive(salt, "mac"), data, "sha256")


@dataclass(frozen=True, slots=True)
class StorageKey:
    """The random key of a storage. Lives wrapped (see `keys`), in the controller or a hand-run engine's memory."""

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_key(self.key_id, self.secret)

    @classmethod
    def generate(cls, key_id: str, random: Random = os.urandom) -> "StorageKey":
        return cls(key_id, random(KEY_BYTES))

    def server_key(self, server_id: str) -> ServerKey:
        """Return the key of one server; knowing it says nothing about other servers' keys."""
        if not ids.is_id(server_id):
            raise InvalidSpec(field="server_id", problem=f"{server_id!r} is not an id")
        return ServerKey(self.key_id, _derive(self.secret, b"", f"{INFO}/server/{server_id}"))


def nonce_of(number: int) -> bytes:
    """Return the nonce for a frame number: eight bytes little-endian, then four zero bytes."""
    return number.to_bytes(8, "little") + bytes(4)


def load() -> None:
    """Import what sealing and opening need, before memory is looked at."""
    from cryptography.exceptions import InvalidTag  # noqa: F401 -- it is the loading that counts
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: F401
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: F401


def _derive(secret: bytes, salt: bytes, info: str, length: int = KEY_BYTES) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt or None, info=info.encode()).derive(secret)


def _check_key(key_id: str, secret: bytes) -> None:
    if not ids.is_id(key_id):
        raise InvalidSpec(field="key_id", problem=f"{key_id!r} is not an id")
    if len(secret) != KEY_BYTES:
        raise InvalidSpec(field="key", problem=f"has {len(secret)} bytes, {KEY_BYTES} are needed")
