"""Events that must not be lost: numbered without gaps, and kept on disk until the controller says that it has them.

    journal_id "018f…"      1 2 3 4 │ 5 6 7 │ 8 9          Welcome or EventReceipt(4): 1 to 4 are dropped
                       acknowledged │ sent  │ to be sent   the stream breaks: 5 to 7 are sent again

A journal that was set back in time (its folder was restored from an older copy) would give numbers out twice. Such a journal
is replaced: a new `journal_id`, and what is still kept is numbered anew from 1. The controller may then see an event twice,
and never misses one.

All functions run in the database's thread, inside a transaction. An event is stored as a serialized `Event` whose sequence
is filled in when it is sent.
"""

import sqlite3
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["accepted", "rejected", "records", "finished"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY, job_id TEXT NOT NULL, attempt INTEGER NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a journal stands: the last number it has given out, and the last one that the controller has."""

    journal_id: str
    last_sequence: int
    acknowledged: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """`body` is a serialized Event without its sequence."""

    sequence: int
    job_id: str
    attempt: int
    kind: Kind
    body: bytes


def begin(connection: sqlite3.Connection, journal_id: str) -> None:
    """Give a new file its journal id; one that has one keeps it."""
    for name, value in (("journal_id", journal_id), ("last_sequence", "0"), ("acknowledged", "0")):
        connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))


def position(connection: sqlite3.Connection) -> Position:
    values = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    return Position(values["journal_id"], int(values["last_sequence"]), int(values["acknowledged"]))


def append(connection: sqlite3.Connection, kind: Kind, job_id: str, attempt: int, body: bytes) -> int:
    """Store an event and return its number."""
    sequence = position(connection).last_sequence + 1
    connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (sequence, job_id, attempt, kind, body))
    _set(connection, "last_sequence", sequence)
    return sequence


def after(connection: sqlite3.Connection, sequence: int, count_max: int, bytes_max: int) -> list[StoredEvent]:
    """Return the events that follow `sequence`, in order, at least one where there is one, within both limits."""
    events: list[StoredEvent] = []
    room = bytes_max
    rows = connection.execute(
        "SELECT * FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?", (sequence, count_max)
    )
    for row in rows:
        event = StoredEvent(row["sequence"], row["job_id"], row["attempt"], row["kind"], row["body"])
        room -= len(event.body)
        if events and room < 0:
            break
        events.append(event)
    return events


def waiting_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of all events that the controller does not have yet."""
    return int(connection.execute("SELECT COALESCE(SUM(LENGTH(body)), 0) FROM events").fetchone()[0])


def waiting_count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COUNT(*) FROM events").fetchone()[0])


def acknowledge(connection: sqlite3.Connection, sequence: int) -> list[tuple[str, int]]:
    """Drop the events up to `sequence`; return (job_id, attempt) of the jobs whose last event was among them."""
    ended = connection.execute(
        "SELECT job_id, attempt FROM events WHERE sequence <= ? AND kind IN ('finished', 'rejected')", (sequence,)
    ).fetchall()
    connection.execute("DELETE FROM events WHERE sequence <= ?", (sequence,))
    now = position(connection)
    _set(connection, "acknowledged", min(max(sequence, now.acknowledged), now.last_sequence))
    return [(row["job_id"], row["attempt"]) for row in ended]


def agrees(now: Position, stored_sequence: int) -> bool:
    """Tell whether the controller's word on this journal can be true.

    A higher number than we ever gave out: this journal was set back. A lower one than it acknowledged: the controller was,
    and what it lost is gone here, so that numbers without gaps need a new journal all the same.
    """
    return now.acknowledged <= stored_sequence <= now.last_sequence


def restart(connection: sqlite3.Connection, journal_id: str) -> Position:
    """Become a new journal: the events that are kept get new numbers from 1, in their order."""
    kept = connection.execute("SELECT * FROM events ORDER BY sequence").fetchall()
    connection.execute("DELETE FROM events")
    connection.executemany(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
        [(number, *tuple(row)[1:]) for number, row in enumerate(kept, start=1)],
    )
    _set(connection, "journal_id", journal_id)
    _set(connection, "last_sequence", len(kept))
    _set(connection, "acknowledged", 0)
    return position(connection)


def _set(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute("UPDATE meta SET value = ? WHERE name = ?", (str(value), name))
