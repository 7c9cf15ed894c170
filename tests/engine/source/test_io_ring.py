"""Reading images by io_uring: only where the kernel and QEMU do it rightly, and with the same bytes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.nbd.client import Client
from engine.source import io_ring
from engine.source.export import export_image
from engine.units import MIB
from tests.servers.images import fragmented_image, to_qcow2
from tests.servers.programs import older_qemu_nbd

pytestmark = pytest.mark.feature("T24")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    io_ring.usable.cache_clear()
    yield
    io_ring.usable.cache_clear()


def rings(pid: int) -> int:
    return sum("io_uring" in os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir())  # noqa: PTH115 -- no path is meant


@pytest.mark.parametrize("why_not", ["", "kernel", "old", "writable"])
def test_a_ring_is_used_where_it_may_be_and_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why_not: str
) -> None:
    fragmented_image(tmp_path / "a.raw", 4 * MIB)
    image = to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")
    if why_not == "kernel":
        monkeypatch.setattr(io_ring, "_kernel_has_it", lambda: False)
    if why_not == "old":
        monkeypatch.setenv("PATH", older_qemu_nbd(tmp_path))
    with export_image(str(image), "qcow2", folder=tmp_path, writable=why_not == "writable") as export:
        with Client.connect(export.socket, export.name) as client:
            assert client.read(0, 4 * MIB) == (tmp_path / "a.raw").read_bytes()
        used = rings(export.pid)
    assert bool(used) == (io_ring.usable() and why_not != "writable")
    if why_not in {"kernel", "old"}:
        assert not used


@pytest.mark.parametrize(("told", "version"), [
    ("qemu-nbd 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2)), ("qemu-nbd 10.0.2", (10, 0)), ("qemu-nbd 5.2.0", (5, 2)), ("", (0, 0)),
])  # fmt: skip
def test_versions(told: str, version: tuple[int, int]) -> None:
    assert io_ring._version(["echo", told]) == version


def test_a_program_that_is_not_there_has_no_version() -> None:
    assert io_ring._version(["/nonexistent/qemu-nbd"]) == (0, 0)
