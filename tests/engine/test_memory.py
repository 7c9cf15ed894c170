"""Bounds on a whole engine process's memory, a little above what it takes; `make bench` has the figures."""

import random
from pathlib import Path
from typing import Any

import pytest

from engine.units import MIB
from tests.bench.memory import TIB, peak_of

# Libraries of which every process on the host shares one copy are 20-29 MiB of each: libvirt's, Python's, cryptography's.
PLAIN_MIB_MAX, ENCRYPTED_MIB_MAX, FURTHER_MIB_MAX = 68, 78, 25


def make_image(path: Path) -> Path:
    """Write half of what cannot be compressed, half of what can."""
    path.write_bytes(random.Random(1).randbytes(32 * MIB) + b"some text " * (32 * MIB // 10))
    return path


@pytest.mark.feature("P10")
def test_the_size_of_a_disk_costs_no_memory(tmp_path: Path, libvirtd: Any) -> None:
    image = make_image(tmp_path / "disk.raw")
    with image.open("r+b") as file:
        file.truncate(4 * TIB)
    assert 20 < peak_of(tmp_path / "one", libvirtd.uri, image, 1, encrypted=True) <= ENCRYPTED_MIB_MAX


@pytest.mark.feature("P10")
def test_a_further_server_costs_less_than_the_first(tmp_path: Path, libvirtd: Any) -> None:
    image = make_image(tmp_path / "disk.raw")
    peak = peak_of(tmp_path / "three", libvirtd.uri, image, 3, encrypted=False)
    assert 20 < peak <= PLAIN_MIB_MAX + 2 * FURTHER_MIB_MAX
