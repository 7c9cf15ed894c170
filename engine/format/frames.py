"""Frames: plaintext to stored bytes and back. One FrameSealer or FrameOpener per worker thread, each with its own buffers.

    plaintext ──compress──► packed (shorter, or as it was) ──seal──► stored bytes ──SHA-256──► table
    stored bytes ──SHA-256──► open ──decompress──► plaintext, of exactly the length that the map says

Associated data binds a frame to everything around it: the segment's header (backup, disk, number, salt), the frame's
number, method, length, extents, and whether it is the last. Source: FORMAT.md, "Frames".
"""

import hashlib
import struct
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from engine.errors import FrameCorrupt
from engine.extents import FRAME_BYTES_MAX, Extent
from engine.format.compress import LEVEL_DEFAULT, Compressor, DecompressFailed, Decompressor, ZstdCompressor
from engine.format.crypto import SEAL_BYTES, Aead, OpenFailed, nonce_of
from engine.format.index import RAW, ZSTD, FrameEntry, Method, Row, pack_extents
from engine.format.layout import Segment
from engine.format.placement import PlacedFrame
from engine.storage.base import Buffer

STORED_BYTES_MAX = FRAME_BYTES_MAX + SEAL_BYTES
_CONTEXT = struct.Struct("<IBBI")


@dataclass(frozen=True, slots=True)
class Packed:
    """A frame after compression; `data` is the plaintext itself where compression did not make it shorter."""

    method: Method
    data: Buffer
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class SealedFrame:
    """What is stored. How long `stored` stays valid is said by `FrameSealer.seal`."""

    placed: PlacedFrame
    method: Method
    stored: memoryview
    digest: bytes


def pack_into(compressor: ZstdCompressor, plain: memoryview, target: memoryview) -> Packed:
    """Return the frame's plaintext compressed into `target`, which is another buffer of its length at least, or as it is."""
    count = compressor.compress_into(plain, target[: len(plain) - 1])
    return Packed(ZSTD, target[:count], len(plain)) if count else Packed(RAW, plain, len(plain))


class FrameSealer:
    """Makes stored bytes of frames. One thread at a time; the interpreter lock is free during the work.

    Memory: while a frame is in work its compressed bytes, and without a `target` one output buffer, grown to the largest
    sealed frame (at most 4 MiB). `level` 0 stores frames as they are.
    """

    def __init__(self, level: int = LEVEL_DEFAULT, compressor: Compressor | None = None) -> None:
        self._compressor = compressor or (ZstdCompressor(level) if level else None)
        self._buffer = bytearray()
        self._lent = memoryview(b"")

    def compress(self, plain: memoryview) -> Packed:
        """Return the frame's plaintext compressed, or as it is. The costly step: callers limit how many run at once (P7)."""
        if self._compressor is not None:
            data = self._compressor.compress(plain)
            if len(data) < len(plain):
                return Packed(ZSTD, data, len(plain))
        return Packed(RAW, plain, len(plain))

    def seal(
        self, segment: Segment, placed: PlacedFrame, packed: Packed, target: memoryview | None = None
    ) -> SealedFrame:
        """Return the stored bytes of a frame of `segment`, with their SHA-256.

        With a `target` (STORED_BYTES_MAX bytes, used as far as needed) the result stays valid until the target is used
        again, and refers to nothing else; it may be the plaintext's buffer, if `packed` is not. Without one it is valid until that buffer changes or `seal` is
        called again, which releases the view: who still uses it gets an exception, not another frame's bytes. Raises
        RuntimeError if the frame's number was sealed before, ValueError if the plan has another length or segment.
        """
        if packed.plain_bytes != placed.plan.length or placed.segment != segment.identity.number:
            raise ValueError(f"{packed.plain_bytes} bytes for {placed}")
        self._lent.release()
        segment.claim(placed.number)
        if segment.frames_key is not None:
            context = frame_context(
                segment.header, placed.number, packed.method, packed.plain_bytes, placed.plan.extents, last=placed.last
            )
            stored = self._room(len(packed.data) + SEAL_BYTES, target)
            segment.frames_key.seal_into(nonce_of(placed.number), packed.data, context, stored)
        elif packed.method == RAW and target is not None:
            stored = self._room(packed.plain_bytes, target)
            stored[:] = packed.data
        else:
            stored = memoryview(packed.data)[:]
        return SealedFrame(placed, packed.method, stored, hashlib.sha256(stored).digest())

    def _room(self, length: int, target: memoryview | None) -> memoryview:
        if target is not None:
            return target[:length]
        if len(self._buffer) < length:
            self._buffer = bytearray()  # let go of the old one before the new one is taken
            self._buffer = bytearray(length)
        self._lent = memoryview(self._buffer)[:length]
        return self._lent


class FrameOpener:
    """Makes plaintext of stored frames. One thread at a time; the interpreter lock is free during the work.

    Without `digests` the SHA-256 of an encrypted frame is not compared: its tag proves more, and a restore is not a check of
    the table. Of a plain frame it always is.
    """

    def __init__(self, *, digests: bool = True) -> None:
        self._digests = digests
        self._decompressor = Decompressor()
        # Mapped, for they begin at a page: what lies in them can be written past the page cache.
        self._stored = mmap(-1, STORED_BYTES_MAX, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._box = mmap(-1, FRAME_BYTES_MAX, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._plain = mmap(-1, FRAME_BYTES_MAX, flags=MAP_PRIVATE | MAP_ANONYMOUS)

    def room(self, entry: Row | FrameEntry, name: str) -> memoryview:
        """Return memory for a frame as it is stored, valid until the next call; `open` takes it. Raises FrameCorrupt."""
        if not 0 <= entry.stored_bytes <= STORED_BYTES_MAX:
            raise FrameCorrupt(name=name, frame=entry.number, detail=f"{entry.stored_bytes} bytes are no frame's")
        return memoryview(self._stored)[: entry.stored_bytes]

    def open(self, stored: Buffer, entry: FrameEntry, header: bytes, key: Aead | None, name: str) -> memoryview:
        """Return a frame's plaintext, valid until the next call. `header` is the segment's, `key` its frames key.

        The SHA-256 is checked first, then the box, then the decompressed length. Raises FrameCorrupt for every deviation.
        """
        if self._digests or key is None:
            check_digest(stored, entry, name)
        elif len(stored) != entry.stored_bytes:
            detail = f"has {len(stored)} stored bytes of {entry.stored_bytes}"
            raise FrameCorrupt(name=name, frame=entry.number, detail=detail)
        packed: Buffer = stored
        if key is not None:
            packed = memoryview(self._box)[: self._checked(len(stored) - SEAL_BYTES, entry, name)]
            context = frame_context(
                header, entry.number, entry.method, entry.plain_bytes, entry.extents, last=entry.last
            )
            try:
                key.open_into(nonce_of(entry.number), stored, context, packed)
            except OpenFailed as error:
                raise FrameCorrupt(name=name, frame=entry.number, detail="is not authentic") from error
        if entry.method == ZSTD:
            plain = memoryview(self._plain)[: self._checked(entry.plain_bytes, entry, name)]
            try:
                self._decompressor.decompress_into(
                    packed if isinstance(packed, memoryview) and not packed.readonly else bytes(packed), plain
                )
            except DecompressFailed as error:
                raise FrameCorrupt(name=name, frame=entry.number, detail=str(error)) from error
            packed = plain
        if len(packed) != entry.plain_bytes:
            raise FrameCorrupt(name=name, frame=entry.number, detail=f"has {len(packed)} bytes of {entry.plain_bytes}")
        return memoryview(packed)

    def _checked(self, length: int, entry: FrameEntry, name: str) -> int:
        if not 0 <= length <= FRAME_BYTES_MAX:
            raise FrameCorrupt(name=name, frame=entry.number, detail=f"{length} bytes are no frame's")
        return length


def check_digest(stored: Buffer, row: Row | FrameEntry, name: str) -> None:
    """Raise FrameCorrupt unless `stored` has the length and SHA-256 of the table. Needs no key."""
    if len(stored) != row.stored_bytes:
        raise FrameCorrupt(name=name, frame=row.number, detail=f"has {len(stored)} stored bytes of {row.stored_bytes}")
    if hashlib.sha256(stored).digest() != row.digest:
        raise FrameCorrupt(name=name, frame=row.number, detail="the SHA-256 does not fit")


def frame_context(
    header: bytes, number: int, method: Method, plain_bytes: int, extents: tuple[Extent, ...], *, last: bool
) -> bytes:
    """Return a frame's associated data. Source: FORMAT.md, "Frames"."""
    return header + _CONTEXT.pack(number, method, last, plain_bytes) + pack_extents(extents)
