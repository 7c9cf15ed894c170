"""Purges that people order: what would go, shown and signed, and then ordered as it was shown (D24, D25).

Sync functions, run by `Database.run`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import peewee

from controller import confirmations, purges, schedules, servers
from controller.context import Context
from controller.db import models
from controller.errors import InvalidField, RequestIdReused, ServerNotFound
from controller.purges import NewPurge, Purge

_SERVERS_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Target:
    """A server, or (`schedule_id`) the servers of a schedule: those that are deleted, or all with `include_active`."""

    server_id: str = ""
    schedule_id: str = ""
    include_active: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What would go of one server on one storage."""

    server_id: str
    storage_id: str
    backup_count: int
    stored_bytes: int
    newest_backup_id: str


@dataclass(frozen=True, slots=True)
class PurgePreview:
    shares: tuple[Share, ...]
    confirmation: str


def preview(target: Target, context: Context) -> PurgePreview:
    """Show what a purge would delete. Raises ServerNotFound, ScheduleNotFound, InvalidField."""
    shares = _shares(target)
    return PurgePreview(tuple(shares), confirmations.sign(context.vault, "purge", _facts(target, shares)))


def order(target: Target, confirmation: str, request_id: str, context: Context) -> list[Purge]:
    """Order the purge that was shown; the same request_id again returns what it made.

    Raises what `preview` does, ConfirmationStale, RequestIdReused.
    """
    digest = hashlib.sha256(json.dumps([asdict(target), confirmation]).encode()).hexdigest()
    made, known = purges.of_request(request_id)
    if made:
        if known != digest:
            raise RequestIdReused(request_id=request_id, job_id=made[0].purge_id)
        return made
    shares = _shares(target)
    confirmations.check(context.vault, "purge", _facts(target, shares), confirmation)
    kind = purges.ALL if target.include_active or target.server_id else purges.DELETED
    ids = [
        purges.insert(
            NewPurge(
                server_id=share.server_id,
                storage_id=share.storage_id,
                kind=kind,
                requester=context.requester,
                schedule_id=target.schedule_id,
                bound_time=context.now,
                request_id=request_id,
                request_hash=digest,
            ),
            context.now,
            context.now,
        )
        for share in shares
    ]
    return [purges.get(one) for one in ids]


def _facts(target: Target, shares: Sequence[Share]) -> dict[str, Any]:
    return {"target": asdict(target), "shares": [asdict(one) for one in shares]}


def _shares(target: Target) -> list[Share]:
    """Return what a purge of a target would delete, by server and storage."""
    if bool(target.server_id) == bool(target.schedule_id):
        raise InvalidField(field="target", problem="needs either a server or a schedule")
    if target.server_id:
        if target.include_active:
            raise InvalidField(field="target.include_active", problem="is for a schedule")
        return _sums([_server_id(target.server_id)], "")
    schedule = schedules.find(target.schedule_id)
    row = models.Server
    query = row.select(row.server_id).where(row.hypervisor_id == schedule.hypervisor_id)
    if not target.include_active:
        query = query.where(row.delete_time.is_null(False))
    return _sums([one.server_id for one in query.order_by(row.server_id)], schedule.storage_id)


def _server_id(reference: str) -> str:
    """Return a server's id; one that only the catalog knows is its own reference. Raises ServerNotFound."""
    try:
        return servers.find(reference).server_id
    except ServerNotFound:
        if not models.Backup.select().where(models.Backup.server_id == reference).exists():
            raise
        return reference


def _sums(server_ids: Sequence[str], storage_id: str) -> list[Share]:
    row = models.Backup
    found: list[Share] = []
    for start in range(0, len(server_ids), _SERVERS_CHUNK):
        query = row.select(
            row.server_id,
            row.storage_id,
            peewee.fn.COUNT(row.backup_id),
            peewee.fn.SUM(row.stored_bytes),
            peewee.fn.MAX(row.backup_id),
        ).where(row.server_id.in_(server_ids[start : start + _SERVERS_CHUNK]) & row.delete_time.is_null())
        if storage_id:
            query = query.where(row.storage_id == storage_id)
        grouped: Any = query.group_by(row.server_id, row.storage_id)
        rows: list[tuple[Any, ...]] = list(grouped.tuples())
        found += [Share(one[0], one[1], int(one[2]), int(one[3]), one[4]) for one in rows]
    return sorted(found, key=lambda one: (one.server_id, one.storage_id))
