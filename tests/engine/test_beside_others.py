"""Another tool's checkpoints and bitmaps on a domain that we back up: never touched, never taken for ours, and never made wrong."""

from pathlib import Path
from typing import Any

import pytest

from engine.cleanup import drop_stale_checkpoints, forget_domain
from engine.hypervisor import backup_job
from engine.hypervisor.checkpoints import parse_name
from engine.hypervisor.connection import open_connection
from engine.storage.open import open_storage
from engine.units import KIB, MIB
from tests.engine.kill_world import bitmaps_in
from tests.engine.mixed import digests, transient_bitmaps
from tests.engine.rig import Rig, digest, reason
from tests.servers.export import dirty_extents
from tests.servers.guest import BlankDomain, DiskFile

# As others name theirs, and names that are nearly ours.
OTHERS = ("virtnbdbackup.0", "bm-backup", "bm-0123456789ab-daily")
SIZE = 8 * MIB


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    disks = [
        DiskFile("vda", tmp_path / "vda.qcow2").create(SIZE),
        DiskFile("vdb", tmp_path / "vdb.raw", "raw").create(SIZE),
    ]
    made: BlankDomain = blank_domain(disks)
    for disk in ("vda", "vdb"):
        made.write(disk, 0, MIB, 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


def track(rig: Rig, domain: BlankDomain) -> None:
    """Do what another tool does: a checkpoint of its own on vda, a bitmap in QEMU's memory on vdb."""
    with open_connection(rig.uri) as connection:
        for name in OTHERS:
            with backup_job.begin(connection.domain(domain.uuid), {"vda": None}, name, rig.folder / "theirs"):
                pass
    node = next(one for one in domain.qmp("query-block") if one.get("inserted", {}).get("file", "").endswith("vdb.raw"))
    domain.qmp("block-dirty-bitmap-add", node=node["inserted"]["node-name"], name=OTHERS[0], persistent=False)


def theirs(rig: Rig, domain: BlankDomain, name: str = OTHERS[0]) -> list[tuple[int, int]]:
    """Return what the other tool's next incremental of vda would read."""
    with (
        open_connection(rig.uri) as connection,
        backup_job.begin(connection.domain(domain.uuid), {"vda": name}, "", rig.folder / "theirs") as job,
    ):
        return dirty_extents(job.socket_path, "vda", job.bitmap_name("vda"))


def checkpoints(domain: BlankDomain) -> set[str]:
    return {one.getName() for one in domain.handle.listAllCheckpoints()}


@pytest.mark.feature("E7", "C7", "R19")
def test_all_our_verbs_leave_another_tools_tracking_as_it_is(rig: Rig, domain: BlankDomain) -> None:
    track(rig, domain)
    made = []
    for step, kind in enumerate(["full", "incremental", "differential", "copy"]):
        for disk in ("vda", "vdb"):
            domain.write(disk, (step + 1) * MIB, 64 * KIB, step + 2)
        made.append(rig.back_up(domain.uuid, type=kind)["backup_id"])
        assert checkpoints(domain) > {*OTHERS}
    assert {disk["type"] for disk in rig.back_up(domain.uuid)["disks"]} == {"incremental"}
    restored = rig.restore_to(rig.folder / "out", domain.uuid, made[-1])
    assert {disk: path.stat().st_size for disk, path in restored.items()} == {"vda": SIZE, "vdb": SIZE}

    everything = [record["backup"]["backup_id"] for record in rig.reindex()]
    assert reason(rig.delete(domain.uuid, *everything, domain_uuid=domain.uuid)) == ""
    rig.back_up(domain.uuid)
    forget_domain(rig.uri, domain.uuid, rig.folder / "locks")
    repository = rig.target.repository_id
    with open_storage(rig.target) as storage:
        assert drop_stale_checkpoints(storage, repository, rig.uri, domain.uuid, rig.folder / "locks") == []

    assert checkpoints(domain) == {*OTHERS}
    assert [[*names] for names in transient_bitmaps(domain).values()] == [[OTHERS[0]]]
    for name in OTHERS:
        assert theirs(rig, domain, name) == [((step + 1) * MIB, 64 * KIB) for step in range(4)]


@pytest.mark.feature("E7", "T26")
def test_a_restore_shows_in_another_tools_incremental(rig: Rig, domain: BlankDomain) -> None:
    """What we write over an image has been written since its checkpoint: its next incremental has to hold it, or has to fail."""
    before = rig.back_up(domain.uuid)["backup_id"]
    at_first = digests(domain)
    domain.write("vda", 0, MIB, 9)
    track(rig, domain)
    assert theirs(rig, domain) == []

    assert reason(rig.restore(domain.uuid, before)) == ""

    assert digests(domain) == at_first
    assert checkpoints(domain) >= {*OTHERS}
    start, length = theirs(rig, domain)[0]
    assert (start, length >= MIB) == (0, True)


@pytest.mark.feature("E7", "C7", "T26")
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_what_is_forgotten_is_explained_by_a_full(rig: Rig, domain: BlankDomain, running: bool) -> None:
    """Without our checkpoints libvirt takes an internal snapshot again, which it refuses with one."""
    rig.back_up(domain.uuid)
    if not running:
        domain.handle.destroy()

    done = forget_domain(rig.uri, domain.uuid, rig.folder / "locks")

    assert len(done) == 1
    assert checkpoints(domain) == set()
    assert forget_domain(rig.uri, domain.uuid, rig.folder / "locks") == []
    if not running:
        assert bitmaps_in(domain.disks[0]) == set()
        domain.handle.create()
    domain.write("vda", 2 * MIB, MIB, 5)
    made = rig.back_up(domain.uuid)
    assert {one["disk"]: (one["type"], one["fallback_reason"]) for one in made["disks"]} == {
        "vda": ("full", "bitmap_lost"),
        "vdb": ("full", "bitmap_lost"),
    }


# ---- another tool that is in the way ------------------------------------------------------------------------------------


def assert_next(rig: Rig, domain: BlankDomain, vda: tuple[str, str], vdb: tuple[str, str]) -> None:
    """The next backup has these types and reasons, restores byte by byte, and another tool's checkpoints are still there."""
    theirs_before = {name for name in checkpoints(domain) if not parse_name(name)}
    made = rig.back_up(domain.uuid)
    assert {one["disk"]: (one["type"], one["fallback_reason"]) for one in made["disks"]} == {"vda": vda, "vdb": vdb}
    restored = rig.restore_to(rig.folder / f"out-{made['backup_id']}", domain.uuid, made["backup_id"])
    assert {disk: digest(path) for disk, path in restored.items()} == digests(domain)
    assert theirs_before <= checkpoints(domain)


GOOD = ("incremental", "")


@pytest.mark.feature("E7", "T2", "T26")
def test_checkpoints_of_another_tool_before_between_and_after_ours_cost_no_full(rig: Rig, domain: BlankDomain) -> None:
    with open_connection(rig.uri) as connection:
        for step, name in enumerate(OTHERS):
            with backup_job.begin(connection.domain(domain.uuid), {"vda": None}, name, rig.folder / "theirs"):
                pass
            for disk in ("vda", "vdb"):
                domain.write(disk, (step + 1) * MIB, 64 * KIB, step + 2)
            first = step == 0
            assert_next(rig, domain, ("full", "first") if first else GOOD, ("full", "first") if first else GOOD)
    domain.handle.checkpointLookupByName(
        OTHERS[1]
    ).delete()  # from the middle of libvirt's list, with ours below and above it
    domain.write("vda", 5 * MIB, MIB, 9)
    assert_next(rig, domain, GOOD, GOOD)


@pytest.mark.feature("E7", "T26")
@pytest.mark.share(2)
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_tool_that_switches_our_record_off_is_named(rig: Rig, domain: BlankDomain, running: bool) -> None:
    """What is written then is in its bitmap alone: an incremental from ours would miss it."""
    rig.back_up(domain.uuid)
    track(rig, domain)
    for node in (one["inserted"] for one in domain.qmp("query-block") if "inserted" in one):
        for bitmap in node["dirty-bitmaps"]:
            if parse_name(bitmap["name"]):
                domain.qmp("block-dirty-bitmap-disable", node=node["node-name"], name=bitmap["name"])
    for disk in ("vda", "vdb"):
        domain.write(disk, 3 * MIB, MIB, 7)
    if not running:
        domain.handle.destroy()

    foreign = ("full", "foreign_checkpoint")
    assert_next(rig, domain, foreign, foreign if running else ("full", "bitmap_lost"))
    if not running:
        domain.handle.create()
    domain.write("vda", 4 * MIB, MIB, 8)
    assert_next(rig, domain, GOOD, GOOD if running else ("full", "untracked"))


@pytest.mark.feature("E7", "T26")
@pytest.mark.share(2)
@pytest.mark.parametrize("after", [True, False], ids=["and made its own", "and made none since"])
def test_a_tool_that_took_our_record_away_is_named_if_its_own_is_newer(
    rig: Rig, domain: BlankDomain, after: bool
) -> None:
    rig.back_up(domain.uuid)
    (ours,) = checkpoints(domain)
    if after:
        track(rig, domain)
    domain.handle.checkpointLookupByName(ours).delete()
    domain.write("vda", 3 * MIB, MIB, 7)

    assert_next(rig, domain, ("full", "foreign_checkpoint" if after else "bitmap_lost"), GOOD)
    domain.write("vda", 4 * MIB, MIB, 8)
    assert_next(rig, domain, GOOD, GOOD)
