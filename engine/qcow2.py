"""A new qcow2 image as a restore's target, written without a server between: as fast as a raw file.

    | header, tables of qemu-img create | cluster, cluster, L2 table, cluster, … in the order in which they come | refcount blocks |

qemu-img makes the empty image, so its version and features are what this host's QEMU makes. What is added is the simple part of
the format: each cluster of the disk that data touches gets the next cluster of the file, its L2 table and L1 entry point to it, and in the
end every cluster of the file has a reference count of one. Anything unusual in the header is left to qemu-nbd.
Source: docs/interop/qcow2.txt of QEMU.
"""

import os
import struct
import threading
from array import array
from pathlib import Path

from engine.errors import TargetError
from engine.extents import Extent
from engine.image_file import ImageFile, failure
from engine.units import KIB, MIB
from engine.writeback import begin_writeback

CLUSTER_BYTES = 64 * KIB
L2_ENTRIES = CLUSTER_BYTES // 8
REFCOUNTS = CLUSTER_BYTES // 2  # of one block, 16 bits each
# The file grows by so much at a time, and is cut to what it needs in the end: a direct write that makes a file longer lets no
# other one begin.
GROWTH_BYTES = 256 * MIB
_COPIED = 1 << 63
# Magic, version, backing file (offset, length), cluster bits, size, encryption, L1 entries and offset, refcount table (offset,
# clusters), snapshots and their offset, features (incompatible, compatible, autoclear), refcount order.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQI")
_ENTRY = struct.Struct(">Q")


class Qcow2Target:
    """An image that `create_image` made and nobody else has open. Its writers may be used by several threads at once."""

    blank = True

    def __init__(self, path: Path) -> None:
        """Open the empty image at `path`. Raises Unusual if qemu-nbd has to write it, TargetError if it cannot be opened."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise failure(path, error) from error
        self.path = path
        self._file = ImageFile(path, self._descriptor)
        self._lock = threading.Lock()
        self._l2: dict[int, int] = {}  # offsets of L2 tables, by their number
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def connect(self) -> "Qcow2Target":
        return self

    def write_from(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        done = 0
        for extent in extents:
            for place, length in self._places(extent):
                if self._file.write(place, buffer[done : done + length]):
                    begin_writeback(self._descriptor, place, place + length)
                done += length

    def write_zeroes(self, start: int, length: int) -> None:
        """Nothing has to be done: what has no cluster reads as zeros, and no byte is written twice."""

    def flush(self) -> None:
        with self._lock:
            try:
                self._write_refcounts()
            except OSError as error:
                raise failure(self.path, error) from error
        self._file.flush()

    def close(self) -> None:
        """Writers share the file: it is closed by `finish`."""

    def interrupt(self) -> None:
        """Nothing ends a write to a file of this host."""

    def finish(self) -> None:
        self._file.close()

    # ---- the header --------------------------------------------------------------------------------------------------

    def _read_header(self) -> None:
        data = os.pread(self._descriptor, _HEADER.size, 0)
        if len(data) < _HEADER.size:
            raise Unusual
        (
            magic,
            version,
            backing,
            _,
            bits,
            size,
            crypt,
            l1_entries,
            l1,
            table,
            clusters,
            snapshots,
            _,
            *features,
            order,
        ) = _HEADER.unpack(data)
        if (magic, version, bits, order) != (b"QFI\xfb", 3, 16, 4) or backing or crypt or snapshots or features[0]:
            raise Unusual
        self.size_bytes: int = size
        self._l1_offset: int = l1
        self._table_offset: int = table
        self._end = _rounded_up(max(os.fstat(self._descriptor).st_size, l1 + l1_entries * 8))
        self._grown = self._end
        self._blocks = self._refcount_blocks(clusters * CLUSTER_BYTES // 8)
        if any(os.pread(self._descriptor, l1_entries * 8, l1)):
            raise Unusual

    def _refcount_blocks(self, entries: int) -> list[int]:
        """Return the offset of the one refcount block there is. Raises Unusual where the file is not as a new one is."""
        table = struct.unpack(f">{entries}Q", os.pread(self._descriptor, entries * 8, self._table_offset))
        used = self._end // CLUSTER_BYTES
        # All data, an L2 table for each 512 MiB of it, and the blocks.
        most = used + (self.size_bytes // CLUSTER_BYTES + 2) * 1001 // 1000
        if not table[0] or any(table[1:]) or used > REFCOUNTS or most > entries * REFCOUNTS:
            raise Unusual
        counts = struct.unpack(f">{used}H", os.pread(self._descriptor, used * 2, table[0]))
        if set(counts) != {1}:
            raise Unusual
        return [table[0]]

    # ---- clusters ----------------------------------------------------------------------------------------------------

    def _places(self, extent: Extent) -> list[tuple[int, int]]:
        """Return where the bytes of an extent go, as (place in the file, length); clusters they get here are in the tables then."""
        if extent.start < 0 or extent.end > self.size_bytes:
            raise TargetError(target=self.path, detail=f"bytes {extent.start} to {extent.end} are beyond its end")
        places: list[tuple[int, int]] = []
        start = extent.start
        with self._lock:
            while start < extent.end:
                # As far as one L2 table and one run of new clusters go: an edge may share its cluster with another extent.
                border = _next_multiple(start, CLUSTER_BYTES)
                whole = start % CLUSTER_BYTES == 0 and border <= extent.end
                if whole:
                    border = min(
                        extent.end // CLUSTER_BYTES * CLUSTER_BYTES, _next_multiple(start, CLUSTER_BYTES * L2_ENTRIES)
                    )
                end = min(border, extent.end)
                places.append((self._place(start, end, shared=not whole), end - start))
                start = end
        return places

    def _place(self, start: int, end: int, *, shared: bool) -> int:
        """Return the place of a run of whole clusters, or of a part of one (`shared`), with the lock held."""
        cluster = start // CLUSTER_BYTES
        entry_offset = self._l2_table(cluster // L2_ENTRIES) + cluster % L2_ENTRIES * 8
        try:
            if shared and (entry := _ENTRY.unpack(os.pread(self._descriptor, 8, entry_offset))[0]):
                return int(entry & ~_COPIED) + start % CLUSTER_BYTES
            count = 1 if shared else (end - start) // CLUSTER_BYTES
            place = self._take(count)
            entries = array("Q", range(place | _COPIED, (place | _COPIED) + count * CLUSTER_BYTES, CLUSTER_BYTES))
            entries.byteswap()
            self._write(entry_offset, entries.tobytes())
        except OSError as error:
            raise failure(self.path, error) from error
        return place + start % CLUSTER_BYTES

    def _l2_table(self, number: int) -> int:
        if number not in self._l2:
            try:
                place = self._take(1)
                self._write(self._l1_offset + number * 8, _ENTRY.pack(place | _COPIED))
            except OSError as error:
                raise failure(self.path, error) from error
            self._l2[number] = place
        return self._l2[number]

    def _take(self, clusters: int) -> int:
        """Return the offset of so many new clusters, side by side. Raises OSError."""
        place = self._end
        self._end += clusters * CLUSTER_BYTES
        if self._end > self._grown:
            self._grown = self._end + GROWTH_BYTES
            os.ftruncate(self._descriptor, self._grown)
        return place

    def _write_refcounts(self) -> None:
        """Count one reference for every cluster up to the end, those of the counts included. Raises OSError."""
        while len(self._blocks) * REFCOUNTS * CLUSTER_BYTES < self._end:
            self._write(self._table_offset + len(self._blocks) * 8, _ENTRY.pack(self._end))
            self._blocks.append(self._take(1))
        used = self._end // CLUSTER_BYTES
        for number, offset in enumerate(self._blocks):
            count = max(0, min(REFCOUNTS, used - number * REFCOUNTS))
            self._write(offset, b"\0\1" * count + bytes(2 * (REFCOUNTS - count)))
        os.ftruncate(self._descriptor, self._end)
        self._grown = self._end

    def _write(self, offset: int, data: bytes) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]


class Unusual(Exception):
    """The image is not what this file knows how to write. Callers take another way."""


def _rounded_up(offset: int) -> int:
    return -(-offset // CLUSTER_BYTES) * CLUSTER_BYTES


def _next_multiple(offset: int, unit: int) -> int:
    return (offset // unit + 1) * unit
