"""One disk's way to the storage: extents → frames → segments, by several threads, in order.

    disk ──extents──► plan ──► place ──► (lock) ──► worker: read │ compress │ seal    (N workers, each its own connection)
                                                        └──────── in order ────────► segment writer ──► storage

`ordered.py` has the scheduling; here stands what one thread does with one frame, and what is written in turn.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan
from engine.failpoint import reached
from engine.format.crypto import SEAL_BYTES, ServerKey
from engine.format.frames import FrameSealer, Packed, SealedFrame
from engine.format.index import RAW
from engine.format.layout import Identity, Segment, SegmentRef
from engine.format.placement import SEGMENT_PLAIN_BYTES_MAX, Placed, PlacedFrame, PlacedZero, SegmentEnd, place
from engine.format.writer import SegmentWriter
from engine.limit import Limit
from engine.ordered import run_ordered
from engine.source.disk import Disk, Reader
from engine.source.throttled import ThrottledReader
from engine.storage.base import Storage
from engine.units import MIB
from engine.work import Work

PARKED_BYTES_MAX = 4 * MIB
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
    buffers = _Buffers(work.settings.compression_threads + 1)
    items = _segments(place(plan, segment_bytes_max, first=first), identity, disk.size_bytes, key)
    with _Output(storage, work, finished) as output, work.stop.waking(ended.set):
        run_ordered(
            items,
            lambda: _Worker(ThrottledReader(disk.connect(), work.read, ended), buffers, work, ended),
            output.consume,
            workers=work.workers,
            stop=ended,
            interrupts=(disk.interrupt, storage.interrupt),
            parked_bytes_max=PARKED_BYTES_MAX,
            weigh=lambda result: len(result.sealed.stored) if result.sealed else 0,
        )
    return tuple(output.segments)


@dataclass(frozen=True, slots=True)
class _Item:
    segment: Segment
    placed: Placed


@dataclass(frozen=True, slots=True)
class _Result:
    segment: Segment
    placed: Placed
    sealed: SealedFrame | None


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


class _Buffers:
    """Plaintext buffers of one frame each, lent to workers: as many as are compressed at an instant, and one that is read ahead.

    Memory follows the compression threads, not the workers: with one per worker four of them took 48 MiB, and were no faster.
    """

    def __init__(self, count: int) -> None:
        self._limit = Limit(count)
        self._free: list[bytearray] = []

    @contextlib.contextmanager
    def lend(self, length: int, stop: threading.Event) -> Iterator[memoryview]:
        """Lend a buffer of `length` bytes for the block; raises Cancelled if `stop` is set while waiting for one."""
        with self._limit.inside(stop):
            try:
                buffer = self._free.pop()
            except IndexError:
                buffer = bytearray()
            if len(buffer) < length:
                buffer = bytearray(min(FRAME_BYTES_MAX, max(length, 2 * len(buffer))))
            try:
                yield memoryview(buffer)[:length]
            finally:
                self._free.append(buffer)


class _Worker:
    """One thread's connection and compressor."""

    def __init__(self, reader: Reader, buffers: _Buffers, work: Work, ended: threading.Event) -> None:
        self._reader = reader
        self._buffers = buffers
        self._work = work
        self._ended = ended
        self._sealer = FrameSealer(work.settings.compression_level)

    def process(self, item: _Item) -> _Result:
        if not isinstance(item.placed, PlacedFrame):
            return _Result(item.segment, item.placed, None)
        plan = item.placed.plan
        with self._buffers.lend(plan.length, self._ended) as plain:
            self._reader.read_into(plan.extents, plain)
            with self._work.compressing.inside(self._ended):
                packed = self._sealer.compress(plain)
            if packed.method == RAW:  # then `packed` is the lent buffer
                return self._seal(item, item.placed, packed)
        return self._seal(item, item.placed, packed)

    def _seal(self, item: _Item, placed: PlacedFrame, packed: Packed) -> _Result:
        # A buffer of its own, of just the size needed: the result may wait for its turn while the next frame is read.
        target = memoryview(bytearray(len(packed.data) + SEAL_BYTES))
        return _Result(item.segment, placed, self._sealer.seal(item.segment, placed, packed, target))

    def close(self) -> None:
        self._reader.close()


class _Output:
    """Writes results in their order: one segment after the other, each an object that appears when it is whole."""

    def __init__(self, storage: Storage, work: Work, finished: Finished) -> None:
        self.segments: list[SegmentRef] = []
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
        elif isinstance(placed, PlacedZero):
            self._writer.append_zero(placed.extent)
            done = placed.extent.length
        self._report(done, self._writer.stored_bytes)
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
