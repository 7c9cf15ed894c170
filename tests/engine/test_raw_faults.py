"""Raw disks when something dies or changes: no write is ever missed, and what QEMU recorded for nothing goes again."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.hypervisor import transient
from engine.hypervisor.backup_job import job_folder
from engine.units import KIB, MIB
from tests.engine.aftermath import SHUTOFF, At, assert_host_is_clean
from tests.engine.kill_world import Worlds
from tests.engine.mixed import ALL, RAW, assert_is, digests, mixed_domain, transient_bitmaps, types, write_all
from tests.engine.rig import Rig, reason, result
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

INCREMENTAL = dict.fromkeys(ALL, ("incremental", ""))
LOST = {"vda": ("incremental", ""), **dict.fromkeys(RAW, ("full", "bitmap_lost"))}


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> Iterator[BlankDomain]:
    with mixed_domain(tmp_path, blank_domain, 8 * MIB) as made:
        write_all(made, 0, 6 * MIB, 0x11)
        yield made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


def assert_next(rig: Rig, domain: BlankDomain, expected: dict[str, tuple[str, str]]) -> None:
    """The next backup has these types, restores byte by byte, and leaves one record for each raw disk."""
    made = rig.back_up(domain.uuid)
    assert types(made) == expected
    assert_is(rig, domain, made["backup_id"], digests(domain))
    assert [len(names) for names in transient_bitmaps(domain).values()] == [1, 1]
    assert_host_is_clean(rig, domain)


# ---- the engine dies ---------------------------------------------------------------------------------------------------

# Where what is known of a raw disk changes: its new record, the job, the copy of the old one, the commit, the old one's end.
STEPS = ("recorded", "begun", "mapped", "stored", "job_ended", "committed", "bitmap_dropped")


@pytest.mark.feature("T8")
@pytest.mark.feature("N15")
def test_no_write_before_or_after_a_kill_is_missed(tmp_path: Path, libvirtd: Any) -> None:
    """No self-heal in between: the next run alone finds the job, the copy and both records. test_kill.py has every other step."""
    with Worlds(tmp_path / "kill", libvirtd.uri) as worlds, worlds.get("mixed", running=True) as world:
        world.rig.back_up(world.uuid)
        points = world.every_point(world.run(world.backup_job(consistency="pause")).steps)
        assert {*STEPS} <= {point.step for point in points}
        for point in points:
            if point.step in STEPS:
                world.scribble()
                world.kill(world.backup_job(consistency="pause"), point)
                world.settle()
                world.scribble()
                world.scribble()
                world.assert_next_is_good()
                world.scribble()
                world.assert_next_is_good()
                world.assert_no_trace()
                assert [len(names) for names in transient_bitmaps(world.domain).values()] == [1, 1]


# ---- QEMU and libvirt die ------------------------------------------------------------------------------------------------


@pytest.mark.feature("T8")
@pytest.mark.feature("N15")
def test_a_qemu_killed_in_the_middle_leaves_an_explained_full(
    rig: Rig, domain: BlankDomain, libvirtd: Libvirtd
) -> None:
    rig.back_up(domain.uuid)
    write_all(domain, 1 * MIB, MIB, 2)

    report = At("read", lambda: os.kill(libvirtd.qemu_pid(domain.name), signal.SIGKILL))
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert (outcome.state, reason(outcome)) == ("failed", "DOMAIN_GONE")
    assert_host_is_clean(rig, domain, SHUTOFF)
    domain.handle.create()
    write_all(domain, 2 * MIB, 64 * KIB, 3)
    assert_next(rig, domain, {**LOST, "vda": ("full", "bitmap_lost")})


@pytest.mark.feature("N15")
@pytest.mark.parametrize("stage", ["freeze", "read", "commit"])
def test_a_restart_of_libvirtd_does_not_touch_the_records(
    rig: Rig, domain: BlankDomain, libvirtd: Libvirtd, stage: str
) -> None:
    rig.back_up(domain.uuid)
    write_all(domain, 2 * MIB, MIB, 2)

    made = result(rig.run(report=At(stage, libvirtd.restart), backup=rig.backup_job(domain.uuid)))

    assert types(made) == INCREMENTAL
    assert_is(rig, domain, made["backup_id"], digests(domain))
    write_all(domain, 4 * MIB, MIB, 3)
    assert_next(rig, domain, INCREMENTAL)


@pytest.mark.feature("N15")
def test_a_job_that_somebody_ends_leaves_the_record_as_it_was(rig: Rig, blank_domain: Any, tmp_path: Path) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "a.raw", "raw").create(32 * MIB)])
    rig.back_up(domain.uuid)
    domain.write("vda", 0, 30 * MIB, 2)
    before = transient_bitmaps(domain)

    report = At("read", lambda: domain.handle.abortJob(), 4 * MIB)
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert reason(outcome) == "DOMAIN_GONE"
    assert transient_bitmaps(domain) == before
    assert_host_is_clean(rig, domain)
    domain.write("vda", 31 * MIB, 64 * KIB, 3)
    made = rig.back_up(domain.uuid)
    assert types(made) == {"vda": ("incremental", "")}
    assert_is(rig, domain, made["backup_id"], digests(domain))


# ---- the disk changes its image -----------------------------------------------------------------------------------------


def snapshot(domain: BlankDomain, target: str) -> None:
    """Put a qcow2 overlay on a disk, as a live snapshot does."""
    others = "".join(f"<disk name='{one}' snapshot='no'/>" for one in ALL if one != target)
    overlay = domain.disks[0].path.with_name(f"{target}.overlay")
    xml = f"<disk name='{target}' snapshot='external' type='file'><source file='{overlay}'/></disk>{others}"
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    domain.handle.snapshotCreateXML(f"<domainsnapshot><disks>{xml}</disks></domainsnapshot>", flags)


def finish(domain: BlankDomain, target: str) -> None:
    """Wait until a block job has all, pivot to its target, and wait for its end."""

    def whole() -> bool:
        info = domain.handle.blockJobInfo(target, 0)
        return bool(info) and info["cur"] == info["end"]

    def pivoted() -> bool:
        try:
            domain.handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError:  # "not ready": libvirt hears of it some moments after QEMU's numbers say it
            return False
        return True

    wait_until(whole, 20, "the block job to have copied all")
    wait_until(pivoted, 20, "the pivot")
    wait_until(lambda: not domain.handle.blockJobInfo(target, 0), 20, "the end of the block job")


def commit_overlay(domain: BlankDomain, target: str) -> None:
    domain.handle.blockCommit(target, None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    finish(domain, target)


@pytest.mark.feature("T27")
@pytest.mark.feature("T8")
def test_a_snapshot_that_is_committed_back_has_been_recorded(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    write_all(domain, 1 * MIB, 64 * KIB, 2)
    snapshot(domain, "vdb")
    write_all(domain, 2 * MIB, 64 * KIB, 3)
    commit_overlay(domain, "vdb")
    write_all(domain, 3 * MIB, 64 * KIB, 4)

    assert_next(rig, domain, INCREMENTAL)


@pytest.mark.feature("T27")
@pytest.mark.feature("T26")
def test_a_snapshot_over_a_raw_disk_is_a_full_and_goes_on_as_qcow2(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    snapshot(domain, "vdb")
    write_all(domain, 2 * MIB, 64 * KIB, 3)

    made = rig.back_up(domain.uuid)
    assert types(made) == {**INCREMENTAL, "vdb": ("full", "disk_replaced")}
    write_all(domain, 3 * MIB, 64 * KIB, 4)
    after = rig.back_up(domain.uuid)

    assert types(after) == INCREMENTAL
    # the raw disk that is left has its record, and the one below the snapshot none any more
    assert [len(names) for names in transient_bitmaps(domain).values()] == [1]
    commit_overlay(domain, "vdb")
    assert_is(rig, domain, after["backup_id"], digests(domain))
    write_all(domain, 4 * MIB, 64 * KIB, 5)
    last = rig.back_up(domain.uuid)
    assert_is(rig, domain, last["backup_id"], digests(domain))
    assert types(last) == {**INCREMENTAL, "vdb": ("full", "disk_replaced")}


@pytest.mark.feature("T27")
@pytest.mark.feature("T26")
def test_a_raw_disk_copied_to_another_file_is_an_explained_full(rig: Rig, blank_domain: Any, tmp_path: Path) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "a.raw", "raw").create(8 * MIB)], persistent=False)
    domain.write("vda", 0, 4 * MIB, 1)
    rig.back_up(domain.uuid)
    copy = DiskFile("vda", tmp_path / "b.raw", "raw")
    domain.handle.blockCopy("vda", copy.xml(), {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    domain.write("vda", MIB, 64 * KIB, 2)
    finish(domain, "vda")
    domain.write("vda", 2 * MIB, 64 * KIB, 3)
    domain.disks = (copy,)

    for expected in (("full", "disk_replaced"), ("incremental", "")):
        made = rig.back_up(domain.uuid)
        assert types(made) == {"vda": expected}
        assert_is(rig, domain, made["backup_id"], digests(domain))
        domain.write("vda", 3 * MIB, 64 * KIB, 4)


@pytest.mark.feature("T27")
@pytest.mark.feature("T26")
def test_another_device_under_the_same_name_is_a_full(rig: Rig, blank_domain: Any, tmp_path: Path) -> None:
    """Even of the same size, at the same path, in the same QEMU."""
    disk = DiskFile("sda", tmp_path / "a.raw", "raw", bus="scsi").create(8 * MIB)
    controller = "<controller type='scsi' index='0' model='virtio-scsi'/>"
    domain = blank_domain([DiskFile("vdb", tmp_path / "b.raw", "raw").create(MIB)], devices=controller)
    domain.disks = (*domain.disks, disk)
    domain.handle.attachDevice(disk.xml())
    domain.write("sda", 0, MIB, 1)
    rig.back_up(domain.uuid)
    domain.handle.detachDevice(disk.xml())
    wait_until(lambda: "a.raw" not in domain.handle.XMLDesc(), 20, "the disk to be unplugged")
    disk.path.write_bytes(bytes([7]) * 8 * MIB)
    domain.handle.attachDevice(disk.xml())

    made = rig.back_up(domain.uuid)

    assert types(made) == {"sda": ("full", "bitmap_lost"), "vdb": ("incremental", "")}
    assert_is(rig, domain, made["backup_id"], digests(domain))


@pytest.mark.feature("T27")
def test_a_snapshot_at_the_very_moment_ends_the_backup(
    rig: Rig, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is of the image below, the job reads the overlay: what was written between would be missed."""
    rig.back_up(domain.uuid)
    record = transient.record

    def recorded_then_overlaid(*arguments: Any) -> None:
        record(*arguments)
        snapshot(domain, "vdb")
        domain.write("vdb", 5 * MIB, 64 * KIB, 9)

    with monkeypatch.context() as patch:
        patch.setattr(transient, "record", recorded_then_overlaid)
        outcome = rig.run(backup=rig.backup_job(domain.uuid, consistency="none"))

    assert reason(outcome) == "DISK_MISMATCH"
    assert not job_folder(rig.folder / "scratch", domain.uuid).exists()
    made = rig.back_up(domain.uuid)
    assert types(made) == {**INCREMENTAL, "vdb": ("full", "disk_replaced")}
    commit_overlay(domain, "vdb")
    assert_is(rig, domain, made["backup_id"], digests(domain))
