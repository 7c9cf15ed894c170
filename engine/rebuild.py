"""A disk's layers put together again: every byte is fetched once, checked, and written once.

    layers, newest first ── index ──► frames with pieces that nothing newer covers ──► workers: fetch │ open │ write
                                └───► zero extents, likewise

`check_layers` reads every header, footer and index before anything is overwritten; frames are checked as they come.
"""

import contextlib
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from engine.coverage import Coverage
from engine.errors import ChainBroken, ObjectNotFound, SegmentCorrupt
from engine.extents import Extent
from engine.failpoint import reached
from engine.format import names
from engine.format.crypto import ServerKey
from engine.format.frames import FrameOpener
from engine.format.index import FrameEntry
from engine.format.layout import SegmentRef
from engine.format.manifest import DiskManifest
from engine.format.reader import SegmentReader
from engine.ordered import run_ordered
from engine.storage.base import Storage
from engine.target import Target, Writer
from engine.work import Work


@contextlib.contextmanager
def open_segment(
    storage: Storage, manifest: DiskManifest, backup_id: str, segment: SegmentRef, key: ServerKey | None
) -> Iterator[SegmentReader]:
    """Open one segment that `manifest` needs, checked against it. Raises ChainBroken if it is not there, SegmentCorrupt."""
    name = names.segment_name(manifest.server_id, backup_id, manifest.disk, segment.number)
    try:
        source = storage.open(name)
    except ObjectNotFound as error:
        raise ChainBroken(backup_id=manifest.backup_id, disk=manifest.disk, missing=name) from error
    try:
        yield SegmentReader(source, name, segment, key)
    finally:
        source.close()


def check_layers(storage: Storage, manifest: DiskManifest, key: ServerKey | None, work: Work) -> None:
    """Read header, footer and index of every segment that the disk needs, so that a restore will not stop half-way for them."""
    for layer in manifest.layers:
        for segment in layer.segments:
            work.stop.check()
            with open_segment(storage, manifest, layer.backup_id, segment, key):
                pass


def rebuild(storage: Storage, manifest: DiskManifest, key: ServerKey | None, target: Target, work: Work) -> int:
    """Write the disk to `target` and flush it; return the bytes of data written.

    What lies beyond the manifest's size on a larger target becomes zeros. Raises what storage and target raise,
    FrameCorrupt, SegmentCorrupt and Cancelled; the target is then neither what it was nor what it should be.
    """
    covered = Coverage()
    written = 0
    for layer in reversed(manifest.layers):
        data, zeros = _Pieces(), _Pieces()
        for segment in layer.segments:
            with open_segment(storage, manifest, layer.backup_id, segment, key) as reader:
                written += _Segment(reader, covered, data, zeros, target, work).run(storage)
        covered.add(data)
        covered.add(zeros)
    missing = next(covered.gaps(0, manifest.size_bytes), None)
    if missing is not None:
        raise SegmentCorrupt(name=manifest.name, detail=f"no layer holds bytes {missing[0]} to {missing[1]}")
    with work.stop.waking(target.interrupt), contextlib.closing(target.connect()) as writer:
        if target.size_bytes > manifest.size_bytes and not target.blank:
            writer.write_zeroes(manifest.size_bytes, target.size_bytes - manifest.size_bytes)
        writer.flush()
    return written


class _Pieces:
    """Disk ranges of one layer, in the order in which they came: ascending."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")

    def append(self, extent: Extent) -> None:
        if self._ends and self._ends[-1] == extent.start:
            self._ends[-1] = extent.end
            return
        self._starts.append(extent.start)
        self._ends.append(extent.end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))


@dataclass(frozen=True, slots=True)
class _Item:
    """A frame and what of it is to be written: (offset in the plaintext, extent); or, without a frame, zeros to write."""

    entry: FrameEntry | None
    pieces: tuple[tuple[int, Extent], ...]


class _Segment:
    """Writes what one segment has to say."""

    def __init__(
        self, reader: SegmentReader, covered: Coverage, data: _Pieces, zeros: _Pieces, target: Target, work: Work
    ) -> None:
        self._reader = reader
        self._covered = covered
        self._data = data
        self._zeros = zeros
        self._target = target
        self._work = work
        self._written = 0

    def run(self, storage: Storage) -> int:
        """Return the bytes of data that were written."""
        ended = threading.Event()
        with self._work.stop.waking(ended.set):
            run_ordered(
                self._items(),
                lambda: _Worker(self._reader, self._target.connect()),
                self._count,
                workers=self._work.workers,
                stop=ended,
                interrupts=(storage.interrupt, self._target.interrupt),
            )
        return self._written

    def _items(self) -> Iterator[_Item]:
        for entry in self._reader.entries():
            if isinstance(entry, FrameEntry):
                for extent in entry.extents:
                    self._data.append(extent)
                yield _Item(entry, tuple(self._wanted(entry)))
                continue
            self._zeros.append(entry)
            if not self._target.blank:
                gaps = self._covered.gaps(entry.start, entry.end)
                yield _Item(None, tuple((0, Extent(start, end - start, zero=True)) for start, end in gaps))

    def _wanted(self, entry: FrameEntry) -> Iterator[tuple[int, Extent]]:
        offset = 0
        for extent in entry.extents:
            for start, end in self._covered.gaps(extent.start, extent.end):
                yield offset + start - extent.start, Extent(start, end - start)
            offset += extent.length

    def _count(self, item: _Item) -> None:
        if item.entry is not None:
            self._written += sum(extent.length for _, extent in item.pieces)
            self._work.report.advance(item.entry.plain_bytes)
            reached("half_written")


class _Worker:
    def __init__(self, reader: SegmentReader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self._opener = FrameOpener()

    def process(self, item: _Item) -> _Item:
        if item.entry is None:
            for _, extent in item.pieces:
                self._writer.write_zeroes(extent.start, extent.length)
        elif item.pieces:
            plain = self._reader.read(item.entry, self._opener)
            if len(plain) == sum(extent.length for _, extent in item.pieces):
                self._writer.write_from(tuple(extent for _, extent in item.pieces), plain)
            else:
                for offset, extent in item.pieces:
                    self._writer.write_from((extent,), plain[offset : offset + extent.length])
        return item

    def close(self) -> None:
        self._writer.close()
