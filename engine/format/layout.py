"""A segment's fixed parts: who it is (header) and what it holds (footer). Source: FORMAT.md, "Segments".

    | header 160 | frame 0 | frame 1 | … | table | map | footer 144 |

`Segment` is a segment being written: its header with a fresh salt, and its keys. Worker threads share it, and it sees
to it that no frame number is sealed twice under its salt.
"""

import hashlib
import os
import struct
import threading
import uuid
from dataclasses import dataclass

from engine import ids
from engine.errors import InvalidSpec, SegmentCorrupt
from engine.format import names
from engine.format.crypto import CHECK_BYTES, SALT_BYTES, Aead, Random, ServerKey

VERSION = 1
HEADER_MAGIC = b"\x89BMSEG\r\n"
FOOTER_MAGIC = b"\x89BMEND\r\n"
FLAG_ENCRYPTED = 1
FLAG_LAST = 2
_HEADER = struct.Struct("<8sHHI16s16s32sQ32s8s")
_FOOTER = struct.Struct("<8sHHIQIIIIQ32s32s")
_HASH_BYTES = 32
HEADER_BYTES = _HEADER.size + _HASH_BYTES
FOOTER_BYTES = _FOOTER.size + _HASH_BYTES
_SEALED_FOOTER_BYTES = 80  # the footer's part that the map's box binds: all but the index's own hash and the check
SIZE_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A written segment, as manifests name it. `digest` and `check` are hex; `check` covers every byte of the object."""

    number: int
    stored_bytes: int
    plain_bytes: int
    frames: int
    digest: str
    check: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Which segment of which disk of which backup; `size_bytes` is the virtual disk's size."""

    server_id: str
    backup_id: str
    disk: str
    number: int
    size_bytes: int

    @property
    def name(self) -> str:
        return names.segment_name(self.server_id, self.backup_id, self.disk, self.number)


@dataclass(frozen=True, slots=True)
class Header:
    identity: Identity
    encrypted: bool
    salt: bytes
    key_check: bytes

    def pack(self) -> bytes:
        one = self.identity
        flags = FLAG_ENCRYPTED if self.encrypted else 0
        body = _HEADER.pack(
            HEADER_MAGIC, VERSION, flags, one.number, uuid.UUID(one.server_id).bytes, uuid.UUID(one.backup_id).bytes,
            one.disk.encode(), one.size_bytes, self.salt, self.key_check,
        )  # fmt: skip
        return body + hashlib.sha256(body).digest()

    @classmethod
    def unpack(cls, data: bytes, name: str) -> "Header":
        """Return the header in `data` (HEADER_BYTES long). Raises SegmentCorrupt; `name` is used for that only."""
        body = data[: _HEADER.size]
        _expect(data[:8] == HEADER_MAGIC, name, "is not a segment")
        _expect(hashlib.sha256(body).digest() == data[_HEADER.size :], name, "the header is damaged")
        _, version, flags, number, server, backup, disk, size_bytes, salt, key_check = _HEADER.unpack(body)
        _expect(version == VERSION, name, f"segment version {version}, this version knows {VERSION}")
        _expect(flags & ~FLAG_ENCRYPTED == 0, name, f"unknown flags {flags:#x}")
        _expect(size_bytes <= SIZE_MAX and number < names.SEGMENTS_MAX, name, "a number in the header is too large")
        identity = Identity(
            str(uuid.UUID(bytes=server)), str(uuid.UUID(bytes=backup)), _disk(disk, name), number, size_bytes
        )
        encrypted = bool(flags & FLAG_ENCRYPTED)
        _expect(encrypted or key_check == bytes(CHECK_BYTES), name, "a key check without encryption")
        return cls(identity, encrypted, salt, key_check)


@dataclass(frozen=True, slots=True)
class Footer:
    """What a segment holds. `map_bytes` is the map's stored length, `map_plain_bytes` its length decompressed."""

    encrypted: bool
    last: bool
    frames: int
    table_offset: int
    map_bytes: int
    map_plain_bytes: int
    entries: int
    plain_bytes: int
    digest: bytes
    index_hash: bytes

    def pack(self, header: bytes) -> bytes:
        """Return the footer's bytes; `header` is the packed header, which the check covers."""
        body = self._body()
        return body + hashlib.sha256(header + body).digest()

    def context(self, header: bytes) -> bytes:
        """Return the associated data of the map's box; the index hash may still be unknown then."""
        return header + self._body()[:_SEALED_FOOTER_BYTES]

    def _body(self) -> bytes:
        flags = (FLAG_ENCRYPTED if self.encrypted else 0) | (FLAG_LAST if self.last else 0)
        return _FOOTER.pack(
            FOOTER_MAGIC, VERSION, flags, self.frames, self.table_offset, self.map_bytes, self.map_plain_bytes,
            self.entries, 0, self.plain_bytes, self.digest, self.index_hash,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes, header: bytes, name: str) -> "Footer":
        """Return the footer in `data` (FOOTER_BYTES long). Raises SegmentCorrupt; `name` is used for that only."""
        body = data[: _FOOTER.size]
        _expect(data[:8] == FOOTER_MAGIC, name, "ends without a footer: it was cut short or grew")
        _expect(hashlib.sha256(header + body).digest() == data[_FOOTER.size :], name, "the footer is damaged")
        (_, version, flags, frames, table_offset, map_bytes, map_plain_bytes, entries, zero, plain_bytes, digest,
         index_hash) = _FOOTER.unpack(body)  # fmt: skip
        _expect(version == VERSION, name, f"footer version {version}, this version knows {VERSION}")
        _expect(flags & ~(FLAG_ENCRYPTED | FLAG_LAST) == 0 and zero == 0, name, "unknown flags in the footer")
        return cls(
            bool(flags & FLAG_ENCRYPTED), bool(flags & FLAG_LAST), frames, table_offset, map_bytes, map_plain_bytes,
            entries, plain_bytes, digest, index_hash,
        )  # fmt: skip


class Segment:
    """A segment being written: header, salt and keys. Threads share it; made by `begin`, before the first frame is sealed."""

    __slots__ = ("_claimed", "_lock", "frames_key", "header", "identity", "index_key")

    def __init__(self, identity: Identity, header: bytes, frames_key: Aead | None, index_key: Aead | None) -> None:
        self.identity = identity
        self.header = header
        self.frames_key = frames_key
        self.index_key = index_key
        self._claimed = bytearray()
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, identity: Identity, key: ServerKey | None, random: Random = os.urandom) -> "Segment":
        """Return a new segment with a fresh salt. `key` None means plain. Raises InvalidSpec for an impossible identity."""
        if not (ids.is_id(identity.server_id) and ids.is_id(identity.backup_id) and names.is_disk(identity.disk)):
            raise InvalidSpec(field="segment", problem=f"{identity} names no disk of a backup")
        if not (0 <= identity.number < names.SEGMENTS_MAX and 0 <= identity.size_bytes <= SIZE_MAX):
            raise InvalidSpec(field="segment", problem=f"{identity} is beyond the format's limits")
        salt = random(SALT_BYTES)
        header = Header(identity, key is not None, salt, key.check if key else bytes(CHECK_BYTES)).pack()
        if key is None:
            return cls(identity, header, None, None)
        return cls(identity, header, Aead(key.derive(salt, "frames")), Aead(key.derive(salt, "index")))

    @property
    def encrypted(self) -> bool:
        return self.frames_key is not None

    def claim(self, frame_number: int) -> None:
        """Take a frame number for sealing. Raises RuntimeError if it was taken before: one nonce never seals two frames."""
        byte, bit = divmod(frame_number, 8)
        with self._lock:
            if byte >= len(self._claimed):
                self._claimed.extend(bytes(byte + 1 - len(self._claimed)))
            if self._claimed[byte] >> bit & 1:
                raise RuntimeError(f"frame {frame_number} of {self.identity.name} was already sealed")
            self._claimed[byte] |= 1 << bit


def _disk(padded: bytes, name: str) -> str:
    text = padded.rstrip(b"\0").decode("ascii", "replace")
    _expect(names.is_disk(text), name, "the header names no disk")
    return text


def _expect(condition: bool, name: str, detail: str) -> None:
    if not condition:
        raise SegmentCorrupt(name=name, detail=detail)
