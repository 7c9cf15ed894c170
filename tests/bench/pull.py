"""A pull-mode export read to nowhere: `python -m tests.bench.pull URI UUID SCRATCH`, beside a domain that runs.

Prints JSON: seconds and CPU seconds of this process from the job's begin to its end, and the bytes that were read.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan, plan_full
from engine.hypervisor.backup_job import begin
from engine.hypervisor.connection import open_connection
from engine.hypervisor.domains import domain_info
from engine.memory import keep_one_pool
from engine.source.nbd_disk import NbdDisk

THREADS = 2


def main() -> None:
    uri, uuid, scratch = sys.argv[1:]
    keep_one_pool()
    with open_connection(uri) as connection:
        domain = connection.domain(uuid)
        info = domain_info(domain)
        begun, cpu, total = time.perf_counter(), time.process_time(), 0
        with begin(domain, dict.fromkeys(disk.target for disk in info.disks), "", Path(scratch), info=info) as job:
            for name in job.disks:
                total += _read(NbdDisk(str(job.socket_path), name))
        told = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu, "bytes": total}
    print(json.dumps(told))


def _read(disk: NbdDisk) -> int:
    """Read all data of a disk, each frame into the same memory, and return its bytes."""
    plans, lock = plan_full(disk.extents()), threading.Lock()
    counts: list[int] = []
    threads = [threading.Thread(target=_read_frames, args=(disk, plans, lock, counts)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != THREADS:
        raise RuntimeError("a thread failed")
    return sum(counts)


def _read_frames(disk: NbdDisk, plans: Iterator[FramePlan | Extent], lock: threading.Lock, counts: list[int]) -> None:
    buffer, count = memoryview(bytearray(FRAME_BYTES_MAX)), 0
    with disk.connect() as client:
        while True:
            with lock:
                plan = next(plans, None)
            if plan is None:
                break
            if isinstance(plan, FramePlan):
                client.read_into(plan.extents, buffer[: plan.length])
                count += plan.length
    counts.append(count)


if __name__ == "__main__":
    main()
