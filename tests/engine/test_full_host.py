"""A host whose folders are full or read-only: the job ends with a reason, the guest goes on, and the next run is fine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.spec import Job, Operation
from engine.units import MIB
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile
from tests.servers.small_disk import fill, remount_read_only, small_disk

RUNNING = 1


def spoil(folder: Path, how: str) -> None:
    (fill if how == "full" else remount_read_only)(folder)


@pytest.mark.feature("C11", "T11", "N15")
@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("name", ["scratch", "locks"])
def test_a_folder_of_the_engine_that_cannot_be_written(
    tmp_path: Path, libvirtd: Any, blank_domain: Callable[..., Any], name: str, how: str
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(32 * MIB)
    domain = blank_domain([disk])
    domain.write("vda", 0, 3 * MIB, 0x11)
    rig = Rig.make(tmp_path, libvirtd.uri)
    first = rig.back_up(domain.uuid)
    domain.write("vda", 1 * MIB, 3 * MIB, 0x22)
    before = {path for path in (tmp_path / "storage").rglob("*") if path.is_file()}

    with small_disk(tmp_path / name, 2 * MIB):
        spoil(tmp_path / name, how)
        job = rig.backup_job(domain.uuid)
        outcome = rig.run(backup=job)
        assert domain.state()[0] == RUNNING

    if outcome.failure is not None:
        assert reason(outcome) in {"SCRATCH_SHORT", "HYPERVISOR_FAILED", "QUIESCE_FAILED"}, outcome.failure
        assert {path for path in (tmp_path / "storage").rglob("*") if path.is_file()} == before
    else:  # what only makes a rescue easier may be missing
        assert (name, how) == ("locks", "full")
    second = rig.back_up(domain.uuid)
    assert second["disks"][0]["type"] == "incremental"
    restored = rig.restore_to(tmp_path / "second", domain.uuid, second["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path, "qcow2")
    restored = rig.restore_to(tmp_path / "first", domain.uuid, first["backup_id"])
    assert digest(restored["vda"]) != digest(disk.path, "qcow2")


class CatalogRig(Rig):
    """A rig whose engine keeps the host's catalog."""

    def operation(self, job: Job) -> Operation:
        return replace(super().operation(job), catalog_folder=str(self.folder / "catalog"))


@pytest.mark.feature("C9")
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_catalog_that_cannot_be_written_costs_no_backup(
    tmp_path: Path, libvirtd: Any, blank_domain: Callable[..., Any], how: str
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(32 * MIB)
    domain = blank_domain([disk])
    domain.write("vda", 0, 3 * MIB, 0x11)
    rig = CatalogRig.make(tmp_path, libvirtd.uri)

    with small_disk(tmp_path / "catalog", 1 * MIB):
        spoil(tmp_path / "catalog", how)
        made = rig.back_up(domain.uuid)

    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path, "qcow2")
