"""What agents report, made true: a batch is one transaction, and an event counts once.

    batch ──► journal known and not gone back? ──► each event after the stored sequence:
                 of this hypervisor's job? of the current attempt, generation and epoch? of a live job?
                     all yes ──► changes the job and the catalog           any no ──► stored for the record, changes nothing
    ──► stored sequence, which is what the agent may forget up to

An agent speaks for its own hypervisor's jobs only (N16). One that takes up a job which is no longer its own is told to stop.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

import peewee

from controller import jobs
from controller.agents import outbox
from controller.agents.convert import Accepted, AgentEvent, Finished, Records, Rejected
from controller.agents.results import apply_records, apply_result
from controller.cycle import dispatch
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.models import AgentEvent as EventRow
from controller.db.models import AgentJournal
from controller.db.statements import insert_rows, statement
from controller.errors import JobCancelled
from controller.jobs import (
    CANCELLED,
    COMPLETED,
    COMPLETED_WITH_WARNINGS,
    FAILED,
    PENDING,
    QUEUED,
    SKIPPED,
    End,
    Failure,
    Job,
)
from controller.limits import Limits
from engine.errors import WindowClosed

log = logging.getLogger(__name__)

APPLIED = "applied"
_FIND_JOURNAL = "SELECT stored_sequence, close_time FROM agent_journal WHERE hypervisor_id = ? AND journal_id = ?"
_NEW_JOURNAL = """
    INSERT INTO agent_journal (hypervisor_id, journal_id, stored_sequence, create_time, update_time)
    VALUES (?, ?, 0, ?, ?) ON CONFLICT DO NOTHING
"""
_STORED = "UPDATE agent_journal SET stored_sequence = ?, update_time = ? WHERE hypervisor_id = ? AND journal_id = ?"
_STOPPED_REASONS = {JobCancelled.reason, "LEASE_LOST"}  # how a cancelled work may word its end


def open_journal(hypervisor_id: str, journal_id: str, now: datetime) -> tuple[int, bool]:
    """Return up to where a journal's events are stored, and whether it is closed; a new one begins at 0."""
    found = statement(_FIND_JOURNAL, hypervisor_id, journal_id)
    if not found:
        time = to_microseconds(now)
        statement(_NEW_JOURNAL, hypervisor_id, journal_id, time, time)
        found = statement(_FIND_JOURNAL, hypervisor_id, journal_id)
    stored, close_time = found[0]
    return stored, close_time is not None


def close_journal(hypervisor_id: str, journal_id: str, now: datetime) -> None:
    """Take nothing more from a journal: it went back in time, and its next numbers would mean other events."""
    AgentJournal.update(close_time=now).where(
        _journal(hypervisor_id, journal_id) & AgentJournal.close_time.is_null()
    ).execute()


def store_batch(
    hypervisor_id: str, journal_id: str, batch: Sequence[AgentEvent], epoch: int, limits: Limits, now: datetime
) -> int | None:
    """Store events and do what they mean. Returns the sequence up to which all are stored, None from a closed journal.

    Events that are stored already are passed over; order within a batch is that of their sequence.
    """
    stored, closed = open_journal(hypervisor_id, journal_id, now)
    if closed:
        log.warning("events of a closed journal refused hypervisor_id=%s journal_id=%s", hypervisor_id, journal_id)
        return None
    for event in sorted(batch, key=lambda one: one.sequence):
        if event.sequence <= stored:
            continue
        if event.sequence != stored + 1:
            # Nothing can bring these back: our database is older than what the agent was told, or its journal is damaged.
            log.warning("events missing journal_id=%s after=%d next=%d", journal_id, stored, event.sequence)
        outcome = _apply_safely(hypervisor_id, event, epoch, limits, now)
        _keep(hypervisor_id, journal_id, event, outcome, now)
        stored = event.sequence
    statement(_STORED, stored, to_microseconds(now), hypervisor_id, journal_id)
    return stored


# ---- one event ----------------------------------------------------------------------------------------------------------


def _apply_safely(hypervisor_id: str, event: AgentEvent, epoch: int, limits: Limits, now: datetime) -> str:
    """Apply an event; one that we stumble over ends its job at most, and not the hypervisor's session again and again."""
    try:
        with models.proxy.atomic():
            return _apply(hypervisor_id, event, epoch, limits, now)
    except (peewee.OperationalError, peewee.InterfaceError):
        raise  # the database is in trouble, and the event is all right: it comes again
    except Exception:
        log.exception("event could not be taken in job_id=%s kind=%s", event.stamp.job_id, event.kind)
    job = jobs.find(event.stamp.job_id)
    if (
        isinstance(event.said, Finished | Rejected)
        and job is not None
        and job.hypervisor_id == hypervisor_id
        and not _refusal(job, event, epoch)
    ):
        failure = Failure("INTERNAL", "what the agent reported could not be taken in; see the controller's log")
        _end(job, End(FAILED, failure), limits, now)
    return "fault"


def _apply(hypervisor_id: str, event: AgentEvent, epoch: int, limits: Limits, now: datetime) -> str:
    """Do what an event means; return "applied", or why it changes nothing."""
    job = jobs.find(event.stamp.job_id)
    if job is None or job.hypervisor_id != hypervisor_id:
        log.warning("event of an unknown job hypervisor_id=%s job_id=%s", hypervisor_id, event.stamp.job_id)
        return "unknown job"
    refused = _refusal(job, event, epoch)
    if refused:
        log.info("event stored for the record job_id=%s kind=%s why=%s", job.job_id, event.kind, refused)
        if isinstance(event.said, Accepted):
            outbox.put(hypervisor_id, "cancel", event.stamp, now)
        return refused
    match event.said:
        case Accepted():
            return APPLIED if jobs.accept(job, now) else "accepted before"
        case Rejected(failure):
            stopped = job.cancel_time is not None
            how = jobs.stopped(job.cancel_reason, job.batch_id) if stopped else _failed(job, failure)
            _end(job, how, limits, now)
            return APPLIED
        case Records(records):
            return APPLIED if apply_records(job, records, now) else "not a reindex"
        case Finished() as finished:
            _finish(job, finished, limits, now)
            return APPLIED
    return "unknown kind"


def _refusal(job: Job, event: AgentEvent, epoch: int) -> str:
    if event.stamp != job.stamp or event.stamp.epoch != epoch:
        return "stale generation"
    if job.ended:
        return "job ended"
    return "never sent" if job.state in {QUEUED, PENDING} else ""


def _finish(job: Job, finished: Finished, limits: Limits, now: datetime) -> None:
    if job.start_time is None and not _never_begun(job, finished):  # its acceptance was lost with an older journal
        jobs.accept(job, now)
    result, warnings = apply_result(job, finished, now)
    how = _how(job, finished)
    said = (*finished.warnings, *warnings)
    state = COMPLETED_WITH_WARNINGS if said and how.state == COMPLETED else how.state
    _end(job, End(state, how.failure, said, result), limits, now)


def _never_begun(job: Job, finished: Finished) -> bool:
    """Tell whether a batch's job ended without its turn."""
    return bool(job.batch_id) and finished.state not in {COMPLETED, COMPLETED_WITH_WARNINGS}


def _how(job: Job, finished: Finished) -> End:
    """Return the end that a job comes to by what its agent says and by what was asked of it."""
    if finished.state in {COMPLETED, COMPLETED_WITH_WARNINGS}:
        return End(finished.state)  # done is done, also when its end was asked for meanwhile
    stopped = finished.state == CANCELLED or (
        finished.failure is not None and finished.failure.reason in _STOPPED_REASONS
    )
    if stopped and job.cancel_time is not None:
        return jobs.stopped(job.cancel_reason, job.batch_id)
    if finished.failure is not None:
        return _failed(job, finished.failure)
    if finished.state == CANCELLED:
        return End(FAILED, Failure(JobCancelled.reason, "the work was stopped on the hypervisor"))
    return End(FAILED, Failure("INTERNAL", "the agent gave no reason"))


def _failed(job: Job, failure: Failure) -> End:
    """Return the end of a job that failed, or that only came too late for its batch's window (D14)."""
    return End(SKIPPED if job.batch_id and failure.reason == WindowClosed.reason else FAILED, failure)


def _end(job: Job, how: End, limits: Limits, now: datetime) -> None:
    if jobs.end(job.job_id, how, now):
        log.info(
            "job ended job_id=%s type=%s state=%s reason=%s",
            job.job_id,
            job.type,
            how.state,
            how.failure.reason if how.failure else "",
        )
        dispatch.after_end(job, limits, now)


def _keep(hypervisor_id: str, journal_id: str, event: AgentEvent, outcome: str, now: datetime) -> None:
    """Keep an event for the record. The records of a reindex are in the catalog, and too many to keep twice."""
    bulk = event.kind == "records"
    row = {
        "hypervisor_id": hypervisor_id,
        "journal_id": journal_id,
        "sequence": event.sequence,
        "job_id": event.stamp.job_id,
        "attempt": event.stamp.attempt,
        "generation": event.stamp.generation,
        "epoch": event.stamp.epoch,
        "time": event.time,
        "store_time": now,
        "kind": event.kind,
        "outcome": outcome,
        "body": None if bulk else event.body,
    }
    insert_rows(EventRow, [row])


def _journal(hypervisor_id: str, journal_id: str) -> object:
    return (AgentJournal.hypervisor_id == hypervisor_id) & (AgentJournal.journal_id == journal_id)
