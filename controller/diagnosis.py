"""Collecting what `rules/diagnosis.py` walks over, for one server. Sync, inside `Database.run`."""

from dataclasses import dataclass
from datetime import datetime

from controller import (
    access,
    batches,
    discrepancies,
    failing,
    health,
    hypervisors,
    jobs,
    schedules,
    servers,
    settings,
    storages,
)
from controller.db import models
from controller.errors import ClockSkew, HypervisorNotFound, StorageNotFound
from controller.hypervisors import Hypervisor
from controller.limits import Limits
from controller.rules import access as levels
from controller.rules import admission, states
from controller.rules import diagnosis as rules
from controller.rules import schedule as hours
from controller.rules.diagnosis import Facts, Finding
from controller.schedules import Schedule
from controller.servers import Server

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a server is, or is not, backed up."""

    server_id: str
    server_name: str
    summary: str
    will_be_backed_up: bool
    next_time: datetime | None
    findings: tuple[Finding, ...]


def of_server(reference: str, limits: Limits, now: datetime) -> Diagnosis:
    """Return why a server is, or is not, backed up. Raises ServerNotFound."""
    server = servers.find(reference)
    place = _hypervisor(server, limits, now)
    schedule = schedules.of_hypervisor(server.hypervisor_id) if server.hypervisor_id else None
    next_time = _next_time(schedule, now)
    facts = Facts(
        server=_server(server, place, now),
        failure=_failure(server),
        discrepancies=_discrepancies(server, now),
        schedule=_schedule(schedule, next_time, now),
        batch=_batch(server),
        storage=_storage(schedule),
        agent=_agent(server, place),
        paused=settings.get().dispatch_paused,
        batch_count=models.Batch.select().where(models.Batch.state.in_(states.BATCH_AT_WORK)).count(),
        batches_max=settings.get().max_concurrent_batches,
    )
    findings = rules.walk(facts, now)
    blocked = any(one.state == "blocks" for one in findings)
    expected = None if blocked else next_time
    summary = rules.summary(findings, expected)
    return Diagnosis(server.server_id, server.name, summary, not blocked, expected, tuple(findings))


def _hypervisor(server: Server, limits: Limits, now: datetime) -> Hypervisor | None:
    try:
        return hypervisors.find(server.hypervisor_id, limits, now) if server.hypervisor_id else None
    except HypervisorNotFound:
        return None


def _server(server: Server, place: Hypervisor | None, now: datetime) -> rules.ServerFacts:
    level = access.of_servers([server])[server.server_id]
    lock = server.lock if server.lock is not None and server.lock.holds(now) else None
    busy = jobs.find(server.busy_job_id) if server.busy_job_id else None
    return rules.ServerFacts(
        name=server.name,
        deleted=server.state == "deleted",
        commissioned=server.commissioned,
        place=place.name if place else "",
        rivals=tuple(server.rival_hypervisor_ids) if server.conflict else (),
        last_backup_time=server.last_backup_time,
        lock_reason=lock.reason if lock else "",
        lock_expire_time=lock.expire_time if lock else None,
        migrating=server.domain_state == admission.MIGRATING,
        level=level.level,
        level_origin=str(level.origin),
        level_scheduled=levels.allows(level.level, "scheduled"),
        busy_job_id=server.busy_job_id,
        busy_what=f"{busy.state} {busy.type} job" if busy else "",
    )


def _failure(server: Server) -> rules.FailureFacts | None:
    found = failing.of_server(server.server_id)
    if found is None:
        return None
    said = found.failure or {}
    return rules.FailureFacts(
        count=found.failure_count,
        job_id=found.job_id,
        reason=str(said.get("reason", "")),
        message=str(said.get("message", "")),
        step=str(said.get("step", "")),
        last_time=found.last_time,
    )


def _discrepancies(server: Server, now: datetime) -> tuple[rules.DiscrepancyFacts, ...]:
    found = discrepancies.of_server(server.server_id, now)
    names = storages.names_of([one.storage_id for one in found])
    return tuple(
        rules.DiscrepancyFacts(
            names.get(one.storage_id, one.storage_id), one.missing_count, one.damaged_count, one.adopted_count
        )
        for one in found
    )


def _next_time(schedule: Schedule | None, now: datetime) -> datetime | None:
    if schedule is None:
        return None
    if not schedule.interval_hours:
        return hours.next_opening(schedule.hours, now)
    runs = schedules.next_runs(schedule, 1, now)
    return runs[0].start_time if runs else None


def _schedule(schedule: Schedule | None, next_time: datetime | None, now: datetime) -> rules.ScheduleFacts | None:
    if schedule is None:
        return None
    what = schedule.hours
    window = "all day" if what.start == what.end else f"{what.start:%H:%M} to {what.end:%H:%M}"
    days = "all" if not what.days or len(what.days) == 7 else " ".join(_DAYS[day - 1] for day in sorted(what.days))
    return rules.ScheduleFacts(
        schedule_id=schedule.schedule_id,
        enabled=schedule.enabled,
        interval_hours=schedule.interval_hours,
        due_time=schedule.due_time,
        next_time=next_time,
        open_now=hours.is_open(what, now),
        window=window,
        days=days,
        time_zone=schedule.time_zone,
    )


def _batch(server: Server) -> rules.BatchFacts | None:
    live = batches.live(hypervisor_id=server.hypervisor_id) if server.hypervisor_id else []
    chosen = next((one for one in live if one.at_work), live[0] if live else None)
    if chosen is None:
        return None
    wait = str((chosen.wait or {}).get("text", ""))
    return rules.BatchFacts(chosen.batch_id, chosen.state, wait, chosen.start_time)


def _storage(schedule: Schedule | None) -> rules.StorageFacts | None:
    if schedule is None:
        return None
    try:
        storage = storages.find(schedule.storage_id)
    except StorageNotFound:
        return None
    found = health.of_storage(storage.storage_id)
    return rules.StorageFacts(
        name=storage.name,
        enabled=storage.enabled,
        read_only=storage.read_only,
        health=found.state,
        health_detail=found.detail,
        health_message=str((found.failure or {}).get("message", "")),
        free_share=found.free_bytes / found.total_bytes if found.total_bytes else None,
    )


def _agent(server: Server, place: Hypervisor | None) -> rules.AgentFacts | None:
    if place is None:
        return None
    try:
        hypervisors.check_clock(place)
        wrong = False
    except ClockSkew:
        wrong = True
    return rules.AgentFacts(
        state=place.state,
        last_contact_time=place.last_contact_time,
        clock_off_seconds=round(place.clock_offset.total_seconds()) if place.clock_offset else 0,
        clock_wrong=wrong,
        domain_known=bool(server.domain_name),
    )
