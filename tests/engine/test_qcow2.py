"""qcow2 images written directly: QEMU finds nothing to complain of, and reads the same bytes."""

import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import TargetError
from engine.extents import Extent
from engine.qcow2 import Qcow2Target, Unusual
from engine.source.images import create_image
from engine.target import RawTarget
from engine.units import GIB, KIB, MIB

pytestmark = pytest.mark.feature("C12")


def compare(image: Path, raw: Path) -> None:
    commands = (f"check -q -f qcow2 {image}", f"compare -q -f qcow2 -F raw {image} {raw}")
    for command in commands:
        done = subprocess.run(["qemu-img", *command.split()], capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def made(tmp_path: Path, size_bytes: int) -> tuple[Qcow2Target, RawTarget]:
    create_image(str(tmp_path / "a.qcow2"), "qcow2", size_bytes)
    return Qcow2Target(tmp_path / "a.qcow2"), RawTarget.create(tmp_path / "a.raw", size_bytes)


@pytest.mark.parametrize("unit", [512, 4 * KIB, 64 * KIB, MIB])
def test_pieces_in_any_order_by_several_threads(tmp_path: Path, unit: int) -> None:
    """Edges share clusters with other pieces, which other threads write; what nobody wrote is zeros."""
    chance = random.Random(unit)
    size_bytes = 3 * GIB + 512
    starts = [
        *sorted(chance.sample(range(0, size_bytes // unit, 3), 300 if unit < MIB else 30)),
        size_bytes // unit - 1,
    ]
    pieces = [Extent(start * unit, chance.randrange(1, 3) * unit) for start in starts]
    pieces = [one for one in pieces if one.end <= size_bytes] + [Extent(size_bytes - 512, 512)] * (unit != 512)
    chance.shuffle(pieces)
    image, raw = made(tmp_path, size_bytes)

    def write(piece: Extent) -> None:
        content = memoryview(bytearray(random.Random(piece.start).randbytes(piece.length)))
        image.write_from((piece,), content)
        raw.write_from((piece,), content)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, pieces))
    image.flush()
    image.finish()
    raw.finish()
    compare(tmp_path / "a.qcow2", tmp_path / "a.raw")
    assert (tmp_path / "a.qcow2").stat().st_size < 400 * max(3 * unit, 128 * KIB) + 2 * MIB


def test_several_refcount_blocks_and_tables(tmp_path: Path) -> None:
    """A run that crosses tables, in a file that one refcount block cannot count; QEMU then writes to the image."""
    image, raw = made(tmp_path, 6 * GIB)
    page = memoryview(bytearray(b"x" * 4 * MIB))
    for target in (image, raw):
        target.write_from((Extent(512 * MIB - MIB, 4 * MIB),), page)
    image._end += 2 * GIB  # as if so much more had been written
    with image._lock:
        image._l2.clear()
        for number in range(2):
            image._l2[number] = int.from_bytes(_l1(tmp_path / "a.qcow2", number), "big") & ~(1 << 63)
    for target in (image, raw):
        target.write_from((Extent(5 * GIB, 4 * MIB),), page)
    image.flush()
    image.flush()
    image.finish()
    raw.finish()
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", str(tmp_path / "a.qcow2")], capture_output=True, text=True, check=False
    )
    assert "ERROR" not in done.stdout + done.stderr  # clusters that are counted and not used are a mere leak
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 3G 1M", str(tmp_path / "a.qcow2")], check=True)
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -q -P 7 3G 1M", str(tmp_path / "a.raw")], check=True)
    subprocess.run(
        ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(tmp_path / "a.qcow2"), str(tmp_path / "a.raw")],
        check=True,
    )


def _head(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(MIB)


def _l1(image: Path, number: int) -> bytes:
    with image.open("rb") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big") + number * 8)
        return file.read(8)


@pytest.mark.parametrize(
    "options", ["compat=0.10", "cluster_size=4096", "refcount_bits=8", "extended_l2=on", "preallocation=metadata"]
)
def test_what_is_not_known_is_left_to_qemu(tmp_path: Path, options: str) -> None:
    image = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "64M"], check=True)
    content = _head(image)
    with pytest.raises(Unusual):
        Qcow2Target(image)
    assert _head(image) == content


def test_beyond_the_end(tmp_path: Path) -> None:
    image, raw = made(tmp_path, MIB)
    raw.finish()
    with pytest.raises(TargetError):
        image.write_from((Extent(MIB - 512, 1024),), memoryview(bytearray(1024)))
    image.finish()
