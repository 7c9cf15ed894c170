"""Checkpoints on domains without a system, and everything that can be wrong with one."""

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import HypervisorError, QmpFailed
from engine.hypervisor import backup_job, domains, qmp
from engine.hypervisor.checkpoints import (
    checkpoint_name,
    checkpoint_usable,
    delete_checkpoint,
    list_checkpoints,
    parse_name,
    remove_stale_bitmaps,
    repository_digits,
)
from engine.hypervisor.connection import Connection, Domain
from tests.servers.export import dirty_extents
from tests.servers.guest import MIB, BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

REPOSITORY = "018f0a1b-2c3d-7000-8000-000000000001"
OTHER = "018f0a1b-2c3e-7000-8000-000000000002"
ONE, TWO, THREE = (checkpoint_name(REPOSITORY, f"019012ab-0000-7000-8000-00000000000{number}") for number in (1, 2, 3))
SIZES = {"vda": 4 * MIB}


def _backup(domain: Domain, scratch: Path, checkpoint: str, base: str | None = None) -> None:
    with backup_job.begin(domain, {"vda": base}, checkpoint, scratch):
        pass


def _images_bitmaps(path: Path) -> dict[str, list[str]]:
    command = ["qemu-img", "info", "-U", "--output=json", str(path)]
    info = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {one["name"]: one["flags"] for one in info["format-specific"]["data"].get("bitmaps", ())}


def _forget(domain: Domain, name: str) -> None:
    domain.handle.checkpointLookupByName(name).delete(2)  # VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY


@pytest.fixture
def made(blank_domain, tmp_path: Path) -> BlankDomain:
    blank: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(4 * MIB)])
    return blank


@pytest.fixture
def domain(connection: Connection, made: BlankDomain) -> Domain:
    return connection.domain(made.uuid)


# ---- names ---------------------------------------------------------------------------------------------------------------


@given(st.uuids(), st.uuids())
def test_a_name_says_repository_and_backup(repository: uuid.UUID, backup: uuid.UUID) -> None:
    assert parse_name(checkpoint_name(str(repository), str(backup))) == (
        repository_digits(str(repository)),
        str(backup),
    )


@pytest.mark.parametrize(
    "name", ["", "bm-", "cp1", f"{ONE}x", f"x{ONE}", ONE.upper(), "bm-018f0a1b2c3d-" + "-" * 36, "virtnbdbackup.0"]
)
def test_other_names_are_foreign(name: str) -> None:
    assert parse_name(name) is None


def test_a_foreign_checkpoint_cannot_be_deleted(domain: Domain) -> None:
    with pytest.raises(ValueError):
        delete_checkpoint(domain, "cp1")


# ---- is it usable? ---------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T7")
def test_a_checkpoint_counts_while_running_stopped_and_started_again(made, domain: Domain, tmp_path: Path) -> None:
    _backup(domain, tmp_path / "s", ONE)
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": ""}
    assert checkpoint_usable(domain, TWO, SIZES) == {"vda": "bitmap_lost"}
    (found,) = list_checkpoints(domain)
    assert (found.name, found.repository, found.noted, found.disks) == (ONE, "000000000001", ("vda",), ("vda",))
    assert found.bitmaps[0].granularity_bytes == 64 << 10
    made.write("vda", MIB, MIB, 1)
    domains.shut_down(domain, 0)
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": ""}
    assert list_checkpoints(domain)[0].disks == ("vda",)
    domains.start(domain)
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": ""}
    with backup_job.begin(domain, {"vda": ONE}, TWO, tmp_path / "s") as job:
        assert dirty_extents(job.socket_path, "vda", job.bitmap_name("vda")) == [(MIB, MIB)]
    assert [one.name for one in list_checkpoints(domain)] == [ONE, TWO]


@pytest.mark.feature("T27")
def test_a_resized_disk_does_not_count(made: BlankDomain, domain: Domain, tmp_path: Path) -> None:
    _backup(domain, tmp_path / "s", ONE)
    made.handle.blockResize("vda", 8 * MIB, 1)  # VIR_DOMAIN_BLOCK_RESIZE_BYTES
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": "disk_resized"}
    assert checkpoint_usable(domain, ONE, {"vda": 8 * MIB}) == {"vda": ""}


def test_disks_that_hold_no_bitmaps_have_lost_them(connection, blank_domain, tmp_path: Path) -> None:
    disks = [
        DiskFile("vda", tmp_path / "a.raw", "raw").create(MIB),
        DiskFile("vdb", tmp_path / "b.qcow2").create(MIB, "-o", "compat=0.10"),
    ]
    domain = connection.domain(blank_domain(disks).uuid)
    sizes = {"vda": MIB, "vdb": MIB, "vdc": MIB}
    assert checkpoint_usable(domain, ONE, sizes) == {"vda": "bitmap_lost", "vdb": "bitmap_lost", "vdc": "untracked"}
    assert list_checkpoints(domain) == ()


@pytest.mark.feature("T7")
def test_a_lost_note_is_written_again(domain: Domain, made: BlankDomain, tmp_path: Path) -> None:
    _backup(domain, tmp_path / "s", ONE)
    made.write("vda", 0, MIB, 1)
    _forget(domain, ONE)
    assert list_checkpoints(domain)[0].noted == ()
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": ""}
    assert list_checkpoints(domain)[0].noted == ("vda",)
    with backup_job.begin(domain, {"vda": ONE}, "", tmp_path / "s") as job:
        assert dirty_extents(job.socket_path, "vda", job.bitmap_name("vda")) == [(0, MIB)]


def test_a_note_of_fewer_disks_is_widened(connection: Connection, blank_domain, tmp_path: Path) -> None:
    disks = [DiskFile(name, tmp_path / f"{name}.qcow2").create(MIB) for name in ("vda", "vdb")]
    domain = connection.domain(blank_domain(disks).uuid)
    with backup_job.begin(domain, {"vda": None, "vdb": None}, ONE, tmp_path / "s"):
        pass
    sizes = {"vda": MIB, "vdb": MIB}
    _forget(domain, ONE)
    assert checkpoint_usable(domain, ONE, {"vda": MIB}) == {"vda": ""}
    assert list_checkpoints(domain)[0].noted == ("vda",)
    assert checkpoint_usable(domain, ONE, sizes) == {"vda": "", "vdb": ""}
    with backup_job.begin(domain, {"vda": ONE, "vdb": ONE}, "", tmp_path / "s") as job:
        assert dirty_extents(job.socket_path, "vdb", job.bitmap_name("vdb")) == []


@pytest.mark.feature("T7")
def test_after_a_crash_of_qemu_nothing_old_counts(libvirtd: Libvirtd, made, domain: Domain, tmp_path: Path) -> None:
    _backup(domain, tmp_path / "s", ONE)
    domains.shut_down(domain, 0)  # stores the first bitmap
    domains.start(domain)
    _backup(domain, tmp_path / "s", TWO)  # made since: only in memory
    os.kill(libvirtd.qemu_pid(made.name), signal.SIGKILL)
    wait_until(lambda: not domains.is_active(domain), 10, "libvirt to notice")
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": "bitmap_inconsistent"}
    assert checkpoint_usable(domain, TWO, SIZES) == {"vda": "bitmap_lost"}
    domains.start(domain)
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": "bitmap_inconsistent"}
    assert checkpoint_usable(domain, TWO, SIZES) == {"vda": "bitmap_lost"}
    assert {one.name: one.disks for one in list_checkpoints(domain)} == {ONE: ("vda",), TWO: ()}
    _backup(domain, tmp_path / "s", THREE)  # a new full works at once
    assert remove_stale_bitmaps(domain, REPOSITORY, keep=[THREE]) == (ONE, TWO)
    assert [one.name for one in list_checkpoints(domain)] == [THREE]
    assert checkpoint_usable(domain, THREE, SIZES) == {"vda": ""}
    domains.shut_down(domain, 0)
    assert _images_bitmaps(made.disks[0].path) == {THREE: ["auto"]}


@pytest.mark.feature("T7")
def test_a_bitmap_that_missed_writes_does_not_count(domain: Domain, tmp_path: Path) -> None:
    _backup(domain, tmp_path / "s", ONE)
    (bitmap,) = list_checkpoints(domain)[0].bitmaps
    qmp.execute(domain, "block-dirty-bitmap-disable", node=bitmap.node, name=ONE)
    assert checkpoint_usable(domain, ONE, SIZES) == {"vda": "bitmap_inconsistent"}


# ---- removing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_a_checkpoint_goes_with_its_bitmap_and_others_stay(made, domain: Domain, tmp_path: Path, running: bool) -> None:
    other = checkpoint_name(OTHER, "019012ab-0000-7000-8000-000000000009")
    for name in (ONE, "foreign", other, TWO):
        _backup(domain, tmp_path / "s", name)
    if not running:
        domains.shut_down(domain, 0)
    delete_checkpoint(domain, ONE)
    delete_checkpoint(domain, ONE)
    assert [one.name for one in list_checkpoints(domain)] == [TWO, other]
    assert remove_stale_bitmaps(domain, REPOSITORY, keep=[]) == (TWO,)
    assert {one.getName() for one in domain.handle.listAllCheckpoints()} == {"foreign", other}
    domains.shut_down(domain, 0)
    assert set(_images_bitmaps(made.disks[0].path)) == {"foreign", other}


def test_a_bitmap_without_note_and_a_note_without_bitmap_are_removed(made, domain: Domain, tmp_path: Path) -> None:
    _backup(domain, tmp_path / "s", ONE)
    _backup(domain, tmp_path / "s", TWO)
    _forget(domain, ONE)
    (bitmap,) = list_checkpoints(domain)[1].bitmaps
    qmp.execute(domain, "block-dirty-bitmap-remove", node=bitmap.node, name=TWO)
    delete_checkpoint(domain, ONE)
    delete_checkpoint(domain, TWO)
    assert list_checkpoints(domain) == ()
    assert domain.handle.listAllCheckpoints() == []


def test_an_image_that_cannot_be_read_is_an_error(made: BlankDomain, domain: Domain) -> None:
    domains.shut_down(domain, 0)
    info = domains.domain_info(domain)
    made.disks[0].path.write_bytes(b"QFI\xfb" + (3).to_bytes(4, "big"))
    with pytest.raises(HypervisorError):
        list_checkpoints(domain, info)


def test_qemus_refusal_has_its_class(domain: Domain) -> None:
    with pytest.raises(QmpFailed) as caught:
        qmp.execute(domain, "block-dirty-bitmap-remove", node="none", name="none")
    assert caught.value.facts["kind"] == "GenericError"
    with pytest.raises(QmpFailed) as caught:
        qmp.execute(domain, "no-such-command")
    assert caught.value.facts["kind"] == "CommandNotFound"
