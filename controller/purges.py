"""Purges: everything that is left of a server is to be deleted, after a delay or because somebody said so (K1-K3, D24, D25).

    DeleteServer ──► scheduled, due after Purge Delay Days ──┐
    shown, confirmed ──► scheduled, due at once ─────────────┴─ due ─► checked anew ─► running: a job for each storage
                             │  ▲                                          │                  │
                          cancel └── failed (after three in a row: 48 h) ──│──────────────────┤
                             ▼                                             ▼                  ▼
                         cancelled ◄──────── the server is not deleted (any more)      completed: nothing is left

A purge that follows DeleteServer holds as long as that does: a server that lives is never purged by it, and absence from an
inventory schedules none. One that was confirmed takes only what there was when it was shown. Storages that are read-only or
disabled are passed over, and are no failure (S22). Sync functions, run by `Database.run`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from controller import (
    auto_purge,
    backups,
    happenings,
    jobs,
    orders,
    previews,
    pruning,
    settings,
    storages,
    system_log,
)
from controller.backups import AVAILABLE, DAMAGED, MISSING
from controller.context import Context as OrderContext
from controller.db import models
from controller.db.secrets import Vault
from controller.db.statements import find_row
from controller.errors import PurgeEnded, PurgeNotFound, PurgeRunning
from controller.jobs import Failure, Job
from controller.limits import Limits
from controller.order_types import RemovalOrder
from engine.errors import BackupManagerError
from engine.ids import new_id

SCHEDULED, RUNNING, COMPLETED, CANCELLED = "scheduled", "running", "completed", "cancelled"
LIVE = (SCHEDULED, RUNNING)
DELETED, ALL = "deleted", "all"
FAILURES_MAX = 3  # in a row, then the pause of K2
WAIT = timedelta(minutes=15)  # for what is in use, and for storages that nobody may write to
DOUBT = timedelta(days=1)  # that somebody has to look at what a memory that was set back would delete
REQUESTER = "purge"
_NO_FAILURE = frozenset({"STORAGE_READ_ONLY", "STORAGE_DISABLED", "PURGE_ENDED", "DELETE_BOUND"})
Row = models.Purge


@dataclass(frozen=True, slots=True)
class Purge:
    """A purge as it stands. `kind` is "deleted" for one that needs its server to be deleted, else "all"."""

    purge_id: str
    server_id: str
    storage_id: str
    schedule_id: str
    kind: str
    state: str
    requester: str
    create_time: datetime
    due_time: datetime
    bound_time: datetime | None
    retry_time: datetime | None
    end_time: datetime | None
    failure_count: int
    failure: Failure | None
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewPurge:
    """What a purge begins with."""

    server_id: str
    storage_id: str
    kind: str
    requester: str
    schedule_id: str = ""
    bound_time: datetime | None = None
    request_id: str = ""
    request_hash: str = ""


# ---- looking ------------------------------------------------------------------------------------------------------------


def get(purge_id: str) -> Purge:
    """Return a purge. Raises PurgeNotFound."""
    row = find_row(Row.purge_id, purge_id)
    if row is None:
        raise PurgeNotFound(purge_id=purge_id)
    return _purge(row)


def list_purges(
    *, server_id: str = "", ended: bool = False, after: tuple[str] | None = None, limit: int = 101
) -> list[Purge]:
    """Return purges, newest first, those after the id in `after`; with those that have ended, or without."""
    query = Row.select() if ended else Row.select().where(Row.state.in_(LIVE))
    if server_id:
        query = query.where(Row.server_id == server_id)
    if after:
        query = query.where(Row.purge_id < after[0])
    return [_purge(row) for row in query.order_by(Row.purge_id.desc()).limit(limit)]


def of_request(request_id: str) -> tuple[list[Purge], str]:
    """Return the purges that a request id has made, and the hash of its body; nothing when it is new."""
    rows = list(Row.select().where(Row.request_id == request_id).order_by(Row.purge_id)) if request_id else []
    return [_purge(row) for row in rows], rows[0].request_hash if rows else ""


# ---- ordering and cancelling --------------------------------------------------------------------------------------------


def insert(new: NewPurge, due_time: datetime, now: datetime) -> str:
    """Add a purge and return its id."""
    purge_id = new_id(now)
    Row.insert(**asdict(new), purge_id=purge_id, state=SCHEDULED, create_time=now, due_time=due_time).execute()
    _event("purge.scheduled", purge_id, now)
    return purge_id


def cancel(purge_id: str, now: datetime) -> Purge:
    """Cancel a purge that has not begun. Raises PurgeNotFound, PurgeEnded, PurgeRunning when it was sent to a hypervisor."""
    purge = get(purge_id)
    if purge.state not in LIVE:
        raise PurgeEnded(purge_id=purge_id, state=purge.state)
    sent = [job.job_id for job in _jobs(purge) if job.state in jobs.SENT]
    if sent:
        raise PurgeRunning(purge_id=purge_id, job_id=", ".join(sent))
    _end(purge_id, CANCELLED, now)
    return get(purge_id)


# ---- running ------------------------------------------------------------------------------------------------------------


def running() -> list[str]:
    """Return the purges whose jobs may have ended."""
    return [row.purge_id for row in Row.select(Row.purge_id).where(Row.state == RUNNING).order_by(Row.purge_id)]


def due(limit: int, now: datetime) -> list[str]:
    """Return the purges that are to be tried now, longest due first."""
    ready = Row.retry_time.is_null() | (Row.retry_time <= now)
    rows = Row.select(Row.purge_id).where((Row.state == SCHEDULED) & (Row.due_time <= now) & ready)
    return [row.purge_id for row in rows.order_by(Row.due_time, Row.purge_id).limit(limit)]


def put_off(purge_id: str, now: datetime) -> None:
    """Try a purge again later, which we stumbled over."""
    _wait(get(purge_id), now)


def settle(purge_id: str, now: datetime) -> None:
    """Draw the conclusion from a try whose jobs have ended: done, go on, or fail and wait."""
    purge = get(purge_id)
    tried = _jobs(purge)
    if purge.state != RUNNING or not all(job.ended for job in tried):
        return
    if any(job.state == jobs.CANCELLED for job in tried):
        _end(purge_id, CANCELLED, now)  # a person stopped it, and means it
        return
    failed = [job for job in tried if job.failure is not None]
    counted = [job for job in failed if job.failure is not None and job.failure.reason not in _NO_FAILURE]
    if counted:
        _fail(purge, counted[0].failure, now)
    elif failed:
        _wait(purge, now)
    else:
        Row.update(state=SCHEDULED, retry_time=None, failure_count=0, failure=None, job_ids=[]).where(
            (Row.purge_id == purge_id) & (Row.state == RUNNING)
        ).execute()


def start(purge_id: str, limits: Limits, vault: Vault, now: datetime) -> int:
    """Order the jobs of a purge that is due, after looking anew whether it still holds; return how many there are."""
    purge = get(purge_id)
    if purge.state != SCHEDULED:
        return 0
    if not auto_purge.holds(purge.kind, purge.server_id):
        _end(purge_id, CANCELLED, now)
        return 0
    targets = _targets(purge)
    if not targets:
        _complete(purge, now)
        return 0
    Row.update(state=RUNNING).where(Row.purge_id == purge_id).execute()  # before its jobs, which look whether it holds
    started, refused = [], None
    for storage_id, backup_ids in targets.items():
        storage = storages.find(storage_id)
        if not storage.enabled or storage.read_only:
            continue
        for maker_id, doomed in pruning.by_maker(storage, backup_ids).items():
            chosen = doomed[: previews.DELETE_BACKUPS_MAX]
            order = RemovalOrder("purge", purge.server_id, storage_id, chosen, maker_id, purge_id=purge_id)
            try:
                with models.proxy.atomic():
                    started.append(orders.start(order, OrderContext(limits, vault, purge.requester, now)))
            except BackupManagerError as error:
                refused = error
    if not started:
        _wait(purge, now, refused)
        return 0
    Row.update(job_ids=started).where(Row.purge_id == purge_id).execute()
    _event("purge.started", purge_id, now)
    return len(started)


def doubt(now: datetime) -> int:
    """Trust no purge that an earlier memory waited for: it may have been cancelled since. Returns how many there were.

    Who confirmed one confirms it again. One that follows DeleteServer has its whole delay anew, at least DOUBT.
    """
    live = [_purge(row) for row in Row.select().where(Row.state.in_(LIVE))]
    later = now + max(DOUBT, timedelta(days=settings.get().purge_delay_days))
    for purge in live:
        if purge.kind == DELETED:
            Row.update(state=SCHEDULED, due_time=max(purge.due_time, later), retry_time=None, job_ids=[]).where(
                Row.purge_id == purge.purge_id
            ).execute()
        else:
            _end(purge.purge_id, CANCELLED, now)
    return len(live)


# ---- inside -------------------------------------------------------------------------------------------------------------


def _targets(purge: Purge) -> dict[str, list[str]]:
    """Return what is to be deleted by storage, newest first."""
    found: dict[str, list[str]] = defaultdict(list)
    for backup_id, storage_id in _scope(purge, (AVAILABLE, DAMAGED)):
        found[storage_id].append(backup_id)
    return dict(found)


def _scope(purge: Purge, states: Sequence[str]) -> list[tuple[str, str]]:
    """Return the backups in these states that a purge is about, newest first, each with its storage."""
    row = models.Backup
    query = row.select(row.backup_id, row.storage_id).where(
        (row.server_id == purge.server_id) & row.state.in_(list(states)) & row.delete_time.is_null()
    )
    if purge.storage_id:
        query = query.where(row.storage_id == purge.storage_id)
    if purge.bound_time:
        query = query.where(row.create_time <= purge.bound_time)
    ordered = query.order_by(row.create_time.desc(), row.backup_id.desc())
    return [(one.backup_id, one.storage_id) for one in ordered]


def _complete(purge: Purge, now: datetime) -> None:
    """End a purge of which nothing is left but, perhaps, rows of backups that are missing: a reindex brings back what is not."""
    backups.mark_deleted([backup_id for backup_id, _ in _scope(purge, (MISSING,))], now)
    _end(purge.purge_id, COMPLETED, now)


def _fail(purge: Purge, failure: Failure | None, now: datetime) -> None:
    count = purge.failure_count + 1
    pause = timedelta(hours=settings.get().purge_backoff_hours) if count >= FAILURES_MAX else timedelta(0)
    Row.update(
        state=SCHEDULED,
        failure_count=count,
        failure=asdict(failure) if failure else None,
        retry_time=now + pause,
        job_ids=[],
    ).where(Row.purge_id == purge.purge_id).execute()
    what = failure.message if failure else "no reason was given"
    text = f"A purge failed, for the {count}. time in a row: {what}. It is tried again at {(now + pause).isoformat()}."
    system_log.write("error", "purge", text, now, server_id=purge.server_id)


def _wait(purge: Purge, now: datetime, why: BackupManagerError | None = None) -> None:
    values: dict[str, Any] = {"state": SCHEDULED, "retry_time": now + WAIT, "job_ids": []}
    if why is not None:
        values["failure"] = asdict(Failure.of(why))
    Row.update(**values).where(Row.purge_id == purge.purge_id).execute()


def _end(purge_id: str, state: str, now: datetime) -> None:
    changed = Row.update(state=state, end_time=now, retry_time=None).where(
        (Row.purge_id == purge_id) & Row.state.in_(LIVE)
    )
    if changed.execute():
        _event(f"purge.{state}", purge_id, now)


def _jobs(purge: Purge) -> Sequence[Job]:
    found = [jobs.find(job_id) for job_id in purge.job_ids]
    return [job for job in found if job is not None]


def _event(kind: str, purge_id: str, now: datetime) -> None:
    purge = get(purge_id)
    happenings.record(
        kind,
        now,
        server_id=purge.server_id,
        storage_id=purge.storage_id,
        schedule_id=purge.schedule_id,
        body={"purge_id": purge_id},
    )


def _purge(row: models.Purge) -> Purge:
    values = {name: getattr(row, name) for name in Purge.__dataclass_fields__}
    values["failure"] = Failure(**row.failure) if row.failure else None
    values["job_ids"] = tuple(row.job_ids)
    return Purge(**values)
