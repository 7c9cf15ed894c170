"""The disk after years of use: thousands of extents, clusters out of order in the file, discarded blocks, small holes.

the usual disk's data ─► pieces of 64 KiB to 1 MiB, a hole of 64 KiB after each ─► written in random order, in two halves
                                                      between the halves one block in ten of the first is discarded
"""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from engine.extents import Extent
from engine.nbd.client import Client
from engine.source.export import export_image
from engine.source.nbd_disk import NbdDisk
from engine.units import KIB
from tests.bench.disk import DISK_BYTES, BenchDisk, finish

PIECE_BYTES = (64 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 1024 * KIB)
HOLE_BYTES = 64 * KIB
DISCARD_BYTES = 64 * KIB
EXTENTS_MIN = 4000  # else it is not what it is meant to be


def make(folder: Path, usual: BenchDisk, part: int = 1) -> BenchDisk:
    """Make the disk below `folder` from the usual one's bytes; `part` as for the usual one."""
    image = folder / "disk.qcow2"
    chance = random.Random(2)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(DISK_BYTES // part)], check=True)
    pieces = list(_pieces(usual.payload.stat().st_size, DISK_BYTES // part, chance))
    chance.shuffle(pieces)
    half = len(pieces) // 2
    with export_image(str(image), "qcow2", writable=True) as export, usual.payload.open("rb") as payload:
        disk = NbdDisk(export.socket, export.name)
        with disk.connect() as client:
            for number, (source, target) in enumerate(pieces):
                if number == half:
                    _discard(client, [target for _, target in pieces[:half]], chance)
                payload.seek(source)
                client.write(target.start, payload.read(target.length))
            client.flush()
        extents = sum(1 for _ in disk.extents())
    if extents < EXTENTS_MIN // part:
        raise RuntimeError(f"the aged disk has only {extents} extents")
    return finish(folder, image, chance)


def _pieces(payload_bytes: int, disk_bytes: int, chance: random.Random) -> Iterator[tuple[int, Extent]]:
    """Yield where in the payload a piece comes from, and where on the disk it goes."""
    source = start = 0
    while True:
        length = chance.choice(PIECE_BYTES)
        if source + length > payload_bytes or start + length > disk_bytes:
            return
        yield source, Extent(start, length)
        source += length
        start += length + HOLE_BYTES


def _discard(client: Client, written: list[Extent], chance: random.Random) -> None:
    """Discard one block in ten of what is written: freed clusters, which what is written next will take."""
    for extent in written:
        for start in range(extent.start, extent.end, DISCARD_BYTES):
            if chance.random() < 0.1:
                client.trim(start, DISCARD_BYTES)
