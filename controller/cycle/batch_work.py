"""Batches at work: sending their jobs, closing what is late, and seeing them to their end.

    pending ──► its server's lease, a share of the chains it extends ──► sent, at most SENT_MAX at a time ──► … ──► end
       │ another works on the server                    │ a person, or the clock
       └──► left out, saying who                        └──► cancel: all of its jobs

The leases of all jobs that are to be sent are taken by one statement, and those jobs that got all they want are sent by one more.
What did not is looked at alone. `batch_dispatch.py` makes and starts batches.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from controller import backups, batches, bulk_jobs, happenings, jobs, leases, storages
from controller.batches import Batch
from controller.bulk_jobs import Waiting
from controller.cycle import shares
from controller.db import models
from controller.errors import JobCancelled, JobStale, ServerBusy, ServerDeleted
from controller.jobs import End, Failure, NewJob
from controller.rules import admission, states
from controller.rules import batch as rules
from engine.errors import BackupManagerError, WindowClosed

log = logging.getLogger(__name__)


def at_work() -> list[str]:
    return [one.batch_id for one in batches.live(within=states.BATCH_AT_WORK)]


def look_after(batch_id: str, now: datetime) -> None:
    """Send what can be sent, close what is late, and end the batch when nothing of it is left (X9)."""
    batch = batches.get(batch_id)
    if not batch.at_work:
        return
    found = batches.counts([batch_id])[batch_id]
    if found.get(states.PENDING) and batch.cancel_time is None:
        _feed(batch, sum(found.get(state, 0) for state in states.SENT), now)
        found = batches.counts([batch_id])[batch_id]
    if not any(found.get(state) for state in states.LIVE):
        settle(batch_id, now)


def begin(
    batch: Batch, new: Sequence[NewJob], refused: Mapping[str, BackupManagerError], epoch: int, now: datetime
) -> None:
    """Add the jobs of a batch that starts now: those that are refused end at once, saying why, and the first others are sent."""
    first = [bulk_jobs.of_new(job, epoch) for job in new if job.job_id not in refused][: rules.SENT_MAX]
    late = batch.close_time is not None and now >= batch.close_time
    generations = {} if late else _claim_all(first)
    bulk_jobs.insert_all(new, generations, epoch, now)
    for job_id, error in refused.items():
        jobs.end(job_id, End(states.SKIPPED, Failure.of(error)), now)
    if not generations or len(generations) < len(first):
        look_after(batch.batch_id, now)


def _feed(batch: Batch, sent: int, now: datetime) -> None:
    late = batch.close_time is not None and now >= batch.close_time
    after = ""
    while sent < rules.SENT_MAX and (chosen := bulk_jobs.waiting(batch.batch_id, after, rules.SENT_MAX - sent)):
        after = chosen[-1].job_id
        if late:
            for job in chosen:
                jobs.end(job.job_id, End(states.SKIPPED, Failure.of(WindowClosed())), now)
        else:
            sent += _send_all(_allowed(chosen, now), now)


def _allowed(chosen: Sequence[Waiting], now: datetime) -> list[Waiting]:
    """Return those that may still be done; the others are left out: much can have happened since the batch began (S20, X15)."""
    try:
        admission.check_storage("backup", storages.find(chosen[0].storage_id))
    except BackupManagerError as error:
        return _leave_out(dict.fromkeys([job.job_id for job in chosen], error), chosen, now)
    known = {share.server_id: share for share in shares.of_servers([job.server_id for job in chosen])}
    refused: dict[str, BackupManagerError] = {}
    for job in chosen:
        try:
            if job.server_id not in known:
                raise ServerDeleted(server_id=job.server_id)
            admission.check_server("backup", known[job.server_id], now)
        except BackupManagerError as error:
            refused[job.job_id] = error
    return _leave_out(refused, chosen, now)


def _leave_out(refused: Mapping[str, BackupManagerError], chosen: Sequence[Waiting], now: datetime) -> list[Waiting]:
    """End the jobs that were refused, saying why; return the others."""
    for job_id, error in refused.items():
        jobs.end(job_id, End(states.SKIPPED, Failure.of(error)), now)
    return [job for job in chosen if job.job_id not in refused]


def _send_all(chosen: Sequence[Waiting], now: datetime) -> int:
    """Send those whose servers and chains are free together, then the others one by one; return how many were sent."""
    generations = _claim_all(chosen)
    sent = bulk_jobs.dispatch_all([job for job in chosen if job.job_id in generations], generations, now)
    return sent + sum(_send(job, now) for job in chosen if job.job_id not in generations)


def _claim_all(chosen: Sequence[Waiting]) -> dict[str, int]:
    """Take what jobs of different servers need; return the generations of those that got everything. The others have nothing."""
    servers = {leases.server_resource(job.server_id): job.job_id for job in chosen}
    taken = leases.take_all(servers, exclusive=True)
    generations = {servers[resource]: number for resource, number in taken.items()}
    ready = [job for job in chosen if job.job_id in generations]
    found = backups.active_chains_of([job.server_id for job in ready], ready[0].storage_id) if ready else {}
    chains = {leases.chain_resource(chain): job.job_id for job in ready for chain in found.get(job.server_id, ())}
    shared = leases.take_all(chains, exclusive=False)
    for resource, number in shared.items():
        generations[chains[resource]] = max(number, generations[chains[resource]])
    for job_id in {job_id for resource, job_id in chains.items() if resource not in shared}:
        leases.release_all(job_id)
        del generations[job_id]
    return generations


def _send(job: Waiting, now: datetime) -> bool:
    """Take what a job needs and send it; when another works on its server, it is left out. Tells whether it was sent."""
    try:
        with models.proxy.atomic():
            jobs.set_generation(job.job_id, max(1, _claim(job)))
            return jobs.dispatch(job.job_id, now)
    except BackupManagerError as error:
        jobs.end(job.job_id, End(states.SKIPPED, Failure.of(error)), now)
        return False


def _claim(job: Waiting) -> int:
    """Take the server and the chains that its backup extends; return the highest generation. Raises ServerBusy.

    A single that waits for the server and has it meanwhile steps back: it comes after the batch (X2).
    """
    resource = leases.server_resource(job.server_id)
    generation = leases.claim(resource, job.job_id)
    if generation is None:
        for other in leases.holders(resource):
            waiting = jobs.find(other)
            if waiting is None or waiting.state != states.QUEUED:
                raise ServerBusy(server_id=job.server_id, job_id=other)
            leases.step_back(other, resource, leases.next_resource(job.server_id))
        generation = leases.claim(resource, job.job_id)
    generations = [generation]
    for chain in sorted(backups.active_chains(job.server_id, job.storage_id)):
        generations.append(leases.share(leases.chain_resource(chain), job.job_id))
        if generations[-1] is None:
            raise ServerBusy(server_id=job.server_id, job_id=", ".join(leases.holders(leases.chain_resource(chain))))
    return max(one or 0 for one in generations)


def settle(batch_id: str, now: datetime) -> bool:
    """End a batch at work if all of its jobs have ended; tell whether it ended."""
    batch = batches.get(batch_id)
    found = batches.counts([batch_id])[batch_id]
    if not batch.at_work or any(found.get(state) for state in states.LIVE):
        return False
    if batch.cancel_reason == JobStale.reason:
        return end(batch, states.FAILED, now, Failure.of(JobStale(hours=batch.hours_max)))
    cancelled = batch.cancel_reason == JobCancelled.reason
    return end(batch, states.outcome(found, cancelled=cancelled), now)


def end(batch: Batch, state: str, now: datetime, failure: Failure | None = None) -> bool:
    if not batches.end(batch.batch_id, state, now, asdict(failure) if failure else None):
        return False
    happenings.record(
        f"batch.{state}",
        now,
        batch_id=batch.batch_id,
        schedule_id=batch.schedule_id,
        hypervisor_id=batch.hypervisor_id,
        storage_id=batch.storage_id,
        body=batches.counts([batch.batch_id])[batch.batch_id],
    )
    log.info("batch ended batch_id=%s state=%s", batch.batch_id, state)
    return True


def cancel(batch_id: str, reason: str, now: datetime) -> bool:
    """Ask for a batch's end with all of its jobs; `reason` as with a job's. False when it has ended."""
    batch = batches.get(batch_id)
    if batch.state == states.DEFERRED:
        how = states.CANCELLED if reason == JobCancelled.reason else states.FAILED
        return end(batch, how, now, Failure.of(JobCancelled()))
    if not batch.at_work:
        return False
    if batch.cancel_time is None:
        batches.change(batch_id, states.BATCH_AT_WORK, cancel_time=now, cancel_reason=reason)
    for job in jobs.of_batch(batch_id):
        if not job.ended:
            jobs.request_cancel(job, reason, now)
    settle(batch_id, now)
    return True
