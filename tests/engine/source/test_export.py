"""Exports of stopped domains' images, by the real qemu-nbd."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.errors import DiskUnsupported, HypervisorError, ImageBusy, NbdDisconnected, TargetError
from engine.nbd.client import Client
from engine.source.export import export_image
from engine.source.images import add_bitmap
from engine.source.nbd_disk import NbdDisk
from engine.units import KIB, MIB
from tests.servers.images import fragmented_image, to_qcow2, write_pattern
from tests.servers.nbd import MiniVm
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("T24")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    fragmented_image(tmp_path / "a.raw", 4 * MIB)
    return to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")


def is_gone(pid: int) -> bool:
    """Tell whether a process that is not ours to reap has ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_readable_export_serves_several_clients_and_leaves_nothing(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with export_image(str(image), "qcow2", folder=tmp_path) as export:
        assert export.size_bytes == 4 * MIB
        clients = [Client.connect(export.socket, export.name) for _ in range(6)]
        contents = {client.read(0, 4 * MIB) for client in clients}
        assert all(client.read_only for client in clients)
        for client in clients:
            client.close()

    assert contents == {(tmp_path / "a.raw").read_bytes()}
    assert image.read_bytes() == before
    assert is_gone(export.pid)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.qcow2", "a.raw"]


@pytest.mark.feature("T2", "T7")
def test_bitmaps_are_served_and_stay(image: Path) -> None:
    add_bitmap(str(image), "bm-1")
    write_pattern(image, 1 * MIB, 64 * KIB, 7)
    add_bitmap(str(image), "bm-2")
    write_pattern(image, 3 * MIB, 64 * KIB, 8)
    for _ in range(2):
        with export_image(str(image), "qcow2", bitmaps=["bm-1", "bm-2"]) as export:
            first = list(NbdDisk(export.socket, export.name, "bm-1").extents())
            second = list(NbdDisk(export.socket, export.name, "bm-2").extents())
        assert [(one.start, one.length) for one in first] == [(1 * MIB, 64 * KIB), (3 * MIB, 64 * KIB)]
        assert [(one.start, one.length) for one in second] == [(3 * MIB, 64 * KIB)]


def test_missing_bitmap_is_told(image: Path) -> None:
    with pytest.raises(DiskUnsupported, match="bm-none"), export_image(str(image), "qcow2", bitmaps=["bm-none"]):
        pass


def test_inconsistent_bitmap_is_told(image: Path) -> None:
    add_bitmap(str(image), "bm-1")
    with MiniVm({"vda": image}) as vm:
        vm.write("vda", 0, b"x")
        vm.child.kill()
    with pytest.raises(DiskUnsupported, match="inconsistent"), export_image(str(image), "qcow2", bitmaps=["bm-1"]):
        pass


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_writable_export_for_a_restore(image: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    with export_image(str(path), name, writable=True) as export, Client.connect(export.socket, export.name) as client:
        assert not client.read_only
        client.write(512 * KIB, b"restored" * 1000)
        client.write_zeroes(2 * MIB, 1 * MIB)
        client.flush()

    with export_image(str(path), name) as export, Client.connect(export.socket, export.name) as client:
        assert client.read(512 * KIB, 8000) == b"restored" * 1000
        assert client.read(2 * MIB, 1 * MIB) == bytes(1 * MIB)


def test_a_raw_image_is_never_taken_for_a_qcow2(image: Path) -> None:
    """A guest may write any header into its raw disk, also one that names a file of the host as backing."""
    with export_image(str(image), "raw") as export, Client.connect(export.socket, export.name) as client:
        assert client.read(0, 4) == b"QFI\xfb"


def test_comma_and_colon_in_the_path_are_just_characters(image: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a,driver=raw:b 'c' \"d\" ä.qcow2"
    image.rename(odd)
    with export_image(str(odd), "qcow2") as export:
        assert export.size_bytes == 4 * MIB


def test_image_of_a_running_domain_is_busy_unless_shared(image: Path) -> None:
    with MiniVm({"vda": image}) as vm:
        vm.write("vda", 0, b"running")
        for writable in (False, True):
            with pytest.raises(ImageBusy), export_image(str(image), "qcow2", writable=writable):
                pass
        with export_image(str(image), "qcow2", shared=True) as export:
            assert export.size_bytes == 4 * MIB


def test_domain_can_start_beside_a_shared_export_only(image: Path) -> None:
    with export_image(str(image), "qcow2", shared=True), MiniVm({"vda": image}) as vm:
        vm.write("vda", 0, b"started")
    with export_image(str(image), "qcow2"), pytest.raises(RuntimeError, match="lock"), MiniVm({"vda": image}):
        pass


def test_what_cannot_be_served(image: Path, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError), export_image(str(tmp_path / "none"), "qcow2"):
        pass
    with pytest.raises(TargetError), export_image(str(tmp_path / "none"), "qcow2", writable=True):
        pass
    with pytest.raises(HypervisorError, match="qcow2"), export_image(str(tmp_path / "a.raw"), "qcow2"):
        pass
    with pytest.raises(DiskUnsupported), export_image(str(image), "vmdk"):
        pass
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(HypervisorError, match="listen"), export_image(str(image), "qcow2", folder=deep):
        pass
    assert list(deep.iterdir()) == []


def test_export_that_dies_disconnects_its_clients(image: Path) -> None:
    with export_image(str(image), "qcow2") as export, Client.connect(export.socket, export.name) as client:
        os.kill(export.pid, signal.SIGKILL)
        with pytest.raises(NbdDisconnected):
            client.read(0, 4096)


def test_export_and_its_folder_go_when_we_are_killed(image: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal, threading
from pathlib import Path
from engine.source.export import export_image
def serve():
    with export_image({str(image)!r}, "qcow2", folder=Path({str(tmp_path)!r})) as export:
        print(export.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
thread = threading.Thread(target=serve)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    wait_until(lambda: is_gone(pid), 10, "the end of qemu-nbd")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 10, "the folder's removal")


def test_export_outlives_the_thread_that_began_it(image: Path) -> None:
    """The kernel's parent-death signal would end it here."""
    with contextlib.ExitStack() as stack:
        exports = []
        thread = threading.Thread(target=lambda: exports.append(stack.enter_context(export_image(str(image), "qcow2"))))
        thread.start()
        thread.join()
        with Client.connect(exports[0].socket, exports[0].name) as client:
            assert len(client.read(0, 4 * MIB)) == 4 * MIB
