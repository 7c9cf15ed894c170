"""From a due schedule to jobs at work: making batches, and starting those that may.

    due schedule, force, retry ──► deferred ──► may it begin? ── no ──► waits, with the reason in its row
                                                    │ yes: the hypervisor's work lease, a batch slot
                                                    ▼
    servers of the hypervisor ──► eligible, in order ──► jobs pending ──► batch_work.py

A batch's jobs are all sent at once with the batch's id: the agent runs them in one process, as many side by side as Backup
Concurrency says, also while nobody can reach us. Each schedule and each batch is dealt with in a transaction of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import peewee

from controller import (
    access,
    batches,
    happenings,
    hypervisors,
    installation,
    jobs,
    leases,
    schedules,
    settings,
    storages,
    system_log,
)
from controller.batches import Batch, NewBatch
from controller.cycle import batch_work, shares
from controller.cycle.shares import Share
from controller.db import models
from controller.errors import (
    BatchWaiting,
    ControllerError,
    DispatchPaused,
    HypervisorNotFound,
    HypervisorUnreachable,
    JobCancelled,
    JobStale,
    NothingToRetry,
)
from controller.jobs import Failure, NewJob
from controller.limits import Limits
from controller.rules import access as levels
from controller.rules import admission, states
from controller.rules import batch as rules
from controller.rules import schedule as hours
from controller.schedules import Schedule
from controller.settings import Settings
from controller.storages import Storage
from engine.ids import new_id, new_ids

if TYPE_CHECKING:
    from controller.cycle.tick import Round
    from engine.errors import BackupManagerError

log = logging.getLogger(__name__)

BUSY, CAPPED, PAUSED, CLOSED = "hypervisor_busy", "batches_capped", "dispatch_paused", "outside_window"
_SLOTS = "batches"  # the slot rows of Max Concurrent Batches, which belong to no hypervisor


class _NotNow(Exception):
    """A batch has to wait; what it took so far is given back."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


# ---- the step -----------------------------------------------------------------------------------------------------------


async def step(around: "Round") -> None:
    """Fire what is due, start what may, and look after what is at work; so many hypervisors at once (X12)."""
    run, limits, now = around.database.run, around.limits, around.now
    chosen = await run(settings.get)
    gate = asyncio.Semaphore(chosen.dispatch_concurrency)

    async def each(act: Callable[[str, Limits, datetime], object], ids: Iterable[str]) -> None:
        async def one(subject: str) -> None:
            async with gate:
                try:
                    await run(act, subject, limits, now)
                except Exception:
                    log.exception("a batch could not be dealt with, the others go on subject=%s", subject)

        await asyncio.gather(*(one(subject) for subject in ids))

    await each(lambda batch_id, _, time: batch_work.look_after(batch_id, time), await run(batch_work.at_work))
    if chosen.dispatch_paused:
        return
    await each(consider, await run(waiting))
    await each(fire, await run(due, now))


def waiting() -> list[str]:
    return [one.batch_id for one in batches.live(within=(states.DEFERRED,))]


def due(now: datetime) -> list[str]:
    waiting = {one.schedule_id for one in batches.live(within=(states.DEFERRED,))}
    return [one.schedule_id for one in schedules.due(now) if one.schedule_id not in waiting]


# ---- making -------------------------------------------------------------------------------------------------------------


def fire(schedule_id: str, limits: Limits, now: datetime) -> str:
    """Make the batch of a due schedule, and start it if that may be. Returns its id.

    "" when one waits already, or the schedule is due no more: since it was looked for, somebody forced, changed or deleted it.
    """
    schedule = schedules.get(schedule_id)
    if not schedules.is_due(schedule, now):
        return ""
    new = NewBatch(
        batch_id=new_id(now),
        schedule_id=schedule_id,
        hypervisor_id=schedule.hypervisor_id,
        storage_id=schedule.storage_id,
        origin="schedule",
        due_time=schedule.due_time,
    )
    if not _insert(new, now):
        return ""
    _consider(batches.get(new.batch_id), schedule, limits, now)
    return new.batch_id


def force(schedule_id: str, requester: str, request_id: str, limits: Limits, now: datetime) -> str:
    """Run a schedule now, whatever its hours and its due time (D26). Raises DispatchPaused, BatchWaiting, ScheduleDeleted."""
    schedule = schedules.get_live(schedule_id)
    new = NewBatch(
        batch_id=new_id(now),
        schedule_id=schedule_id,
        hypervisor_id=schedule.hypervisor_id,
        storage_id=schedule.storage_id,
        origin="force",
        requester=requester,
        request_id=request_id,
        request_hash=schedule_id,
    )
    return _order(new, limits, now)


def retry(batch_id: str, requester: str, request_id: str, limits: Limits, now: datetime) -> str:
    """Run a batch of only those servers that failed in another (X13).

    Raises BatchNotFound, NothingToRetry, DispatchPaused, BatchWaiting, ScheduleDeleted.
    """
    known = batches.get(batch_id)
    failed = [job.server_id for job in jobs.of_batch(batch_id) if job.state == states.FAILED]
    if not failed or not known.ended:
        raise NothingToRetry(batch_id=batch_id)
    schedules.get_live(known.schedule_id)
    new = NewBatch(
        batch_id=new_id(now),
        schedule_id=known.schedule_id,
        hypervisor_id=known.hypervisor_id,
        storage_id=known.storage_id,
        origin="retry",
        origin_batch_id=batch_id,
        spec={"server_ids": failed},
        requester=requester,
        request_id=request_id,
        request_hash=batch_id,
    )
    return _order(new, limits, now)


def _order(new: NewBatch, limits: Limits, now: datetime) -> str:
    """Make a batch that a person asks for; the same request_id is the same batch."""
    if known := batches.repeated(new.request_id, new.request_hash):
        return known
    if settings.get().dispatch_paused:
        raise DispatchPaused
    if not _insert(new, now):
        if known := batches.repeated(new.request_id, new.request_hash):
            return known
        known_waiting = batches.live(schedule_id=new.schedule_id, within=(states.DEFERRED,))
        other = known_waiting[0] if known_waiting else None
        raise BatchWaiting(
            batch_id=other.batch_id if other else "",
            schedule_id=new.schedule_id,
            wait=(other.wait or {}).get("text", "") if other else "",
        )
    consider(new.batch_id, limits, now)
    return new.batch_id


def _insert(new: NewBatch, now: datetime) -> bool:
    try:
        with models.proxy.atomic():
            batches.insert(new, installation.get().epoch, now)
    except peewee.IntegrityError:
        return False
    return True


# ---- starting -----------------------------------------------------------------------------------------------------------


def consider(batch_id: str, limits: Limits, now: datetime) -> bool:
    """Start a deferred batch if that may be, else write down what it waits for. Tells whether it has started."""
    batch = batches.get(batch_id)
    return batch.state == states.DEFERRED and _consider(batch, schedules.get(batch.schedule_id), limits, now)


def _consider(batch: Batch, schedule: Schedule, limits: Limits, now: datetime) -> bool:
    try:
        if not schedule.live or (batch.origin == "schedule" and not schedule.enabled):
            return not batch_work.end(
                batch, states.CANCELLED, now, Failure(JobCancelled.reason, "the schedule was switched off")
            )
        with models.proxy.atomic():
            chosen = settings.get()
            _check(batch, schedule, chosen, limits, now)
            _take(batch, chosen.max_concurrent_batches)
            _start(batch, schedule, chosen, now)
    except _NotNow as reason:
        _defer(batch, reason, now)
        return False
    except ControllerError as error:  # such as an offline hypervisor: it waits as well
        _defer(batch, _NotNow(error.reason.lower(), error.message), now)
        if isinstance(error, HypervisorUnreachable | HypervisorNotFound):
            _report_overdue(batch, error, now)
        return False
    return True


def _check(batch: Batch, schedule: Schedule, chosen: Settings, limits: Limits, now: datetime) -> None:
    """Raise what keeps a batch from beginning now."""
    if chosen.dispatch_paused:
        raise _NotNow(PAUSED, "the dispatcher is paused")
    if batch.origin == "schedule" and not hours.is_open(schedule.hours, now):
        raise _NotNow(CLOSED, "the schedule's window is closed")
    admission.check_hypervisor("backup", hypervisors.find(batch.hypervisor_id, limits, now))


def _take(batch: Batch, cap: int | None) -> None:
    """Take the right to work alone on the hypervisor, and a place among `cap` batches. Raises _NotNow."""
    if cap is not None and not leases.claim_slot(_SLOTS, batch.batch_id, cap):
        raise _NotNow(CAPPED, f"{cap} batches are at work already")
    resource = leases.work_resource(batch.hypervisor_id)
    let_in = [job for job in jobs.live(hypervisor_id=batch.hypervisor_id) if job.spec.get("during_batch")]
    if let_in:
        raise _NotNow(BUSY, f"job {let_in[0].job_id} is at work on the hypervisor")
    if leases.claim(resource, batch.batch_id) is None:
        holders = leases.holders(resource)
        kind = "batch" if any(batches.find(one) for one in holders) else "job"
        raise _NotNow(BUSY, f"{kind} {', '.join(holders)} is at work on the hypervisor")


def _start(batch: Batch, schedule: Schedule, chosen: Settings, now: datetime) -> None:
    storage = storages.find(batch.storage_id)
    limited = batch.origin == "schedule"
    begun = replace(
        batch,
        state=states.DISPATCHED,
        wait=None,
        start_time=now,
        close_time=hours.next_closing(schedule.hours, now) if limited else None,
        spec={**batch.spec, **_settings_of(schedule, chosen)},
    )
    changed = {name: getattr(begun, name) for name in ("state", "wait", "start_time", "close_time", "spec")}
    batches.change(batch.batch_id, (states.DEFERRED,), **changed)
    if batch.origin != "retry":
        schedules.started(schedule, now)
    members = _members(batch, schedule)
    happenings.record(
        "batch.started",
        now,
        batch_id=batch.batch_id,
        schedule_id=batch.schedule_id,
        hypervisor_id=batch.hypervisor_id,
        storage_id=batch.storage_id,
        body={"servers": len(members), "origin": batch.origin},
    )
    log.info("batch started batch_id=%s hypervisor_id=%s servers=%d", batch.batch_id, batch.hypervisor_id, len(members))
    _add_jobs(begun, members, storage, now)


def _settings_of(schedule: Schedule, chosen: Settings) -> dict[str, Any]:
    """Return what holds for all jobs of a batch, in JSON types, as it is at the batch's start."""
    resolved = schedule.resolved
    time_max = rules.time_max(chosen.batch_time_max, schedule.interval)
    return {
        "concurrency": resolved.backup_concurrency.value,
        "consistency": resolved.consistency.value,
        "full_interval_days": resolved.full_interval_days.value,
        "interval_seconds": int(schedule.interval.total_seconds()),
        "time_max_seconds": int(time_max.total_seconds()),
    }


def _members(batch: Batch, schedule: Schedule) -> list[Share]:
    """Return the servers of a batch in their order (X13): those whose level has them backed up by schedule."""
    known = shares.of_hypervisor(batch.hypervisor_id)
    said = access.package_defaults(sorted({one.package_id for one in known} - {""}))
    found = {
        one.server_id: one
        for one in known
        if levels.allows(
            levels.resolve(
                one.access_override, said.get(one.package_id, levels.INHERIT), schedule.default_access
            ).level,
            "scheduled",
        )
    }
    if "server_ids" in batch.spec:
        found = {server_id: one for server_id, one in found.items() if server_id in batch.spec["server_ids"]}
    cut_off = batches.cut_off(schedule.schedule_id, JobStale.reason)
    candidates = [
        rules.Candidate(one.server_id, one.last_backup_time, one.server_id in cut_off) for one in found.values()
    ]
    return [found[one.server_id] for one in rules.order(candidates)]


def _add_jobs(batch: Batch, members: Sequence[Share], storage: Storage, now: datetime) -> None:
    """Add the servers' shares, and that one is left out and why (S21, X15)."""
    job_ids, backup_ids = (
        new_ids(now, len(members)),
        new_ids(now, len(members)),
    )  # those of jobs sort as the servers come
    new = [
        _job_of(batch, member, job_ids[position], backup_ids[position], position)
        for position, member in enumerate(members)
    ]
    refused: dict[str, BackupManagerError] = {}
    for job, member in zip(new, members, strict=True):
        try:
            admission.check_storage("backup", storage)
            admission.check_server("backup", member, now)
        except ControllerError as error:
            refused[job.job_id] = error
    batch_work.begin(batch, new, refused, installation.get().epoch, now)


def _job_of(batch: Batch, server: Share, job_id: str, backup_id: str, position: int) -> NewJob:
    return NewJob(
        job_id=job_id,
        type="backup",
        hypervisor_id=batch.hypervisor_id,
        server_id=server.server_id,
        storage_id=batch.storage_id,
        backup_id=backup_id,
        spec={
            "type": "incremental",
            "consistency": batch.spec["consistency"],
            "disks": [],
            "domain_uuid": server.domain_uuid,
            "full_interval_days": batch.spec["full_interval_days"],
            "position": position,
        },
        requester=batch.requester,
        batch_id=batch.batch_id,
    )


def _defer(batch: Batch, why: _NotNow, now: datetime) -> None:
    """Write down what a batch waits for; the time of the first wait for one reason stays."""
    before = batch.wait or {}
    same = before.get("reason") == why.reason
    wait = {"reason": why.reason, "text": why.text, "since": before["since"] if same else now.isoformat()}
    if wait != before:
        batches.change(batch.batch_id, (states.DEFERRED,), wait=wait)


def _report_overdue(batch: Batch, error: ControllerError, now: datetime) -> None:
    """Say once for each due time that nobody is there to do it (X16)."""
    if batches.mark_error(batch.batch_id, now):
        system_log.write(
            "error",
            "dispatcher",
            f"the schedule's run is overdue: {error.message}",
            now,
            batch_id=batch.batch_id,
            schedule_id=batch.schedule_id,
            hypervisor_id=batch.hypervisor_id,
        )
