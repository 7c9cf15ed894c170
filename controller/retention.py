"""Retention of what the catalog knows: which policy applies to whose backups, what stays and why, what is about to go.

    storage ──► Basis: the storage, its schedules ──► for each hypervisor the rules that apply (R21)
    servers ──► histories(): their backups there, in three statements for hundreds of servers
    both    ──► engine.retention.decide / explain, which know of no database

A history holds all that the catalog has of one server on one storage. What is damaged or missing protects nothing and stays
(R20). Functions that end in the database are sync, run by `Database.run`; the rest may run anywhere.
"""

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from controller import backups, schedules, settings, storages
from controller.db import models
from controller.db.fields import from_microseconds
from controller.db.statements import find_row, statement, value_lines
from controller.errors import RetentionChanged
from controller.rules import retention as policies
from controller.rules import settings as resolution
from controller.rules.retention import words
from controller.rules.settings import Resolved
from controller.rules.zones import find_zone
from controller.schedules import Schedule
from controller.storages import Storage
from engine import retention as engine
from engine.retention import Backup, DiskPoint, Rhythm, Rules, Verdict

__all__ = ["Applied", "Basis", "Expiration", "Explanation", "History", "expirations", "explain", "histories", "words"]

SERVERS_MAX = 200  # of one statement, and of one turn of the database's thread
_STORAGES_MAX = 100_000
_NOTHING: frozenset[str] = frozenset()
_NO_RHYTHM = Rhythm(timedelta(0))  # nothing is made any more


# ---- which policy (R12, R21) -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Applied:
    """What decides about a server's backups on a storage, and where it comes from. `policy` is the JSON form."""

    policy: dict[str, Any]
    keep_last: int
    time_zone: str
    storage_type: str
    schedule_id: str = ""
    policy_origin: str = "default"
    keep_last_origin: str = "default"
    rhythm: Rhythm = _NO_RHYTHM

    @property
    def rules(self) -> Rules:
        return _rules(tuple(self.policy.items()), self.keep_last, self.time_zone, self.storage_type)


@functools.lru_cache(1000)
def _rules(policy: tuple[tuple[str, Any], ...], keep_last: int, time_zone: str, storage_type: str) -> Rules:
    """Return the engine's rules; the same ones for thousands of servers."""
    return policies.rules(dict(policy), keep_last, find_zone("time_zone", time_zone), storage_type)


@dataclass(frozen=True, slots=True)
class Basis:
    """All that decides on one storage at one moment: its own words, and by hypervisor those of the schedules that use it."""

    storage: Storage
    own: Applied
    by_hypervisor: Mapping[str, Applied]

    def applied(self, hypervisor_id: str) -> Applied:
        """Return what applies to a server that lives on this hypervisor now ("" for nowhere)."""
        return self.by_hypervisor.get(hypervisor_id, self.own)


def basis(storage: Storage) -> Basis:
    """Return what decides on a storage now. A schedule counts while it is not deleted, also when it is disabled."""
    used_by = schedules.list_schedules(storage_id=storage.storage_id, limit=None)
    own = _applied(storage, resolution.resolve(storage, None, settings.get().time_zone), None)
    return Basis(storage, own, {one.hypervisor_id: _applied(storage, one.resolved, one) for one in used_by})


def _applied(storage: Storage, resolved: Resolved, schedule: Schedule | None) -> Applied:
    going_on = schedule is not None and schedule.enabled
    full_days = 0 if storage.type == "pbs" else resolved.full_interval_days.value
    return Applied(
        policy=resolved.retention.value,
        keep_last=resolved.keep_last.value,
        time_zone=resolved.time_zone.value,
        storage_type=storage.type,
        schedule_id=schedule.schedule_id if schedule else "",
        policy_origin=resolved.retention.origin,
        keep_last_origin=resolved.keep_last.origin,
        rhythm=Rhythm(timedelta(hours=resolved.interval_hours.value), timedelta(days=full_days))
        if going_on
        else _NO_RHYTHM,
    )


# ---- histories ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class History:
    """All backups of one server on one storage, oldest first. `hypervisor_id` is where the server lives now."""

    server_id: str
    hypervisor_id: str
    backups: tuple[Backup, ...]


_Rows: TypeAlias = list[tuple[Any, ...]]
_POINTS = """
    SELECT backup.server_id, backup.backup_id, backup.create_time, backup.state, disk, chain_id, type
    FROM backup LEFT JOIN backup_disk ON backup_disk.backup_id = backup.backup_id
    WHERE OF_THEM ORDER BY backup.server_id, backup.create_time, backup.backup_id, position
"""
_NEEDS = """
    SELECT backup_need.backup_id, needed_backup_id
    FROM backup JOIN backup_need ON backup_need.backup_id = backup.backup_id WHERE OF_THEM
"""
_OF_THEM = "backup.storage_id = ? AND backup.server_id IN (MARKS) AND backup.delete_time IS NULL"
_HOMES = "SELECT server_id, hypervisor_id FROM server WHERE server_id IN (MARKS)"


def servers_on(storage_id: str, *, after: str = "", limit: int = SERVERS_MAX) -> list[str]:
    """Return the ids of the servers that have backups on a storage, in order, those after the id `after`."""
    rows = statement(
        "SELECT DISTINCT server_id FROM backup WHERE storage_id = ? AND server_id > ? AND delete_time IS NULL"
        " ORDER BY server_id LIMIT ?",
        storage_id,
        after,
        limit,
    )
    return [row[0] for row in rows]


def histories(storage_id: str, server_ids: Sequence[str]) -> list[History]:
    """Return the histories of at most SERVERS_MAX servers on a storage, in three statements however long they are."""
    if not server_ids:
        return []
    marks = value_lines(len(server_ids), "?")

    def read(sql: str, *before: str) -> _Rows:
        return statement(sql.replace("OF_THEM", _OF_THEM).replace("MARKS", marks), *before, *server_ids)

    homes: dict[str, str] = dict(read(_HOMES))
    needs: dict[str, list[str]] = defaultdict(list)
    for backup_id, need in read(_NEEDS, storage_id):
        needs[backup_id].append(need)
    return [
        History(server_id, homes.get(server_id, ""), _backups(rows, needs))
        for server_id, rows in itertools.groupby(read(_POINTS, storage_id), operator.itemgetter(0))
    ]


def stored_bytes(server_id: str, storage_id: str) -> dict[str, int]:
    """Return what each backup of a server takes on a storage."""
    sql = "SELECT backup_id, stored_bytes FROM backup WHERE server_id = ? AND storage_id = ? AND delete_time IS NULL"
    return {backup_id: int(size) for backup_id, size in statement(sql, server_id, storage_id)}


def _backups(rows: Iterable[tuple[Any, ...]], needs: Mapping[str, Sequence[str]]) -> tuple[Backup, ...]:
    """Return one server's backups of its rows, oldest first, each with all of its disks.

    The catalog knows what a backup needs as a whole: its first disk has it all. Tracked is the newest point of each disk that
    is no copy (R13).
    """
    points: dict[tuple[str, int, str], list[DiskPoint]] = {}
    newest: dict[str, str] = {}
    for _, backup_id, create_time, state, disk, chain_id, kind in rows:
        own = points.setdefault((backup_id, create_time, state), [])
        if disk is None:
            continue  # of a manifest that has none
        copy = kind == "copy"
        needed = _NOTHING if own or backup_id not in needs else frozenset(needs[backup_id])
        own.append(DiskPoint(disk, chain_id or backup_id, needed, copy))
        if not copy:
            newest[disk] = backup_id
    tracked = set(newest.values())
    return tuple(
        Backup(backup_id, from_microseconds(time), tuple(own), state != backups.AVAILABLE, backup_id in tracked)
        for (backup_id, time, state), own in points.items()
    )


# ---- what stays, and until when (R16, R18) -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a backup stays and when it is expected to go, by the policy that applies."""

    server_id: str
    storage_id: str
    verdict: Verdict
    applied: Applied
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Expiration:
    """A backup that is expected to go at `expire_time`."""

    backup_id: str
    server_id: str
    storage_id: str
    create_time: datetime
    expire_time: datetime


def going(history: History, applied: Applied, now: datetime) -> list[str]:
    """Return the backups that nothing keeps, newest first. Pure."""
    reasons = engine.decide(history.backups, applied.rules, now)
    return [one.backup_id for one in reversed(history.backups) if not reasons[one.backup_id]]


def check_going(server_id: str, storage_id: str, backup_ids: Iterable[str], now: datetime) -> None:
    """Raise RetentionChanged when one of these, that were to be pruned, is kept by now."""
    bases = basis(storages.find(storage_id))
    for history in histories(storage_id, [server_id]):
        lost = {*going(history, bases.applied(history.hypervisor_id), now)}
        kept = set(backup_ids) & {one.backup_id for one in history.backups} - lost
        if kept:
            raise RetentionChanged(backup_id=min(kept))


def explain(backup_id: str, now: datetime) -> Explanation:
    """Return why a backup stays. Raises BackupNotFound."""
    backup = backups.get(backup_id)
    verdicts, applied = verdicts_of(backup.server_id, backup.storage_id, now)
    verdict = next(one for one in verdicts if one.backup_id == backup_id)
    return Explanation(backup.server_id, backup.storage_id, verdict, applied, backup.stored_bytes)


def verdicts_of(server_id: str, storage_id: str, now: datetime) -> tuple[list[Verdict], Applied]:
    """Return the verdicts on all backups of a server on a storage, oldest first, and what they go by."""
    found = histories(storage_id, [server_id])
    history = found[0] if found else History(server_id, _home(server_id), ())
    applied = basis(storages.find(storage_id)).applied(history.hypervisor_id)
    return engine.explain(history.backups, applied.rules, now, applied.rhythm), applied


def expirations(now: datetime, days: int, *, storage_id: str = "", server_ids: Iterable[str] = ()) -> list[Expiration]:
    """Return what is expected to go within `days`, also what may go at once, soonest first; of one storage, of some servers.

    Takes about a millisecond for each server; `storage_id` and `server_ids` keep a call short.
    """
    found: list[Expiration] = []
    for storage in [storages.find(storage_id)] if storage_id else storages.list_storages(limit=_STORAGES_MAX):
        bases = basis(storage)
        if not prunes(bases):
            continue
        for chunk in _chunks(storage.storage_id, sorted(set(server_ids))):
            for history in histories(storage.storage_id, chunk):
                found += coming(history, bases.applied(history.hypervisor_id), storage.storage_id, now, days)
    return sorted(found, key=lambda one: (one.expire_time, one.backup_id))


def _chunks(storage_id: str, wanted: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the wanted servers, or all that have backups on a storage, SERVERS_MAX at a time."""
    if wanted:
        yield from (wanted[start : start + SERVERS_MAX] for start in range(0, len(wanted), SERVERS_MAX))
        return
    chunk = servers_on(storage_id)
    while chunk:
        yield chunk
        chunk = servers_on(storage_id, after=chunk[-1])


def coming(history: History, applied: Applied, storage_id: str, now: datetime, days: int) -> list[Expiration]:
    """Return what of a history is expected to go within `days`, at `now` what nothing keeps any more. Pure."""
    if policies.policy_of(applied.policy) is None:
        return []
    verdicts = engine.explain(history.backups, applied.rules, now, applied.rhythm, horizon=timedelta(days=days))
    times = ((one, now if not one.kept else one.expire_time) for one in verdicts)
    return [
        Expiration(one.backup_id, history.server_id, storage_id, one.create_time, time)
        for one, time in times
        if time is not None
    ]


def prunes(bases: Basis) -> bool:
    """Tell whether anything on a storage may be pruned at all. Pure."""
    return any(policies.policy_of(one.policy) is not None for one in (bases.own, *bases.by_hypervisor.values()))


def _home(server_id: str) -> str:
    row = find_row(models.Server.server_id, server_id)
    return "" if row is None else str(row.hypervisor_id)
