"""Commands on their way to agents: rows from the decision until the agent has them on disk.

    put_run, put_cancel ──► pending ──sent, again in each new session──► settled: received, or withdrawn before it left us

A row says what is wanted and never how to get in anywhere: the command's body is made from the job when it is sent
(`commands.py`). `send_time` is set before a command can leave us, so a command without one has reached nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias, cast

from controller.db.fields import to_microseconds
from controller.db.models import OutboxCommand
from controller.db.notes import note
from controller.db.statements import chunks, find_where, insert_rows, statement, value_lines
from engine.ids import new_ids

Kind: TypeAlias = Literal["run", "cancel", "revoke_ticket"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which try of a job, under which right: comes back with every event."""

    job_id: str
    attempt: int
    generation: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A command that the agent may not have yet."""

    command_id: str
    kind: Kind
    stamp: Stamp
    create_time: datetime


def put(hypervisor_id: str, kind: Kind, stamp: Stamp, now: datetime) -> str:
    """Add a command and return its id. A session of the hypervisor is woken once this is committed."""
    return _put(hypervisor_id, kind, [stamp], now)[0]


def put_runs(hypervisor_id: str, stamps: Sequence[Stamp], now: datetime) -> None:
    """Add the run commands of many jobs, in their order, by one statement."""
    _put(hypervisor_id, "run", stamps, now)


def _put(hypervisor_id: str, kind: Kind, stamps: Sequence[Stamp], now: datetime) -> list[str]:
    rows = [
        {
            "command_id": command_id,
            "hypervisor_id": hypervisor_id,
            "job_id": stamp.job_id,
            "attempt": stamp.attempt,
            "generation": stamp.generation,
            "epoch": stamp.epoch,
            "kind": kind,
            "create_time": now,
        }
        for command_id, stamp in zip(new_ids(now, len(stamps)), stamps, strict=True)
    ]
    sequences = [int(number) for (number,) in insert_rows(OutboxCommand, rows, "RETURNING sequence")]
    if sequences:
        note("outbox", hypervisor_id, max(sequences))
    return [str(row["command_id"]) for row in rows]


def pending(hypervisor_id: str) -> list[Pending]:
    """Return what a hypervisor has not confirmed, in order."""
    rows = find_where(OutboxCommand, "hypervisor_id = ? AND settle_time IS NULL ORDER BY sequence", hypervisor_id)
    return [
        Pending(
            row.command_id,
            cast("Kind", row.kind),
            Stamp(row.job_id, row.attempt, row.generation, row.epoch),
            row.create_time,
        )
        for row in rows
    ]


_MARK = "UPDATE outbox_command SET send_time = ? WHERE command_id IN ({}) AND send_time IS NULL"


def mark_sent(command_ids: Sequence[str], now: datetime) -> None:
    """Remember that commands may leave us from now on."""
    for chunk in chunks(command_ids):
        statement(_MARK.format(value_lines(len(chunk), "?")), to_microseconds(now), *chunk)


def receive(hypervisor_id: str, command_id: str, now: datetime) -> None:
    """Settle a command that the hypervisor's agent has; of another hypervisor, unknown or settled is no error."""
    _settle("hypervisor_id = ? AND command_id = ?", "received", now, hypervisor_id, command_id)


def receive_all(hypervisor_id: str, command_ids: Sequence[str], now: datetime) -> None:
    """As `receive`, for what lies in an agent's journal; by one statement for some hundred."""
    for chunk in chunks(command_ids):
        which = f"hypervisor_id = ? AND command_id IN ({value_lines(len(chunk), '?')})"
        _settle(which, "received", now, hypervisor_id, *chunk)


def withdraw(command_id: str, now: datetime) -> None:
    """Settle a command that is no longer wanted."""
    _settle("command_id = ?", "withdrawn", now, command_id)


def receive_run(job_id: str, attempt: int, now: datetime) -> None:
    """Settle the run command of a job of which an event came: the agent has it, whatever became of its receipt."""
    _settle("job_id = ? AND attempt = ? AND kind = 'run'", "received", now, job_id, attempt)


def withdraw_run(job_id: str, now: datetime) -> bool:
    """Take a job's run command back. Returns whether it is certain that nobody ever got it."""
    found = find_where(OutboxCommand, "job_id = ? AND kind = 'run' ORDER BY sequence DESC LIMIT 1", job_id)
    if not found:
        return True
    _settle("job_id = ? AND kind = 'run'", "withdrawn", now, job_id)
    return found[0].send_time is None


def run_received(job_id: str, attempt: int) -> str:
    """Return the id of the job's run command if the agent confirmed to have it, else ""."""
    which = "job_id = ? AND attempt = ? AND kind = 'run' AND outcome = 'received' LIMIT 1"
    found = find_where(OutboxCommand, which, job_id, attempt)
    return found[0].command_id if found else ""


def cancel_pending(job_id: str) -> bool:
    """Tell whether a cancel command of the job waits to be received."""
    return bool(find_where(OutboxCommand, "job_id = ? AND kind = 'cancel' AND settle_time IS NULL LIMIT 1", job_id))


def _settle(which: str, outcome: str, now: datetime, *values: object) -> None:
    sql = f"UPDATE outbox_command SET settle_time = ?, outcome = ? WHERE {which} AND settle_time IS NULL"  # noqa: S608 - ours
    statement(sql, to_microseconds(now), outcome, *values)
