"""A disk's layers put together again: every byte is fetched once, checked, and written once.

    layers, newest first ── index ──► frames with pieces that nothing newer covers ──► workers: fetch │ open │ write
                                └───► zero extents, likewise

Each byte is checked by one thing alone: the AEAD tag where there is one, the SHA-256 where not. `check_layers` reads every header, footer and index before anything is overwritten; frames are checked as they come.
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
from engine.format import crypto, names
from engine.format.crypto import ServerKey
from engine.format.frames import FrameOpener
from engine.format.index import FrameEntry
from engine.format.layout import SegmentRef
from engine.format.manifest import DiskManifest
from engine.format.reader import SegmentReader
from engine.memory import give_back_libraries, keep_read_blocks
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
    keep_read_blocks()
    try:
        source = storage.open(name)
    except ObjectNotFound as error:
        raise ChainBroken(backup_id=manifest.backup_id, disk=manifest.disk, missing=name) from error
    try:
        yield SegmentReader(source, name, segment, key)
    finally:
        source.close()


def check_layers(storage: Storage, manifest: DiskManifest, key: ServerKey | None, work: Work) -> None:
    """Read header, footer and index of every segment that the disk needs, so that a restore will not stop half-way for them.

    Side by side: a chain of many small backups costs round trips, not bytes.
    """
    wanted = ((layer.backup_id, segment) for layer in manifest.layers for segment in layer.segments)
    ended = threading.Event()
    with work.stop.waking(ended.set):
        run_ordered(
            wanted, lambda: _Checker(storage, manifest, key), lambda _: None,
            workers=work.workers, stop=ended, interrupts=(storage.interrupt,),
        )  # fmt: skip


class _Checker:
    def __init__(self, storage: Storage, manifest: DiskManifest, key: ServerKey | None) -> None:
        self._storage, self._manifest, self._key = storage, manifest, key

    def process(self, wanted: tuple[str, SegmentRef]) -> None:
        with open_segment(self._storage, self._manifest, *wanted, self._key):
            pass

    def close(self) -> None:
        """Nothing to release."""


def rebuild(storage: Storage, manifest: DiskManifest, key: ServerKey | None, target: Target, work: Work) -> int:
    """Write the disk to `target` and flush it; return the bytes of data written.

    What lies beyond the manifest's size on a larger target becomes zeros. Raises what storage and target raise,
    FrameCorrupt, SegmentCorrupt and Cancelled; the target is then neither what it was nor what it should be.
    """
    if key is not None:
        crypto.load()
    give_back_libraries()
    layers = _Layers(storage, manifest, key, target, work)
    ended = threading.Event()
    with contextlib.closing(layers), work.stop.waking(ended.set):
        run_ordered(
            layers.items(), lambda: _Worker(target.connect()), layers.count,
            workers=work.workers, stop=ended, interrupts=(storage.interrupt, target.interrupt),
        )  # fmt: skip
    layers.check_complete()
    with work.stop.waking(target.interrupt), contextlib.closing(target.connect()) as writer:
        if target.size_bytes > manifest.size_bytes and not target.blank:
            writer.write_zeroes(manifest.size_bytes, target.size_bytes - manifest.size_bytes)
        writer.flush()
    return layers.written_bytes


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
    """A frame of one segment and what of it is to be written: (offset in the plaintext, extent); or, without a frame, zeros.

    `position` counts the segments in the order in which they are read.
    """

    position: int
    reader: SegmentReader
    entry: FrameEntry | None
    pieces: tuple[tuple[int, Extent], ...]


class _Layers:
    """All that is to be written, newest layer first, as one run: no thread waits for another layer's last frame.

    `items` and `count` are called by one thread at a time each, by changing threads. A segment is open from its first item
    until an item of a later one was counted.
    """

    def __init__(
        self, storage: Storage, manifest: DiskManifest, key: ServerKey | None, target: Target, work: Work
    ) -> None:
        self._storage = storage
        self._manifest = manifest
        self._key = key
        self._target = target
        self._work = work
        self._covered = Coverage()
        self._lock = threading.Lock()
        self._open: dict[int, contextlib.ExitStack] = {}  # by position
        self.written_bytes = 0

    def items(self) -> Iterator[_Item]:
        position = 0
        for layer in reversed(self._manifest.layers):
            for segment in layer.segments:
                # Segment by segment: data and zeros that lie side by side become one piece, and a full costs no memory.
                data, zeros = _Pieces(), _Pieces()
                yield from self._of_segment(layer.backup_id, segment, position, data, zeros)
                position += 1
                self._covered.add(data)
                self._covered.add(zeros)

    def _of_segment(
        self, backup_id: str, segment: SegmentRef, position: int, data: _Pieces, zeros: _Pieces
    ) -> Iterator[_Item]:
        stack = contextlib.ExitStack()
        with self._lock:
            self._open[position] = stack
        reader = stack.enter_context(open_segment(self._storage, self._manifest, backup_id, segment, self._key))
        used = False
        for entry in reader.entries():
            if isinstance(entry, FrameEntry):
                for extent in entry.extents:
                    data.append(extent)
                yield _Item(position, reader, entry, tuple(self._wanted(entry)))
                used = True
                continue
            zeros.append(entry)
            if not self._target.blank:
                gaps = self._covered.gaps(entry.start, entry.end)
                pieces = tuple((0, Extent(start, end - start, zero=True)) for start, end in gaps)
                yield _Item(position, reader, None, pieces)
                used = True
        if not used:  # there is no item whose turn would close it
            with self._lock:
                self._open.pop(position, stack).close()

    def _wanted(self, entry: FrameEntry) -> Iterator[tuple[int, Extent]]:
        offset = 0
        for extent in entry.extents:
            for start, end in self._covered.gaps(extent.start, extent.end):
                yield offset + start - extent.start, Extent(start, end - start)
            offset += extent.length

    def count(self, item: _Item) -> None:
        """Note that an item is written, and close the segments before its own."""
        self._close(item.position)
        if item.entry is not None:
            self.written_bytes += sum(extent.length for _, extent in item.pieces)
            self._work.report.advance(item.entry.plain_bytes)
            reached("half_written")

    def check_complete(self) -> None:
        """Raise SegmentCorrupt unless the layers said something of every byte of the disk."""
        missing = next(self._covered.gaps(0, self._manifest.size_bytes), None)
        if missing is not None:
            detail = f"no layer holds bytes {missing[0]} to {missing[1]}"
            raise SegmentCorrupt(name=self._manifest.name, detail=detail)

    def close(self) -> None:
        """Close what is still open, after the last thread has ended."""
        self._close(None)

    def _close(self, before: int | None) -> None:
        with self._lock:
            done = [position for position in self._open if before is None or position < before]
            stacks = [self._open.pop(position) for position in done]
        for stack in stacks:
            stack.close()


class _Worker:
    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._opener = FrameOpener(digests=False)

    def process(self, item: _Item) -> _Item:
        if item.entry is None:
            for _, extent in item.pieces:
                self._writer.write_zeroes(extent.start, extent.length)
        elif item.pieces:
            plain = item.reader.read(item.entry, self._opener)
            if len(plain) == sum(extent.length for _, extent in item.pieces):
                self._writer.write_from(tuple(extent for _, extent in item.pieces), plain)
            else:
                for offset, extent in item.pieces:
                    self._writer.write_from((extent,), plain[offset : offset + extent.length])
        return item

    def close(self) -> None:
        self._writer.close()
