"""What backups add up to, by server and storage, and which living servers have none: kept with each change of the catalog.

    backup rows of one (server, storage) ──recount──► backup_total ──► unprotected_server, in the same transaction

A pair is added up anew and never counted up or down: so it cannot drift, and a second writer of the same pair does no harm.
Sync functions, inside `Database.run`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import peewee

from controller.db import models
from controller.db.statements import chunks, statement

Row = models.BackupTotal
Pair = tuple[str, str]  # server_id, storage_id

_RECOUNT = """
    INSERT INTO backup_total (server_id, storage_id, backup_count, stored_bytes, last_backup_time)
    SELECT server_id, storage_id, COUNT(*), COALESCE(SUM(stored_bytes), 0),
           MAX(CASE WHEN state = 'available' THEN create_time END)
    FROM backup WHERE server_id = ? AND storage_id = ? AND delete_time IS NULL GROUP BY server_id, storage_id
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


def of_storages(storage_ids: Iterable[str] | None = None) -> dict[str, Total]:
    """Return what lies on storages, all of them by default; one without backups is not among them."""
    query = Row.select(
        Row.storage_id,
        peewee.fn.SUM(Row.backup_count),
        peewee.fn.SUM(Row.stored_bytes),
        peewee.fn.COUNT(Row.server_id),
        peewee.fn.MAX(Row.last_backup_time),
    ).group_by(Row.storage_id)
    if storage_ids is not None:
        query = query.where(Row.storage_id.in_(list(storage_ids)))
    rows: Any = query.tuples()
    return {
        storage_id: Total(int(count), int(size), int(servers), last) for storage_id, count, size, servers, last in rows
    }


def last_backup_times(server_ids: Sequence[str]) -> dict[str, datetime]:
    """Return when each server's newest usable backup was made; one without any is not among them."""
    found: dict[str, datetime] = {}
    for chunk in chunks(server_ids):
        rows: Any = (
            Row.select(Row.server_id, peewee.fn.MAX(Row.last_backup_time))
            .where(Row.server_id.in_(chunk) & Row.last_backup_time.is_null(False))
            .group_by(Row.server_id)
            .tuples()
        )
        found.update(rows)
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
        Row.delete().where((Row.server_id == server_id) & (Row.storage_id == storage_id)).execute()
        statement(_RECOUNT, server_id, storage_id)
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
    statement(_RECOUNT.replace("server_id = ? AND storage_id = ? AND ", ""))
    models.UnprotectedServer.delete().execute()
    statement(_PROTECT.replace("server_id = ? AND ", "", 1))


def add_server(server_id: str) -> None:
    """Count a server that begins to live."""
    _settle(server_id)


def remove_server(server_id: str) -> None:
    """Count a server no more that is deleted: neither its lack of backups nor its failures ask for anybody's attention."""
    models.UnprotectedServer.delete().where(models.UnprotectedServer.server_id == server_id).execute()
    models.ServerFailure.delete().where(models.ServerFailure.server_id == server_id).execute()


def _settle(server_id: str) -> None:
    statement(_PROTECTED, server_id)
    statement(_PROTECT, server_id)
