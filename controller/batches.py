"""Batches: one firing over a hypervisor's servers, and looking at them.

    insert ──► deferred ──start──► dispatched ──its first job runs──► running ──its last job ended──► (end)
                  └─ waits for the hypervisor, a cap, a window; never more than one of a schedule

As with jobs, each step is one conditional UPDATE whose outcome is the answer. What makes and starts batches is
`cycle/batch_dispatch.py`, what sees them to their end `cycle/batch_work.py`; here is their memory. Sync functions, run by `Database.run`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from controller import leases
from controller.db import models
from controller.db.notes import note
from controller.db.statements import (
    change_rows,
    chunks,
    fetch,
    find_row,
    find_where,
    insert_rows,
    statement,
    value_lines,
)
from controller.errors import BatchNotFound, RequestIdReused
from controller.rules import states

Row = models.Batch


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands. `failure` has the fields of `jobs.Failure`; `wait` is {reason, text, since}: what a deferred one
    waits for as a word and as a sentence, and since when (ISO 8601).
    """

    batch_id: str
    schedule_id: str
    hypervisor_id: str
    storage_id: str
    origin: str
    origin_batch_id: str
    state: str
    wait: dict[str, Any] | None
    spec: dict[str, Any]
    requester: str
    epoch: int
    version: int
    due_time: datetime | None
    create_time: datetime
    start_time: datetime | None
    accept_time: datetime | None
    close_time: datetime | None
    end_time: datetime | None
    cancel_time: datetime | None
    cancel_reason: str
    error_time: datetime | None
    failure: dict[str, Any] | None

    @property
    def ended(self) -> bool:
        return self.state not in states.BATCH_LIVE

    @property
    def hours_max(self) -> float:
        """How many hours it may be at work."""
        return round(float(self.spec.get("time_max_seconds", 0)) / 3600, 2)

    @property
    def at_work(self) -> bool:
        return self.state in states.BATCH_AT_WORK


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a batch begins with."""

    batch_id: str
    hypervisor_id: str
    storage_id: str
    origin: str
    schedule_id: str = ""
    origin_batch_id: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    due_time: datetime | None = None
    requester: str = ""
    request_id: str = ""
    request_hash: str = ""


@dataclass(frozen=True, slots=True)
class BatchFilter:
    """Which batches; empty means all. `job_id`: the one that this job is of. `start_time` <= create_time < `end_time`."""

    states: Sequence[str] = ()
    schedule_id: str = ""
    hypervisor_id: str = ""
    storage_id: str = ""
    job_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


# ---- looking ------------------------------------------------------------------------------------------------------------


def find(batch_id: str) -> Batch | None:
    row = find_row(Row.batch_id, batch_id)
    return None if row is None else _batch(row)


def get(batch_id: str) -> Batch:
    """Return a batch. Raises BatchNotFound."""
    batch = find(batch_id)
    if batch is None:
        raise BatchNotFound(batch_id=batch_id)
    return batch


def list_batches(
    wanted: BatchFilter | None = None, *, after: tuple[str] | None = None, limit: int = 101
) -> list[Batch]:
    """Return batches, newest first, those after the batch id in `after`."""
    chosen, query = wanted or BatchFilter(), Row.select()
    for column, value in (
        (Row.schedule_id, chosen.schedule_id),
        (Row.hypervisor_id, chosen.hypervisor_id),
        (Row.storage_id, chosen.storage_id),
    ):
        if value:
            query = query.where(column == value)
    if chosen.states:
        query = query.where(Row.state.in_(list(chosen.states)))
    if chosen.job_id:
        of_job = models.Job.select(models.Job.batch_id).where(models.Job.job_id == chosen.job_id)
        query = query.where(Row.batch_id.in_(of_job))
    if chosen.start_time:
        query = query.where(Row.create_time >= chosen.start_time)
    if chosen.end_time:
        query = query.where(Row.create_time < chosen.end_time)
    if after:
        query = query.where(Row.batch_id < after[0])
    return [_batch(row) for row in fetch(query.order_by(Row.batch_id.desc()).limit(limit))]


def live(*, hypervisor_id: str = "", schedule_id: str = "", within: Sequence[str] = states.BATCH_LIVE) -> list[Batch]:
    """Return batches that have not ended, oldest first."""
    condition, values = f"state IN ({value_lines(len(within), '?')})", list(within)
    for column, value in (("hypervisor_id", hypervisor_id), ("schedule_id", schedule_id)):
        if value:
            condition, values = f"{condition} AND {column} = ?", [*values, value]
    return [_batch(row) for row in find_where(Row, f"{condition} ORDER BY batch_id", *values)]


_COUNTS = "SELECT batch_id, state, COUNT(*) FROM job WHERE batch_id IN ({}) GROUP BY batch_id, state"


def counts(batch_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return for each of these batches how many of its jobs are in each state."""
    found: dict[str, dict[str, int]] = {batch_id: {} for batch_id in batch_ids}
    for chunk in chunks(batch_ids):
        for batch_id, state, number in statement(_COUNTS.format(value_lines(len(chunk), "?")), *chunk):
            found[batch_id][state] = int(number)
    return found


def find_request(request_id: str) -> tuple[str, str] | None:
    """Return batch id and body hash of a request id, or None when it is new."""
    row = find_row(Row.request_id, request_id)
    return None if row is None else (row.batch_id, row.request_hash)


def repeated(request_id: str, request_hash: str) -> str:
    """Return the batch that this request has made before, "" for none. Raises RequestIdReused for another request."""
    known = find_request(request_id) if request_id else None
    if known is None:
        return ""
    batch_id, digest = known
    if digest != request_hash:
        raise RequestIdReused(request_id=request_id, job_id=batch_id)
    return batch_id


def cut_off(schedule_id: str, reason: str) -> set[str]:
    """Return the servers whose job in the schedule's last ended batch failed for `reason`."""
    ended = "schedule_id = ? AND end_time IS NOT NULL ORDER BY batch_id DESC LIMIT 1"
    rows = [
        row
        for last in find_where(Row, ended, schedule_id)
        for row in find_where(models.Job, "batch_id = ? AND state = ?", last.batch_id, states.FAILED)
    ]
    return {row.server_id for row in rows if (row.failure or {}).get("reason") == reason}


# ---- living -------------------------------------------------------------------------------------------------------------


def insert(new: NewBatch, epoch: int, now: datetime) -> None:
    """Add a deferred batch. Raises peewee.IntegrityError when one of its schedule waits, or its request_id is taken."""
    values = {**asdict(new), "request_id": new.request_id or None}
    insert_rows(Row, [{**values, "state": states.DEFERRED, "epoch": epoch, "create_time": now}])
    note("batch", new.batch_id, 1)


def change(batch_id: str, within: Sequence[str], **values: Any) -> bool:
    """Change a batch that is in one of these states; tell whether there was one."""
    condition = f"batch_id = ? AND state IN ({value_lines(len(within), '?')}) RETURNING version"
    for (version,) in change_rows(Row, values, condition, batch_id, *within):
        note("batch", batch_id, version)
        return True
    return False


def accepted(batch_id: str, now: datetime) -> None:
    """Note that an agent took up a job of it; the first one counts (X7)."""
    change(batch_id, (states.DISPATCHED,), state=states.RUNNING, accept_time=now)


def mark_error(batch_id: str, now: datetime) -> bool:
    """Note that its being overdue was reported; False when it was before."""
    return bool(Row.update(error_time=now).where((Row.batch_id == batch_id) & Row.error_time.is_null()).execute())


def end(batch_id: str, state: str, now: datetime, failure: dict[str, Any] | None = None) -> bool:
    """End a live batch and give back what it held. False when it has ended already."""
    changed = change(batch_id, states.BATCH_LIVE, state=state, end_time=now, wait=None, failure=failure)
    if changed:
        leases.release_all(batch_id)
    return changed


def _batch(row: models.Batch) -> Batch:
    return Batch(**{name: getattr(row, name) for name in Batch.__dataclass_fields__})
