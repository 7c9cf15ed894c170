"""What happens to a domain and its disks between two backups: each ends in a right incremental, or a full that says why.

Every backup here is restored and compared with the disk, byte by byte.
"""

import subprocess
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.units import KIB, MIB
from tests.engine.aftermath import (
    INCREMENTAL,
    RUNNING,
    SHUTOFF,
    assert_host_is_clean,
    assert_next_is_good,
    assert_verifies,
    full,
)
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

pytestmark = [pytest.mark.feature("T2"), pytest.mark.feature("T26")]

DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    made.write("vda", 0, 4 * MIB, 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


def take_snapshot(domain: BlankDomain, overlay: Path) -> None:
    """Put an overlay above vda, as `virsh snapshot-create-as --disk-only --no-metadata` does."""
    xml = f"<domainsnapshot><disks><disk name='vda'><source file='{overlay}'/></disk></disks></domainsnapshot>"
    domain.handle.snapshotCreateXML(xml, DISK_ONLY)
    domain.disks = (DiskFile("vda", overlay),)


def pivot(domain: BlankDomain) -> None:
    """Wait until the block job of vda has all, and go over to its target."""
    wait_until(lambda: "<mirror" in domain.handle.XMLDesc() and "ready='yes'" in domain.handle.XMLDesc(), 20, "the job")
    domain.handle.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    wait_until(lambda: "<mirror" not in domain.handle.XMLDesc(), 20, "the pivot")


def commit_back(domain: BlankDomain, base: DiskFile) -> None:
    """Bring the active overlay back into what lies below, as `virsh blockcommit --active --pivot` does."""
    domain.handle.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    pivot(domain)
    domain.disks = (base,)


# ---- images -----------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T7")
def test_snapshots_above_each_other_keep_the_record(rig: Rig, domain: BlankDomain, tmp_path: Path) -> None:
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    domain.discard("vda", MIB, MIB)
    take_snapshot(domain, tmp_path / "one.qcow2")
    domain.write("vda", 6 * MIB, MIB, 3)
    take_snapshot(domain, tmp_path / "two.qcow2")
    domain.write("vda", 7 * MIB, MIB, 4)

    assert_next_is_good(rig, domain, INCREMENTAL)
    domain.write("vda", 8 * MIB, MIB, 5)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert_verifies(rig, domain)


@pytest.mark.feature("T7")
def test_a_snapshot_that_was_committed_back_keeps_the_record(rig: Rig, domain: BlankDomain, tmp_path: Path) -> None:
    base = domain.disks[0]
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    take_snapshot(domain, tmp_path / "overlay.qcow2")
    domain.write("vda", 6 * MIB, MIB, 3)
    domain.discard("vda", MIB, MIB)
    commit_back(domain, base)
    domain.write("vda", 7 * MIB, MIB, 4)

    assert_next_is_good(rig, domain, INCREMENTAL)
    assert len(domain.handle.listAllCheckpoints()) == 1


def test_a_backup_made_above_a_snapshot_does_not_count_below_it(rig: Rig, domain: BlankDomain, tmp_path: Path) -> None:
    base = domain.disks[0]
    rig.back_up(domain.uuid)
    take_snapshot(domain, tmp_path / "overlay.qcow2")
    domain.write("vda", 6 * MIB, MIB, 3)
    assert_next_is_good(rig, domain, INCREMENTAL)
    domain.write("vda", 7 * MIB, MIB, 4)
    commit_back(domain, base)
    domain.write("vda", 8 * MIB, MIB, 5)

    assert_next_is_good(rig, domain, full("disk_replaced"))
    domain.write("vda", 9 * MIB, MIB, 6)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert len(domain.handle.listAllCheckpoints()) == 1


def test_an_overlay_that_was_thrown_away_takes_its_backup_along(rig: Rig, domain: BlankDomain, tmp_path: Path) -> None:
    """A revert by hand: the domain runs on what it was before the snapshot."""
    base = domain.disks[0]
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    take_snapshot(domain, tmp_path / "overlay.qcow2")
    domain.write("vda", 6 * MIB, MIB, 3)
    assert_next_is_good(rig, domain, INCREMENTAL)
    domain.handle.destroy()
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    domain.disks = (base,)
    domain.connection.defineXML(domain.xml())

    assert_next_is_good(rig, domain, full("disk_replaced"))
    domain.handle.create()
    domain.write("vda", 9 * MIB, MIB, 6)
    assert_next_is_good(rig, domain, INCREMENTAL)


def test_a_disk_copied_elsewhere_while_it_runs(rig: Rig, domain: BlankDomain, tmp_path: Path) -> None:
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    copy = DiskFile("vda", tmp_path / "copy.qcow2")
    xml = f"<disk type='file'><source file='{copy.path}'/><driver type='qcow2'/></disk>"
    domain.handle.blockCopy("vda", xml, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    domain.write("vda", 6 * MIB, MIB, 3)
    pivot(domain)
    domain.disks = (copy,)
    domain.write("vda", 7 * MIB, MIB, 4)

    assert_next_is_good(rig, domain, full("disk_replaced"))
    domain.write("vda", 8 * MIB, MIB, 5)
    assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("T27")
@pytest.mark.parametrize("size", ["24M", "8M"])
@pytest.mark.parametrize("started", [True, False], ids=["started", "stopped"])
def test_a_disk_resized_while_the_domain_is_stopped(rig: Rig, domain: BlankDomain, size: str, *, started: bool) -> None:
    first, before = rig.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    domain.handle.destroy()
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", domain.disks[0].path, size], check=True)
    if started:
        domain.handle.create()
        domain.write("vda", 7 * MIB, MIB, 2)

    assert_next_is_good(rig, domain, full("disk_resized"))
    if not started:
        domain.handle.create()
    domain.write("vda", 6 * MIB, MIB, 3)
    assert_next_is_good(rig, domain, INCREMENTAL)
    restored = rig.restore_to(rig.folder / "old", domain.uuid, first["backup_id"])
    assert digest(restored["vda"]) == before


@pytest.mark.feature("T27")
@pytest.mark.share(3)
@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 1536], ids=["whole", "ragged"])
@pytest.mark.parametrize("how", ["stopped", "running", "raw"])
def test_a_disk_that_was_shrunk_and_grown_back_has_no_old_bytes_at_its_end(
    rig: Rig, domain: BlankDomain, blank_domain: Any, tmp_path: Path, how: str, size: int
) -> None:
    """It has the size and the bitmap that it had, and QEMU forgets with the end what was written there."""
    if how == "raw":
        domain = blank_domain([DiskFile("vda", tmp_path / "vda.raw", "raw").create(16 * MIB)])
    domain.write("vda", 0, 15 * MIB, 1)
    rig.back_up(domain.uuid)
    domain.write("vda", 14 * MIB, 64 * KIB, 2)
    if how == "stopped":
        domain.handle.destroy()
        for number in (size, 16 * MIB):
            subprocess.run(["qemu-img", "resize", "-q", "--shrink", domain.disks[0].path, str(number)], check=True)
        assert_next_is_good(rig, domain, INCREMENTAL)
        domain.handle.create()
    for again in range(2 if how == "raw" else 1):
        domain.handle.blockResize("vda", size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        domain.handle.blockResize("vda", 16 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        domain.write("vda", 16 * MIB - 64 * KIB, 64 * KIB, 3)  # as a partition table's second copy
        assert_next_is_good(rig, domain, INCREMENTAL)
        domain.write("vda", (10 + again) * MIB, 2 * MIB, 4)
        assert_next_is_good(rig, domain, {"vda": ("differential", "")}, type="differential")


def test_an_old_qcow2_is_a_full_when_its_domain_was_stopped(rig: Rig, blank_domain: Any, tmp_path: Path) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "old.qcow2").create(8 * MIB, "-o", "compat=0.10")])
    domain.write("vda", MIB, MIB, 1)
    rig.back_up(domain.uuid)
    domain.write("vda", 2 * MIB, MIB, 2)
    assert_next_is_good(rig, domain, INCREMENTAL)
    domain.handle.destroy()
    assert_next_is_good(rig, domain, full("bitmap_lost"))
    assert_next_is_good(rig, domain, full("untracked"))


# ---- domains ----------------------------------------------------------------------------------------------------------------


def test_a_renamed_domain_goes_on(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    domain.handle.destroy()
    domain.handle.rename(f"{domain.name}-renamed")

    stopped = assert_next_is_good(rig, domain, INCREMENTAL)
    domain.handle.create()
    domain.write("vda", 6 * MIB, MIB, 3)
    running = assert_next_is_good(rig, domain, INCREMENTAL)

    assert {stopped["domain_name"], running["domain_name"]} == {f"{domain.name}-renamed"}
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.feature("T7")
def test_a_domain_that_moved_to_another_host_goes_on(rig: Rig, domain: BlankDomain, tmp_path: Path) -> None:
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    domain.handle.destroy()
    with Libvirtd(tmp_path / "lv") as other, BlankDomain(other.uri, domain.disks, running=False) as moved:
        moved.handle.undefine()
        moved.name, moved.uuid = domain.name, domain.uuid
        moved.connection.defineXML(moved.xml())
        moved.handle.create()
        moved.write("vda", 6 * MIB, MIB, 3)
        rig.uri = other.uri
        assert moved.handle.listAllCheckpoints() == []

        assert_next_is_good(rig, moved, INCREMENTAL)
        moved.write("vda", 7 * MIB, MIB, 4)
        assert_next_is_good(rig, moved, INCREMENTAL)
        assert_host_is_clean(rig, moved)


@pytest.mark.feature("T7", "T8")
def test_a_domain_that_migrated_while_it_ran_goes_on(
    rig: Rig, libvirtd: Libvirtd, blank_domain: Any, tmp_path: Path
) -> None:
    """To another libvirtd and its own QEMU, over shared storage: the image brings its bitmap along, what QEMU remembers stays."""
    disks = [
        DiskFile("vda", tmp_path / "a.qcow2").create(8 * MIB),
        DiskFile("vdb", tmp_path / "b.raw", "raw").create(MIB),
    ]
    domain: BlankDomain = blank_domain(disks)
    domain.write("vda", 0, 2 * MIB, 1)
    rig.back_up(domain.uuid)
    for disk in ("vda", "vdb"):
        domain.write(disk, 64 * KIB, 64 * KIB, 2)
    with Libvirtd(tmp_path / "lv", like=libvirtd) as other, BlankDomain(other.uri, disks, running=False) as moved:
        moved.handle.undefine()
        moved.name, moved.uuid = domain.name, domain.uuid
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE
        domain.handle.migrate3(moved.connection, {}, flags)
        assert moved.state()[0] == RUNNING
        assert moved.handle.listAllCheckpoints() == []
        moved.write("vda", 4 * MIB, MIB, 3)
        rig.uri = other.uri

        assert_next_is_good(rig, moved, {**INCREMENTAL, "vdb": ("full", "bitmap_lost")})
        moved.write("vdb", 0, 64 * KIB, 4)
        assert_next_is_good(rig, moved, {**INCREMENTAL, "vdb": ("incremental", "")})
        assert_host_is_clean(rig, moved)


@pytest.mark.feature("T7")
@pytest.mark.feature("T24")
def test_a_domain_that_was_saved_to_disk_and_goes_on(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    domain.handle.managedSave()

    saved = assert_next_is_good(rig, domain, INCREMENTAL)

    assert saved["consistency"] == "paused"  # its guest has files open, and will go on
    assert_host_is_clean(rig, domain, SHUTOFF)
    domain.handle.create()
    assert domain.state()[0] == RUNNING
    domain.write("vda", 6 * MIB, MIB, 3)
    assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("M15")
def test_a_saved_domain_that_is_restored_does_not_go_on_with_its_old_memory(rig: Rig, domain: BlankDomain) -> None:
    """Its guest would write what it remembers of a disk that is another now."""
    made, expected = rig.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    domain.write("vda", 5 * MIB, MIB, 2)
    domain.handle.managedSave()

    outcome = rig.restore(domain.uuid, made["backup_id"])

    assert reason(outcome) == ""
    assert any("saved" in warning for warning in outcome.warnings)
    assert not domain.handle.hasManagedSaveImage()
    assert digest(domain.disks[0].path, "qcow2") == expected


def test_a_revert_to_an_internal_snapshot_never_makes_a_wrong_incremental(rig: Rig, domain: BlankDomain) -> None:
    """QEMU refuses to take a disk back in time under a bitmap; after the bitmap is given up, the next backup is a full."""
    domain.handle.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    rig.back_up(domain.uuid)
    domain.write("vda", 0, 4 * MIB, 9)
    domain.handle.destroy()
    snapshot = domain.handle.snapshotLookupByName("before")
    with pytest.raises(libvirt.libvirtError, match="active dirty bitmaps"):
        domain.handle.revertToSnapshot(snapshot)
    assert_next_is_good(rig, domain, full("bitmap_inconsistent"))

    domain.handle.create()
    domain.write("vda", 5 * MIB, MIB, 2)
    assert_next_is_good(rig, domain, INCREMENTAL)
    for checkpoint in domain.handle.listAllCheckpoints():
        checkpoint.delete()
    domain.handle.revertToSnapshot(domain.handle.snapshotLookupByName("before"))
    domain.write("vda", 6 * MIB, MIB, 3)

    assert_next_is_good(rig, domain, full("bitmap_lost"))
    domain.write("vda", 7 * MIB, MIB, 4)
    assert_next_is_good(rig, domain, INCREMENTAL)
