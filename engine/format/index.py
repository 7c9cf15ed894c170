"""The index of a segment: what each frame holds, where it lies, and what reads as zeros.

    table (clear)    per frame: stored length, SHA-256        verifiable without a key
    map (sealed)     per entry: a frame's method and extents, or a zero extent

Both are kept as the bytes they are on the storage, not as objects: a segment's index is at most INDEX_BYTES_MAX, whatever
the disk looks like, and entries are made one at a time while iterating. Source: FORMAT.md, "Table" and "Map".
"""

import hashlib
import heapq
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from engine.errors import SegmentCorrupt
from engine.extents import FRAME_BYTES_MAX, FRAME_EXTENTS_MAX, Extent
from engine.format.crypto import SEAL_BYTES
from engine.format.layout import HEADER_BYTES, SIZE_MAX
from engine.units import MIB

INDEX_BYTES_MAX = 8 * MIB  # table and plain map, as far as readers go; writers stay below (see placement.py)
RAW: Literal[1] = 1
ZSTD: Literal[2] = 2
Method: TypeAlias = Literal[1, 2]

_ZERO_KIND = 0
_ROW = struct.Struct("<I32s")
_ZERO = struct.Struct("<BQQ")
_FRAME = struct.Struct("<BH")
_COUNT = struct.Struct("<H")
_EXTENT = struct.Struct("<QI")
ROW_BYTES = _ROW.size
ZERO_BYTES = _ZERO.size


def frame_bytes(extents: int) -> int:
    """Return what a frame with so many extents takes in table and map."""
    return ROW_BYTES + _FRAME.size + extents * _EXTENT.size


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """Return the extents as they stand in a map entry and in a frame's associated data: count, then start and length each."""
    packed = [_EXTENT.pack(extent.start, extent.length) for extent in extents]
    return _COUNT.pack(len(packed)) + b"".join(packed)


@dataclass(frozen=True, slots=True)
class Row:
    """A frame as the table knows it, which needs no key: its bytes on the storage and their SHA-256."""

    number: int
    offset: int
    stored_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """A frame as table and map know it. `plain_bytes` is the sum of the extents' lengths."""

    number: int
    offset: int
    stored_bytes: int
    digest: bytes
    method: Method
    extents: tuple[Extent, ...]
    plain_bytes: int
    last: bool


class IndexBuilder:
    """Collects a segment's index in the order of its entries; one thread at a time."""

    def __init__(self) -> None:
        self.table = bytearray()
        self.map = bytearray()
        self.frames = 0
        self.entries = 0
        self.plain_bytes = 0
        self._digest = hashlib.sha256()
        self._data_end = 0
        self._zero_end = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 over the frames' SHA-256 values in order."""
        return self._digest.digest()

    def add_frame(self, method: Method, extents: tuple[Extent, ...], stored_bytes: int, digest: bytes) -> None:
        """Append a frame. Raises ValueError if it is out of order or the index would become too large."""
        if not 1 <= len(extents) <= FRAME_EXTENTS_MAX:
            raise ValueError(f"a frame of {len(extents)} extents")
        for extent in extents:
            if extent.zero or extent.length < 1 or extent.start < self._data_end:
                raise ValueError(f"{extent} does not follow byte {self._data_end}")
            self._data_end = extent.end
            self.plain_bytes += extent.length
        self.table += _ROW.pack(stored_bytes, digest)
        self.map.append(method)
        self.map += pack_extents(extents)
        self._digest.update(digest)
        self.frames += 1
        self._count()

    def add_zero(self, extent: Extent) -> None:
        """Append a zero extent. Raises ValueError like `add_frame`."""
        if not extent.zero or extent.length < 1 or extent.start < self._zero_end:
            raise ValueError(f"{extent} does not follow byte {self._zero_end}")
        self._zero_end = extent.end
        self.map += _ZERO.pack(_ZERO_KIND, extent.start, extent.length)
        self._count()

    def _count(self) -> None:
        self.entries += 1
        if len(self.table) + len(self.map) > INDEX_BYTES_MAX:
            raise ValueError("the index is full; placement should have begun another segment")


class Table:
    """The clear part of an index that was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def rows(self) -> Iterator[Row]:
        """Yield the frames in order; offsets are from the object's start."""
        offset = HEADER_BYTES
        for number, (stored_bytes, digest) in enumerate(_ROW.iter_unpack(self.data)):
            yield Row(number, offset, stored_bytes, digest)
            offset += stored_bytes

    def check(self, table_offset: int, digest: bytes, encrypted: bool, name: str) -> None:
        """Raise SegmentCorrupt unless the frames fill the object up to `table_offset` and their hashes give `digest`."""
        whole, end = hashlib.sha256(), HEADER_BYTES
        bytes_min, bytes_max = (1 + SEAL_BYTES, FRAME_BYTES_MAX + SEAL_BYTES) if encrypted else (1, FRAME_BYTES_MAX)
        for stored_bytes, frame_digest in _ROW.iter_unpack(self.data):
            if not bytes_min <= stored_bytes <= bytes_max:
                raise SegmentCorrupt(name=name, detail=f"a frame of {stored_bytes} stored bytes")
            end += stored_bytes
            whole.update(frame_digest)
        if end != table_offset or whole.digest() != digest:
            raise SegmentCorrupt(name=name, detail="the frame table does not fit the footer")


class Map:
    """The sealed part of an index that was read and opened. Iterate only after `check`."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def entries(self, table: Table, encrypted: bool, name: str) -> Iterator[FrameEntry | Extent]:
        """Yield frames and zero extents in the order of the map. Raises SegmentCorrupt where table and map disagree."""
        rows, frames = table.rows(), len(table.data) // ROW_BYTES
        for kind, position, end in _walk(self.data):
            if kind == _ZERO_KIND:
                _, start, length = _ZERO.unpack_from(self.data, position)
                yield Extent(start, length, zero=True)
                continue
            first = position + _FRAME.size
            extents = tuple(Extent(start, length) for start, length in _EXTENT.iter_unpack(self.data[first:end]))
            row, plain_bytes = next(rows), sum(extent.length for extent in extents)
            method = RAW if kind == RAW else ZSTD
            _check_length(row, method, plain_bytes, encrypted, name)
            yield FrameEntry(
                row.number,
                row.offset,
                row.stored_bytes,
                row.digest,
                method,
                extents,
                plain_bytes,
                row.number == frames - 1,
            )

    def check(self, frames: int, entries: int, plain_bytes: int, size_bytes: int, name: str) -> None:
        """Raise SegmentCorrupt unless the map keeps every rule of FORMAT.md, "Map", and has these sums."""
        try:
            found = self._sums()
            problem = "" if found == (frames, entries, plain_bytes) else "the map does not fit the footer"
            end = 0
            for start, length in heapq.merge(_frame_extents(self.data), _zero_extents(self.data)):
                if start < end or length < 1 or length > SIZE_MAX:
                    problem = f"extent {start}+{length} overlaps or is out of order"
                end = start + length
            if end > size_bytes:
                problem = f"an extent ends at {end}, the disk at {size_bytes}"
        except (struct.error, _Malformed) as error:
            raise SegmentCorrupt(name=name, detail="the map is malformed") from error
        if problem:
            raise SegmentCorrupt(name=name, detail=problem)

    def _sums(self) -> tuple[int, int, int]:
        frames = entries = total = 0
        for kind, position, end in _walk(self.data):
            entries += 1
            if kind == _ZERO_KIND:
                continue
            count, length = 0, 0
            for _, extent_length in _EXTENT.iter_unpack(self.data[position + _FRAME.size : end]):
                count += 1
                length += extent_length
            if not 1 <= count <= FRAME_EXTENTS_MAX or length > FRAME_BYTES_MAX:
                raise _Malformed
            frames += 1
            total += length
        return frames, entries, total


class _Malformed(Exception):
    pass


def _walk(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, first byte, byte after the last) of each entry."""
    position = 0
    while position < len(data):
        kind = data[position]
        if kind == _ZERO_KIND:
            end = position + _ZERO.size
        elif kind in {RAW, ZSTD}:
            end = position + _FRAME.size + _FRAME.unpack_from(data, position)[1] * _EXTENT.size
        else:
            raise _Malformed
        if end > len(data):
            raise _Malformed
        yield kind, position, end
        position = end


def _frame_extents(data: bytes) -> Iterator[tuple[int, int]]:
    for kind, position, end in _walk(data):
        if kind != _ZERO_KIND:
            yield from _EXTENT.iter_unpack(data[position + _FRAME.size : end])


def _zero_extents(data: bytes) -> Iterator[tuple[int, int]]:
    for kind, position, _ in _walk(data):
        if kind == _ZERO_KIND:
            _, start, length = _ZERO.unpack_from(data, position)
            yield start, length


def _check_length(row: Row, method: Method, plain_bytes: int, encrypted: bool, name: str) -> None:
    packed_bytes = row.stored_bytes - (SEAL_BYTES if encrypted else 0)
    if not (packed_bytes == plain_bytes if method == RAW else 0 < packed_bytes < plain_bytes):
        raise SegmentCorrupt(name=name, detail=f"frame {row.number} has {row.stored_bytes} bytes for {plain_bytes}")
