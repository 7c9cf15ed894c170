"""Why a server is, or is not, backed up (E1): one walk over all that its backups depend on, in a fixed order. Pure.

    server ─ errors ─ catalog ─ schedule ─ interval ─ window and days ─ pause ─ caps ─ batch ─ busy ─ storage ─ health ─ level ─ lock ─ agent ─ clock

Each finding says how it stands and what to do; none is left out, so that who reads them knows what was looked at. The first that
blocks is the answer. Without one, the first that waits is; without that, the next run's time is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "waits", "warning", "blocks"]
OVERDUE_AFTER = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at and how it stands; `reason` is one of errors.proto where one fits."""

    step: str
    state: State
    sentence: str
    remedy: str = ""
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server itself. `place` is the hypervisor's name, "" for none; `rivals` are others that claim it."""

    name: str
    deleted: bool = False
    commissioned: bool = True
    place: str = ""
    rivals: tuple[str, ...] = ()
    last_backup_time: datetime | None = None
    lock_reason: str = ""
    lock_expire_time: datetime | None = None
    migrating: bool = False
    level: str = "scheduled_only"
    level_origin: str = ""
    level_scheduled: bool = True
    busy_job_id: str = ""
    busy_what: str = ""


@dataclass(frozen=True, slots=True)
class FailureFacts:
    """Its failures in a row."""

    count: int
    job_id: str
    reason: str
    message: str
    step: str
    last_time: datetime


@dataclass(frozen=True, slots=True)
class DiscrepancyFacts:
    """Its backups on one storage that are gone, cannot be restored, or were found there lately and not known before."""

    storage: str
    missing: int = 0
    damaged: int = 0
    adopted: int = 0


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """The schedule of its hypervisor. `next_time` is when a run may begin next, None where no hour ever allows one."""

    schedule_id: str
    enabled: bool
    interval_hours: int
    due_time: datetime | None
    next_time: datetime | None
    open_now: bool
    window: str
    days: str
    time_zone: str


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """The batch of its hypervisor that has not ended. `wait` is what a deferred one waits for, as a sentence."""

    batch_id: str
    state: str
    wait: str = ""
    start_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """Where its schedule backs up to."""

    name: str
    enabled: bool
    read_only: bool
    health: str
    health_detail: str = ""
    health_message: str = ""
    free_share: float | None = None


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """Its hypervisor. `state` is online, offline or banned; `domain_known` tells whether it reports the server's domain."""

    state: str
    last_contact_time: datetime | None
    clock_off_seconds: int = 0
    clock_wrong: bool = False
    domain_known: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is looked at. `batch_count` batches are at work in the whole installation, at most `batches_max` may be."""

    server: ServerFacts
    failure: FailureFacts | None = None
    discrepancies: tuple[DiscrepancyFacts, ...] = ()
    schedule: ScheduleFacts | None = None
    batch: BatchFacts | None = None
    storage: StorageFacts | None = None
    agent: AgentFacts | None = None
    paused: bool = False
    batch_count: int = 0
    batches_max: int | None = None


def walk(facts: Facts, now: datetime) -> list[Finding]:
    """Return all findings in order."""
    found = [_server(facts.server), _errors(facts.failure, now), _catalog(facts), _schedule(facts)]
    if facts.schedule is not None:
        found += [_interval(facts.schedule, now), _hours(facts.schedule), _pause(facts), _caps(facts)]
        found.append(_batch(facts.batch, facts.schedule, now))
    found.append(_busy(facts.server))
    if facts.storage is not None:
        found += [_storage(facts.storage), _health(facts.storage)]
    found += [_level(facts.server), _lock(facts.server, now)]
    if facts.agent is not None:
        found += [_agent(facts.agent, facts.server), _clock(facts.agent)]
    return found


def summary(findings: Sequence[Finding], next_time: datetime | None) -> str:
    """Return the answer in a sentence."""
    for state in ("blocks", "waits"):
        for one in findings:
            if one.state == state:
                return one.sentence
    return (
        f"nothing stands in the way; the next backup begins {_when(next_time)}"
        if next_time
        else "nothing stands in the way"
    )


# ---- the steps ----------------------------------------------------------------------------------------------------------


def _server(server: ServerFacts) -> Finding:
    if server.deleted:
        return Finding(
            "server",
            "blocks",
            "the panel has deleted the server",
            "Register it again if it still exists",
            "SERVER_DELETED",
        )
    if server.rivals:
        return Finding(
            "server", "blocks", f"several hypervisors claim it: {', '.join((server.place, *server.rivals))}",
            "Say where it lives: bmctl server update --hypervisor", "SERVER_CONFLICT",
        )  # fmt: skip
    if not server.place:
        return Finding(
            "server", "blocks", "it lives on no hypervisor that is known", "Say where: bmctl server update --hypervisor"
        )
    if not server.commissioned:
        return Finding(
            "server", "blocks", "the panel has not put it into service", "Put it into service: bmctl server commission"
        )
    if server.last_backup_time is None:
        return Finding("server", "warning", f"it lives on {server.place} and has no usable backup yet")
    return Finding(
        "server", "ok", f"it lives on {server.place}; its last usable backup is of {_when(server.last_backup_time)}"
    )


def _errors(failure: FailureFacts | None, now: datetime) -> Finding:
    if failure is None:
        return Finding("errors", "ok", "its last backup did not fail")
    times = "backup" if failure.count == 1 else f"{failure.count} backups in a row"
    where = f" in step {failure.step}" if failure.step else ""
    sentence = f"its last {times} failed{where}, {_ago(failure.last_time, now)}: {failure.message}"
    remedy = f"Read what it says: bmctl job log {failure.job_id}"
    return Finding("errors", "warning", sentence, remedy, failure.reason, {"job_id": failure.job_id})


def _catalog(facts: Facts) -> Finding:
    """Say where a storage was found not to have what the catalog said. The next backup becomes a full where it has to."""
    told = [_told(one) for one in facts.discrepancies]
    if not told:
        return Finding("catalog", "ok", "its storages have what the catalog says")
    flawed = any(one.missing or one.damaged for one in facts.discrepancies)
    which = " --state missing --state damaged" if flawed else ""
    return Finding(
        "catalog", "warning", "; ".join(told), f"See which: bmctl backup list --server {facts.server.name}{which}"
    )


def _told(one: DiscrepancyFacts) -> str:
    parts = ((one.missing, "gone"), (one.damaged, "damaged"), (one.adopted, "found there and taken in"))
    kinds = ", ".join(f"{count} {what}" for count, what in parts if count)
    return f"of its backups on storage {one.storage}: {kinds}"


def _schedule(facts: Facts) -> Finding:
    schedule = facts.schedule
    if schedule is None:
        return Finding(
            "schedule", "blocks", f"hypervisor {facts.server.place or '-'} has no schedule",
            "Make one: bmctl schedule add",
        )  # fmt: skip
    links = {"schedule_id": schedule.schedule_id}
    if not schedule.enabled:
        return Finding("schedule", "blocks", "the schedule is disabled", "Enable it: bmctl schedule enable", "", links)
    return Finding("schedule", "ok", "the schedule of its hypervisor is enabled", facts=links)


def _interval(schedule: ScheduleFacts, now: datetime) -> Finding:
    if not schedule.interval_hours:
        return Finding(
            "interval", "blocks", "the schedule runs by hand only (interval 0)",
            "Set an interval, or start a run: bmctl schedule run",
        )  # fmt: skip
    every = f"every {schedule.interval_hours} h"
    if schedule.due_time is None:
        return Finding("interval", "ok", f"it runs {every}")
    if schedule.due_time > now:
        return Finding("interval", "waits", f"it runs {every}, next due {_when(schedule.due_time)}")
    if now - schedule.due_time > OVERDUE_AFTER:
        return Finding("interval", "warning", f"it runs {every} and is overdue since {_when(schedule.due_time)}")
    return Finding("interval", "ok", f"it runs {every} and is due now")


def _hours(schedule: ScheduleFacts) -> Finding:
    rule = f"window {schedule.window}, days {schedule.days} ({schedule.time_zone})"
    if schedule.next_time is None:
        return Finding("window", "blocks", f"no hour allows a run: {rule}", "Widen window or days: bmctl schedule set")
    if schedule.open_now:
        return Finding("window", "ok", f"runs may begin now: {rule}")
    return Finding("window", "waits", f"runs may begin again {_when(schedule.next_time)}: {rule}")


def _pause(facts: Facts) -> Finding:
    if facts.paused:
        return Finding(
            "pause", "blocks", "the dispatcher is paused: no batch begins", "Resume it: bmctl settings set",
            "DISPATCH_PAUSED",
        )  # fmt: skip
    return Finding("pause", "ok", "the dispatcher is not paused")


def _caps(facts: Facts) -> Finding:
    if facts.batches_max is None:
        return Finding("caps", "ok", f"{facts.batch_count} batches are at work, without a limit")
    sentence = f"{facts.batch_count} of at most {facts.batches_max} batches are at work"
    if facts.batch_count >= facts.batches_max and (facts.batch is None or facts.batch.state == "deferred"):
        return Finding("caps", "waits", sentence, "Wait, or raise max_concurrent_batches")
    return Finding("caps", "ok", sentence)


def _batch(batch: BatchFacts | None, schedule: ScheduleFacts, now: datetime) -> Finding:
    if batch is None:
        overdue = schedule.due_time is not None and now - schedule.due_time > OVERDUE_AFTER and schedule.open_now
        if overdue and schedule.enabled:
            return Finding(
                "batch", "warning", "no batch was made though one is due", "Look at the system log: bmctl log list"
            )
        return Finding("batch", "ok", "no batch of its hypervisor is under way")
    links = {"batch_id": batch.batch_id}
    if batch.state == "deferred":
        why = batch.wait or "for its turn"
        return Finding("batch", "waits", f"batch {batch.batch_id} waits: {why}", facts=links)
    since = f" since {_when(batch.start_time)}" if batch.start_time else ""
    return Finding("batch", "ok", f"batch {batch.batch_id} is at work{since}", facts=links)


def _busy(server: ServerFacts) -> Finding:
    if not server.busy_job_id:
        return Finding("busy", "ok", "no job works on the server")
    return Finding(
        "busy", "waits", f"{server.busy_what or 'job'} {server.busy_job_id} works on it",
        f"Wait for that job, or end it: bmctl job cancel {server.busy_job_id}", "VM_BUSY", {"job_id": server.busy_job_id},
    )  # fmt: skip


def _storage(storage: StorageFacts) -> Finding:
    if not storage.enabled:
        return Finding(
            "storage", "blocks", f"storage {storage.name} is disabled",
            f"Enable it: bmctl storage update {storage.name} --enable", "STORAGE_DISABLED",
        )  # fmt: skip
    if storage.read_only:
        return Finding(
            "storage", "blocks", f"storage {storage.name} is read-only",
            f"Allow writing: bmctl storage update {storage.name} --read-write", "STORAGE_READ_ONLY",
        )  # fmt: skip
    return Finding("storage", "ok", f"storage {storage.name} takes backups")


def _health(storage: StorageFacts) -> Finding:
    look = f"Look at it: bmctl storage health {storage.name}"
    if storage.health in {"unhealthy", "degraded"}:
        cause = storage.health_message or storage.health_detail
        return Finding("health", "warning", f"storage {storage.name} is {storage.health}: {cause}", look)
    if storage.free_share is not None and storage.free_share < 0.05:
        room = f"{storage.free_share:.0%} of its room is free"
        return Finding("health", "warning", f"storage {storage.name} is {storage.health}, but only {room}", look)
    if storage.health == "unknown":
        return Finding("health", "ok", f"health of storage {storage.name} is unknown: {storage.health_detail}")
    return Finding("health", "ok", f"storage {storage.name} is healthy")


def _level(server: ServerFacts) -> Finding:
    words = server.level.replace("_", " ")
    said = f", as its {server.level_origin} says" if server.level_origin else ""
    if not server.level_scheduled:
        return Finding(
            "level", "blocks", f"its access level is {words}{said}: no backup by schedule",
            "Give it another level: bmctl server access set",
            "ACCESS_LEVEL_DENIED",
        )  # fmt: skip
    return Finding("level", "ok", f"its access level is {words}{said}")


def _lock(server: ServerFacts, now: datetime) -> Finding:
    if server.migrating:
        return Finding(
            "lock", "waits", f"it is migrating, as hypervisor {server.place} reports",
            "Wait for the end of the migration", "VM_LOCKED",
        )  # fmt: skip
    if not server.lock_reason or (server.lock_expire_time is not None and server.lock_expire_time <= now):
        return Finding("lock", "ok", "it is not locked")
    until = f" until {_when(server.lock_expire_time)}" if server.lock_expire_time else ""
    return Finding(
        "lock", "blocks" if not until else "waits", f"it is locked{until}: {server.lock_reason}",
        "Have the panel take the lock away: bmctl server unlock", "VM_LOCKED", {"lock_reason": server.lock_reason},
    )  # fmt: skip


def _agent(agent: AgentFacts, server: ServerFacts) -> Finding:
    if agent.state == "banned":
        return Finding(
            "agent", "blocks", f"hypervisor {server.place} is banned", "Lift the ban: bmctl hypervisor unban",
            "HYPERVISOR_BANNED",
        )  # fmt: skip
    if agent.state != "online":
        last = _when(agent.last_contact_time) if agent.last_contact_time else "never"
        return Finding(
            "agent", "blocks", f"the agent of hypervisor {server.place} is not connected, last contact {last}",
            "Check that bm-agent runs there and reaches this controller", "HYPERVISOR_UNREACHABLE",
        )  # fmt: skip
    if not agent.domain_known:
        return Finding(
            "agent", "blocks", f"hypervisor {server.place} does not report the server's domain",
            "See what it has: bmctl hypervisor domains", "DOMAIN_NOT_FOUND",
        )  # fmt: skip
    return Finding("agent", "ok", f"the agent of hypervisor {server.place} is connected")


def _clock(agent: AgentFacts) -> Finding:
    if agent.clock_wrong:
        return Finding(
            "clock", "blocks", f"the hypervisor's clock is off by {agent.clock_off_seconds} s",
            "Set its clock; backups and deletes are refused until then", "CLOCK_SKEW",
        )  # fmt: skip
    return Finding("clock", "ok", "the hypervisor's clock is right")


def _when(time: datetime | None) -> str:
    return "never" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"


def _ago(time: datetime, now: datetime) -> str:
    minutes = max(0, int((now - time).total_seconds() // 60))
    return f"{minutes // 60} h ago" if minutes >= 120 else f"{minutes} min ago"
