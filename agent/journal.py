"""The agent's memory: commands, operations and events, in one file that survives every way to die.

    Command ── recorded, fsynced ──► CommandReceipt     the same command again: a receipt, and nothing else
    end of an operation ── its event and its new state in ONE transaction ──► the outbox

Every method that changes something returns once it is on disk. `changed` is set whenever there is a new event to send.
"""

import asyncio
import dataclasses
import logging
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from agent import outbox
from agent.database import Database
from agent.errors import StaleGeneration
from agent.files import make_folder
from agent.outbox import Kind, Position, StoredEvent
from agent.records import Operation
from engine.ids import new_id
from engine.units import MIB

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

EVENTS_MAX = 20_000  # more unacknowledged events than any controller that is well leaves lying: no new commands then
RECORD_BYTES_MAX = 16 * MIB  # more of a reindex's records than this wait in the engine's own file
SETTLED_MAX = 10_000  # command ids kept after their end, against a late second delivery
HELLO_COMMANDS_MAX = 5_000  # 36 bytes each: 180 KiB of a Hello

_COLUMNS = ", ".join(one.name for one in dataclasses.fields(Operation))
SCHEMA = (
    outbox.SCHEMA
    + f"""
CREATE TABLE IF NOT EXISTS commands (
    number INTEGER PRIMARY KEY, command_id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, attempt INTEGER NOT NULL,
    kind TEXT NOT NULL, settled INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS commands_of_job ON commands (job_id, attempt);
CREATE TABLE IF NOT EXISTS operations ({_COLUMNS}, PRIMARY KEY (job_id, attempt));
"""
)


class Journal:
    """Open it with `open_journal`. Its methods belong to the event loop."""

    def __init__(self, database: Database, opened: Position, changed: asyncio.Event | None = None) -> None:
        """`opened` is where the journal stood when this process began."""
        self._database = database
        self._told: int | None = opened.last_sequence  # no higher number can be known; None once a controller heard us
        self.changed = changed or asyncio.Event()

    def close(self) -> None:
        """Finish what is queued. Blocks for as long as the disk takes."""
        self._database.close()

    # ---- commands ------------------------------------------------------------------------------------------------------

    async def knows(self, command_id: str) -> bool:
        """Tell whether a command was recorded before."""
        return await self._database.run(_knows, command_id)

    async def overfull(self) -> bool:
        """Tell whether so many events wait for the controller that no new command should be taken."""
        return await self._database.run(outbox.waiting_count) >= EVENTS_MAX

    async def find(self, job_id: str, attempt: int) -> Operation | None:
        """Return an operation that is not over for good."""
        return await self._database.run(_find, job_id, attempt)

    async def remember(self, command_id: str, job_id: str, attempt: int) -> None:
        """Record a command that asks for what is done already."""
        await self._database.run(_remember, command_id, job_id, attempt, "run")

    async def take_run(self, operation: Operation) -> Operation:
        """Record a command to run something, whose attempt of the job is new here; return its operation.

        A cancel that came first is honored: the operation comes back cancelled. Raises StaleGeneration when the job is
        known with a higher generation.
        """
        return await self._database.run(_take_run, operation)

    async def take_cancel(self, command_id: str, job_id: str, attempt: int, grace_seconds: float) -> Operation | None:
        """Record a command to cancel; return the operation if it is here and has not ended."""
        return await self._database.run(_take_cancel, command_id, job_id, attempt, grace_seconds)

    async def reject(self, command_id: str, job_id: str, attempt: int, body: bytes) -> None:
        """Record a command together with its refusal; an operation that waited for its turn is forgotten."""
        await self._appending(_reject, command_id, job_id, attempt, body)

    async def open_command_ids(self) -> list[str]:
        """Return the commands whose fate the controller has not acknowledged, newest first."""
        return await self._database.run(_open_command_ids)

    # ---- operations ----------------------------------------------------------------------------------------------------

    async def operations(self) -> list[Operation]:
        """Return all operations, in the order of their commands."""
        return await self._database.run(_operations)

    async def accept(self, operation: Operation, body: bytes) -> Operation:
        """The work begins: state and event in one step."""
        return await self._appending(_move, operation, "accepted", body, state="running")

    async def assign(self, operations: list[Operation], process: str) -> list[Operation]:
        """Remember which process operations of a batch were given to, all of them in one step; "" for none (any more)."""
        return await self._database.run(_assign, operations, process)

    async def finish(self, operation: Operation, body: bytes, *, unhealed: bool) -> Operation:
        """The work has ended and its process is reaped: state and event in one step."""
        return await self._appending(_move, operation, "finished", body, state="finished", unhealed=unhealed)

    async def add_records(self, operation: Operation, bodies: list[bytes], offset: int, log_count: int) -> Operation:
        """Store what a reindex found, together with how far the engine's events were read."""
        return await self._appending(_add_records, operation, bodies, offset, log_count)

    async def advance(self, operation: Operation, offset: int, log_count: int) -> Operation:
        """Remember how far the engine's events were read."""
        return await self._database.run(_update, operation, offset=offset, log_count=log_count)

    async def cancel(self, operation: Operation, grace_seconds: float) -> Operation:
        """Remember that the operation is to end."""
        return await self._database.run(_update, operation, cancelled=True, grace_seconds=grace_seconds)

    async def healed(self, operation: Operation) -> list[Operation]:
        """Forget that there is something to tidy up; return the operations that are thereby over for good."""
        return await self._database.run(_healed, operation)

    # ---- events --------------------------------------------------------------------------------------------------------

    async def position(self) -> Position:
        return await self._database.run(outbox.position)

    def agrees(self, now: Position, stored_sequence: int) -> bool:
        """Tell whether a Welcome's word on this journal can be true; see `outbox.agrees`. Called once for each Welcome.

        What this process added before its first Welcome was never sent. A controller that has such a number has it from
        another past: this journal was set back, and the end of a lost engine has taken the number since.
        """
        told, self._told = self._told, None
        last_sequence = now.last_sequence if told is None else min(told, now.last_sequence)
        return outbox.agrees(dataclasses.replace(now, last_sequence=last_sequence), stored_sequence)

    async def events_after(self, sequence: int, count_max: int, bytes_max: int) -> list[StoredEvent]:
        """Return the next events to send; see `outbox.after`."""
        return await self._database.run(outbox.after, sequence, count_max, bytes_max)

    async def records_wait(self) -> bool:
        """Tell whether so much waits for the controller that records of a reindex should stay where they are."""
        return await self._database.run(outbox.waiting_bytes) > RECORD_BYTES_MAX

    async def acknowledge(self, sequence: int) -> list[Operation]:
        """Drop the events up to `sequence`; return the operations that are thereby over for good."""
        return await self._database.run(_acknowledge, sequence)

    async def restart(self, now: datetime) -> Position:
        """Become a new journal, because the old numbers cannot be trusted; see `outbox.restart`."""
        return await self._appending(outbox.restart, new_id(now))

    async def _appending(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        result = await self._database.run(function, *args, **kwargs)
        self.changed.set()
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_journal(path: Path, now: datetime, changed: asyncio.Event | None = None) -> Journal:
    """Open the journal, or begin one. A damaged file is put aside and a new journal begun: the controller then learns from
    the new journal's id that this agent remembers nothing.
    """
    make_folder(path.parent)
    try:
        database = Database(path, SCHEMA)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # no room, no permission: nothing that a new file would mend
            raise
        aside = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%SZ}")
        log.error("the journal is damaged, a new one begins aside=%s detail=%s", aside, error)
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        database = Database(path, SCHEMA)
    database.run_now(_add_columns)
    database.run_now(outbox.begin, new_id(now))
    return Journal(database, database.run_now(outbox.position), changed)


# ---- in the database's thread --------------------------------------------------------------------------------------------


def _add_columns(connection: sqlite3.Connection) -> None:
    """Give a journal of an older version the columns of this one, with their defaults."""
    known = {row["name"] for row in connection.execute("PRAGMA table_info(operations)")}
    for one in dataclasses.fields(Operation):
        if one.name not in known and isinstance(one.default, int | float | str):
            value = f"'{one.default}'" if isinstance(one.default, str) else one.default + 0
            connection.execute(f"ALTER TABLE operations ADD COLUMN {one.name} DEFAULT {value}")


def _knows(connection: sqlite3.Connection, command_id: str) -> bool:
    return connection.execute("SELECT 1 FROM commands WHERE command_id = ?", (command_id,)).fetchone() is not None


def _remember(connection: sqlite3.Connection, command_id: str, job_id: str, attempt: int, kind: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO commands (command_id, job_id, attempt, kind) VALUES (?, ?, ?, ?)",
        (command_id, job_id, attempt, kind),
    )


def _take_run(connection: sqlite3.Connection, operation: Operation) -> Operation:
    newest = connection.execute(
        "SELECT MAX(generation) FROM operations WHERE job_id = ?", (operation.job_id,)
    ).fetchone()[0]
    if newest is not None and newest > operation.generation:
        raise StaleGeneration(job_id=operation.job_id, generation=newest)
    _remember(connection, operation.command_id, operation.job_id, operation.attempt, "run")
    earlier_cancel = connection.execute(
        "SELECT 1 FROM commands WHERE job_id = ? AND attempt = ? AND kind = 'cancel'", operation.key
    ).fetchone()
    if earlier_cancel is not None:
        operation = dataclasses.replace(operation, cancelled=True)
    values = [getattr(operation, one.name) for one in dataclasses.fields(operation)]
    places = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO operations ({_COLUMNS}) VALUES ({places})", values)  # noqa: S608 - our own names
    return operation


def _take_cancel(
    connection: sqlite3.Connection, command_id: str, job_id: str, attempt: int, grace_seconds: float
) -> Operation | None:
    _remember(connection, command_id, job_id, attempt, "cancel")
    operation = _find(connection, job_id, attempt)
    if operation is None or operation.state == "finished":
        connection.execute("UPDATE commands SET settled = 1 WHERE command_id = ?", (command_id,))
        return None
    return _update(connection, operation, cancelled=True, grace_seconds=grace_seconds)


def _reject(connection: sqlite3.Connection, command_id: str, job_id: str, attempt: int, body: bytes) -> None:
    _remember(connection, command_id, job_id, attempt, "run")
    connection.execute(
        "DELETE FROM operations WHERE job_id = ? AND attempt = ? AND state = 'waiting'", (job_id, attempt)
    )
    outbox.append(connection, "rejected", job_id, attempt, body)


def _open_command_ids(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT command_id FROM commands WHERE NOT settled ORDER BY number DESC LIMIT ?", (HELLO_COMMANDS_MAX,)
    )
    return [row["command_id"] for row in rows]


def _operations(connection: sqlite3.Connection) -> list[Operation]:
    return [_operation(row) for row in connection.execute("SELECT * FROM operations ORDER BY rowid")]


def _operation(row: sqlite3.Row) -> Operation:
    values = {one.name: row[one.name] for one in dataclasses.fields(Operation)}
    for flag in ("cancelled", "unhealed", "during_batch"):
        values[flag] = bool(values[flag])
    return Operation(**values)


def _find(connection: sqlite3.Connection, job_id: str, attempt: int) -> Operation | None:
    row = connection.execute("SELECT * FROM operations WHERE job_id = ? AND attempt = ?", (job_id, attempt)).fetchone()
    return None if row is None else _operation(row)


def _update(connection: sqlite3.Connection, /, operation: Operation, **changes: object) -> Operation:
    """Change columns of an operation's row and return it as it is now; a row that is gone stays gone."""
    assignments = ", ".join(f"{name} = ?" for name in changes)
    connection.execute(
        f"UPDATE operations SET {assignments} WHERE job_id = ? AND attempt = ?",  # noqa: S608 - our own names
        (*changes.values(), *operation.key),
    )
    return _find(connection, *operation.key) or dataclasses.replace(operation, **changes)  # type: ignore[arg-type]  # the names are its fields


def _assign(connection: sqlite3.Connection, operations: list[Operation], process: str) -> list[Operation]:
    return [_update(connection, one, process=process, offset=0) for one in operations]


def _move(
    connection: sqlite3.Connection, /, operation: Operation, kind: Kind, body: bytes, **changes: object
) -> Operation:
    outbox.append(connection, kind, operation.job_id, operation.attempt, body)
    return _update(connection, operation, **changes)


def _add_records(
    connection: sqlite3.Connection, operation: Operation, bodies: list[bytes], offset: int, log_count: int
) -> Operation:
    for body in bodies:
        outbox.append(connection, "records", operation.job_id, operation.attempt, body)
    return _update(connection, operation, offset=offset, log_count=log_count)


def _acknowledge(connection: sqlite3.Connection, sequence: int) -> list[Operation]:
    ended = outbox.acknowledge(connection, sequence)
    for key in ended:
        connection.execute("UPDATE commands SET settled = 1 WHERE job_id = ? AND attempt = ?", key)
    if ended:
        connection.execute(
            "DELETE FROM commands WHERE settled AND number <= (SELECT MAX(number) FROM commands) - ?", (SETTLED_MAX,)
        )
    return _drop_ended(connection)


def _healed(connection: sqlite3.Connection, operation: Operation) -> list[Operation]:
    _update(connection, operation, unhealed=False)
    return _drop_ended(connection)


def _drop_ended(connection: sqlite3.Connection) -> list[Operation]:
    """Forget the operations that are finished, tidied up, and whose end the controller has; return them."""
    rows = connection.execute(
        "SELECT * FROM operations AS o WHERE state = 'finished' AND NOT unhealed AND NOT EXISTS"
        " (SELECT 1 FROM events AS e WHERE e.job_id = o.job_id AND e.attempt = o.attempt AND e.kind = 'finished')"
    ).fetchall()
    ended = [_operation(row) for row in rows]
    connection.executemany("DELETE FROM operations WHERE job_id = ? AND attempt = ?", [one.key for one in ended])
    return ended
