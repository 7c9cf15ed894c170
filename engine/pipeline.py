"""One disk's way to the storage: extents → frames → segments, by several threads, in order.

    disk ──extents──► plan ──► place ──► (lock) ──► worker: read │ compress │ seal    (N workers, each its own connection)
                                                        └──────── in order ────────► segment writer ──► storage

`ordered.py` has the scheduling; here stands what one thread does with one frame, and what is written in turn.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan
from engine.failpoint import reached
from engine.format.crypto import ServerKey
from engine.format.frames import FrameSealer, SealedFrame
from engine.format.layout import Identity, Segment, SegmentRef
from engine.format.placement import SEGMENT_PLAIN_BYTES_MAX, Placed, PlacedFrame, PlacedZero, SegmentEnd, place
from engine.format.writer import SegmentWriter
from engine.ordered import run_ordered
from engine.source.disk import Disk, Reader
from engine.source.throttled import ThrottledReader
from engine.storage.base import Storage
from engine.work import Work


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
) -> tuple[SegmentRef, ...]:
    """Read what `plan` names from `disk`, write it to `storage` as segments, and return them. Blocks until all is written.

    Nothing stays under a final name of a segment that was not finished; finished segments stay, the caller sweeps. Raises
    what disk and storage raise, and Cancelled. After a failure both may have been interrupted: open them anew.
    """
    ended = threading.Event()
    items = _segments(place(plan, segment_bytes_max), identity, disk.size_bytes, key)
    with _Output(storage, work) as output, work.stop.waking(ended.set):
        run_ordered(
            items,
            lambda: _Worker(ThrottledReader(disk.connect(), work.read, ended), work, ended),
            output.consume,
            workers=work.workers,
            stop=ended,
            interrupts=(disk.interrupt, storage.interrupt),
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


class _Worker:
    """One thread's connection, buffers and compressor."""

    def __init__(self, reader: Reader, work: Work, ended: threading.Event) -> None:
        self._reader = reader
        self._work = work
        self._ended = ended
        self._sealer = FrameSealer(work.settings.compression_level)
        self._plain = bytearray()

    def process(self, item: _Item) -> _Result:
        if not isinstance(item.placed, PlacedFrame):
            return _Result(item.segment, item.placed, None)
        plain = self._read(item.placed.plan)
        with self._work.compressing.inside(self._ended):
            packed = self._sealer.compress(plain)
        sealed = self._sealer.seal(item.segment, item.placed, packed)
        # Buffers are reused for the next frame while this one may still wait for its turn; 0.1 ms per MiB.
        return _Result(item.segment, item.placed, replace(sealed, stored=memoryview(bytes(sealed.stored))))

    def _read(self, plan: FramePlan) -> memoryview:
        if len(self._plain) < plan.length:
            self._plain = bytearray(min(FRAME_BYTES_MAX, max(plan.length, 2 * len(self._plain))))
        plain = memoryview(self._plain)[: plan.length]
        self._reader.read_into(plan.extents, plain)
        return plain

    def close(self) -> None:
        self._reader.close()


class _Output:
    """Writes results in their order: one segment after the other, each an object that appears when it is whole."""

    def __init__(self, storage: Storage, work: Work) -> None:
        self.segments: list[SegmentRef] = []
        self._storage = storage
        self._work = work
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
