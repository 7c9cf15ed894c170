"""How an incremental's time grows with the disk when what is dirty stays the same.

Two qcow2 disks, 1 and 16 GiB, every cluster of both allocated (17 GiB have to be free for the time), each with the
same number of dirty blocks spread evenly over all of it. The larger one's bitmap, its tables and the distances are 16 times
as large.
"""

import random
import subprocess
from pathlib import Path

from engine.extents import Extent
from engine.source.export import export_image
from engine.source.nbd_disk import NbdDisk
from engine.units import GIB
from tests.bench.bench import Bench
from tests.bench.disk import BITMAP, DIRTY_BLOCK_BYTES
from tests.bench.figures import figure, note
from tests.bench.rounds import alternate
from tests.bench.store import run_store

SMALL_BYTES = GIB
TIMES = 16
DIRTY_BLOCKS = 164  # 1 % of the small disk


def measure(bench: Bench) -> bool:
    folder = bench.scratch("growth")
    content = bench.disk.dirty_payload.read_bytes()
    small, large = (_make(folder / f"{times}.qcow2", times * SMALL_BYTES, content) for times in (1, TIMES))
    with (
        export_image(str(small), "qcow2", bitmaps=[BITMAP]) as one,
        export_image(str(large), "qcow2", bitmaps=[BITMAP]) as other,
    ):
        results = alternate(
            "growth",
            bench.rounds,
            lambda: run_store(one.socket, one.name, bitmap=BITMAP)[0],
            lambda: run_store(other.socket, other.name, bitmap=BITMAP)[0],
        )
    if any(told["plain_bytes"] != DIRTY_BLOCKS * DIRTY_BLOCK_BYTES for both in results for told in both):
        raise RuntimeError("an incremental did not read just what is dirty")
    note(f"incremental of {DIRTY_BLOCKS} blocks of a 1 GiB disk", [one["seconds"] for one, _ in results], "s")
    return figure(
        "incremental of the same dirty bytes on a disk 16 times as large (16 GiB, all allocated): time against the small one's",
        [other["seconds"] / one["seconds"] for one, other in results],
        "<= 1.3",
    )


def _make(image: Path, size_bytes: int, content: bytes) -> Path:
    """Make a disk with the bitmap, and write the dirty blocks, in an order of chance, with the bytes of `content`."""
    chance = random.Random(3)
    allocated = ["-o", "preallocation=falloc"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *allocated, image, str(size_bytes)], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", image, BITMAP], check=True)
    step = size_bytes // DIRTY_BLOCKS // DIRTY_BLOCK_BYTES * DIRTY_BLOCK_BYTES
    starts = [number * step for number in range(DIRTY_BLOCKS)]
    chance.shuffle(starts)
    with export_image(str(image), "qcow2", writable=True) as export:
        with NbdDisk(export.socket, export.name).connect() as client:
            for number, start in enumerate(starts):
                begin = number * DIRTY_BLOCK_BYTES % (len(content) - DIRTY_BLOCK_BYTES)
                block = memoryview(content)[begin : begin + DIRTY_BLOCK_BYTES]
                client.write_from((Extent(start, DIRTY_BLOCK_BYTES),), block)
            client.flush()
    return image
