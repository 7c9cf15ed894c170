"""Makers of disk images as virtual machines have them: a file system, incompressible parts, written zeros, and holes."""

import random
import subprocess
from pathlib import Path

from engine.units import KIB, MIB


def realistic_image(path: Path, size_bytes: int = 32 * MIB, *, seed: int = 1) -> bytes:
    """Make a raw, sparse image and return its content: |ext4 with files|random|written zeros|hole|, a quarter each."""
    quarter = size_bytes // 4
    chance = random.Random(seed)
    folder = path.with_suffix(".files")
    folder.mkdir()
    for number in range(20):
        text = f"file {number}: the quick brown fox jumps over the lazy dog\n" * chance.randrange(1, 2000)
        (folder / f"file-{number}.txt").write_text(text)
    file_system = path.with_suffix(".ext4")
    make = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "no_copy_xattrs", "-d", str(folder), str(file_system)]
    subprocess.run([*make, str(quarter // KIB)], check=True, capture_output=True)
    with path.open("wb") as image:
        image.truncate(size_bytes)
        image.write(file_system.read_bytes())
        image.seek(quarter)
        image.write(chance.randbytes(quarter))
        image.write(bytes(quarter))
    file_system.unlink()
    return path.read_bytes()


def fragmented_image(path: Path, size_bytes: int = 16 * MIB, *, piece: int = 64 * KIB, seed: int = 1) -> bytes:
    """Make a raw image in which data, written zeros and holes change every `piece`, at random; return its content."""
    chance = random.Random(seed)
    with path.open("wb") as image:
        image.truncate(size_bytes)
        for start in range(0, size_bytes, piece):
            kind = chance.choice(("data", "zeros", "hole"))
            if kind != "hole":
                image.seek(start)
                image.write(chance.randbytes(piece) if kind == "data" else bytes(piece))
    return path.read_bytes()


def to_qcow2(raw: Path, qcow2: Path) -> Path:
    """Convert an image; holes and zeros stay unallocated."""
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)]
    subprocess.run(command, check=True, capture_output=True)
    return qcow2


def add_bitmap(qcow2: Path, name: str) -> None:
    """Put a persistent dirty bitmap into a qcow2 image that nobody has open."""
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", str(qcow2), name], check=True, capture_output=True)


def write_pattern(image: Path, start: int, length: int, pattern: int, image_format: str = "qcow2") -> None:
    """Write bytes of one value into an image that nobody has open, as a stopped domain's last boot might have."""
    command = f"write -q -P {pattern} {start} {length}"
    subprocess.run(["qemu-io", "-f", image_format, "-c", command, str(image)], check=True, capture_output=True)
