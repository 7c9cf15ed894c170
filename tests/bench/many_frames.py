"""A disk with a million frames, each of 4 KiB alone in its 64 KiB: what their index takes, in a process for each verb.

`python -m tests.bench.many_frames write|verify|restore FOLDER COUNT` does one of them in FOLDER and prints JSON: seconds and the
process's peak memory. Listing and reindexing read manifests alone, whose size follows the segments, not the frames.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.extents import Extent, FramePlan
from engine.format.crypto import ServerKey, StorageKey
from engine.format.layout import SegmentRef
from engine.format.manifest import DiskManifest, Layer, layer_digest
from engine.memory import keep_one_pool
from engine.pipeline import DiskIdentity, store
from engine.rebuild import rebuild
from engine.spec import Settings
from engine.storage.local import LocalStorage
from engine.target import RawTarget
from engine.units import KIB
from engine.verify import Findings, verify_disk
from engine.work import Work
from tests.bench.process import peak_mib, run
from tests.engine.rig import RecordingReport

if TYPE_CHECKING:
    from tests.bench.bench import Bench

COUNT = 1_000_000
FRAME_BYTES, STRIDE_BYTES = 4 * KIB, 64 * KIB
ID = "01a20693-bb1d-7000-8000-000000000001"


def measure(bench: "Bench") -> bool:
    from tests.bench.figures import figure, note

    folder, count = bench.scratch("frames"), COUNT // bench.part
    met = True
    for verb in ("write", "verify", "restore"):
        told = json.loads(
            run([sys.executable, "-m", __name__, verb, folder, str(count)], keep_output=True).output.splitlines()[-1]
        )
        note(f"a million frames of 4 KiB: {verb}", [told["seconds"]], "s")
        met &= figure(f"a million frames: peak memory of {verb}, encrypted, MiB", [told["peak_mib"]], "<= 60")
    return met


class _Disk:
    """Reads as the same bytes everywhere, and costs nothing."""

    def __init__(self, count: int) -> None:
        self.size_bytes = count * STRIDE_BYTES

    def extents(self) -> Iterator[Extent]:
        raise AssertionError("the plan is given: nobody asks where data lies")

    def connect(self) -> "_Disk":
        return self

    def read_into(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        buffer[:] = b"abcd" * (len(buffer) // 4)

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def main() -> None:
    keep_one_pool()
    verb, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    key = StorageKey(ID, bytes(range(32))).server_key(ID)
    work = Work(RecordingReport(), Settings())
    begun = time.perf_counter()
    with LocalStorage(str(folder / "storage")) as storage:
        if verb == "write":
            _write(storage, folder, count, key, work)
        else:
            segments = tuple(SegmentRef(**one) for one in json.loads((folder / "segments.json").read_text()))
            manifest = _manifest(segments, count, key)
            if verb == "verify":
                findings = Findings()
                verify_disk(storage, manifest, key, findings, work)
                assert (findings.frames, findings.damaged_count) == (count, 0)
            else:
                target = RawTarget.create(folder / "restored.raw", manifest.size_bytes)
                rebuild(storage, manifest, key, target, work)
    print(json.dumps({"seconds": time.perf_counter() - begun, "peak_mib": peak_mib()}))


def _write(storage: LocalStorage, folder: Path, count: int, key: ServerKey, work: Work) -> None:
    segments = store(_Disk(count), _plan(count), storage, DiskIdentity(ID, ID, "vda"), key, work)
    assert sum(segment.frames for segment in segments) == count
    from dataclasses import asdict

    (folder / "segments.json").write_text(json.dumps([asdict(segment) for segment in segments]))


def _plan(count: int) -> Iterator[FramePlan | Extent]:
    for number in range(count):
        start = number * STRIDE_BYTES
        yield FramePlan((Extent(start, FRAME_BYTES),))
        yield Extent(start + FRAME_BYTES, STRIDE_BYTES - FRAME_BYTES, zero=True)


def _manifest(segments: tuple[SegmentRef, ...], count: int, key: ServerKey) -> DiskManifest:
    return DiskManifest(
        repository_id=ID, installation_id=ID, server_id=ID, backup_id=ID, disk="vda", type="full", chain_id=ID,
        parent_backup_id="", create_time="2026-11-23T03:00:00+00:00", size_bytes=count * STRIDE_BYTES, checkpoint="", reason="",
        compression_level=3, key_id=key.key_id, key_check=key.check.hex(),
        plain_bytes=sum(segment.plain_bytes for segment in segments),
        stored_bytes=sum(segment.stored_bytes for segment in segments),
        sha256=layer_digest(segments), layers=(Layer(ID, segments),), sealed={},
    )  # fmt: skip


if __name__ == "__main__":
    main()
