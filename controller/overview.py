"""Everything that is worth a look, by few queries over indexes and totals that are kept (M1-M4): cheap at 50,000 servers.

    counts ── job (state), server, unprotected_server, server_failure, storage_total, schedule, hypervisor, storage_health
    lists  ── the first few rows of an index each, then the names of all that they mention by one query for each kind

Nothing here looks at every backup or at every job. Sync functions, inside `Database.run`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import peewee

from controller import batches, discrepancies, failing, health, hypervisors, servers, settings, totals
from controller.batches import Batch
from controller.db import models
from controller.db.fields import from_microseconds
from controller.db.statements import statement
from controller.discrepancies import Discrepancy
from controller.failing import ServerFailure
from controller.health import Health
from controller.limits import Limits
from controller.rules import states
from controller.totals import NONE, Total

STORAGES_MAX = 50
OVERDUE_AFTER = timedelta(minutes=2)  # a tick may take its time; what is due since longer waits for something


@dataclass(frozen=True, slots=True)
class Counts:
    """The figures; the words of `backupmanager.v1.OverviewCounts`."""

    running_job_count: int
    waiting_job_count: int
    running_batch_count: int
    server_count: int
    protected_server_count: int
    failing_server_count: int
    unprotected_server_count: int
    pending_purge_count: int
    backup_count: int
    backup_bytes: int
    schedule_count: int
    enabled_schedule_count: int
    overdue_schedule_count: int
    hypervisor_count: int
    online_hypervisor_count: int
    storage_count: int
    unhealthy_storage_count: int
    missing_backup_count: int
    damaged_backup_count: int
    adopted_backup_count: int


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A schedule's next firing."""

    schedule_id: str
    hypervisor_id: str
    storage_id: str
    due_time: datetime
    overdue: bool


@dataclass(frozen=True, slots=True)
class Error:
    """A job that failed. `failure` is its JSON form."""

    job_id: str
    type: str
    time: datetime
    server_id: str
    storage_id: str
    hypervisor_id: str
    failure: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Unprotected:
    """A living server without any usable backup."""

    server_id: str
    server_name: str
    hypervisor_id: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class PendingPurge:
    """A deleted server whose backups may go at `purge_time`."""

    server_id: str
    server_name: str
    delete_time: datetime
    purge_time: datetime
    backup_count: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class StorageLine:
    """A storage in a line."""

    storage_id: str
    name: str
    type: str
    enabled: bool
    read_only: bool
    health: Health
    total: Total


@dataclass(frozen=True, slots=True)
class Names:
    """Names by id of all that an overview mentions."""

    servers: dict[str, str]
    storages: dict[str, str]
    hypervisors: dict[str, str]


@dataclass(frozen=True, slots=True)
class Overview:
    """How things stand at `time`. `job_states` has for each batch how many of its jobs are in each state."""

    time: datetime
    counts: Counts
    batches: tuple[Batch, ...]
    job_states: dict[str, dict[str, int]]
    upcoming: tuple[Upcoming, ...]
    errors: tuple[Error, ...]
    failing: tuple[ServerFailure, ...]
    unprotected: tuple[Unprotected, ...]
    purges: tuple[PendingPurge, ...]
    storages: tuple[StorageLine, ...]
    discrepancies: tuple[Discrepancy, ...]
    online: frozenset[str]
    last_backup_times: dict[str, datetime]
    names: Names
    paused: bool


def take(limits: Limits, list_size: int, now: datetime) -> Overview:
    """Return how things stand now, each list cut to `list_size`."""
    chosen = settings.get()
    lying, found = totals.of_storages(), health.of_storages()
    online = hypervisors.online(limits, now)
    recent = tuple(batches.list_batches(limit=list_size))
    coming, errors = _upcoming(list_size, now), _errors(list_size)
    failed, bare = tuple(failing.worst(list_size)), _unprotected(list_size)
    lines, differing = _storages(lying, found), tuple(discrepancies.worst(list_size, now))
    return Overview(
        time=now,
        counts=_counts(lying, found, online, now),
        batches=recent,
        job_states=batches.counts([one.batch_id for one in recent]) if recent else {},
        upcoming=coming,
        errors=errors,
        failing=failed,
        unprotected=bare,
        purges=_purges(list_size, timedelta(days=chosen.purge_delay_days)),
        storages=lines,
        discrepancies=differing,
        online=online,
        last_backup_times=totals.last_backup_times([one.server_id for one in failed]),
        names=_names((*recent, *coming, *errors, *failed, *bare, *differing)),
        paused=chosen.dispatch_paused,
    )


# ---- figures ------------------------------------------------------------------------------------------------------------


def _counts(lying: dict[str, Total], found: dict[str, Health], online: frozenset[str], now: datetime) -> Counts:
    schedule, hypervisor = models.Schedule, models.Hypervisor
    waiting = (states.QUEUED, states.PENDING, states.DISPATCHED)
    jobs = _job_states((states.RUNNING, *waiting))
    living = servers.count_living()
    bare = models.UnprotectedServer.select().count()
    flaws = discrepancies.flaws()
    live = schedule.delete_time.is_null()
    return Counts(
        running_job_count=jobs.get(states.RUNNING, 0),
        waiting_job_count=sum(jobs.get(one, 0) for one in waiting),
        running_batch_count=_count(models.Batch, models.Batch.state.in_(states.BATCH_AT_WORK)),
        server_count=living,
        protected_server_count=max(0, living - bare),
        failing_server_count=models.ServerFailure.select().count(),
        unprotected_server_count=bare,
        pending_purge_count=_purge_count(),
        backup_count=sum(one.backup_count for one in lying.values()),
        backup_bytes=sum(one.stored_bytes for one in lying.values()),
        schedule_count=_count(schedule, live),
        enabled_schedule_count=_count(schedule, live & schedule.enabled),
        overdue_schedule_count=_count(schedule, live & schedule.enabled & (schedule.due_time < now - OVERDUE_AFTER)),
        hypervisor_count=_count(hypervisor, ~hypervisor.banned),
        online_hypervisor_count=len(online),
        storage_count=models.Storage.select().count(),
        unhealthy_storage_count=sum(one.state in {"degraded", "unhealthy"} for one in found.values()),
        missing_backup_count=flaws.missing,
        damaged_backup_count=flaws.damaged,
        adopted_backup_count=discrepancies.adopted_count(now),
    )


def _count(table: Any, condition: Any) -> int:
    return int(table.select().where(condition).count())


def _job_states(wanted: Sequence[str]) -> dict[str, int]:
    job = models.Job
    rows: Any = (
        job.select(job.state, peewee.fn.COUNT(job.job_id))
        .where(job.state.in_(list(wanted)) & (job.type != "health"))
        .group_by(job.state)
        .tuples()
    )
    return {state: int(count) for state, count in rows}


# ---- lists --------------------------------------------------------------------------------------------------------------


def _upcoming(limit: int, now: datetime) -> tuple[Upcoming, ...]:
    row = models.Schedule
    rows: Any = (
        row.select(row.schedule_id, row.hypervisor_id, row.storage_id, row.due_time)
        .where(row.delete_time.is_null() & row.enabled & row.due_time.is_null(False))
        .order_by(row.due_time, row.schedule_id)
        .limit(limit)
        .tuples()
    )
    return tuple(
        Upcoming(schedule_id, hypervisor_id, storage_id, due, due < now - OVERDUE_AFTER)
        for schedule_id, hypervisor_id, storage_id, due in rows
    )


def _errors(limit: int) -> tuple[Error, ...]:
    row = models.Job
    columns = (row.job_id, row.type, row.end_time, row.server_id, row.storage_id, row.hypervisor_id, row.failure)
    rows: Any = (
        row.select(*columns)
        .where((row.state == states.FAILED) & row.end_time.is_null(False))
        .order_by(row.end_time.desc())
        .limit(limit)
        .tuples()
    )
    return tuple(Error(*values) for values in rows)


def _unprotected(limit: int) -> tuple[Unprotected, ...]:
    row, server = models.UnprotectedServer, models.Server
    rows: Any = (
        row.select(row.server_id, server.name, server.hypervisor_id, row.begin_time)
        .join(server, on=(server.server_id == row.server_id))
        .order_by(row.begin_time)
        .limit(limit)
        .tuples()
    )
    return tuple(Unprotected(*values) for values in rows)


# The deleted are few and have an index in this order; grouped in a join, every server would be looked at.
_PURGES = """
    SELECT server_id, name, delete_time,
        (SELECT SUM(backup_count) FROM backup_total total WHERE total.server_id = server.server_id),
        (SELECT SUM(stored_bytes) FROM backup_total total WHERE total.server_id = server.server_id)
    FROM server WHERE delete_time IS NOT NULL
        AND EXISTS (SELECT 1 FROM backup_total total WHERE total.server_id = server.server_id)
    ORDER BY delete_time LIMIT ?
"""


def _purges(limit: int, delay: timedelta) -> tuple[PendingPurge, ...]:
    return tuple(
        PendingPurge(
            server_id, name, from_microseconds(deleted), from_microseconds(deleted) + delay, int(count), int(size)
        )
        for server_id, name, deleted, count, size in statement(_PURGES, limit)
    )


def _purge_count() -> int:
    server, total = models.Server, models.BackupTotal
    has_backups = peewee.fn.EXISTS(total.select(total.server_id).where(total.server_id == server.server_id))
    return int(server.select().where(server.delete_time.is_null(False) & has_backups).count())


def _storages(lying: dict[str, Total], found: dict[str, Health]) -> tuple[StorageLine, ...]:
    row = models.Storage
    columns = (row.storage_id, row.name, row.type, row.enabled, row.read_only)
    rows: Any = row.select(*columns).order_by(row.name).limit(STORAGES_MAX).tuples()
    return tuple(
        StorageLine(one, name, kind, enabled, read_only, found.get(one, health.NEVER), lying.get(one, NONE))
        for one, name, kind, enabled, read_only in rows
    )


def _names(mentioned: Sequence[Any]) -> Names:
    """Return the names of all that these records mention by id."""

    def named(table: Any, field: str) -> dict[str, str]:
        wanted = {getattr(one, field, "") for one in mentioned} - {""}
        rows = table.select(getattr(table, field), table.name).where(getattr(table, field).in_(list(wanted)))
        return dict(rows.tuples()) if wanted else {}

    return Names(
        named(models.Server, "server_id"),
        named(models.Storage, "storage_id"),
        named(models.Hypervisor, "hypervisor_id"),
    )
