"""Numbering the events of a transaction as its last act, so that the order of sequences is the order of commits.

The lock is taken last and held until the commit: whoever has it waits for nothing else, so it cannot close a circle.
"""

from collections.abc import Sequence
from typing import Any

import peewee

from controller.db.notes import Note

TOPIC = "event"  # of the note that something was recorded; told with the newest sequence as its value
_LOCK_KEY = 0x626D_6576  # any number, the same in all our controllers
_COLUMNS = "time, kind, job_id, server_id, storage_id, hypervisor_id, body, schedule_id, batch_id"
# The database's own numbers would not do: SQLite gives the largest ones again once their rows are removed.
_NEWEST = """
    SELECT COALESCE(MAX(reached), 0) FROM (
        SELECT MAX(sequence) AS reached FROM event UNION ALL SELECT MAX(removed_sequence) FROM event_horizon
    ) AS ends
"""
_NUMBER = f"""
    INSERT INTO event (sequence, {_COLUMNS})
    SELECT ({_NEWEST}) + ROW_NUMBER() OVER (ORDER BY number), {_COLUMNS} FROM event_pending
"""  # noqa: S608 - made of constants


def number_events(database: Any, notes: Sequence[Note]) -> list[Note]:
    """Give sequences to what the open transaction recorded, in the order of recording; return the notes to be told."""
    rest = [one for one in notes if one.topic != TOPIC]
    if len(rest) == len(notes):
        return rest
    postgres = isinstance(database, peewee.PostgresqlDatabase)
    if postgres:
        database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
    database.execute_sql(_NUMBER)
    database.execute_sql("DELETE FROM event_pending")
    newest = database.execute_sql(_NEWEST).fetchone()[0]
    return [*rest, Note(TOPIC, "", int(newest))]
