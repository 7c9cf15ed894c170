"""Looking at who did what (N5); `audit.py` writes it."""

from dataclasses import dataclass
from datetime import datetime

import peewee

from controller.db import models

OK = "OK"
Row = models.Audit


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A call that changed something, or was to. `outcome` is "OK", a reason, or "" where the controller ended in between."""

    sequence: int
    time: datetime
    access_token_id: str
    caller: str
    method: str
    resource: str
    made: str
    outcome: str
    peer: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which calls; empty means all. `method` is a part of its name. `start_time` <= time < `end_time`."""

    caller: str = ""
    method: str = ""
    resource: str = ""
    outcome: str = ""
    failed: bool = False
    start_time: datetime | None = None
    end_time: datetime | None = None


def list_entries(wanted: AuditFilter, *, after: tuple[int] | None = None, limit: int = 101) -> list[AuditEntry]:
    """Return calls, newest first, those after the sequence in `after`."""
    query = Row.select()
    if wanted.caller:
        query = query.where((Row.token_id == wanted.caller) | (Row.token_name == wanted.caller))
    if wanted.method:
        query = query.where(Row.method.contains(wanted.method))
    if wanted.resource:
        made = peewee.Value(f'{{"made":"{wanted.resource}"}}', converter=False)
        query = query.where((Row.resource == wanted.resource) | (Row.detail == made))
    if wanted.outcome:
        query = query.where(Row.outcome == wanted.outcome)
    if wanted.failed:
        query = query.where(Row.outcome != OK)
    if wanted.start_time:
        query = query.where(Row.time >= wanted.start_time)
    if wanted.end_time:
        query = query.where(Row.time < wanted.end_time)
    if after:
        query = query.where(Row.sequence < after[0])
    return [_entry(row) for row in query.order_by(Row.sequence.desc()).limit(limit)]


def remove_before(time: datetime, limit: int) -> int:
    """Remove the oldest calls from before a time, at most `limit`. Returns how many went."""
    old = [row.sequence for row in Row.select(Row.sequence).where(Row.time < time).limit(limit)]
    return int(Row.delete().where(Row.sequence.in_(old)).execute()) if old else 0


def _entry(row: models.Audit) -> AuditEntry:
    made = str((row.detail or {}).get("made", ""))
    return AuditEntry(
        row.sequence, row.time, row.token_id, row.token_name, row.method, row.resource, made, row.outcome, row.peer
    )
