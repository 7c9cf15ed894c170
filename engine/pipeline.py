"""One disk's way to the storage: extents → frames → segments, by several threads, in order.

    disk ──extents──► plan ──► place ──► (taken) ──► worker: read │ compress │ seal    (N workers, each its own connection)
                                                        └──────── in order ─────────► segment writer ──► storage

`ordered.py` has the scheduling; here stands what one thread does with one frame, and what is written in turn. A frame has one
buffer all its way: it is read into it, and sealed into it again; in between its compressed bytes are one more block, of which
there are as many as compression threads.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from engine.buffers import Buffers, capacity_of
from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan
from engine.failpoint import reached
from engine.format.compress import ZstdCompressor
from engine.format.crypto import SEAL_BYTES, ServerKey
from engine.format.frames import FrameSealer, Packed, SealedFrame
from engine.format.index import RAW
from engine.format.layout import Identity, Segment, SegmentRef
from engine.format.placement import SEGMENT_PLAIN_BYTES_MAX, Placed, PlacedFrame, PlacedZero, SegmentEnd, place
from engine.format.writer import SegmentWriter
from engine.ordered import run_ordered
from engine.source.disk import Disk, Reader
from engine.source.throttled import ThrottledReader
from engine.storage.base import Buffer, Storage
from engine.work import Work

# Frames in memory beside those that are being compressed: one that is read ahead, one that is sealed or written.
FRAMES_BESIDE = 2
Finished: TypeAlias = Callable[[SegmentRef, bool], None]


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Which disk of which backup is written."""

    server_id: str
    backup_id: str
    disk: str


def store(
    disk: Disk,
    plan: Iterator[FramePlan | Extent],
    storage: Storage,
    identity: DiskIdentity,
    key: ServerKey | None,
    work: Work,
    segment_bytes_max: int = SEGMENT_PLAIN_BYTES_MAX,
    first: int = 0,
    finished: Finished = lambda _segment, _last: None,
) -> tuple[SegmentRef, ...]:
    """Read what `plan` names from `disk`, write it to `storage` as segments, and return them. Blocks until all is written.

    They are numbered from `first` on; `finished` is told of each when it is on the storage, and whether it is the last.

    Nothing stays under a final name of a segment that was not finished; finished segments stay, the caller sweeps. Raises
    what disk and storage raise, and Cancelled. After a failure both may have been interrupted: open them anew.
    """
    ended = threading.Event()
    held_bytes_max = (work.settings.compression_threads + FRAMES_BESIDE) * FRAME_BYTES_MAX
    shared = _Shared(
        work, ended, Buffers(held_bytes_max + FRAME_BYTES_MAX, SEAL_BYTES)
    )  # one more: see _Worker._seal_raw
    items = _segments(place(plan, segment_bytes_max, first=first), identity, disk.size_bytes, key)
    with _Output(storage, work, shared.buffers, finished) as output, work.stop.waking(ended.set):
        run_ordered(
            items,
            lambda: _Worker(ThrottledReader(disk.connect(), work.read, work.workers, ended), shared),
            output.consume,
            workers=work.workers,
            stop=ended,
            interrupts=(disk.interrupt, storage.interrupt),
            weigh=_weigh,
            held_bytes_max=held_bytes_max,
        )
    return tuple(output.segments)


@dataclass(frozen=True, slots=True)
class _Item:
    segment: Segment
    placed: Placed


def _weigh(item: _Item) -> int:
    return capacity_of(item.placed.plan.length) if isinstance(item.placed, PlacedFrame) else 0


@dataclass(frozen=True, slots=True)
class _Result:
    """`buffer`, if any, holds what is stored: it is given back when that is written."""

    segment: Segment
    placed: Placed
    sealed: SealedFrame | None = None
    buffer: bytearray | None = None


def _segments(
    placed_items: Iterator[Placed], identity: DiskIdentity, size_bytes: int, key: ServerKey | None
) -> Iterator[_Item]:
    """Give every item its segment, begun with a fresh salt when the first item of it comes by."""
    segment: Segment | None = None
    for placed in placed_items:
        if segment is None or segment.identity.number != placed.segment:
            one = Identity(identity.server_id, identity.backup_id, identity.disk, placed.segment, size_bytes)
            segment = Segment.begin(one, key)
        yield _Item(segment, placed)


class _Shared:
    """What the workers of one disk share: buffers, and as many compressors as frames may be compressed at an instant."""

    def __init__(self, work: Work, ended: threading.Event, buffers: Buffers) -> None:
        self.buffers = buffers
        self.level = work.settings.compression_level
        self.raw_turn = threading.Lock()
        self._limit = work.compressing
        self._ended = ended
        self._idle: list[ZstdCompressor] = []

    def compress(self, data: Buffer) -> bytes:
        """Return `data` compressed, when it is this thread's turn (P7). Raises Cancelled."""
        with self._limit.inside(self._ended):
            try:
                compressor = self._idle.pop()
            except IndexError:
                compressor = ZstdCompressor(self.level)
            try:
                return compressor.compress(data)
            finally:
                self._idle.append(compressor)


class _Worker:
    """One thread's connection."""

    def __init__(self, reader: Reader, shared: _Shared) -> None:
        self._reader = reader
        self._shared = shared
        self._buffers = shared.buffers
        self._sealer = FrameSealer(shared.level, compressor=shared if shared.level else None)

    def process(self, item: _Item) -> _Result:
        placed = item.placed
        if not isinstance(placed, PlacedFrame):
            return _Result(item.segment, placed)
        # After an exception the buffer is just let go: the run is over.
        buffer = self._buffers.take(placed.plan.length)
        plain = memoryview(buffer)[: placed.plan.length]
        self._reader.read_into(placed.plan.extents, plain)
        packed = self._sealer.compress(plain)
        if not item.segment.encrypted:
            sealed = self._sealer.seal(item.segment, placed, packed)
            if packed.method == RAW:  # then what is stored is the buffer itself
                return _Result(item.segment, placed, sealed, buffer)
            self._buffers.give_back(buffer)
            return _Result(item.segment, placed, sealed)
        if packed.method == RAW:
            return self._seal_raw(item.segment, placed, packed, buffer)
        sealed = self._sealer.seal(item.segment, placed, packed, memoryview(buffer))
        return _Result(item.segment, placed, sealed, buffer)

    def _seal_raw(self, segment: Segment, placed: PlacedFrame, packed: Packed, buffer: bytearray) -> _Result:
        """Seal into another buffer, since a box must not overlap what it is made of: the one there is for it, each in turn."""
        with self._shared.raw_turn:
            target = self._buffers.take(packed.plain_bytes)
            sealed = self._sealer.seal(segment, placed, packed, memoryview(target))
            self._buffers.give_back(buffer)
        return _Result(segment, placed, sealed, target)

    def close(self) -> None:
        self._reader.close()


class _Output:
    """Writes results in their order: one segment after the other, each an object that appears when it is whole."""

    def __init__(self, storage: Storage, work: Work, buffers: Buffers, finished: Finished) -> None:
        self.segments: list[SegmentRef] = []
        self._buffers = buffers
        self._storage = storage
        self._work = work
        self._finished = finished
        self._open = contextlib.ExitStack()
        self._writer: SegmentWriter | None = None
        self._reported = 0

    def consume(self, result: _Result) -> None:
        if self._writer is None:
            sink = self._open.enter_context(self._storage.create(result.segment.identity.name))
            self._writer = SegmentWriter(sink, result.segment)
            self._reported = 0
        placed = result.placed
        done = 0
        if result.sealed is not None:
            self._writer.append(result.sealed)
            done = result.sealed.placed.plan.length
            if result.buffer is not None:
                self._buffers.give_back(result.buffer)
        elif isinstance(placed, PlacedZero):
            self._writer.append_zero(placed.extent)
            done = placed.extent.length
        self._report(done, self._writer.stored_bytes)
        reached("frame")
        if isinstance(placed, SegmentEnd):
            self.segments.append(self._writer.finish(last=placed.last))
            self._report(0, self.segments[-1].stored_bytes)
            self._writer = None
            self._open.close()
            self._finished(self.segments[-1], placed.last)
            reached("segment")

    def _report(self, done: int, stored_bytes: int) -> None:
        self._work.report.advance(done, stored_bytes - self._reported)
        self._reported = stored_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
