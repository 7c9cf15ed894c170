"""Images at rest, by the real qemu-img."""

import subprocess
from pathlib import Path

import pytest

from engine.errors import HypervisorError, ImageBusy, TargetError
from engine.source.images import (
    add_bitmap,
    create_image,
    image_files,
    image_in_use,
    image_info,
    list_bitmaps,
    remove_bitmap,
)
from engine.units import KIB, MIB
from tests.servers.nbd import MiniVm

pytestmark = pytest.mark.feature("T24")


def test_create_and_look(tmp_path: Path) -> None:
    create_image(str(tmp_path / "a.qcow2"), "qcow2", 10 * MIB)
    create_image(str(tmp_path / "a.raw"), "raw", 10 * MIB)

    qcow2 = image_info(str(tmp_path / "a.qcow2"), "qcow2")
    raw = image_info(str(tmp_path / "a.raw"), "raw")

    assert (qcow2.format, qcow2.size_bytes, qcow2.backing, qcow2.compat) == ("qcow2", 10 * MIB, "", "1.1")
    assert (raw.format, raw.size_bytes, raw.bitmaps, raw.compat) == ("raw", 10 * MIB, (), "")
    assert raw.allocated_bytes < 1 * MIB
    assert (tmp_path / "a.raw").stat().st_mode & 0o777 == 0o600


def test_create_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"precious")
    with pytest.raises(TargetError):
        create_image(str(path), "raw", 1 * MIB)
    assert path.read_bytes() == b"precious"


def test_create_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        create_image(str(tmp_path / "a.qcow2"), "qcow2", 1 << 63)
    with pytest.raises(TargetError):
        create_image(str(tmp_path / "none" / "a.qcow2"), "qcow2", 1 * MIB)
    with pytest.raises(TargetError):
        create_image(str(tmp_path / "a.vmdk"), "vmdk", 1 * MIB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.feature("T7")
def test_bitmaps_come_and_go(tmp_path: Path) -> None:
    path = str(tmp_path / "a,b.qcow2")
    create_image(path, "qcow2", 10 * MIB)
    add_bitmap(path, "bm-1")
    add_bitmap(path, "-bm-2")

    bitmaps = list_bitmaps(path)
    assert {one.name for one in bitmaps} == {"bm-1", "-bm-2"}
    assert {one.granularity_bytes for one in bitmaps} == {64 * KIB}
    assert all(one.recording and not one.inconsistent for one in bitmaps)

    remove_bitmap(path, "-bm-2")
    assert [one.name for one in list_bitmaps(path)] == ["bm-1"]
    with pytest.raises(HypervisorError):
        remove_bitmap(path, "bm-none")


@pytest.mark.feature("T7")
def test_bitmap_of_a_killed_domain_is_inconsistent_and_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    create_image(str(path), "qcow2", 10 * MIB)
    add_bitmap(str(path), "bm-1")
    with MiniVm({"vda": path}) as vm:
        vm.write("vda", 0, b"x")
        vm.child.kill()

    assert [(one.name, one.inconsistent) for one in list_bitmaps(str(path))] == [("bm-1", True)]
    remove_bitmap(str(path), "bm-1")
    assert list_bitmaps(str(path)) == ()


def test_an_image_in_use_can_be_looked_at_but_not_changed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.qcow2")
    create_image(path, "qcow2", 10 * MIB)
    add_bitmap(path, "bm-1")
    assert not image_in_use(path, "qcow2")
    with MiniVm({"vda": Path(path)}):
        assert image_in_use(path, "qcow2")
        assert image_info(path, "qcow2").size_bytes == 10 * MIB
        with pytest.raises(ImageBusy) as caught:
            remove_bitmap(path, "bm-1")
    assert caught.value.reason == "VM_BUSY"
    assert not image_in_use(path, "qcow2")


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    for look in (image_info, image_in_use, image_files):
        with pytest.raises(HypervisorError):
            look(str(tmp_path / "a"), "qcow2")
        with pytest.raises(HypervisorError):
            look(str(tmp_path / "none"), "raw")


def test_the_files_of_an_image_are_all_that_its_content_comes_from(tmp_path: Path) -> None:
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*make, "-o", "data_file=data.raw", "base.qcow2", "4M"], cwd=tmp_path, check=True)
    subprocess.run([*make, "-b", "base.qcow2", "-F", "qcow2", "over.qcow2"], cwd=tmp_path, check=True)

    found = image_files(str(tmp_path / "over.qcow2"), "qcow2")

    assert found == tuple(str(tmp_path / name) for name in ("over.qcow2", "base.qcow2", "data.raw"))
