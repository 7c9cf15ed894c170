"""Reading the log of what happened, with a cursor.

    ──── removed ────┤ oldest … cursor │ what a reader has not seen … newest │ ◄── happenings.record

All that is visible below a sequence is all there will ever be below it (happenings.py), so a cursor is one number. What is older
than the log is kept is removed from its left end; a cursor there has lost events, and is told so rather than passed over.
Sync functions, run by `Database.run`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.db import models
from controller.errors import CursorExpired

SCAN_MAX = (
    20_000  # sequences looked through by one read: a filter that wants next to nothing holds nobody up for longer
)
Row, _Horizon = models.Event, models.EventHorizon


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. Ids are "" where it is not about such a thing."""

    sequence: int
    time: datetime
    kind: str
    job_id: str
    server_id: str
    storage_id: str
    hypervisor_id: str
    schedule_id: str
    batch_id: str
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; empty means all. A kind that ends with a dot stands for all that begin with it."""

    kinds: tuple[str, ...] = ()
    job_id: str = ""
    server_id: str = ""
    storage_id: str = ""
    hypervisor_id: str = ""
    schedule_id: str = ""
    batch_id: str = ""
    start_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Events in order, how far the log was looked through, and whether there is more behind that."""

    events: tuple[Event, ...]
    cursor: int
    more: bool


_LINKS = ("job_id", "server_id", "storage_id", "hypervisor_id", "schedule_id", "batch_id")


def newest() -> int:
    """Return the sequence up to which everything has happened; 0 for an empty log."""
    last = Row.select(Row.sequence).order_by(Row.sequence.desc()).limit(1).first()
    return max(last.sequence if last else 0, _removed())


def read(wanted: EventFilter, cursor: int, limit: int) -> Reading:
    """Return at most `limit` events after the cursor; 0 is before the oldest. Raises CursorExpired.

    The newest sequence is read first: what is committed meanwhile is for the next reading.
    """
    last, removed = newest(), _removed()
    if 0 < cursor < removed or cursor > last:
        raise CursorExpired(cursor=cursor, oldest=removed + 1, newest=last)
    upper = min(last, max(cursor, removed) + SCAN_MAX)
    query = Row.select().where((Row.sequence > cursor) & (Row.sequence <= upper))
    for name in _LINKS:
        if value := getattr(wanted, name):
            query = query.where(getattr(Row, name) == value)
    if wanted.kinds:
        query = query.where(_any(wanted.kinds))
    if wanted.start_time:
        query = query.where(Row.time >= wanted.start_time)
    rows = list(query.order_by(Row.sequence).limit(limit))
    reached = rows[-1].sequence if len(rows) == limit else upper
    return Reading(tuple(_event(row) for row in rows), reached, reached < last)


def interests(kinds: Sequence[str], kind: str) -> bool:
    """Tell whether a list of kinds, such as a webhook's, has this kind in it; an empty list has all."""
    return not kinds or any(kind == one or (one.endswith(".") and kind.startswith(one)) for one in kinds)


def remove_before(time: datetime, limit: int) -> int:
    """Remove the oldest events from before a time, at most `limit`, and keep note of how far. Returns how many went.

    Only from the left end: an event behind a younger one stays until that one goes, so that no gap appears.
    """
    oldest = Row.select(Row.sequence, Row.time).order_by(Row.sequence)
    first = oldest.first()
    if first is None or first.time >= time:
        return 0
    gone: list[int] = []
    for row in list(oldest.limit(limit)):
        if row.time >= time:
            break
        gone.append(row.sequence)
    if gone:
        _Horizon.insert(number=1, removed_sequence=gone[-1]).on_conflict(
            conflict_target=[_Horizon.number], update={_Horizon.removed_sequence: gone[-1]}
        ).execute()
        Row.delete().where(Row.sequence <= gone[-1]).execute()
    return len(gone)


def to_json(event: Event) -> dict[str, Any]:
    """Return the form in which an event is sent to webhooks; what is empty is left out."""
    links = {name: getattr(event, name) for name in _LINKS if getattr(event, name)}
    time = event.time.isoformat().replace("+00:00", "Z")
    return {"sequence": event.sequence, "time": time, "kind": event.kind, **links, "facts": event.facts}


def _removed() -> int:
    row = _Horizon.get_or_none(_Horizon.number == 1)
    return int(row.removed_sequence) if row else 0


def _any(kinds: Sequence[str]) -> Any:
    whole = Row.kind.in_([one for one in kinds if not one.endswith(".")])
    for one in kinds:
        if one.endswith("."):
            whole |= Row.kind.startswith(one)
    return whole


def _event(row: models.Event) -> Event:
    values = {name: getattr(row, name) for name in ("sequence", "time", "kind", *_LINKS)}
    return Event(**values, facts={key: _text(value) for key, value in (row.body or {}).items()})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
