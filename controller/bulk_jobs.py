"""The beginning of many jobs of one batch, by statements of many rows each.

    insert_all ──┬─ its leases were taken ──────────────────────────────────────────────► dispatched, commands in the outbox
                 └─ pending ──waiting──► (those whose leases were taken) ──dispatch_all──► dispatched, commands in the outbox

It does for each what `jobs.insert` and `jobs.dispatch` do for one, with the same events in the same order: a thousand batches
of fifty servers that are due at one instant are 50,000 jobs, and one statement for each row of each took minutes.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import happenings, proofs
from controller.agents import outbox
from controller.agents.outbox import Stamp
from controller.db import models
from controller.db.fields import Encoded, encode, to_microseconds
from controller.db.notes import note
from controller.db.statements import insert_rows, statement, value_lines
from controller.jobs import NewJob
from controller.rules import states

_JOBS_MAX = 500  # of one statement


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending job, as far as its being sent needs it."""

    job_id: str
    type: str
    hypervisor_id: str
    server_id: str
    storage_id: str
    attempt: int
    epoch: int
    batch_id: str


def insert_all(new: Sequence[NewJob], generations: Mapping[str, int], epoch: int, now: datetime) -> None:
    """Add a batch's jobs: those that have everything they want, under their generation, as sent, the others as waiting.

    None of them has a request_id.
    """
    if any(one.request_id for one in new):
        raise ValueError("a job that a request made is inserted alone")
    same = {"request_id": None, "epoch": epoch, "create_time": now}
    waits = {**same, "state": states.PENDING, "version": 1, "generation": 0, "dispatch_time": None}
    sent = {**same, "state": states.DISPATCHED, "version": 2, "dispatch_time": now}
    insert_rows(
        models.Job,
        [
            {**_values(one), **sent, "generation": generations[one.job_id]}
            if one.job_id in generations
            else {**_values(one), **waits}
            for one in new
        ],
    )
    _tell("job.created", states.PENDING, [(one, 1) for one in new], now)
    _sent([(of_new(one, epoch), 2) for one in new if one.job_id in generations], generations, now)


def of_new(new: NewJob, epoch: int) -> Waiting:
    """Return a job that is only just made as far as its being sent needs it."""
    return Waiting(new.job_id, new.type, new.hypervisor_id, new.server_id, new.storage_id, 1, epoch, new.batch_id)


_NAMES = tuple(NewJob.__dataclass_fields__)
_read = operator.attrgetter(*_NAMES)


def _values(new: NewJob) -> dict[str, Any]:
    return dict(zip(_NAMES, _read(new), strict=True))  # asdict would copy what is in them


_WAITING = f"""
    SELECT job_id, type, hypervisor_id, server_id, storage_id, attempt, epoch, batch_id FROM job
    WHERE batch_id = ? AND state = '{states.PENDING}' AND job_id > ? ORDER BY job_id LIMIT ?
"""  # noqa: S608 - made of constants


def waiting(batch_id: str, after: str, limit: int) -> list[Waiting]:
    """Return the next pending jobs of a batch, in their order, those after a job id."""
    return [Waiting(*row) for row in statement(_WAITING, batch_id, after, limit)]


_DISPATCH = """
    UPDATE job SET state = ?, dispatch_time = ?, version = job.version + 1, generation = CAST(given.column2 AS BIGINT)
    FROM (VALUES {lines}) AS given
    WHERE job.job_id = given.column1 AND job.state = ? RETURNING job.job_id, job.version
"""


def dispatch_all(chosen: Sequence[Waiting], generations: Mapping[str, int], now: datetime) -> int:
    """Send pending jobs of one hypervisor, each under its generation; return how many there were to be sent."""
    versions: dict[str, int] = {}
    for start in range(0, len(chosen), _JOBS_MAX):
        part = chosen[start : start + _JOBS_MAX]
        given = [value for one in part for value in (one.job_id, generations[one.job_id])]
        sql = _DISPATCH.format(lines=value_lines(len(part), "(?, ?)"))
        versions |= dict(statement(sql, states.DISPATCHED, to_microseconds(now), *given, states.PENDING))
    return _sent([(one, versions[one.job_id]) for one in chosen if one.job_id in versions], generations, now)


def _sent(jobs: Sequence[tuple[Waiting, int]], generations: Mapping[str, int], now: datetime) -> int:
    """Do what follows from jobs being sent, each with its version; return how many there are."""
    _tell("job.dispatched", states.DISPATCHED, jobs, now)
    sent = [one for one, _ in jobs]
    for storage_id, job_type in sorted({(one.storage_id, one.type) for one in sent}):
        proofs.note_use(storage_id, job_type, now)
    for hypervisor_id in sorted({one.hypervisor_id for one in sent}):
        stamps = [
            Stamp(one.job_id, one.attempt, generations[one.job_id], one.epoch)
            for one in sent
            if one.hypervisor_id == hypervisor_id
        ]
        outbox.put_runs(hypervisor_id, stamps, now)
    return len(sent)


def _tell(kind: str, state: str, jobs: Sequence[tuple[NewJob | Waiting, int]], now: datetime) -> None:
    """Record one event for each job, and tell its version to those who watch it."""
    bodies = {
        (job_type, version): Encoded(encode({"type": job_type, "state": state, "version": version}))
        for job_type, version in {(job.type, version) for job, version in jobs}
    }
    happened: list[dict[str, Any]] = [
        {
            "time": now,
            "kind": kind,
            "job_id": job.job_id,
            "server_id": job.server_id,
            "storage_id": job.storage_id,
            "hypervisor_id": job.hypervisor_id,
            "batch_id": job.batch_id,
            "body": bodies[job.type, version],
        }
        for job, version in jobs
    ]
    happenings.record_all(happened)
    for job, version in jobs:
        note("job", job.job_id, version)
