"""One disk's way to the storage: extents → frames → segments, by several threads, in order.

    disk ──extents──► plan ──► place ──► (taken) ──► worker: read │ compress │ seal    (N workers, each its own connection)
                                                        └──────── in order ─────────► segment writer ──► storage

`ordered.py` has the scheduling; here stands what one thread does with one frame, and what is written in turn. A frame has one
buffer nearly all its way; a second one only from its compression to its seal:

    read into A │ compress A into B │ plain:      store B, give A back             │ what is raw lies in A: store A
                                    │ encrypted:  seal B into A, store A, give B back  │ … and is sealed into B: store B

So no memory is taken for a frame, and none faulted in anew. Zero extents travel with the frame that follows them: there may be
thousands, and each would cost as much scheduling as a frame.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import mmap
from types import TracebackType
from typing import Self, TypeAlias

from engine.buffers import Buffers, capacity_of
from engine.extents import FRAME_BYTES_MAX, FRAME_EXTENTS_MAX, Extent, FramePlan
from engine.failpoint import reached
from engine.format import crypto
from engine.format.compress import ZstdCompressor
from engine.format.crypto import SEAL_BYTES, ServerKey
from engine.format.frames import FrameSealer, Packed, SealedFrame, pack_into
from engine.format.index import RAW, ZSTD
from engine.format.layout import Identity, Segment, SegmentRef
from engine.format.placement import SEGMENT_PLAIN_BYTES_MAX, Placed, PlacedFrame, PlacedZero, SegmentEnd, place
from engine.format.writer import SegmentWriter
from engine.memory import give_back_libraries
from engine.ordered import run_ordered
from engine.source.disk import Disk, Reader
from engine.source.throttled import ThrottledReader
from engine.storage.base import Storage
from engine.units import MIB
from engine.work import Work, in_background

# Frames in memory beside those that are being compressed: one that is read ahead, one that is sealed or written.
FRAMES_BESIDE = 2
# Second buffers beside those of the frames that are being compressed: one frame is sealed while the next is compressed.
SPARES_BESIDE = 1
# So little data has less memory in buffers than libraries have; to let go of theirs took a tenth of such an incremental's time.
SMALL_BYTES = 16 * MIB
ZEROS_TOGETHER_MAX = FRAME_EXTENTS_MAX  # so that what lies between one frame's extents is one item with it
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
    plain_bytes: int = 0,
) -> tuple[SegmentRef, ...]:
    """Read what `plan` names from `disk`, write it to `storage` as segments, and return them. Blocks until all is written.

    They are numbered from `first` on; `finished` is told of each when it is on the storage, and whether it is the last.
    `plain_bytes` is about how many bytes the plan has, 0 for as many as the disk: storages plan their uploads by it.

    Nothing stays under a final name of a segment that was not finished; finished segments stay, the caller sweeps. Raises
    what disk and storage raise, and Cancelled. After a failure both may have been interrupted: open them anew.
    """
    if key is not None:
        crypto.load()
    # Beside the handshakes and the first answers of the server, for which one core waits: it takes as long as all of them.
    large = (plain_bytes or disk.size_bytes) > SMALL_BYTES
    given_back = in_background(give_back_libraries, "give-back-libraries") if large else None
    ended = threading.Event()
    held_bytes_max = (work.settings.compression_threads + FRAMES_BESIDE) * FRAME_BYTES_MAX
    shared = _Shared(work, ended, held_bytes_max)
    items = _segments(place(plan, segment_bytes_max, first=first), identity, disk.size_bytes, key)
    sizes = _Sizes(plain_bytes or disk.size_bytes, segment_bytes_max)
    try:
        with _Output(storage, work, shared.buffers, finished, sizes) as output, work.stop.waking(ended.set):
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
    finally:
        if given_back is not None:
            given_back.result()
    return tuple(output.segments)


@dataclass(frozen=True, slots=True)
class _Item:
    """Zero extents, and at the end a frame or the segment's end, if the group has come that far."""

    segment: Segment
    group: tuple[Placed, ...]

    @property
    def frame(self) -> PlacedFrame | None:
        return self.group[-1] if isinstance(self.group[-1], PlacedFrame) else None


def _weigh(item: _Item) -> int:
    return capacity_of(item.frame.plan.length) if item.frame else 0


@dataclass(frozen=True, slots=True)
class _Result:
    """`buffer`, if any, holds what is stored of the item's frame: it is given back when that is written."""

    segment: Segment
    group: tuple[Placed, ...]
    sealed: SealedFrame | None = None
    buffer: mmap | None = None


def _segments(
    placed_items: Iterator[Placed], identity: DiskIdentity, size_bytes: int, key: ServerKey | None
) -> Iterator[_Item]:
    """Group the items, and give every group its segment, begun with a fresh salt when the first item of it comes by."""
    segment: Segment | None = None
    group: list[Placed] = []
    for placed in placed_items:
        if segment is None or segment.identity.number != placed.segment:
            one = Identity(identity.server_id, identity.backup_id, identity.disk, placed.segment, size_bytes)
            segment = Segment.begin(one, key)
        group.append(placed)
        if not isinstance(placed, PlacedZero) or len(group) == ZEROS_TOGETHER_MAX:
            yield _Item(segment, tuple(group))
            group = []


class _Shared:
    """What the workers of one disk share: buffers, and as many compressors as frames may be compressed at an instant."""

    def __init__(self, work: Work, ended: threading.Event, held_bytes_max: int) -> None:
        spares = work.settings.compression_threads + SPARES_BESIDE
        self.buffers = Buffers(held_bytes_max + spares * FRAME_BYTES_MAX, SEAL_BYTES)
        self.level = work.settings.compression_level
        # Who has one waits at most for somebody who has one too, and compresses.
        self.spares = threading.Semaphore(spares)
        self._limit = work.compressing
        self._ended = ended
        self._idle: list[ZstdCompressor] = []

    def pack(self, plain: memoryview, target: memoryview) -> Packed:
        """Return `plain` compressed into `target`, or as it is, when it is this thread's turn (P7). Raises Cancelled."""
        if not self.level:
            return Packed(RAW, plain, len(plain))
        with self._limit.inside(self._ended):
            try:
                compressor = self._idle.pop()
            except IndexError:
                compressor = ZstdCompressor(self.level)
            try:
                return pack_into(compressor, plain, target)
            finally:
                self._idle.append(compressor)


class _Worker:
    """One thread's connection."""

    def __init__(self, reader: Reader, shared: _Shared) -> None:
        self._reader = reader
        self._shared = shared
        self._buffers = shared.buffers
        self._sealer = FrameSealer(level=0)

    def process(self, item: _Item) -> _Result:
        frame = item.frame
        if frame is None:
            return _Result(item.segment, item.group)
        # After an exception the buffers are just let go: the run is over.
        buffer = self._buffers.take(frame.plan.length)
        plain = memoryview(buffer)[: frame.plan.length]
        self._reader.read_into(frame.plan.extents, plain)
        with self._shared.spares:
            spare = self._buffers.take(frame.plan.length)
            packed = self._shared.pack(plain, memoryview(spare))
            encrypted = item.segment.encrypted
            kept, free = (buffer, spare) if encrypted == (packed.method == ZSTD) else (spare, buffer)
            sealed = self._sealer.seal(item.segment, frame, packed, memoryview(kept) if encrypted else None)
            self._buffers.give_back(free)
        return _Result(item.segment, item.group, sealed, kept)

    def close(self) -> None:
        self._reader.close()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What is known beforehand of how long segments become: `plain_bytes` in all, and `segment_bytes_max` each."""

    plain_bytes: int
    segment_bytes_max: int

    def hint(self, before: list[SegmentRef]) -> int:
        """Return about how many bytes the segment after `before` will have, 0 if they have all that was expected."""
        return max(0, min(self.segment_bytes_max, self.plain_bytes - sum(one.plain_bytes for one in before)))


class _Output:
    """Writes results in their order: one segment after the other, each an object that appears when it is whole."""

    def __init__(self, storage: Storage, work: Work, buffers: Buffers, finished: Finished, sizes: "_Sizes") -> None:
        self.segments: list[SegmentRef] = []
        self._sizes = sizes
        self._buffers = buffers
        self._storage = storage
        self._work = work
        self._finished = finished
        self._open = contextlib.ExitStack()
        self._writer: SegmentWriter | None = None
        self._reported = 0

    def consume(self, result: _Result) -> None:
        if self._writer is None:
            hint = self._sizes.hint(self.segments)
            sink = self._open.enter_context(self._storage.create(result.segment.identity.name, hint))
            self._writer = SegmentWriter(sink, result.segment)
            self._reported = 0
        done = 0
        for placed in result.group:
            done += _write(self._writer, placed, result.sealed)
            reached("frame")
        if result.buffer is not None:
            self._buffers.give_back(result.buffer)
        self._report(done, self._writer.stored_bytes)
        if isinstance(result.group[-1], SegmentEnd):
            self._end_segment(self._writer, last=result.group[-1].last)

    def _end_segment(self, writer: SegmentWriter, *, last: bool) -> None:
        self.segments.append(writer.finish(last=last))
        self._report(0, self.segments[-1].stored_bytes)
        self._writer = None
        self._open.close()
        self._finished(self.segments[-1], last)
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


def _write(writer: SegmentWriter, placed: Placed, sealed: SealedFrame | None) -> int:
    """Write one item of a group whose frame, if it has one, is `sealed`; return how many bytes of the disk it stands for."""
    if isinstance(placed, PlacedZero):
        writer.append_zero(placed.extent)
        return placed.extent.length
    if isinstance(placed, SegmentEnd) or sealed is None:
        return 0
    writer.append(sealed)
    return placed.plan.length
