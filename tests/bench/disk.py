"""The disk that is measured: ext4 with a system's files, an incompressible part, written zeros, and holes."""

import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engine.extents import Extent
from engine.source.export import export_image
from engine.source.nbd_disk import NbdDisk
from engine.units import GIB, KIB, MIB

DISK_BYTES = 2 * GIB  # a little more than half of it data
FILESYSTEM_BYTES = 1280 * MIB
FILES_BYTES = 700 * MIB
RANDOM_BYTES = 200 * MIB
ZERO_BYTES = 64 * MIB
DIRTY_BLOCK_BYTES = 64 * KIB
BITMAP = "dirty"


@dataclass(frozen=True)
class BenchDisk:
    """`image` is a qcow2 with the bitmap BITMAP; `payload` a file with the bytes of its data extents, side by side.

    `dirty_payload` has the bytes of the dirty extents.
    """

    image: Path
    payload: Path
    dirty_payload: Path


def make(folder: Path, part: int = 1) -> BenchDisk:
    """Make the disk below `folder`, or a smaller one, that many times; takes about half a minute."""
    raw, image = folder / "disk.raw", folder / "disk.qcow2"
    tree = folder / "tree"
    _copy_files(tree, FILES_BYTES // part)
    size = FILESYSTEM_BYTES // part
    command = ["mkfs.ext4", "-q", "-F", "-E", "no_copy_xattrs", "-d", str(tree), str(raw), str(size // KIB)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    chance = random.Random(1)
    with raw.open("r+b") as file:
        file.truncate(DISK_BYTES // part)
        file.seek(size)
        for _ in range(RANDOM_BYTES // part // MIB):
            file.write(chance.randbytes(MIB))
        zeros_start = file.tell()
        file.write(bytes(ZERO_BYTES // part))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "0", raw, image], check=True)
    raw.unlink()
    _sparsify(image, Extent(zeros_start, ZERO_BYTES // part))
    return finish(folder, image, chance)


def finish(folder: Path, image: Path, chance: random.Random) -> BenchDisk:
    """Give an image with data its bitmap, write over a hundredth of it, and dump what a compressor would be given."""
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", image, BITMAP], check=True)
    dirty = _scatter(image, chance)
    payload = folder / "payload"
    dirty_payload = folder / "dirty-payload"
    _dump(image, payload, None)
    _dump(image, dirty_payload, dirty)
    return BenchDisk(image, payload, dirty_payload)


def _copy_files(tree: Path, left: int) -> None:
    """Copy files of this system, in the order of their names, until there are `left` bytes of them."""
    for folder, folders, files in os.walk("/usr"):
        folders.sort()
        for name in sorted(files):
            source = Path(folder, name)
            if source.is_symlink() or not source.is_file() or not 0 < source.stat().st_size < 32 * MIB:
                continue
            target = tree / source.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            left -= source.stat().st_size
            if left <= 0:
                return


def _sparsify(image: Path, zeros: Extent) -> None:
    """Give back what reads as zeros, but for the part `zeros`, which was written on purpose."""
    thin = image.with_suffix(".thin")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", image, thin], check=True)
    thin.replace(image)
    command = f"write -q -P 0 {zeros.start} {zeros.length}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, image], check=True)


def _scatter(image: Path, chance: random.Random) -> list[Extent]:
    """Write over one in a hundred of the blocks with data, each alone, and return them: what a day of work leaves.

    They get the bytes of other places of the disk, so they compress as the disk does.
    """
    with export_image(str(image), "qcow2", writable=True) as export:
        disk = NbdDisk(export.socket, export.name)
        starts = [
            start for one in disk.extents() if not one.zero for start in range(one.start, one.end, DIRTY_BLOCK_BYTES)
        ]
        chosen = sorted(chance.sample([start for start in starts if not start % DIRTY_BLOCK_BYTES], len(starts) // 100))
        extents = [Extent(start, DIRTY_BLOCK_BYTES) for start in chosen]
        with disk.connect() as client:
            contents = [client.read(extent.start, extent.length) for extent in extents]
            chance.shuffle(contents)
            for extent, content in zip(extents, contents, strict=True):
                client.write(extent.start, content)
            client.flush()
    return extents


def _dump(image: Path, payload: Path, extents: list[Extent] | None) -> None:
    """Write the bytes of `extents`, of all data extents if None, to a file: what a compressor alone would be given."""
    with export_image(str(image), "qcow2") as export, payload.open("wb") as file:
        disk = NbdDisk(export.socket, export.name)
        reader = disk.connect()
        for extent in extents if extents is not None else (one for one in disk.extents() if not one.zero):
            start = extent.start
            while start < extent.end:
                piece = bytearray(min(4 * MIB, extent.end - start))
                reader.read_into((Extent(start, len(piece)),), memoryview(piece))
                file.write(piece)
                start += len(piece)
        reader.close()
