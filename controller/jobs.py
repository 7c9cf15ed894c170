"""The life of a job, and looking at jobs.

    insert ──► queued ──dispatch──► dispatched ──accept──► running ──end──► completed | completed_with_warnings | failed | cancelled
                  └───────────────────────┴───────────────────────┴──────────► (end)

Each step is one conditional UPDATE whose outcome is the answer: a step that comes too late or twice changes nothing. Ending a
job gives back its leases and slots and takes back its command in the same transaction, so no ended job holds anything.
Every change makes `version` grow and is noted for those who watch. Sync functions, run by `Database.run`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from controller import batches, happenings, leases, outcomes, proofs, settings
from controller.agents import outbox
from controller.agents.outbox import Stamp
from controller.db import models
from controller.db.notes import note
from controller.db.statements import (
    change_rows,
    fetch,
    find_row,
    find_rows,
    find_where,
    insert_rows,
    statement,
    value_lines,
)
from controller.errors import JobCancelled, JobNotFound, JobStale
from controller.rules import states
from engine.errors import BackupManagerError

QUEUED, PENDING, DISPATCHED, RUNNING = states.QUEUED, states.PENDING, states.DISPATCHED, states.RUNNING
COMPLETED, COMPLETED_WITH_WARNINGS = states.COMPLETED, states.COMPLETED_WITH_WARNINGS
FAILED, CANCELLED, SKIPPED = states.FAILED, states.CANCELLED, states.SKIPPED
LIVE, SENT = states.LIVE, states.SENT
Row = models.Job


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed; the words of `backupmanager.v1.Failure`."""

    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    step: str = ""

    @classmethod
    def of(cls, error: BackupManagerError, step: str = "") -> "Failure":
        return cls(error.reason, error.message, dict(error.facts), step)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. `progress` and `result` are the JSON forms of JobProgress and JobResult."""

    job_id: str
    type: str
    state: str
    server_id: str
    storage_id: str
    hypervisor_id: str
    backup_id: str
    spec: dict[str, Any]
    attempt: int
    generation: int
    epoch: int
    create_time: datetime
    dispatch_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    progress: dict[str, Any] | None
    failure: Failure | None
    warnings: tuple[str, ...]
    result: dict[str, Any] | None
    cancel_time: datetime | None
    cancel_reason: str
    requester: str
    version: int
    batch_id: str

    @property
    def ended(self) -> bool:
        return self.state not in LIVE

    @property
    def cancel_requested(self) -> bool:
        """Somebody asked for its end, and it has not ended yet."""
        return self.cancel_time is not None and not self.ended

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.job_id, self.attempt, self.generation, self.epoch)


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job begins with. `spec` is what was asked in JSON types, without secrets."""

    job_id: str
    type: str
    hypervisor_id: str
    server_id: str = ""
    storage_id: str = ""
    backup_id: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    requester: str = ""
    request_id: str = ""
    request_hash: str = ""
    batch_id: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a job ends."""

    state: str
    failure: Failure | None = None
    warnings: tuple[str, ...] = ()
    result: dict[str, Any] | None = None

    @classmethod
    def failed(cls, error: BackupManagerError, step: str = "") -> "End":
        return cls(FAILED, Failure.of(error, step))


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; empty means all. `start_time` <= create_time < `end_time`."""

    server_id: str = ""
    storage_id: str = ""
    hypervisor_id: str = ""
    batch_id: str = ""
    schedule_id: str = ""
    job_id: str = ""  # begins with this
    states: Sequence[str] = ()
    types: Sequence[str] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None


# ---- looking ------------------------------------------------------------------------------------------------------------


def find(job_id: str) -> Job | None:
    row = find_row(Row.job_id, job_id)
    return None if row is None else _job(row)


def find_all(job_ids: Sequence[str]) -> dict[str, Job]:
    """Return those of these jobs that there are, by id."""
    return {row.job_id: _job(row) for row in find_rows(Row.job_id, set(job_ids))}


def get(job_id: str) -> Job:
    """Return a job. Raises JobNotFound."""
    job = find(job_id)
    if job is None:
        raise JobNotFound(job_id=job_id)
    return job


def list_jobs(wanted: JobFilter, *, after: tuple[str] | None = None, limit: int = 101) -> list[Job]:
    """Return jobs, newest first, those after the job id in `after`."""
    query = Row.select()
    for column, value in ((Row.server_id, wanted.server_id), (Row.storage_id, wanted.storage_id)):
        if value:
            query = query.where(column == value)
    if wanted.hypervisor_id:
        query = query.where(Row.hypervisor_id == wanted.hypervisor_id)
    if wanted.batch_id:
        query = query.where(Row.batch_id == wanted.batch_id)
    if wanted.schedule_id:
        of_schedule = models.Batch.select(models.Batch.batch_id).where(models.Batch.schedule_id == wanted.schedule_id)
        query = query.where(Row.batch_id.in_(of_schedule))
    if wanted.job_id:  # ids are of these characters only, so that nothing sorts behind them but what begins otherwise
        query = query.where((Row.job_id >= wanted.job_id) & (Row.job_id < wanted.job_id + "~"))
    if wanted.states:
        query = query.where(Row.state.in_(list(wanted.states)))
    if wanted.types:
        query = query.where(Row.type.in_(list(wanted.types)))
    if wanted.start_time:
        query = query.where(Row.create_time >= wanted.start_time)
    if wanted.end_time:
        query = query.where(Row.create_time < wanted.end_time)
    if after:
        query = query.where(Row.job_id < after[0])
    return [_job(row) for row in fetch(query.order_by(Row.job_id.desc()).limit(limit))]


def live(*, hypervisor_id: str = "", server_id: str = "", states: Sequence[str] = LIVE) -> list[Job]:
    """Return jobs that have not ended, oldest first, of one hypervisor or server or of all."""
    condition, values = f"state IN ({value_lines(len(states), '?')})", list(states)
    for column, value in (("server_id", server_id), ("hypervisor_id", hypervisor_id)):
        if value:
            condition, values = f"{condition} AND {column} = ?", [*values, value]
    return [_job(row) for row in find_where(Row, f"{condition} ORDER BY job_id", *values)]


def of_batch(batch_id: str) -> list[Job]:
    """Return a batch's jobs in the order in which they begin."""
    return [_job(row) for row in find_where(Row, "batch_id = ? ORDER BY job_id", batch_id)]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of a job's log. `sequence` is the attempt's own, `position` counts the job's lines from 1."""

    attempt: int
    sequence: int
    position: int
    time: datetime
    level: str
    message: str


def list_log(job_id: str, *, after: tuple[int, int] | None = None, limit: int = 101) -> list[LogEntry]:
    """Return a job's lines, oldest first, those after (attempt, sequence). Raises JobNotFound."""
    get(job_id)
    line = models.JobLog
    query = line.select().where(line.job == job_id)
    position = 0
    if after:
        attempt, sequence = after
        later = (line.attempt > attempt) | ((line.attempt == attempt) & (line.sequence > sequence))
        position = query.where(~later).count()
        query = query.where(later)
    rows = query.order_by(line.attempt, line.sequence).limit(limit)
    return [
        LogEntry(row.attempt, row.sequence, number, row.time, row.level, row.message)
        for number, row in enumerate(rows, position + 1)
    ]


def find_request(request_id: str) -> tuple[str, str] | None:
    """Return job id and body hash of a request id, or None when it is new."""
    row = find_row(Row.request_id, request_id)
    return None if row is None else (row.job_id, row.request_hash)


def holds_lease(stamp: Stamp, hypervisor_id: str) -> bool:
    """Tell whether an attempt may still commit its work: it is the current one of a live job that holds what it took, and
    whose end nobody asked for.
    """
    job = find(stamp.job_id)
    if job is None or job.state not in SENT or job.hypervisor_id != hypervisor_id or job.stamp != stamp:
        return False
    if job.cancel_time is not None:
        return False
    if job.type not in {"backup", "restore"}:
        return True
    name = leases.next_resource if job.spec.get("during_batch") else leases.server_resource
    return leases.holders(name(job.server_id)) == [job.job_id]


# ---- living -------------------------------------------------------------------------------------------------------------


def insert(new: NewJob, epoch: int, now: datetime, *, state: str = QUEUED) -> None:
    """Add a job that waits, as a single or (PENDING) in a batch. Raises peewee.IntegrityError when its request_id is taken."""
    made = {"request_id": new.request_id or None, "state": state, "epoch": epoch, "create_time": now}
    insert_rows(Row, [{**asdict(new), **made}])
    _event("job.created", new.job_id, now)
    note("job", new.job_id, 1)


def set_generation(job_id: str, generation: int) -> None:
    """Raise a queued job's generation to that of a lease it got."""
    statement("UPDATE job SET generation = ? WHERE job_id = ? AND generation < ?", generation, job_id, generation)


def dispatch(job_id: str, now: datetime) -> bool:
    """Send a waiting job to its hypervisor. False when it waits no longer."""
    if not _change(job_id, (QUEUED, PENDING), now, "job.dispatched", state=DISPATCHED, dispatch_time=now):
        return False
    job = get(job_id)
    proofs.note_use(job.storage_id, job.type, now)
    outbox.put(job.hypervisor_id, "run", job.stamp, now)
    return True


def accept(job: Job, now: datetime) -> bool:
    """The agent took it up. False when it runs already, or has ended."""
    outbox.receive_run(job.job_id, job.attempt, now)
    if job.batch_id:
        batches.accepted(job.batch_id, now)
    return _change(job.job_id, (DISPATCHED,), now, "job.running", state=RUNNING, start_time=now)


_REPORT = """
    UPDATE job SET version = version + 1, progress = ?
    WHERE job_id = ? AND state = ? AND hypervisor_id = ? AND attempt = ? RETURNING version
"""


def report(job_id: str, hypervisor_id: str, attempt: int, progress: dict[str, Any]) -> bool:
    """Keep the last word of a running job. False when it is not a running job's of this hypervisor.

    Comes every second for every job, so its statement is written by hand (see `statement`).
    """
    rows = statement(_REPORT, Row.progress.db_value(progress), job_id, RUNNING, hypervisor_id, attempt)
    for (version,) in rows:
        note("job", job_id, version)
    return bool(rows)


def request_cancel(job: Job, reason: str, now: datetime) -> bool:
    """Ask for a job's end: `reason` is CANCELLED for a person, JOB_STALE for the clock. The first reason stays.

    One that reached nobody ends at once. One that may have reached the agent gets a cancel command, again when an earlier one
    was received without effect. False when the job has ended.
    """
    if job.state in {QUEUED, PENDING} or (job.state == DISPATCHED and outbox.withdraw_run(job.job_id, now)):
        return end(job.job_id, stopped(reason, job.batch_id), now)
    if job.cancel_time is None and not _change(
        job.job_id, SENT, now, "job.cancel_requested", cancel_time=now, cancel_reason=reason
    ):
        return False
    if not outbox.cancel_pending(job.job_id):
        outbox.put(job.hypervisor_id, "cancel", job.stamp, now)
    return True


def stopped(reason: str, batch_id: str = "") -> End:
    """Return how a job ends that was stopped for `reason`; one of a batch had the batch's hours."""
    if reason == JobStale.reason:
        single = settings.get().max_single_job_hours
        return End.failed(JobStale(hours=batches.get(batch_id).hours_max if batch_id else single))
    return End(CANCELLED, Failure.of(JobCancelled()))


def end(job_id: str, how: End, now: datetime, *, fence: bool = False) -> bool:
    """End a live job and give back what it held. False when it has ended already.

    `fence` raises the generation: whoever still works on it is refused from now on.
    """
    changed = _change(
        job_id,
        LIVE,
        now,
        f"job.{how.state}",
        state=how.state,
        end_time=now,
        failure=asdict(how.failure) if how.failure else None,
        warnings=list(how.warnings),
        result=how.result,
    )
    if changed and fence:
        statement("UPDATE job SET generation = generation + 1 WHERE job_id = ?", job_id)
    if changed:
        outbox.withdraw_run(job_id, now)
        leases.release_all(job_id)
        outcomes.note(get(job_id), how.state, asdict(how.failure) if how.failure else None, how.result, now)
    return changed


def _change(job_id: str, states: Sequence[str], now: datetime, event: str, **values: Any) -> bool:
    """Change a job that is in one of `states`; tell whether there was one."""
    condition = f"job_id = ? AND state IN ({value_lines(len(states), '?')}) RETURNING version"
    for (version,) in change_rows(Row, values, condition, job_id, *states):
        note("job", job_id, version)
        _event(event, job_id, now)
        return True
    return False


def _event(kind: str, job_id: str, now: datetime) -> None:
    job = get(job_id)
    body: dict[str, Any] = {"type": job.type, "state": job.state, "version": job.version}
    if job.failure:
        body["reason"] = job.failure.reason
    happenings.record(
        kind,
        now,
        job_id=job_id,
        server_id=job.server_id,
        storage_id=job.storage_id,
        hypervisor_id=job.hypervisor_id,
        batch_id=job.batch_id,
        body=body,
    )


def _job(row: models.Job) -> Job:
    values = {name: getattr(row, name) for name in Job.__dataclass_fields__}
    values["failure"] = Failure(**row.failure) if row.failure else None
    values["warnings"] = tuple(row.warnings)
    return Job(**values)
