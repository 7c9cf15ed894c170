"""The recovery bundle: one encrypted file of all that storages cannot give back (N11).

    line "backup-manager bundle 1" ‖ nonce (12 bytes) ‖ ChaCha20-Poly1305(recovery key, zlib(JSON))      the first line is authenticated

    {"installation_id", "create_time", "authority": {file: text}, "master_key": hex, "tables": {name: [row, …]}, "event_sequence"}

The recovery key is random, made with the first bundle, shown that once, and kept beside the master key so that later bundles
need nobody. Bytes of a row are {"hex": …}. Whoever has bundle and key has the installation.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from controller.errors import CannotStart
from controller.files import write_atomic
from engine.units import MIB

HEADER = b"backup-manager bundle 1\n"
KEY_BYTES = 32
NONCE_BYTES = 12
BYTES_MAX = 1024 * MIB  # of a bundle, open: 50,000 servers take 40 MiB


def make_key(path: Path) -> bytes:
    """Make a recovery key in place of an earlier one."""
    key = os.urandom(KEY_BYTES)
    write_atomic(path, key.hex().encode() + b"\n")
    return key


def load_key(path: Path) -> bytes | None:
    """Return the recovery key, None before there is one. Raises CannotStart."""
    try:
        return parse_key(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"cannot read {path}: {type(error).__name__}") from error


def shown(key: bytes) -> str:
    """Return a key as it is written down: 8 groups of 8 hexadecimal digits."""
    text = key.hex()
    return "-".join(text[start : start + 8] for start in range(0, len(text), 8))


def parse_key(text: str) -> bytes:
    """Return the key that a person typed or a file holds. Raises CannotStart, which never quotes it."""
    try:
        key = bytes.fromhex("".join(text.split()).replace("-", ""))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise CannotStart("this is no recovery key: it has 64 hexadecimal digits, in groups or not")
    return key


def seal(value: dict[str, Any], key: bytes) -> bytes:
    """Return a bundle."""
    nonce = os.urandom(NONCE_BYTES)
    packed = zlib.compress(json.dumps(value, default=_bytes).encode())
    return HEADER + nonce + ChaCha20Poly1305(key).encrypt(nonce, packed, HEADER)


def unseal(data: bytes, key: bytes) -> dict[str, Any]:
    """Return what `seal` was given. Raises CannotStart: no bundle, another key's, damaged, or too large."""
    if not data.startswith(HEADER):
        raise CannotStart("this is no bundle of this version")
    nonce, box = data[len(HEADER) : len(HEADER) + NONCE_BYTES], data[len(HEADER) + NONCE_BYTES :]
    try:
        packed = ChaCha20Poly1305(key).decrypt(nonce, box, HEADER)
    except (InvalidTag, ValueError):
        raise CannotStart("the bundle does not open: it is another recovery key's, or damaged") from None
    unpacker = zlib.decompressobj()
    opened = unpacker.decompress(packed, BYTES_MAX)
    if unpacker.unconsumed_tail:
        raise CannotStart(f"the bundle has more than {BYTES_MAX} bytes")
    value: dict[str, Any] = json.loads(opened, object_hook=_plain)
    return value


def _bytes(value: object) -> dict[str, str]:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"hex": bytes(value).hex()}
    raise TypeError(type(value).__name__)


def _plain(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value["hex"]) if value.keys() == {"hex"} else value
