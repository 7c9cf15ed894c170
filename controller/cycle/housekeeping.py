"""Removing what is past its time (G8): events, lines of logs, calls, jobs that ended, deliveries that were given up.

    what                                            after
    events; deliveries given up                     Event Retention Days (30)
    the system log; lines of ended jobs' logs       Log Retention Days (30)
    ended jobs, with what agents said of them       Job Retention Days (120); later, while a backup that it made is there, or
                                                    it is the last failure of a server, or the last check of a storage
    ended batches without jobs                      as jobs
    who did what; restore tickets that are over     as jobs

Each transaction removes a few hundred rows and finds its work anew, so a kill between two loses nothing and the next round goes
on. A round stops after ROUND_SECONDS; what is left waits for the next one. With a job its request id goes, and not before (N7).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from controller import audit_log, deliveries, events, settings, system_log, tickets
from controller.cycle.tick import Round
from controller.db import models
from controller.rules.states import BATCH_LIVE, LIVE
from engine.ids import first_id

log = logging.getLogger(__name__)

ROWS_MAX = 500  # removed by one transaction
JOBS_MAX = 50  # likewise, since each may have thousands of lines in its log
ROUND_SECONDS = 5.0
Remove: TypeAlias = Callable[[datetime, int], int]
_Job, _Batch, _Backup, _Line = models.Job, models.Batch, models.Backup, models.JobLog


@dataclass(frozen=True, slots=True)
class Limits:
    """From before when things go."""

    events: datetime
    logs: datetime
    jobs: datetime


def limits(now: datetime) -> Limits:
    """Return what the settings demand at this time."""
    chosen = settings.get()
    return Limits(
        events=now - timedelta(days=chosen.event_retention_days),
        logs=now - timedelta(days=chosen.log_retention_days),
        jobs=now - timedelta(days=chosen.job_retention_days),
    )


async def step(around: Round) -> None:
    """Remove what is past its time, for a few seconds at most."""
    before = await around.database.run(limits, around.now)
    end = time.monotonic() + ROUND_SECONDS
    simple: tuple[tuple[str, Remove, datetime], ...] = (
        ("events", events.remove_before, before.events),
        ("deliveries", deliveries.remove_dead, before.events),
        ("log", system_log.remove_before, before.logs),
        ("calls", audit_log.remove_before, before.jobs),
        ("tickets", tickets.remove_before, before.jobs),
    )
    for name, remove, instant in simple:
        gone = count = await around.database.run(remove, instant, ROWS_MAX)
        while count >= ROWS_MAX and time.monotonic() < end:
            count = await around.database.run(remove, instant, ROWS_MAX)
            gone += count
        _say(name, gone)
    steps = (
        ("job logs", remove_lines, before.logs),
        ("jobs", remove_jobs, before.jobs),
        ("batches", remove_batches, before.jobs),
    )
    for name, look, instant in steps:
        after, gone = "", 0
        while time.monotonic() < end:
            count, after = await around.database.run(look, instant, after, JOBS_MAX)
            gone += count
            if not after:
                break
        _say(name, gone)


def remove_lines(before: datetime, after: str, limit: int) -> tuple[int, str]:
    """Remove the logs of jobs that ended before a time. As `remove_jobs`."""
    old = (
        _Job.select(_Job.job_id)
        .where(_ended(before) & (_Job.job_id > after) & (_Job.log_bytes > 0))
        .order_by(_Job.job_id)
        .limit(limit)
    )
    ids = [row.job_id for row in old]
    if not ids:
        return 0, ""
    gone = int(_Line.delete().where(_Line.job.in_(ids)).execute())
    _Job.update(log_bytes=0).where(_Job.job_id.in_(ids)).execute()
    return gone, ids[-1] if len(ids) == limit else ""


def remove_jobs(before: datetime, after: str, limit: int) -> tuple[int, str]:
    """Look at `limit` jobs that ended before a time, from the id `after` on, and remove those that no living backup names.

    Returns how many went, and the id to go on from, "" at the end.
    """
    old = _Job.select(_Job.job_id).where(_ended(before) & (_Job.job_id > after)).order_by(_Job.job_id).limit(limit)
    ids = [row.job_id for row in old]
    if not ids:
        return 0, ""
    named = _Backup.select(_Backup.job_id).where(_Backup.job_id.in_(ids) & _Backup.delete_time.is_null())
    needed = {row.job_id for row in named}
    for shown in (models.ServerFailure, models.StorageCheck):
        needed |= {row.job_id for row in shown.select(shown.job_id).where(shown.job_id.in_(ids))}
    free = [job_id for job_id in ids if job_id not in needed]
    if free:
        for table in (models.AgentEvent, models.OutboxCommand):
            table.delete().where(table.job_id.in_(free)).execute()
        _Line.delete().where(_Line.job.in_(free)).execute()
        _Job.delete().where(_Job.job_id.in_(free)).execute()
    return len(free), ids[-1] if len(ids) == limit else ""


def remove_batches(before: datetime, after: str, limit: int) -> tuple[int, str]:
    """Remove batches that ended before a time and have no jobs any more. As `remove_jobs`."""
    old = (
        _Batch.select(_Batch.batch_id)
        .where(
            (_Batch.batch_id < first_id(before))
            & (_Batch.batch_id > after)
            & _Batch.state.not_in(BATCH_LIVE)
            & (_Batch.end_time < before)
        )
        .order_by(_Batch.batch_id)
        .limit(limit)
    )
    ids = [row.batch_id for row in old]
    if not ids:
        return 0, ""
    full = {row.batch_id for row in _Job.select(_Job.batch_id).where(_Job.batch_id.in_(ids)).distinct()}
    gone = int(_Batch.delete().where(_Batch.batch_id.in_([one for one in ids if one not in full])).execute())
    return gone, ids[-1] if len(ids) == limit else ""


def _ended(before: datetime) -> Any:
    """Ids sort by the time they were made, so this reads only the old end of the table."""
    return (_Job.job_id < first_id(before)) & _Job.state.not_in(LIVE) & (_Job.end_time < before)


def _say(name: str, gone: int) -> None:
    if gone:
        log.info("past its time and removed what=%s count=%d", name, gone)
