"""A restore's file: what goes past the page cache and what does not is one content in the end."""

import errno
import mmap
import os
from pathlib import Path

import pytest

from engine.direct_io import ALIGNMENT
from engine.errors import StorageFull, TargetError
from engine.extents import Extent
from engine.image_file import DIRECT_BYTES_MIN, ImageFile
from engine.units import KIB, MIB

pytestmark = pytest.mark.feature("C12")
SIZE = 8 * MIB


def aligned(content: bytes) -> memoryview:
    view = memoryview(mmap.mmap(-1, len(content)))
    view[:] = content
    return view


def opened(path: Path) -> ImageFile:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(descriptor, SIZE)
    return ImageFile(path, descriptor)


@pytest.fixture
def direct_writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets (start, length) of every write past the page cache."""
    found: list[tuple[int, int]] = []
    write = os.pwrite

    def watched(descriptor: int, data: memoryview, start: int) -> int:
        if _is_direct(descriptor):
            found.append((start, len(data)))
        return write(descriptor, data, start)

    monkeypatch.setattr(os, "pwrite", watched)
    return found


def _is_direct(descriptor: int) -> bool:
    flags = int(Path(f"/proc/self/fdinfo/{descriptor}").read_text().partition("flags:")[2].split()[0], 8)
    return bool(flags & os.O_DIRECT)


def test_large_pieces_pass_the_page_cache(tmp_path: Path, direct_writes: list[tuple[int, int]]) -> None:
    content = os.urandom(3 * MIB + 100)
    file = opened(tmp_path / "disk")
    file.write_all((Extent(MIB, 2 * MIB + 50), Extent(5 * MIB + 1, MIB + 50)), aligned(content))
    file.write(64 * KIB, aligned(b"small" * 1000))
    file.flush()
    file.close()

    data = (tmp_path / "disk").read_bytes()
    assert data[MIB : 3 * MIB + 50] == content[: 2 * MIB + 50]
    assert data[5 * MIB + 1 : 6 * MIB + 51] == content[2 * MIB + 50 :]
    assert data[64 * KIB : 64 * KIB + 5000] == b"small" * 1000
    assert len(data) == SIZE
    assert direct_writes == [(MIB, 2 * MIB)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSPC, errno.EIO])
def test_direct_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where it is refused the page cache takes the piece; where the disk is full or broken, that is the answer."""
    write = os.pwrite

    def failing(descriptor: int, data: memoryview, start: int) -> int:
        if _is_direct(descriptor):
            raise OSError(number, os.strerror(number))
        return write(descriptor, data, start)

    file = opened(tmp_path / "disk")
    content = os.urandom(DIRECT_BYTES_MIN)
    monkeypatch.setattr(os, "pwrite", failing)
    if number == errno.EINVAL:
        file.write(0, aligned(content))
        file.close()
        assert (tmp_path / "disk").read_bytes()[: len(content)] == content
        return
    with pytest.raises(StorageFull if number == errno.ENOSPC else TargetError):
        file.write(0, aligned(content))
    file.close()


def test_short_direct_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def short(descriptor: int, data: memoryview, start: int) -> int:
        return write(descriptor, data[: ALIGNMENT * 3] if _is_direct(descriptor) else data, start)

    content = os.urandom(2 * MIB)
    file = opened(tmp_path / "disk")
    monkeypatch.setattr(os, "pwrite", short)
    file.write(MIB, aligned(content))
    file.close()
    assert (tmp_path / "disk").read_bytes()[MIB : 3 * MIB] == content
