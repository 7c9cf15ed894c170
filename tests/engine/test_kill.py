"""The engine process is killed at every step of its work; then self-heal and the next run must leave a whole world behind."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine import spec
from engine.failpoint import BACKUP_STEPS, DELETE_STEPS, RESTORE_STEPS
from engine.heal import HealSpec, heal
from engine.ids import new_id
from engine.results import BackupRecord
from engine.spec import DeleteJob, Job, RestoreJob
from engine.units import MIB
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile

KILLED = -9


def run_worker(rig: Rig, kill_at: str, **verb: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run an engine process that is killed at a step; return its exit status and its events."""
    job = Job(new_id(datetime.now(UTC)), **verb)
    done = subprocess.run(
        [sys.executable, "-m", "engine.worker"],
        input=spec.dump(rig.operation(job)).encode(),
        env={**os.environ, "BM_KILL_AT": kill_at},
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def heal_after(rig: Rig, uuid: str, backup_id: str = "") -> BackupRecord | None:
    """Tidy up; return the record of the backup if it is whole."""
    storage = rig.target if backup_id else None
    healed = heal(
        HealSpec(rig.uri, uuid, str(rig.folder / "scratch"), str(rig.folder / "locks"), storage, uuid, backup_id)
    )
    assert not healed.failed, healed
    return healed.record


def assert_host_is_clean(rig: Rig, domain: Any) -> None:
    """No block job, no scratch file, no mark of a freeze, a guest that runs."""
    job = domain.handle.jobStats()
    assert job["type"] == 0
    assert domain.state()[0] == 1
    scratch = rig.folder / "scratch"
    assert not scratch.exists() or not list(scratch.iterdir())
    assert not list((rig.folder / "locks").glob("*.quiesced"))
    devices = domain.qmp("query-named-block-nodes")
    assert not [node for node in devices if ".scratch" in node.get("file", "")]


@pytest.mark.feature("C11")
@pytest.mark.feature("N15")
@pytest.mark.parametrize("step", BACKUP_STEPS)
def test_a_backup_killed_anywhere_leaves_whole_backups_and_a_clean_host(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, step: str
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, MIB, 1)
    rig.back_up(domain.uuid)
    domain.write("vda", 2 * MIB, MIB, 2)
    job = rig.backup_job(domain.uuid, consistency="pause")

    status, _events = run_worker(rig, step, backup=job)
    assert status == KILLED, f"step {step} is never reached"
    told = heal_after(rig, domain.uuid, job.backup_id)

    assert_host_is_clean(rig, domain)
    records = {record["backup"]["backup_id"]: record for record in rig.reindex()}
    assert records.get(job.backup_id) == (asdict(told) if told else None)
    found = list(records)
    committed = step in {"committed", "checkpoints_dropped"} or (step == "disk_manifest" and job.backup_id in found)
    assert (job.backup_id in found) == committed
    folders = [path.name for path in (tmp_path / "storage" / "servers" / domain.uuid).iterdir()]
    assert sorted(folders) == sorted(found)
    domain.write("vda", 5 * MIB, MIB, 3)
    after = rig.back_up(domain.uuid)
    assert after["disks"][0]["type"] == "incremental", after["disks"][0]["fallback_reason"]
    restored = rig.restore_to(tmp_path / "out", domain.uuid, after["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path, "qcow2")
    assert reason(rig.verify(domain.uuid)) == ""
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.feature("C11")
@pytest.mark.parametrize("step", RESTORE_STEPS)
def test_a_restore_killed_anywhere_can_be_run_again(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, step: str
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, 9 * MIB, 1)
    made, expected = rig.back_up(domain.uuid), digest(disk.path, "qcow2")
    domain.write("vda", MIB, 12 * MIB, 2)
    job = RestoreJob(domain.uuid, domain.uuid, made["backup_id"], server_keys=rig.keys(domain.uuid))

    status, _events = run_worker(rig, step, restore=job)
    assert status == KILLED, f"step {step} is never reached"
    heal_after(rig, domain.uuid)
    assert reason(rig.restore(domain.uuid, made["backup_id"])) == ""

    assert digest(disk.path, "qcow2") == expected
    if not domain.handle.isActive():
        domain.handle.create()
    after = rig.back_up(domain.uuid)
    restored = rig.restore_to(tmp_path / "out", domain.uuid, after["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path, "qcow2")


@pytest.mark.feature("R19")
@pytest.mark.parametrize("step", DELETE_STEPS)
def test_a_delete_killed_anywhere_leaves_no_backup_without_its_data(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, step: str
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, 9 * MIB, 1)
    made = [rig.back_up(domain.uuid)["backup_id"] for _ in range(3)]

    status, _events = run_worker(rig, step, delete=DeleteJob(domain.uuid, tuple(made[1:])))
    assert status == KILLED, f"step {step} is never reached"
    assert reason(rig.verify(domain.uuid)) == ""

    left = [one for one in made[1:] if (tmp_path / "storage" / "servers" / domain.uuid / one).exists()]
    if left:
        assert reason(rig.delete(domain.uuid, *left)) == ""
    assert [record["backup"]["backup_id"] for record in rig.reindex()] == made[:1]
    assert reason(rig.verify(domain.uuid)) == ""
