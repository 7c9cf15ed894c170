"""Restores of every kind: any disks of any points, into the domain, to files and to devices; and those that fail half-way."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.errors import TargetError
from engine.format.layout import HEADER_BYTES
from engine.source.images import image_in_use
from engine.spec import RestoreJob
from engine.units import KIB, MIB
from tests.engine.rig import RecordingReport, Rig, digest, reason, result
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.loop import loop_device

pytestmark = pytest.mark.feature("C12")
SIZE = 16 * MIB


class Server:
    """A running domain with two qcow2 disks and three backups: a full and two incrementals, each of another content."""

    def __init__(self, folder: Path, uri: str, blank_domain: Any, **options: Any) -> None:
        self.disks = [DiskFile(name, folder / f"{name}.qcow2").create(SIZE) for name in ("vda", "vdb")]
        self.domain: BlankDomain = blank_domain(self.disks, **options)
        self.rig = Rig.make(folder, uri)
        self.made: list[str] = []
        self.content: list[dict[str, str]] = []
        self.folder = folder / "out"
        self.folder.mkdir()
        for number in range(1, 4):
            self.write(number)
            self.made.append(self.rig.back_up(self.domain.uuid)["backup_id"])
            self.content.append(self.now())

    def write(self, number: int) -> None:
        for place, disk in enumerate(self.disks):
            self.domain.write(disk.target, number * MIB, 2 * MIB, 16 * place + number)

    def now(self) -> dict[str, str]:
        return {disk.target: digest(disk.path, "qcow2") for disk in self.disks}

    def files(self, backup: int, **options: Any) -> Any:
        uuid = self.domain.uuid
        spec = RestoreJob(uuid, "", self.made[backup], server_keys=self.rig.keys(uuid), **options)
        return self.rig.run(restore=spec)

    def segment(self, backup: int, disk: str) -> Path:
        return self.rig.folder / "storage" / "servers" / self.domain.uuid / self.made[backup] / disk / "0000.data"


@pytest.fixture
def server(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> Server:
    return Server(tmp_path, libvirtd.uri, blank_domain)


def test_each_disk_of_its_own_point_to_files_of_either_format(server: Server) -> None:
    for image_format in ("raw", "qcow2"):
        folder = server.folder / image_format
        folder.mkdir()
        points = {"vda": server.made[0]}
        made = result(server.files(2, target_folder=str(folder), target_format=image_format, points=points))

        files = {Path(one).stem: Path(one) for one in made["files"]}
        assert digest(files["vda"], image_format) == server.content[0]["vda"]
        assert digest(files["vdb"], image_format) == server.content[2]["vdb"]
        for file in files.values():
            assert file.suffix == f".{image_format}"
            assert file.stat().st_blocks * 512 < 6 * MIB  # sparse: 4 MiB at most were ever written
        assert not list(folder.glob(".*"))
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(files["vda"])]))
    assert "bitmaps" not in info["format-specific"]["data"]


def test_each_disk_of_its_own_point_into_the_running_domain(server: Server) -> None:
    restored = result(server.rig.restore(server.domain.uuid, server.made[1], points={"vdb": server.made[0]}))

    assert restored["server_started"] is True
    assert server.domain.handle.isActive()
    assert server.now() == {"vda": server.content[1]["vda"], "vdb": server.content[0]["vdb"]}


@pytest.mark.feature("T26")
def test_one_disk_restored_and_the_other_goes_on_incrementally(server: Server) -> None:
    server.write(5)
    result(server.rig.restore(server.domain.uuid, server.made[0], disks=("vdb",)))
    server.write(6)

    made = server.rig.back_up(server.domain.uuid)
    expected = server.now()

    assert [(one["disk"], one["type"], one["fallback_reason"]) for one in made["disks"]] == [
        ("vda", "incremental", ""),
        ("vdb", "full", "restored_over"),
    ]
    server.made.append(made["backup_id"])
    files = result(server.files(3, target_folder=str(server.folder)))["files"]
    assert {Path(one).stem: digest(Path(one)) for one in files} == expected
    again = server.rig.back_up(server.domain.uuid)
    assert [one["type"] for one in again["disks"]] == ["incremental", "incremental"]


def test_a_point_or_target_of_a_disk_that_is_not_restored_is_refused(server: Server) -> None:
    assert reason(
        server.files(0, target_folder=str(server.folder), disks=("vda",), points={"vdb": server.made[1]})
    ) == ("INVALID_FIELD")
    assert reason(server.files(0, targets={"vda": str(server.folder / "a")})) == "INVALID_FIELD"  # vdb has no place
    both = dict.fromkeys(("vda", "vdb"), str(server.folder / "one"))
    assert reason(server.files(0, targets=both)) == "INVALID_FIELD"
    assert not list(server.folder.iterdir())


# ---- what is there already ----------------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_only_if_that_was_asked_for(server: Server) -> None:
    old = server.folder / "old.img"
    old.write_bytes(b"precious")
    old.chmod(0o640)
    one = {"disks": ("vda",), "targets": {"vda": str(old)}}

    assert reason(server.files(0, **one)) == "TARGET_FAILED"
    assert old.read_bytes() == b"precious"
    with old.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as holder:
        try:
            assert reason(server.files(0, **one, overwrite=True)) == "TARGET_FAILED"
        finally:
            holder.kill()
    assert old.read_bytes() == b"precious"

    result(server.files(0, **one, overwrite=True))
    assert digest(old) == server.content[0]["vda"]
    assert old.stat().st_mode & 0o777 == 0o640


def test_the_image_of_a_domain_is_not_a_target_for_files(server: Server) -> None:
    before = server.now()
    image = str(server.disks[0].path)
    server.domain.handle.destroy()
    assert reason(server.files(0, disks=("vda",), targets={"vda": image}, overwrite=True)) == "TARGET_FAILED"
    assert server.now() == before


def test_an_image_that_cannot_be_read_leaves_the_old_file_as_it_was(server: Server) -> None:
    old = server.folder / "vda.raw"
    old.write_bytes(b"precious")
    flip(server.segment(0, "vda"))
    failed = server.files(0, disks=("vda",), target_folder=str(server.folder), overwrite=True)
    assert reason(failed) == "FRAME_CORRUPT"
    assert old.read_bytes() == b"precious"
    assert [one.name for one in server.folder.iterdir()] == ["vda.raw"]


def test_a_block_device(server: Server, tmp_path: Path) -> None:
    with loop_device(tmp_path / "volume", SIZE + MIB) as device:
        device.write_bytes(b"\xff" * (SIZE + MIB))
        one = {"disks": ("vda",), "targets": {"vda": str(device)}}
        assert reason(server.files(1, **one)) == "TARGET_FAILED"  # it is there already
        result(server.files(1, **one, overwrite=True))
        held = device.read_bytes()
        expected = server.folder / "vda.raw"
        result(server.files(1, disks=("vda",), target_folder=str(server.folder)))
        assert held[:SIZE] == expected.read_bytes()
        assert held[SIZE:] == bytes(MIB)
    with loop_device(tmp_path / "small", SIZE - MIB) as device:
        refused = server.files(1, disks=("vda",), targets={"vda": str(device)}, overwrite=True)
        assert reason(refused) == "TARGET_FAILED"


def test_a_block_device_in_use_is_refused(server: Server, tmp_path: Path) -> None:
    def refused(device: Path) -> str:
        return reason(server.files(1, disks=("vda",), targets={"vda": str(device)}, overwrite=True))

    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with loop_device(tmp_path / "volume", 64 * MIB) as device:
        subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
        subprocess.run(["mount", str(device), str(mounted)], check=True)
        try:
            assert refused(device) == "TARGET_FAILED"
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
        with device.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as holder:
            try:
                assert refused(device) == "TARGET_FAILED"
            finally:
                holder.kill()
        assert refused(device) == ""
        assert refused(Path("/dev/bm-no-such-volume")) == "TARGET_FAILED"
        assert refused(tmp_path / "volume") == "TARGET_FAILED"  # the file under the loop device


# ---- a domain that is gone ----------------------------------------------------------------------------------------------


def gone(server: Server) -> None:
    handle = server.domain.handle
    handle.destroy()
    handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    for disk in server.disks:
        disk.path.unlink()


@pytest.mark.feature("T25")
def test_a_domain_comes_back_disk_by_disk(server: Server) -> None:
    gone(server)

    result(server.rig.restore(server.domain.uuid, server.made[1], disks=("vda",)))

    assert any("disk vdb is not there" in warning for warning in server.rig.report.warnings)
    assert not server.domain.handle.isActive()
    assert not server.disks[1].path.exists()
    result(server.rig.restore(server.domain.uuid, server.made[1], disks=("vdb",)))
    assert server.now() == server.content[1]
    server.domain.handle.create()


@pytest.mark.feature("T25")
def test_nvram_comes_back_with_the_domain(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    variables = tmp_path / "vars.fd"
    variables.write_bytes(b"boot order" + bytes(100))
    loader = tmp_path / "code.fd"
    loader.write_bytes(bytes(64 * KIB))
    firmware = (
        f"<loader readonly='yes' type='pflash'>{loader}</loader><nvram template='{variables}'>{variables}</nvram>"
    )
    server = Server.__new__(Server)
    server.disks = [DiskFile("vda", tmp_path / "vda.qcow2").create(SIZE)]
    server.domain = blank_domain(server.disks, running=False, os=firmware, elements="<features><acpi/></features>")
    rig = Rig.make(tmp_path, libvirtd.uri)
    made = rig.back_up(server.domain.uuid)["backup_id"]
    server.domain.handle.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    )
    server.disks[0].path.unlink()
    expected = variables.read_bytes()
    variables.unlink()

    result(rig.restore(server.domain.uuid, made))

    assert variables.read_bytes() == expected


@pytest.mark.feature("T25")
def test_what_was_made_goes_again_when_nothing_was_restored(server: Server) -> None:
    """A cancel between the definition and the first byte."""
    gone(server)

    class Cancelling(RecordingReport):
        def warn(self, message: str) -> None:
            super().warn(message)
            if "defined anew" in message:
                stop.set()

    from engine.work import Stop

    stop = Stop()
    job = server.rig.restore_job(server.domain.uuid, server.made[0])
    outcome = server.rig.run(stop, Cancelling(), restore=job)

    assert outcome.state == "cancelled"
    assert not any(disk.path.exists() for disk in server.disks)
    with pytest.raises(libvirt.libvirtError):
        _ = server.domain.handle
    result(server.rig.restore(server.domain.uuid, server.made[0]))
    assert server.now() == server.content[0]


# ---- half-way -----------------------------------------------------------------------------------------------------------


def flip(segment: Path) -> None:
    """Damage the first frame's data."""
    data = bytearray(segment.read_bytes())
    data[HEADER_BYTES + 10] ^= 0xFF
    segment.write_bytes(data)


def test_a_restore_that_fails_half_way_says_so_and_can_be_run_again(server: Server) -> None:
    whole = server.segment(0, "vdb").read_bytes()
    flip(server.segment(0, "vdb"))

    failed = server.rig.restore(server.domain.uuid, server.made[2])

    assert failed.failure is not None
    assert failed.failure["reason"] == "FRAME_CORRUPT"
    assert failed.failure["facts"]["whole"] == "vda"
    assert failed.failure["facts"]["half"] == "vdb"
    assert any("left stopped (restored: vda; half restored: vdb)" in one for one in failed.warnings)
    assert not server.domain.handle.isActive()
    server.segment(0, "vdb").write_bytes(whole)
    result(server.rig.restore(server.domain.uuid, server.made[2]))
    assert server.now() == server.content[2]


def test_a_restore_that_cannot_begin_starts_the_domain_again_and_keeps_its_bitmaps(server: Server) -> None:
    """Another process holds an image of the stopped domain: nothing is written, and the next backup is an incremental."""
    server.domain.handle.destroy()
    image = str(server.disks[1].path)
    with subprocess.Popen(["qemu-io", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            # Asking for the lock before the other has it would keep it from getting it: it says itself that it is ready.
            holder.stdin.write("length\n")
            holder.stdin.flush()
            assert holder.stdout.readline()
            assert image_in_use(image, "qcow2")
            assert reason(server.rig.restore(server.domain.uuid, server.made[0])) == "VM_BUSY"
        finally:
            holder.stdin.close()  # it closes the image and ends
    assert server.now() == server.content[2]
    server.domain.handle.create()
    assert [one["type"] for one in server.rig.back_up(server.domain.uuid)["disks"]] == ["incremental"] * 2


def test_a_device_that_vanished_is_no_file_in_dev() -> None:
    from engine.target import RawTarget

    with pytest.raises(TargetError):
        RawTarget.device(Path("/dev/bm-no-such-volume"), MIB)
    assert not os.path.lexists("/dev/bm-no-such-volume")
