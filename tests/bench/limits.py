"""What a full is held against, measured beside it: how fast its bytes are compressed alone, and read from a running domain alone.

    packed   zstd -3 -T2 of a file with the data ─► a file, fsynced; no NBD, no hash, no key, no index
    pulled   a pull-mode job begun, all data read by two threads and thrown away, the job ended

A floor is both together, spread over all cores without a gap. What a program needs for its own start is in neither, nor are
hash, key and index. Ours can come near it for one reason alone: its compressor's tables are smaller than zstd's own, and some
10 % faster (see compress.py).
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.host import Host
from tests.bench.process import Run, cpu_seconds_of, run


@dataclass(frozen=True, slots=True)
class Floor:
    """One round's `packed` and `pulled`: seconds by the clock, and CPU seconds, QEMU's among them."""

    packed: Run
    pulled_seconds: float
    pulled_cpu_seconds: float

    @property
    def seconds(self) -> float:
        """Return what a full of the running domain takes that wastes nothing on this machine's cores."""
        cpu_seconds = self.packed.cpu_seconds + self.pulled_cpu_seconds
        return max(self.packed.seconds, self.pulled_seconds, cpu_seconds / len(os.sched_getaffinity(0)))


def packed(payload: Path, to: Path) -> Run:
    """Compress `payload` into the folder `to` and wait for the disk."""
    flush = "zstd -3 -T2 -q -o $1/packed $0 && sync -d $1/packed"
    return run(["sh", "-c", flush, payload, to])


def floor(host: Host, payload: Path, to: Path) -> Floor:
    """Measure both for a running domain with the data of `payload`. Raises RuntimeError if not all of it was read."""
    one = packed(payload, to)
    qemu = cpu_seconds_of(host.qemu_pid)
    command = [sys.executable, "-m", "tests.bench.pull", host.uri, host.domain.uuid, str(host.folder / "scratch")]
    measured = run(command, keep_output=True)
    told = json.loads(measured.output)
    if told["bytes"] != payload.stat().st_size:
        raise RuntimeError(f"{told['bytes']} bytes were read of {payload.stat().st_size}")
    return Floor(one, told["seconds"], told["cpu_seconds"] + cpu_seconds_of(host.qemu_pid) - qemu)
