"""What backups add up to, by server and storage, and which living servers have none: kept with each change of the catalog.

    backup rows of one (server, storage) ──recount──► backup_total ─┬► storage_total        all in the same transaction
                                                                    └► unprotected_server

A pair is added up anew and never counted up or down: so it cannot drift, and a second writer of the same pair does no harm. A
storage's sum moves by what the row of a pair was before and is now, so it stays the sum of those rows, and nobody has to look at
50,000 of them. Sync functions, inside `Database.run`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import peewee

from controller.db import models
from controller.db.fields import from_microseconds
from controller.db.statements import chunks, statement, value_lines

Row = models.BackupTotal
Pair = tuple[str, str]  # server_id, storage_id
_Rows: TypeAlias = list[tuple[Any, ...]]

_RECOUNT = """
    INSERT INTO backup_total (server_id, storage_id, backup_count, stored_bytes, last_backup_time)
    SELECT server_id, storage_id, COUNT(*), COALESCE(SUM(stored_bytes), 0),
           MAX(CASE WHEN state = 'available' THEN create_time END)
    FROM backup WHERE server_id = ? AND storage_id = ? AND delete_time IS NULL GROUP BY server_id, storage_id
    RETURNING backup_count, stored_bytes
"""
_FORGET = "DELETE FROM backup_total WHERE server_id = ? AND storage_id = ? RETURNING backup_count, stored_bytes"
_MOVE = """
    INSERT INTO storage_total (storage_id, server_count, backup_count, stored_bytes) VALUES (?, ?, ?, ?)
    ON CONFLICT (storage_id) DO UPDATE SET server_count = storage_total.server_count + excluded.server_count,
        backup_count = storage_total.backup_count + excluded.backup_count,
        stored_bytes = storage_total.stored_bytes + excluded.stored_bytes
"""
_RECOUNT_ALL = """
    INSERT INTO backup_total (server_id, storage_id, backup_count, stored_bytes, last_backup_time)
    SELECT server_id, storage_id, COUNT(*), COALESCE(SUM(stored_bytes), 0),
           MAX(CASE WHEN state = 'available' THEN create_time END)
    FROM backup WHERE delete_time IS NULL GROUP BY server_id, storage_id
"""
_SUM_ALL = """
    INSERT INTO storage_total (storage_id, server_count, backup_count, stored_bytes)
    SELECT storage_id, COUNT(*), SUM(backup_count), SUM(stored_bytes) FROM backup_total GROUP BY storage_id
"""
_PROTECT = """
    INSERT INTO unprotected_server (server_id, begin_time)
    SELECT server_id, create_time FROM server WHERE server_id = ? AND delete_time IS NULL AND NOT EXISTS
        (SELECT 1 FROM backup_total total WHERE total.server_id = server.server_id AND last_backup_time IS NOT NULL)
    ON CONFLICT (server_id) DO NOTHING
"""
_PROTECTED = """
    DELETE FROM unprotected_server WHERE server_id = ? AND EXISTS
        (SELECT 1 FROM backup_total total
         WHERE total.server_id = unprotected_server.server_id AND last_backup_time IS NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Total:
    """What backups add up to. `last_backup_time` is that of the newest usable one."""

    backup_count: int = 0
    stored_bytes: int = 0
    server_count: int = 0
    last_backup_time: datetime | None = None


NONE = Total()


@dataclass(frozen=True, slots=True)
class ServerUsage:
    """One server's share of a storage."""

    server_id: str
    server_name: str
    backup_count: int
    stored_bytes: int
    last_backup_time: datetime | None


# ---- looking ------------------------------------------------------------------------------------------------------------


_OF_STORAGES = """
    SELECT storage_id, backup_count, stored_bytes, server_count,
        (SELECT MAX(last_backup_time) FROM backup_total WHERE backup_total.storage_id = storage_total.storage_id)
    FROM storage_total WHERE backup_count > 0
"""


def of_storages(storage_ids: Iterable[str] | None = None) -> dict[str, Total]:
    """Return what lies on storages, all of them by default; one without backups is not among them."""
    if storage_ids is None:
        rows = statement(_OF_STORAGES)
    else:
        rows = [
            row
            for chunk in chunks(storage_ids)
            for row in statement(f"{_OF_STORAGES} AND storage_id IN ({value_lines(len(chunk), '?')})", *chunk)
        ]
    return {
        storage_id: Total(count, size, servers, None if last is None else from_microseconds(last))
        for storage_id, count, size, servers, last in rows
    }


_LAST_TIMES = """
    SELECT server_id, MAX(last_backup_time) FROM backup_total
    WHERE server_id IN ({}) AND last_backup_time IS NOT NULL GROUP BY server_id
"""


def last_backup_times(server_ids: Sequence[str]) -> dict[str, datetime]:
    """Return when each server's newest usable backup was made; one without any is not among them."""
    found: dict[str, datetime] = {}
    for chunk in chunks(server_ids):
        rows = statement(_LAST_TIMES.format(value_lines(len(chunk), "?")), *chunk)
        found.update({server_id: from_microseconds(newest) for server_id, newest in rows})
    return found


def list_server_usages(storage_id: str, *, after: tuple[int, str] | None = None, limit: int = 101) -> list[ServerUsage]:
    """Return the servers with backups on a storage, the largest first, those after (stored_bytes, server_id)."""
    server = models.Server
    query = Row.select(Row.server_id, server.name, Row.backup_count, Row.stored_bytes, Row.last_backup_time).join(
        server, peewee.JOIN.LEFT_OUTER, on=(server.server_id == Row.server_id)
    )
    query = query.where(Row.storage_id == storage_id)
    if after:
        size, server_id = after
        query = query.where((Row.stored_bytes < size) | ((Row.stored_bytes == size) & (Row.server_id > server_id)))
    rows: Any = query.order_by(Row.stored_bytes.desc(), Row.server_id).limit(limit).tuples()
    return [ServerUsage(one, name or "", int(count), int(size), last) for one, name, count, size, last in rows]


# ---- keeping ------------------------------------------------------------------------------------------------------------


def recount(pairs: Iterable[Pair]) -> None:
    """Add up the backups of these servers on these storages anew."""
    for server_id, storage_id in sorted(set(pairs)):
        before = statement(_FORGET, server_id, storage_id)
        after = statement(_RECOUNT, server_id, storage_id)
        _move(storage_id, before, after)
        _settle(server_id)


def recount_backups(backup_ids: Sequence[str]) -> None:
    """Add up anew what these backups belong to."""
    recount(pairs_of(backup_ids))


def pairs_of(backup_ids: Sequence[str]) -> set[Pair]:
    backup = models.Backup
    found: set[Pair] = set()
    for chunk in chunks(backup_ids):
        rows: Any = (
            backup.select(backup.server_id, backup.storage_id).where(backup.backup_id.in_(chunk)).distinct().tuples()
        )
        found.update(rows)
    return found


def recount_all() -> None:
    """Add up everything anew: once at a start, for rows that came another way."""
    Row.delete().execute()
    statement(_RECOUNT_ALL)
    models.StorageTotal.delete().execute()
    statement(_SUM_ALL)
    models.UnprotectedServer.delete().execute()
    statement(_PROTECT.replace("server_id = ? AND ", "", 1))


def add_server(server_id: str) -> None:
    """Count a server that begins to live."""
    _settle(server_id)


def remove_server(server_id: str) -> None:
    """Count a server no more that is deleted: neither its lack of backups nor its failures ask for anybody's attention."""
    models.UnprotectedServer.delete().where(models.UnprotectedServer.server_id == server_id).execute()
    models.ServerFailure.delete().where(models.ServerFailure.server_id == server_id).execute()


def _move(storage_id: str, before: _Rows, after: _Rows) -> None:
    """Let a storage's sum follow the row of a pair: its count and size, if there was one before and if there is one now."""
    (old_count, old_size), (count, size) = next(iter(before), (0, 0)), next(iter(after), (0, 0))
    statement(_MOVE, storage_id, len(after) - len(before), count - old_count, size - old_size)


def _settle(server_id: str) -> None:
    statement(_PROTECTED, server_id)
    statement(_PROTECT, server_id)
