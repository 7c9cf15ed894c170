"""Targets of a restore that hold something already: what is written over, and what becomes a hole."""

import os
from pathlib import Path

import pytest

from engine import image_file
from engine.errors import TargetError
from engine.extents import Extent
from engine.target import RawTarget
from engine.units import MIB

pytestmark = pytest.mark.feature("C12")


@pytest.mark.parametrize("punches", [True, False])
def test_zeros_are_holes_where_the_kernel_can_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, punches: bool
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * (8 * MIB))
    if not punches:
        monkeypatch.setattr(image_file, "punch_hole", lambda *_: False)
    raw = RawTarget(path, os.open(path, os.O_WRONLY), 8 * MIB, blank=False)
    try:
        raw.write_zeroes(MIB + 5, 5 * MIB)
        raw.write_from((Extent(0, 10), Extent(7 * MIB, 6)), memoryview(b"0123456789abcdef"))
        raw.flush()
    finally:
        raw.finish()

    data = path.read_bytes()
    assert data[:10] == b"0123456789"
    assert data[7 * MIB : 7 * MIB + 6] == b"abcdef"
    assert data[MIB + 5 : 6 * MIB + 5] == bytes(5 * MIB)
    assert data[MIB : MIB + 5] == b"\xff" * 5
    assert data[6 * MIB + 5] == 0xFF
    assert (path.stat().st_blocks * 512 < 4 * MIB) == punches


def test_a_file_is_no_device(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    with pytest.raises(TargetError):
        RawTarget.device(path, MIB)
    assert path.read_bytes() == bytes(MIB)
