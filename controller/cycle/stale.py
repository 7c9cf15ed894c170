"""Ending jobs that the clock ends; each in a transaction of its own, so that a kill between two loses nothing."""

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from controller import batches, installation, jobs, settings
from controller.agents import outbox
from controller.batches import Batch
from controller.cycle import batch_work, dispatch
from controller.errors import CommandNotAccepted, JobStale, OperationLost
from controller.jobs import End, Job
from controller.limits import Limits
from controller.rules import stale, states
from controller.rules.stale import Ages, Verdict
from controller.settings import Settings

if TYPE_CHECKING:
    from controller.cycle.tick import Round

log = logging.getLogger(__name__)


async def step(around: "Round") -> None:
    """End what the clock ends."""
    run, limits, since, now = around.database.run, around.limits, around.listening_since, around.now
    await run(fail_earlier_epochs, limits, now)
    for batch_id in await run(stale_batches, limits, now):
        await run(batch_work.cancel, batch_id, JobStale.reason, now)
    for job_id in await run(candidates, limits, since, now):
        await run(settle, job_id, limits, since, now)


def stale_batches(limits: Limits, now: datetime) -> list[str]:
    """Return the ids of batches that are at work for too long and were not told to end (X7)."""
    found = []
    for batch in batches.live(within=states.BATCH_AT_WORK):
        begun, time_max = _clock_of(batch, limits)
        if now - begun > time_max and not batch.cancel_reason:
            log.warning("batch stale, cancelling batch_id=%s", batch.batch_id)
            found.append(batch.batch_id)
    return found


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
            _end(job, jobs.stopped(reason, job.batch_id), limits, now)


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
        how = jobs.stopped(job.cancel_reason, job.batch_id)
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
    time_max = chosen.single_job_time_max
    if job.state == jobs.DISPATCHED and (job.batch_id or job.spec.get("during_batch")):
        ages = replace(ages, patient=bool(outbox.run_received(job.job_id, job.attempt)))
    if job.batch_id:
        work_time, time_max = _clock_of(batches.get(job.batch_id), limits)
        ages = replace(ages, work_time=work_time)
    return stale.judge(ages, limits, time_max, listening_since, now)


def _clock_of(batch: Batch, limits: Limits) -> tuple[datetime, timedelta]:
    """Return when the hours of a batch at work began, and how many it has. One that no agent accepts counts as if at the last."""
    begun = batch.accept_time or (batch.start_time or batch.create_time) + limits.accept_time_max
    return begun, timedelta(seconds=batch.spec.get("time_max_seconds", 0))
