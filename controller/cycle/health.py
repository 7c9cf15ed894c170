"""Looking at storages when it is their time (H1): who looks is decided by `rules/health.py`, each look is a job like any other.

    checks, schedules, who is online ──► what it means now (health.conclude) and who looks now ──► jobs, at most CHECKS_MAX a round

A look that has not ended after LOOK_TIME_MAX says that the storage hangs; its job is cancelled. Of looks that ended well only the
last of each storage and hypervisor keeps its job: their news is in `storage_check`.
"""

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from controller import health, hypervisors, jobs, orders, proofs, settings
from controller.context import Context
from controller.db import models
from controller.db.secrets import Vault
from controller.errors import JobCancelled, LookTooLong
from controller.jobs import Failure
from controller.limits import Limits
from controller.order_types import HealthOrder
from controller.rules import health as rules
from controller.rules.health import Check, Intervals
from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from controller.cycle.tick import Round

log = logging.getLogger(__name__)

CHECKS_MAX = 20  # looks that one round begins
LOOK_TIME_MAX = timedelta(minutes=10)  # the engine itself gives up after seconds
REQUESTER = "health"


async def step(around: "Round") -> None:
    """Look at what is due."""
    database, limits, now = around.database, around.limits, around.now
    for job_id in await database.run(hanging, now):
        await database.run(give_up, job_id, now)
    for storage_id, hypervisor_id in (await database.run(due, limits, now))[:CHECKS_MAX]:
        await database.run(look, storage_id, hypervisor_id, limits, around.vault, now)


def due(limits: Limits, now: datetime) -> list[tuple[str, str]]:
    """Return which storages are looked at now and from where; say on the way what is known of each."""
    chosen = settings.get()
    intervals = Intervals(
        timedelta(minutes=chosen.health_check_minutes), timedelta(minutes=chosen.unhealthy_recheck_minutes)
    )
    online, users, checks = hypervisors.online(limits, now), health.users(), health.all_checks()
    busy = {(job.storage_id, job.hypervisor_id) for job in _live()}
    found: list[tuple[str, str]] = []
    for storage_id, enabled in health.storages():
        known, asking = checks.get(storage_id, {}), users.get(storage_id, [])
        health.conclude(storage_id, known, users=asking, online=online, enabled=enabled, intervals=intervals, now=now)
        if enabled:
            may = [one for one in asking if one in online]
            turns = rules.due(known, may, intervals, now)
            found += [(storage_id, one) for one in turns if (storage_id, one) not in busy]
    return sorted(found, key=lambda pair: _last_try(checks.get(pair[0], {}).get(pair[1])))


def look(storage_id: str, hypervisor_id: str, limits: Limits, vault: Vault, now: datetime) -> str:
    """Begin a look and return its job's id; "" where it cannot be begun now."""
    before = health.last_job(storage_id, hypervisor_id)
    try:
        job_id = orders.start(HealthOrder(storage_id, hypervisor_id), Context(limits, vault, REQUESTER, now))
    except BackupManagerError as error:  # it went offline, or was switched off, since it was chosen
        log.info(
            "storage not looked at storage_id=%s hypervisor_id=%s reason=%s", storage_id, hypervisor_id, error.reason
        )
        return ""
    _tidy(before)
    return job_id


def hanging(now: datetime) -> list[str]:
    """Return the looks that take too long and that nobody has cancelled yet."""
    return [
        job.job_id for job in _live() if job.start_time and now - job.start_time > LOOK_TIME_MAX and not job.cancel_time
    ]


def give_up(job_id: str, now: datetime) -> None:
    """Call a storage that does not even fail unhealthy, and ask for the look's end."""
    job = jobs.get(job_id)
    if job.ended:
        return
    failure = Failure.of(LookTooLong(minutes=int(LOOK_TIME_MAX.total_seconds() // 60)), "health")
    told = {"reason": failure.reason, "message": failure.message, "metadata": failure.metadata, "step": failure.step}
    if proofs.PROBE not in job.spec:
        health.note(job_id, job.storage_id, job.hypervisor_id, "failed", told, None, now)
    jobs.request_cancel(job, JobCancelled.reason, now)


def _live() -> list[jobs.Job]:
    return jobs.list_jobs(jobs.JobFilter(types=("health",), states=jobs.LIVE), limit=10_000)


def _last_try(check: Check | None) -> tuple[bool, float]:
    """Sort those first that were never tried, then those that have waited longest."""
    tried = check.try_time if check is not None else None
    return tried is not None, tried.timestamp() if tried else 0.0


def _tidy(job_id: str) -> None:
    """Remove the job of an earlier look of ours that ended well."""
    row = models.Job
    row.delete().where(
        (row.job_id == job_id) & (row.type == "health") & (row.requester == REQUESTER) & (row.state == jobs.COMPLETED)
    ).execute()
