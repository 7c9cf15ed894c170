"""Where pruning has to look: rounds over whole storages, and servers that were just backed up.

    every Prune Interval Hours, storage by storage: histories ──► what goes? ──┐
    a backup succeeded ────────────────────────────────────────────────────────┴─► candidate: a server on a storage

A candidate decides nothing, it only says where to look. A round keeps its place in the database, so that one that was cut off
goes on. Sync functions, run by `Database.run`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller import storages
from controller.db import models
from controller.storages import Storage

LOOK_AGAIN = timedelta(hours=1)  # at what could not be pruned: it was in use, or nobody was there to do it
_ROWS_MAX = 500
_Round, _Candidate, _Storage = models.PruneRound, models.PruneCandidate, models.Storage


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server on a storage, to be looked at."""

    storage_id: str
    server_id: str


# ---- rounds -------------------------------------------------------------------------------------------------------------


def due_storages(interval: timedelta, limit: int, now: datetime) -> list[Storage]:
    """Return the storages whose round goes on or is due, longest waiting first; none that must not be written to (S22)."""
    begun = {row.storage_id: row for row in _Round.select()}
    found = []
    for row in _Storage.select(_Storage.storage_id).where(_Storage.enabled & ~_Storage.read_only):
        last = begun.get(row.storage_id)
        waiting = None if last is None else last.evaluate_time
        if last is None or last.cursor or waiting is None or waiting <= now - interval:
            found.append((waiting.timestamp() if waiting else 0.0, row.storage_id))
    return [storages.find(storage_id) for _, storage_id in sorted(found)[:limit]]


def cursor(storage_id: str) -> str:
    """Return the server up to which a storage's round has come, "" for none."""
    row = _Round.get_or_none(_Round.storage_id == storage_id)
    return "" if row is None else str(row.cursor)


def advance(storage_id: str, reached: str, going: Iterable[str], now: datetime) -> None:
    """Keep the servers of which something goes as candidates, and how far the round has come, in one transaction."""
    _put(((storage_id, server_id) for server_id in going), now)
    _Round.insert(storage_id=storage_id, evaluate_time=None, cursor=reached).on_conflict(
        conflict_target=[_Round.storage_id], update={_Round.cursor: reached}
    ).execute()


def finish(storage_id: str, now: datetime) -> None:
    """Note that a storage was looked at as a whole."""
    _Round.insert(storage_id=storage_id, evaluate_time=now, cursor="").on_conflict(
        conflict_target=[_Round.storage_id], update={_Round.cursor: "", _Round.evaluate_time: now}
    ).execute()


# ---- candidates ---------------------------------------------------------------------------------------------------------


def note_backup(server_id: str, storage_id: str, now: datetime) -> None:
    """Have a server looked at: it has a new backup. Called in the transaction that recorded it."""
    _put([(storage_id, server_id)], now)


def candidates(limit: int, now: datetime) -> list[Candidate]:
    """Return what is to be looked at now, longest waiting first; not what lies where nothing may be written (S22)."""
    writable = _Storage.select(_Storage.storage_id).where(_Storage.enabled & ~_Storage.read_only)
    rows = _Candidate.select().where((_Candidate.look_time <= now) & _Candidate.storage_id.in_(writable))
    return [
        Candidate(row.storage_id, row.server_id)
        for row in rows.order_by(_Candidate.look_time, _Candidate.key).limit(limit)
    ]


def drop(done: Sequence[Candidate], now: datetime) -> None:
    """Forget candidates that were looked at; one that came again after `now` stays."""
    keys = [_key(one.storage_id, one.server_id) for one in done]
    for start in range(0, len(keys), _ROWS_MAX):
        chunk = keys[start : start + _ROWS_MAX]
        _Candidate.delete().where(_Candidate.key.in_(chunk) & (_Candidate.look_time <= now)).execute()


def postpone(candidate: Candidate, now: datetime) -> None:
    """Look at a candidate again later; at one that came again after `now`, when it says."""
    _Candidate.update(look_time=now + LOOK_AGAIN).where(
        (_Candidate.key == _key(candidate.storage_id, candidate.server_id)) & (_Candidate.look_time <= now)
    ).execute()


def _put(found: Iterable[tuple[str, str]], now: datetime) -> None:
    rows = [
        {"key": _key(storage_id, server_id), "storage_id": storage_id, "server_id": server_id, "look_time": now}
        for storage_id, server_id in found
    ]
    for start in range(0, len(rows), _ROWS_MAX):
        _Candidate.insert_many(rows[start : start + _ROWS_MAX]).on_conflict(
            conflict_target=[_Candidate.key], update={_Candidate.look_time: now}
        ).execute()


def _key(storage_id: str, server_id: str) -> str:
    return f"{storage_id}/{server_id}"
