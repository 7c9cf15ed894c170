"""Several storages follow one domain: each goes on from its own last backup, and only so many records burden the guest."""

import uuid
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.hypervisor.bitmaps import Bitmap
from engine.hypervisor.checkpoints import REPOSITORIES_MAX, Checkpoint, last_backups, surplus
from engine.units import MIB
from tests.engine.aftermath import INCREMENTAL, assert_host_is_clean, assert_next_is_good, full
from tests.engine.rig import Rig
from tests.servers.guest import BlankDomain, DiskFile


def rigs(folder: Path, uri: str, count: int) -> list[Rig]:
    made = []
    for number in range(count):
        (folder / f"place{number}").mkdir()
        made.append(Rig.make(folder / f"place{number}", uri))
    return made


@pytest.mark.feature("T2")
@pytest.mark.feature("T26")
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_two_storages_follow_a_domain_and_a_third_costs_the_oldest_its_record(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, *, running: bool
) -> None:
    domain: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    one, two, three = rigs(tmp_path, libvirtd.uri, 3)
    foreign = "<domaincheckpoint><name>theirs</name></domaincheckpoint>"
    domain.handle.checkpointCreateXML(foreign)
    step = 0

    def next_is(rig: Rig, expected: dict[str, tuple[str, str]]) -> None:
        nonlocal step
        step += 1
        if not domain.handle.isActive():
            domain.handle.create()
        domain.write("vda", step * MIB, MIB, step)
        if not running:
            domain.handle.destroy()
        assert_next_is_good(rig, domain, expected)

    for rig, expected in (
        (one, full("first")),
        (two, full("first")),
        (one, INCREMENTAL),
        (two, INCREMENTAL),
        (three, full("first")),
        (two, INCREMENTAL),
        (one, full("storage_changed")),
        (two, INCREMENTAL),
        (three, full("storage_changed")),
    ):
        next_is(rig, expected)
    if not running:
        domain.handle.create()
    names = {bitmap["name"] for one in domain.qmp("query-block") for bitmap in one["inserted"]["dirty-bitmaps"]}
    assert len(names) == 1 + REPOSITORIES_MAX
    assert "theirs" in names
    assert "theirs" in {one.getName() for one in domain.handle.listAllCheckpoints()}
    assert_host_is_clean(one, domain)


@pytest.mark.feature("T28")
def test_a_disk_that_was_removed_keeps_no_record_on_the_others(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disks = [DiskFile(name, tmp_path / f"{name}.qcow2").create(8 * MIB) for name in ("vda", "vdb")]
    domain: BlankDomain = blank_domain(disks, elements="<features><acpi/></features>")
    rig = Rig.make(tmp_path, libvirtd.uri)
    rig.back_up(domain.uuid)
    domain.handle.destroy()
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    domain.disks = (disks[0],)
    domain.connection.defineXML(domain.xml())
    domain.handle.create()

    made = assert_next_is_good(rig, domain, INCREMENTAL)

    bitmaps = domain.qmp("query-block")[0]["inserted"]["dirty-bitmaps"]
    assert [bitmap["name"][-36:] for bitmap in bitmaps] == [made["backup_id"]]
    domain.handle.destroy()
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    domain.disks = (*disks,)
    domain.connection.defineXML(domain.xml())
    domain.handle.create()
    domain.write("vdb", MIB, MIB, 7)  # its own record was in its own image all the time
    assert_next_is_good(rig, domain, {**INCREMENTAL, "vdb": ("incremental", "")})
    for bitmaps in (one["inserted"]["dirty-bitmaps"] for one in domain.qmp("query-block")):
        assert len(bitmaps) == 1


def checkpoint(repository: int, backup: int, disks: tuple[str, ...]) -> Checkpoint:
    backup_id = str(uuid.UUID(int=backup))
    digits = f"{repository:012x}"
    name = f"bm-{digits}-{backup_id}"
    bitmaps = tuple(Bitmap(disk, name, "", 65536, consistent=True, recording=True, busy=False) for disk in disks)
    return Checkpoint(name, digits, backup_id, disks, bitmaps)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sets(st.sampled_from(["vda", "vdb", "vdc"]), min_size=1)),
        min_size=1,
        max_size=12,
    )
)
def test_what_is_left_is_the_newest_of_few_enough_and_always_the_own(made: list[tuple[int, set[str]]]) -> None:
    checkpoints = [checkpoint(repository, number, tuple(disks)) for number, (repository, disks) in enumerate(made)]
    own = checkpoints[-1]
    gone = set(surplus(checkpoints, own.repository))
    left = [one for one in checkpoints if one.name not in gone]
    assert own in left
    for disk in ("vda", "vdb", "vdc"):
        before, after = last_backups(checkpoints, disk), last_backups(left, disk)
        assert len(after) <= REPOSITORIES_MAX
        if len(before) <= REPOSITORIES_MAX and len({one.disks for one in checkpoints}) == 1:
            assert after == before
