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
from controller.db.statements import chunks, insert_rows, statement, value_lines
from engine.ids import new_id

Kind: TypeAlias = Literal["run", "cancel"]


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
    command_id = new_id(now)
    sequence = OutboxCommand.insert(
        command_id=command_id,
        hypervisor_id=hypervisor_id,
        job_id=stamp.job_id,
        attempt=stamp.attempt,
        generation=stamp.generation,
        epoch=stamp.epoch,
        kind=kind,
        create_time=now,
    ).execute()
    note("outbox", hypervisor_id, int(sequence))
    return command_id


def put_runs(hypervisor_id: str, stamps: Sequence[Stamp], now: datetime) -> None:
    """Add the run commands of many jobs, in their order, by one statement."""
    rows = [
        {
            "command_id": new_id(now),
            "hypervisor_id": hypervisor_id,
            "job_id": stamp.job_id,
            "attempt": stamp.attempt,
            "generation": stamp.generation,
            "epoch": stamp.epoch,
            "kind": "run",
            "create_time": now,
        }
        for stamp in stamps
    ]
    sequences = [int(number) for (number,) in insert_rows(OutboxCommand, rows, "RETURNING sequence")]
    if sequences:
        note("outbox", hypervisor_id, max(sequences))


def pending(hypervisor_id: str) -> list[Pending]:
    """Return what a hypervisor has not confirmed, in order."""
    rows = (
        OutboxCommand.select()
        .where((OutboxCommand.hypervisor_id == hypervisor_id) & OutboxCommand.settle_time.is_null())
        .order_by(OutboxCommand.sequence)
    )
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
    _settle((OutboxCommand.hypervisor_id == hypervisor_id) & (OutboxCommand.command_id == command_id), "received", now)


def receive_all(hypervisor_id: str, command_ids: Sequence[str], now: datetime) -> None:
    """As `receive`, for what lies in an agent's journal; at most some thousand, by one statement."""
    if command_ids:
        mine = OutboxCommand.hypervisor_id == hypervisor_id
        _settle(mine & OutboxCommand.command_id.in_(list(command_ids)), "received", now)


def withdraw(command_id: str, now: datetime) -> None:
    """Settle a command that is no longer wanted."""
    _settle(OutboxCommand.command_id == command_id, "withdrawn", now)


def receive_run(job_id: str, attempt: int, now: datetime) -> None:
    """Settle the run command of a job of which an event came: the agent has it, whatever became of its receipt."""
    _settle(
        (OutboxCommand.job_id == job_id) & (OutboxCommand.attempt == attempt) & (OutboxCommand.kind == "run"),
        "received",
        now,
    )


def withdraw_run(job_id: str, now: datetime) -> bool:
    """Take a job's run command back. Returns whether it is certain that nobody ever got it."""
    row = (
        OutboxCommand.select()
        .where((OutboxCommand.job_id == job_id) & (OutboxCommand.kind == "run"))
        .order_by(OutboxCommand.sequence.desc())
        .first()
    )
    if row is None:
        return True
    _settle((OutboxCommand.job_id == job_id) & (OutboxCommand.kind == "run"), "withdrawn", now)
    return row.send_time is None


def run_received(job_id: str, attempt: int) -> str:
    """Return the id of the job's run command if the agent confirmed to have it, else ""."""
    row = (
        OutboxCommand.select(OutboxCommand.command_id)
        .where(
            (OutboxCommand.job_id == job_id)
            & (OutboxCommand.attempt == attempt)
            & (OutboxCommand.kind == "run")
            & (OutboxCommand.outcome == "received")
        )
        .first()
    )
    return row.command_id if row else ""


def cancel_pending(job_id: str) -> bool:
    """Tell whether a cancel command of the job waits to be received."""
    return bool(
        OutboxCommand.select()
        .where(
            (OutboxCommand.job_id == job_id) & (OutboxCommand.kind == "cancel") & OutboxCommand.settle_time.is_null()
        )
        .exists()
    )


def _settle(where: object, outcome: str, now: datetime) -> None:
    OutboxCommand.update(settle_time=now, outcome=outcome).where(where, OutboxCommand.settle_time.is_null()).execute()
