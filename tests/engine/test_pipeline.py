"""From a disk to the storage: frames in their order, as many compressed at an instant as allowed, memory within its bound."""

import threading
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest

from engine import pipeline
from engine.buffers import Buffers
from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan, plan_full
from engine.format.compress import ZstdCompressor
from engine.format.crypto import SEAL_BYTES, ServerKey, StorageKey
from engine.format.frames import FrameOpener
from engine.format.index import FrameEntry
from engine.format.reader import SegmentReader
from engine.pipeline import DiskIdentity, store
from engine.spec import Settings
from engine.storage.local import LocalStorage
from engine.units import KIB, MIB
from engine.work import Work
from tests.engine.memory_disk import MemoryDisk, frame_content
from tests.engine.rig import RecordingReport

SERVER = "01a20693-bb1d-7000-8000-000000000001"
IDENTITY = DiskIdentity(SERVER, "01a20693-bb1d-7000-8000-000000000002", "vda")
SECONDS = 20.0


def key() -> ServerKey:
    return StorageKey(SERVER, bytes(range(32))).server_key(SERVER)


def read_back(storage: LocalStorage, name: str, sealing_key: ServerKey | None) -> tuple[bytes, list[FrameEntry]]:
    """Return a disk's bytes as its one segment has them, and the frames as they lie there."""
    reader = SegmentReader(storage.open(name), name, None, sealing_key)
    frames = [entry for entry in reader.entries() if isinstance(entry, FrameEntry)]
    opener = FrameOpener()
    return b"".join(bytes(reader.read(entry, opener)) for entry in frames), frames


class Compressing:
    """Counts the compressors at work, and keeps each at work until as many as may be are, or no more frames come."""

    def __init__(self, threads: int, frames: int) -> None:
        self.inside = self.most = self.begun = self._round = 0
        self._threads, self._frames = threads, frames
        self._changed = threading.Condition()

    def compressor(self, level: int) -> Any:
        counted, inner = self, ZstdCompressor(level)

        class Counting:
            def compress_into(self, data: memoryview, target: memoryview) -> int:
                counted.enter()
                try:
                    return inner.compress_into(data, target)
                finally:
                    counted.leave()

        return Counting()

    def enter(self) -> None:
        with self._changed:
            self.inside += 1
            self.begun += 1
            self.most = max(self.most, self.inside)
            mine = self._round
            if self.inside == self._threads or self._frames - self.begun < self._threads:
                self._round += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._round > mine, SECONDS), "fewer compress than may"

    def leave(self) -> None:
        with self._changed:
            self.inside -= 1
            self._changed.notify_all()


@pytest.mark.feature("P7", "P11")
@pytest.mark.parametrize(("workers", "threads"), [(4, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("encrypted", [True, False])
def test_frames_lie_in_their_order_and_so_many_are_compressed_at_an_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, threads: int, encrypted: bool
) -> None:
    content = b"".join(frame_content(number, compressible=number % 3 != 1) for number in range(12))
    disk, sealing_key = MemoryDisk(content), key() if encrypted else None
    compressing = Compressing(threads, 12)
    monkeypatch.setattr(pipeline, "ZstdCompressor", compressing.compressor)
    work = Work(RecordingReport(), Settings(workers=workers, compression_threads=threads))
    with LocalStorage(str(tmp_path / "storage")) as storage:
        (segment,) = store(disk, plan_full(disk.extents()), storage, IDENTITY, sealing_key, work)
        name = f"servers/{SERVER}/{IDENTITY.backup_id}/vda/0000.data"
        stored, frames = read_back(storage, name, sealing_key)
    assert stored == content
    assert [frame.extents[0].start for frame in frames] == [number * FRAME_BYTES_MAX for number in range(12)]
    assert compressing.most == threads
    assert segment.plain_bytes == len(content)
    assert disk.readers == 0


@pytest.mark.feature("P7", "P10")
@pytest.mark.parametrize("threads", [1, 2])
def test_slow_oldest_frame_holds_the_others_within_window_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """While frame 0 is not read, others are read ahead only as far as memory goes, and what is allocated never exceeds it."""
    ahead: list[int] = []
    allocated: list[int] = []
    bytes_max = (threads + pipeline.FRAMES_BESIDE) * FRAME_BYTES_MAX

    class Watched(Buffers):
        def take(self, length: int) -> mmap:
            buffer = super().take(length)
            allocated.append(self.allocated)
            return buffer

    monkeypatch.setattr(pipeline, "Buffers", Watched)
    gate = threading.Event()

    def before_read(start: int) -> None:
        ahead.append(start)
        if len(ahead) >= bytes_max // FRAME_BYTES_MAX:
            gate.set()  # memory is full; the order goes on only when frame 0 does
        if start == 0:
            assert gate.wait(SECONDS)

    disk = MemoryDisk(b"".join(frame_content(number) for number in range(20)), before_read)
    work = Work(RecordingReport(), Settings(workers=8, compression_threads=threads))
    with LocalStorage(str(tmp_path / "storage")) as storage:
        store(disk, plan_full(disk.extents()), storage, IDENTITY, key(), work)
    assert max(allocated) <= bytes_max + (threads + pipeline.SPARES_BESIDE) * FRAME_BYTES_MAX


@pytest.mark.feature("P10")
def test_buffers_of_changing_sizes_stay_within_their_bytes() -> None:
    buffers = Buffers(12 * MIB, SEAL_BYTES)
    sizes = [4 * MIB, 1, 64 * KIB, 64 * KIB + 1, MIB, 3 * MIB, 4 * MIB, 100, 2 * MIB] * 5
    for position in range(len(sizes) - 2):
        lent = [buffers.take(size) for size in sizes[position : position + 3]]
        assert buffers.allocated <= 12 * MIB
        for size, buffer in zip(sizes[position : position + 3], lent, strict=True):
            assert len(buffer) >= size + SEAL_BYTES
            buffers.give_back(buffer)
    assert len({id(buffers.take(4 * MIB)) for _ in range(3)}) == 3


@pytest.mark.feature("P10")
def test_many_small_frames_are_in_memory_together(tmp_path: Path) -> None:
    """Four workers read four frames of 1 MiB side by side: memory is counted in bytes, not in frames."""
    together = threading.Barrier(4, timeout=SECONDS)

    def before_read(_: int) -> None:
        together.wait()

    disk = MemoryDisk(b"".join(frame_content(number) for number in range(4)), before_read)
    plans = [FramePlan((Extent(start, MIB),)) for start in range(0, disk.size_bytes, MIB)]
    with LocalStorage(str(tmp_path / "storage")) as storage:
        store(disk, iter(plans), storage, IDENTITY, None, Work(RecordingReport(), Settings()))


@pytest.mark.feature("P11")
@pytest.mark.parametrize("workers", [1, 4])
def test_thousands_of_zero_extents_hold_nobody_up(tmp_path: Path, workers: int) -> None:
    """They go with the frame that follows them: all workers read side by side however many holes lie between the frames."""
    together = threading.Barrier(workers, timeout=SECONDS)

    def before_read(_: int) -> None:
        together.wait()

    frames, step = 8, 8 * KIB
    content = b"".join(frame_content(number) for number in range(frames))
    disk = MemoryDisk(content, before_read)
    holes = [Extent(start, 4 * KIB, zero=start // (4 * KIB) % 2 == 0) for start in range(0, len(content), step // 2)]
    with LocalStorage(str(tmp_path / "storage")) as storage:
        work = Work(RecordingReport(), Settings(workers=workers, compression_threads=4))
        (segment,) = store(disk, plan_full(holes), storage, IDENTITY, key(), work)
        name = f"servers/{SERVER}/{IDENTITY.backup_id}/vda/0000.data"
        entries = list(SegmentReader(storage.open(name), name, None, key()).entries())
    assert segment.frames == frames
    assert [one for one in entries if isinstance(one, Extent)] == [one for one in holes if one.zero]


@pytest.mark.feature("S6")
@pytest.mark.parametrize(("told_bytes", "hints"), [(0, [8 * MIB, 8 * MIB, 4 * MIB]), (12 * MIB, [8 * MIB, 4 * MIB, 0])])
def test_a_storage_is_told_how_long_each_segment_becomes(tmp_path: Path, told_bytes: int, hints: list[int]) -> None:
    """It plans its parts by that. Where the disk grows more than was known, the rest comes as a surprise."""
    seen: list[int] = []

    class Noting(LocalStorage):
        def create(self, name: str, size_hint: int = 0) -> Any:
            seen.append(size_hint)
            return super().create(name, size_hint)

    content = b"".join(frame_content(number) for number in range(5))
    with Noting(str(tmp_path / "storage")) as storage:
        store(
            MemoryDisk(content), plan_full([Extent(0, len(content))]), storage, IDENTITY, None, Work(RecordingReport(), Settings()),
            segment_bytes_max=8 * MIB, plain_bytes=told_bytes,
        )  # fmt: skip
    assert seen == hints
