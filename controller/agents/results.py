"""What finished work means for the catalog: a new restore point, damage found, backups gone, a storage read again.

Each function looks at who says it: a job speaks of its own server and storage, and of the backup that it was given.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from controller import (
    backups,
    discrepancies,
    hypervisors,
    jobs,
    prune_queue,
    reconciliation,
    servers,
    storages,
    tickets,
)
from controller.agents.convert import Finished, host_key
from controller.backups import BackupRecord
from controller.jobs import COMPLETED, COMPLETED_WITH_WARNINGS, Job
from controller.reconciliation import Reading
from engine.ids import is_id

log = logging.getLogger(__name__)

UNREADABLE_MAX = 100  # a reindex names no more; with as many, what it did not see may just not be named


def apply_records(job: Job, records: Sequence[BackupRecord], now: datetime) -> bool:
    """Take in backups that a reindex found. False when the job is none."""
    if job.type != "reindex":
        return False
    for record in records:
        wanted = not job.server_id or record.server_id == job.server_id
        if not (wanted and is_id(record.backup_id) and is_id(record.server_id)):
            log.warning("record left out job_id=%s backup_id=%s", job.job_id, record.backup_id)
            continue
        servers.adopt(record.server_id, record.domain_name, record.domain_uuid, job.hypervisor_id, now)
        backups.sight(record, job.storage_id, job.hypervisor_id, job.job_id, job.start_time or job.create_time, now)
    return True


def apply_result(job: Job, finished: Finished, now: datetime) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Do what a job's end means. Returns its result as it is to be kept, and what is to be warned of."""
    result = finished.result or {}
    completed = finished.state in {COMPLETED, COMPLETED_WITH_WARNINGS}
    warnings: tuple[str, ...] = ()
    match job.type:
        case "backup" if completed:
            warnings = _backup(job, finished.record, now)
        case "verify":
            _verify(job, result.get("verify", {}), now, completed=completed)
        case "restore" if result.get("restore", {}).get("server_started"):
            # A preview before the next inventory would else sign that no server is stopped, and be stale with it.
            hypervisors.set_domain_state(job.hypervisor_id, job.spec["domain_uuid"], "running")
        case "delete" | "prune" | "purge":
            _delete(job, result.get("delete", {}), now)
        case "reindex" if completed:
            _reindex(job, result.setdefault("reindex", {}), now)
        case "ticket" if completed:
            tickets.left(job, result.get("ticket", {}), now)
        case "test" if completed:
            storages.pin_host_key(job.storage_id, host_key(result.get("test", {}).get("host_key", "")), now)
    return (result or None), warnings


def _backup(job: Job, record: BackupRecord | None, now: datetime) -> tuple[str, ...]:
    if record is None:
        return ("the agent sent no record of the backup; a reindex of the storage will find it",)
    if (record.backup_id, record.server_id) != (job.backup_id, job.server_id):
        log.error("record of another backup refused job_id=%s backup_id=%s", job.job_id, record.backup_id)
        return ("the agent's record is of another backup and was refused; a reindex of the storage will find this one",)
    backups.record(record, job.storage_id, job.hypervisor_id, now)
    prune_queue.note_backup(job.server_id, job.storage_id, now)
    return ()


def _verify(job: Job, result: dict[str, Any], now: datetime, *, completed: bool) -> None:
    """Mark what is damaged, with all that needs it; or mark as usable what was read without a fault."""
    known = set(backups.needs(job.backup_id))
    damaged = {one.get("backup_id", "") for one in result.get("damaged", [])} & known
    if int(result.get("damaged_count", 0)):
        backups.mark_damaged(damaged | {job.backup_id}, now)
    elif completed and result:
        backups.mark_verified(job.backup_id, now)


def _delete(job: Job, result: dict[str, Any], now: datetime) -> None:
    """Take out what is gone, also of a deletion that failed or was ended half way."""
    gone = set(result.get("backup_ids", [])) & set(job.spec["backup_ids"])
    backups.mark_deleted(sorted(gone), now)


def _reindex(job: Job, result: dict[str, Any], now: datetime) -> None:
    unreadable = result.get("unreadable", [])
    local = storages.find(job.storage_id).per_hypervisor
    since = jobs.get(job.job_id).start_time or job.create_time
    whole = len(unreadable) < UNREADABLE_MAX
    if whole:
        backups.sweep(job.storage_id, job.hypervisor_id, job.server_id, since, unreadable, now, local=local)
    backups.pass_on(job.storage_id, job.server_id, now)
    count, flaws = backups.adopted_count(job.job_id), discrepancies.flaws(job.storage_id)
    if whole and not job.server_id:
        found = int(result.get("backup_count", 0))
        reading = Reading(job.storage_id, job.hypervisor_id, job.epoch, since, found, len(unreadable), flaws, count)
        reconciliation.reconciled(reading, now)
    told = {"added_count": count, "missing_count": flaws.missing, "damaged_count": flaws.damaged}
    result |= {name: str(number) for name, number in told.items() if number}  # the JSON form of an int64
