"""Deletions beside a backup that builds upon what they take, and deletions that were interrupted."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine.delete import delete_backups
from engine.format import names
from engine.format.markers import Intent
from engine.hypervisor.lock import DomainLock
from engine.ids import new_id
from engine.repository import open_repository
from engine.spec import Settings
from engine.storage.local import LocalStorage
from engine.units import MIB
from engine.work import Work
from tests.engine.aftermath import At, assert_host_is_clean, assert_next_is_good
from tests.engine.rig import RecordingReport, Rig, reason
from tests.servers.guest import DiskFile

HOST = "test-host"


def outright(rig: Rig, server_id: str, *backup_ids: str) -> None:
    """Take backups away as a deletion does that knows nothing of the backup in progress."""
    for backup_id in backup_ids:
        folder = rig.folder / "storage" / names.backup_folder(server_id, backup_id)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


@pytest.mark.feature("R19")
def test_no_deletion_takes_what_a_backup_in_progress_builds_upon(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, MIB, 1)
    first = rig.back_up(domain.uuid)["backup_id"]
    domain.write("vda", 2 * MIB, MIB, 2)
    other = Rig(rig.folder, rig.uri, rig.target, rig.key)
    refused: list[str] = []
    report = At("read", lambda: refused.append(reason(other.delete(domain.uuid, first))))

    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert (refused, reason(outcome)) == (["STILL_NEEDED"], "")
    domain.write("vda", 4 * MIB, MIB, 3)
    report = At("read", lambda: outright(rig, domain.uuid, first))
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert reason(outcome) == "CHAIN_BROKEN"
    assert_host_is_clean(rig, domain)
    assert_next_is_good(rig, domain, {"vda": ("full", "chain_broken")})


@pytest.mark.feature("R19")
@pytest.mark.parametrize("host", [HOST, "other-host"])
def test_a_dead_attempt_of_this_host_vetoes_nothing_and_one_elsewhere_does(tmp_path: Path, host: str) -> None:
    rig, server_id, now = Rig.make(tmp_path), new_id(datetime.now(UTC)), datetime.now(UTC)
    dead, leftover = new_id(now), new_id(now)
    job_id = new_id(now)
    with LocalStorage(str(rig.folder / "storage")) as storage:
        open_repository(storage, rig.target, now)
        for backup_id, intent_host in ((dead, host), (leftover, HOST)):
            intent = Intent(
                server_id, backup_id, job_id if backup_id == dead else new_id(now), intent_host, now.isoformat()
            )
            storage.put(names.intent_name(server_id, backup_id), intent.dump())

        def delete() -> None:
            work = Work(RecordingReport(), Settings())
            delete_backups(storage, server_id, (leftover,), new_id(now), HOST, now, tmp_path / "locks", work)

        with DomainLock(tmp_path / "locks", server_id, job_id):
            assert reason_of(delete) == "STILL_NEEDED"
        assert reason_of(delete) == ("" if host == HOST else "STILL_NEEDED")


def reason_of(act: Any) -> str:
    from engine.errors import BackupManagerError

    try:
        act()
    except BackupManagerError as error:
        return error.reason
    return ""


@pytest.mark.feature("R19")
def test_an_interrupted_deletion_is_finished_by_asking_again(tmp_path: Path) -> None:
    rig, server_id, now = Rig.make(tmp_path), new_id(datetime.now(UTC)), datetime.now(UTC)
    gone, left = new_id(now), new_id(now)
    with LocalStorage(str(rig.folder / "storage")) as storage:
        open_repository(storage, rig.target, now)
        storage.put(names.intent_name(server_id, left), Intent(server_id, left, left, HOST, now.isoformat()).dump())

    outcome = rig.delete(server_id, gone, left)

    assert (reason(outcome), outcome.state) == ("", "completed_with_warnings")
    assert outcome.result is not None
    assert outcome.result["backup_ids"] == sorted([gone, left])
    assert reason(rig.delete(server_id, gone, left)) == "BACKUP_NOT_FOUND"
