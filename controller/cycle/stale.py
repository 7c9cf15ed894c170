"""Ending jobs that the clock ends; each in a transaction of its own, so that a kill between two loses nothing."""

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from controller import installation, jobs, settings
from controller.agents import outbox
from controller.cycle import dispatch
from controller.errors import CommandNotAccepted, JobStale, OperationLost
from controller.jobs import End, Job
from controller.limits import Limits
from controller.rules import stale
from controller.rules.stale import Ages, Verdict
from controller.settings import Settings

if TYPE_CHECKING:
    from controller.cycle.tick import Round

log = logging.getLogger(__name__)


async def step(around: "Round") -> None:
    """End what the clock ends."""
    run, limits, since, now = around.database.run, around.limits, around.listening_since, around.now
    await run(fail_earlier_epochs, limits, now)
    for job_id in await run(candidates, limits, since, now):
        await run(settle, job_id, limits, since, now)


def candidates(limits: Limits, listening_since: datetime, now: datetime) -> list[str]:
    """Return the ids of live jobs that something is to be done about."""
    chosen = settings.get()
    return [
        job.job_id for job in jobs.live() if _verdict(job, limits, chosen, listening_since, now) is not Verdict.GO_ON
    ]


def settle(job_id: str, limits: Limits, listening_since: datetime, now: datetime) -> None:
    """Do what the clock demands of one job; it may have moved on since it was found."""
    job = jobs.get(job_id)
    if job.ended:
        return
    verdict = _verdict(job, limits, settings.get(), listening_since, now)
    match verdict:
        case Verdict.NOT_ACCEPTED:
            _not_accepted(job, limits, now)
        case Verdict.CANCEL:
            if job.cancel_time is None:
                log.warning("job stale, cancelling job_id=%s", job_id)
            jobs.request_cancel(job, JobStale.reason, now)
        case Verdict.GIVE_UP:
            log.error("job given up as stale job_id=%s hypervisor_id=%s", job_id, job.hypervisor_id)
            reason = job.cancel_reason or JobStale.reason
            _end(job, jobs.stopped(reason), limits, now)


def fail_earlier_epochs(limits: Limits, now: datetime) -> int:
    """End what was sent under an earlier epoch: whatever comes of it will not be counted. Returns how many."""
    epoch = installation.get().epoch
    lost = [job for job in jobs.live() if job.epoch != epoch]
    for job in lost:
        _end(job, End.failed(OperationLost()), limits, now)
    return len(lost)


def _not_accepted(job: Job, limits: Limits, now: datetime) -> None:
    """Give a command up; if it may have arrived, its agent is told, and a late acceptance is answered with a cancel."""
    reached_nobody = outbox.withdraw_run(job.job_id, now)
    if job.cancel_time is not None:
        how = jobs.stopped(job.cancel_reason)
    else:
        log.error("command not accepted job_id=%s hypervisor_id=%s", job.job_id, job.hypervisor_id)
        how = End.failed(CommandNotAccepted(seconds=limits.command_accept_seconds))
    _end(job, how, limits, now)
    if not reached_nobody and not outbox.cancel_pending(job.job_id):
        outbox.put(job.hypervisor_id, "cancel", job.stamp, now)


def _end(job: Job, how: End, limits: Limits, now: datetime) -> None:
    if jobs.end(job.job_id, how, now, fence=True):
        dispatch.after_end(job, limits, now)


def _verdict(job: Job, limits: Limits, chosen: Settings, listening_since: datetime, now: datetime) -> Verdict:
    ages = Ages(job.state, job.create_time, job.dispatch_time, job.start_time, job.cancel_time)
    return stale.judge(ages, limits, chosen.single_job_time_max, listening_since, now)
