"""Changes of images that are read without a lock show, whoever makes them."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from engine.errors import HypervisorError
from engine.source.unlocked import fingerprint, fingerprints, write_locked
from engine.units import MIB
from tests.servers.nbd import MiniVm

pytestmark = pytest.mark.feature("T24")


def image(path: Path, kind: str = "raw") -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(4 * MIB)], check=True)
    return str(path)


def test_a_writer_shows_and_is_not_hindered(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", "qcow2")
    assert not write_locked(path)
    with MiniVm({"vda": Path(path)}):
        assert write_locked(path)
    assert not write_locked(path)
    reader = ["qemu-io", "-r", "-c", "read 0 1M", path]
    subprocess.run(reader, check=True, capture_output=True)
    assert not write_locked(path)


def test_every_change_shows_even_at_once(tmp_path: Path) -> None:
    path = Path(image(tmp_path / "a.raw"))
    for number in range(20):
        seen = fingerprints([str(path)], threading.Event())[str(path)]
        assert fingerprint(str(path)) == seen
        before = path.stat()
        with path.open("r+b") as file:
            file.write(bytes([number]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a tool does that copies times along
        assert fingerprint(str(path)) != seen


def test_another_file_under_the_name_shows(tmp_path: Path) -> None:
    path, other = image(tmp_path / "a.raw"), image(tmp_path / "b.raw")
    seen = fingerprint(path)
    Path(other).rename(path)
    assert fingerprint(path) != seen


def test_writes_to_a_block_device_show(tmp_path: Path) -> None:
    path = image(tmp_path / "a.raw")
    made = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
    device = made.stdout.strip()
    try:
        seen = fingerprint(device)
        assert fingerprint(device) == seen
        subprocess.run(["dd", "if=/dev/zero", f"of={device}", "bs=4k", "count=1", "oflag=direct"], check=True)
        assert fingerprint(device) != seen
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    for look in (write_locked, fingerprint):
        with pytest.raises(HypervisorError):
            look(str(tmp_path / "none"))
