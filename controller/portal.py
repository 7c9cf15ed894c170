"""What an end user sees of their servers, and does with them (U1-U7, G10-G13).

    visitor (a portal token) ──► is the server theirs? may its backups be seen? ──► view ──► rules/portal.py ──► what is shown
                                                                                     └──► permit ──► orders

Access levels, the switches for users and the cooldowns are looked at here and nowhere else. Ids of backups never leave: a
point's id is made of it under the installation's key, since a chain is named by its first backup. Sync functions, run by
`Database.run`.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from controller import access, jobs, orders, previews, retention, schedules, servers, settings, storages
from controller.context import Context
from controller.db import models
from controller.db.secrets import Vault
from controller.errors import (
    CooldownActive,
    DriveNotFound,
    JobNotFound,
    NotIncluded,
    PointNotFound,
    PortalRefused,
    SelfServiceOff,
    ServerNotFound,
)
from controller.jobs import Job, JobFilter
from controller.order_types import BackupOrder, RestoreOrder
from controller.rules import admission
from controller.rules import portal as rules
from controller.rules.access import Act, Resolved, allows
from controller.rules.portal import Permit, Standing, Stay
from controller.rules.retention import words
from controller.rules.states import SKIPPED, WELL
from controller.schedules import Schedule
from controller.servers import Server

OPERATIONS = ("backup", "restore")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks: a portal token, when it was made, and the servers it was made for."""

    token_time: datetime
    server_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PortalServer:
    """A server as its user sees it. `operation` is what is being done with it now."""

    server_id: str
    name: str
    last_backup_time: datetime | None
    next_backup_time: datetime | None
    retention: str
    backup: Permit
    restore: Permit
    operation: Job | None


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive of today, or one that only backups have."""

    name: str
    size_bytes: int
    attached: bool
    backup_count: int
    first_backup_time: datetime | None
    last_backup_time: datetime | None


@dataclass(frozen=True, slots=True)
class Point:
    """A backup that can be restored. `disks` are its disks with their sizes; `backup_id` stays inside."""

    point_id: str
    backup_id: str
    storage_id: str
    create_time: datetime
    disks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Shown:
    """A point as its user sees it."""

    point_id: str
    create_time: datetime
    drives: tuple[str, ...]
    stay: Stay


@dataclass(frozen=True, slots=True)
class RestorePreview:
    """What a restore would do."""

    point: Shown
    drives: tuple[str, ...]
    stops_server: bool
    confirmation: str


@dataclass(frozen=True, slots=True)
class _View:
    """A server that its visitor may see, and what belongs to it."""

    server: Server
    level: Resolved
    schedule: Schedule | None
    points: tuple[Point, ...]  # newest first

    @property
    def storage_id(self) -> str:
        """Where a backup would go: as the schedule says, else where the newest one lies; "" for nowhere."""
        if self.schedule is not None:
            return self.schedule.storage_id
        return self.points[0].storage_id if self.points else ""

    @property
    def drives(self) -> dict[str, str]:
        attached = [str(disk["disk"]) for disk in self.server.disks]
        return rules.drive_names(attached, {disk for point in self.points for disk in point.disks})


# ---- seeing -------------------------------------------------------------------------------------------------------------


def list_servers(
    visitor: Visitor, context: Context, *, after: tuple[str, str] | None = None, limit: int = 101
) -> list[PortalServer]:
    """Return the visitor's servers whose backups they may see, by (name, server_id), those after the key in `after`."""
    own = [one for one in servers.find_all(visitor.server_ids) if _is_own(visitor, one)]
    levels = access.of_servers(own)
    seen = [one for one in own if allows(levels[one.server_id].level, "view")]
    if after:
        seen = [one for one in seen if (one.name, one.server_id) > after]
    return [_server(_view(one, levels[one.server_id], context.vault), context.now) for one in seen[:limit]]


def get_server(visitor: Visitor, server_id: str, context: Context) -> PortalServer:
    """Return one server. Raises ServerNotFound, NotIncluded."""
    return _server(_see(visitor, server_id, context.vault), context.now)


def list_drives(visitor: Visitor, server_id: str, context: Context) -> list[Drive]:
    """Return a server's drives in order, also those that only backups have. Raises ServerNotFound, NotIncluded."""
    view = _see(visitor, server_id, context.vault)
    sizes = {str(disk["disk"]): int(disk.get("size_bytes", 0)) for disk in view.server.disks}
    drives = []
    for disk, name in view.drives.items():
        held = [point for point in view.points if disk in point.disks]
        drives.append(
            Drive(
                name=name,
                size_bytes=sizes.get(disk) or (held[0].disks[disk] if held else 0),
                attached=disk in sizes,
                backup_count=len(held),
                first_backup_time=held[-1].create_time if held else None,
                last_backup_time=held[0].create_time if held else None,
            )
        )
    return drives


def list_points(
    visitor: Visitor,
    server_id: str,
    drive: str,
    context: Context,
    *,
    after: tuple[str] | None = None,
    limit: int = 101,
) -> list[Shown]:
    """Return a server's backups, newest first, those after the point in `after`; with `drive`, those that hold it.

    Raises ServerNotFound, NotIncluded, DriveNotFound.
    """
    view = _see(visitor, server_id, context.vault)
    disk = _disk_of(view, drive) if drive else ""
    points = [point for point in view.points if not disk or disk in point.disks]
    if after:
        ids = [point.point_id for point in points]
        points = points[ids.index(after[0]) + 1 :] if after[0] in ids else []
    return _shown(view, points[:limit], context.now)


def list_operations(
    visitor: Visitor, server_id: str, context: Context, *, after: tuple[str] | None = None, limit: int = 101
) -> list[Job]:
    """Return what was done with a server, newest first. Raises ServerNotFound, NotIncluded."""
    view = _see(visitor, server_id, context.vault)
    wanted = JobFilter(server_id=view.server.server_id, types=OPERATIONS, start_time=view.server.history_time)
    found: list[Job] = []
    while True:
        rows = jobs.list_jobs(wanted, after=after, limit=limit)
        found += [job for job in rows if _is_shown(job, view.server)]
        if len(found) >= limit or len(rows) < limit:
            return found[:limit]
        after = (rows[-1].job_id,)


def get_operation(visitor: Visitor, operation_id: str, context: Context) -> Job:
    """Return one operation. Raises JobNotFound, also for another's, and NotIncluded."""
    job = jobs.find(operation_id)
    if job is None or job.server_id not in visitor.server_ids:
        raise JobNotFound(job_id=operation_id)
    try:
        view = _see(visitor, job.server_id, context.vault)
    except ServerNotFound:
        raise JobNotFound(job_id=operation_id) from None
    if not _is_shown(job, view.server):
        raise JobNotFound(job_id=operation_id)
    return job


# ---- doing --------------------------------------------------------------------------------------------------------------


def start_backup(visitor: Visitor, server_id: str, request_id: str, context: Context) -> Job:
    """Start a backup of a server. Raises ServerNotFound, NotIncluded, SelfServiceOff, CooldownActive, PortalRefused."""
    view = _see(visitor, server_id, context.vault)
    order = BackupOrder(view.server.server_id, view.storage_id, request_id=_own_request(view, request_id), portal=True)
    if not order.request_id or jobs.find_request(order.request_id) is None:
        _check(view, "backup", context.now)
    return jobs.get(orders.start(order, context))


def preview_restore(
    visitor: Visitor, server_id: str, point_id: str, drives: Sequence[str], context: Context
) -> RestorePreview:
    """Show what a restore would overwrite. Raises as `start_backup`, and PointNotFound, DriveNotFound."""
    view = _see(visitor, server_id, context.vault)
    point = _point(view, point_id)
    _check(view, "restore", context.now)
    disks = [_disk_of(view, drive) for drive in drives]
    preview = previews.preview_restore(point.backup_id, "", disks, "", context)
    names = view.drives
    chosen = tuple(sorted((names[disk] for disk in preview.disks), key=list(names.values()).index))
    return RestorePreview(_shown(view, [point], context.now)[0], chosen, preview.stops_server, preview.confirmation)


def start_restore(
    visitor: Visitor,
    server_id: str,
    point_id: str,
    drives: Sequence[str],
    confirmation: str,
    request_id: str,
    context: Context,
) -> Job:
    """Start the restore that was shown. Raises as `preview_restore`, and ConfirmationStale."""
    view = _see(visitor, server_id, context.vault)
    point = _point(view, point_id)
    order = RestoreOrder(
        point.backup_id,
        tuple(_disk_of(view, drive) for drive in drives),
        confirmation=confirmation,
        request_id=_own_request(view, request_id),
        portal=True,
    )
    if not order.request_id or jobs.find_request(order.request_id) is None:
        _check(view, "restore", context.now)
    return jobs.get(orders.start(order, context))


# ---- who may ------------------------------------------------------------------------------------------------------------


def _see(visitor: Visitor, server_id: str, vault: Vault) -> _View:
    """Return a server of the visitor's that they may see. Raises ServerNotFound for one of others, NotIncluded."""
    found = servers.find_all([server_id]) if server_id in visitor.server_ids else []
    if not found or not _is_own(visitor, found[0]):
        raise ServerNotFound(server_id=server_id)
    level = access.of_servers(found)[server_id]
    if not allows(level.level, "view"):
        raise NotIncluded(server_id=server_id)
    return _view(found[0], level, vault)


def _is_own(visitor: Visitor, server: Server) -> bool:
    """A token that is older than the present owner's time was made for somebody else (N1)."""
    return server.owner_time is None or visitor.token_time >= server.owner_time


def _check(view: _View, act: Act, now: datetime) -> None:
    """Raise what stands in the way of an act."""
    permit, server_id = _permit(view, act, now), view.server.server_id
    match permit.refusal:
        case None:
            return
        case "not_included":
            raise NotIncluded(server_id=server_id)
        case "switched_off":
            raise SelfServiceOff(act=act)
        case "cooldown":
            left = (permit.available_time or now) - now
            raise CooldownActive(server_id=server_id, retry_seconds=max(1, round(left.total_seconds())))
        case refusal:
            raise PortalRefused(refusal=refusal, advice=rules.ADVICE[refusal])


def _permit(view: _View, act: Act, now: datetime) -> Permit:
    chosen, server = settings.get(), view.server
    backup = act == "backup"
    minutes = chosen.backup_cooldown_minutes if backup else chosen.restore_cooldown_minutes
    lock = server.lock if server.lock is not None and server.lock.holds(now) else None
    cooldown = timedelta(minutes=minutes)
    standing = Standing(
        level=view.level.level,
        switched_on=chosen.manual_backups if backup else chosen.manual_restores,
        cooldown=cooldown,
        last_success=_last_success(server.server_id, act, now - cooldown),
        busy=bool(server.busy_job_id),
        locked=lock is not None or server.conflict or server.domain_state == admission.MIGRATING,
        lock_expire_time=lock.expire_time if lock is not None and not server.conflict else None,
        possible=bool(view.storage_id) if backup else bool(view.points),
    )
    return rules.permit(act, standing, now)


def _last_success(server_id: str, act: str, since: datetime) -> datetime | None:
    """Return when the end user's last act of this kind ended well, if that was after `since`: others' start no cooldown."""
    row = models.Job
    query = (
        row.select(row.spec, row.end_time)
        .where((row.server_id == server_id) & (row.type == act) & row.state.in_(sorted(WELL)) & (row.end_time > since))
        .order_by(row.end_time.desc())
    )
    return next((one.end_time for one in query if one.spec.get("portal")), None)


def _own_request(view: _View, request_id: str) -> str:
    """Return a request id that no other server's user can meet, nor an administrator's."""
    return str(uuid5(UUID(view.server.server_id), request_id)) if request_id else ""


# ---- what is shown ------------------------------------------------------------------------------------------------------


def _view(server: Server, level: Resolved, vault: Vault) -> _View:
    schedule = schedules.of_hypervisor(server.hypervisor_id) if server.hypervisor_id else None
    return _View(server, level, schedule, tuple(_points(server, vault)))


def _server(view: _View, now: datetime) -> PortalServer:
    server, running = view.server, [job for job in jobs.live(server_id=view.server.server_id) if job.type in OPERATIONS]
    return PortalServer(
        server_id=server.server_id,
        name=server.name,
        last_backup_time=view.points[0].create_time if view.points else None,
        next_backup_time=_next_backup(view, now),
        retention=_retention_words(view),
        backup=_permit(view, "backup", now),
        restore=_permit(view, "restore", now),
        operation=next((job for job in running if _is_shown(job, server)), None),
    )


def _next_backup(view: _View, now: datetime) -> datetime | None:
    schedule = view.schedule
    if schedule is None or not schedule.enabled or not view.server.commissioned:
        return None
    if not allows(view.level.level, "scheduled"):
        return None
    runs = schedules.next_runs(schedule, 1, now)
    return runs[0].start_time if runs else None


def _retention_words(view: _View) -> str:
    if not view.storage_id:
        return ""
    resolved = schedules.resolve(storages.find(view.storage_id), view.server.hypervisor_id)
    return words(resolved.retention.value)


def _points(server: Server, vault: Vault) -> list[Point]:
    """Return the usable backups of a server that its owner may see, newest first."""
    backup, disk = models.Backup, models.BackupDisk
    condition = (backup.server_id == server.server_id) & (backup.state == "available") & backup.delete_time.is_null()
    if server.history_time is not None:
        condition &= backup.create_time >= server.history_time
    query: Any = (  # peewee's types do not know of tuples
        backup.select(backup.backup_id, backup.storage_id, backup.create_time, disk.disk, disk.size_bytes)
        .join(disk, on=(disk.backup == backup.backup_id))
        .where(condition)
        .order_by(backup.create_time.desc(), backup.backup_id.desc(), disk.position)
    )
    found: dict[str, Point] = {}
    for backup_id, storage_id, create_time, name, size_bytes in query.tuples():
        if backup_id not in found:
            found[backup_id] = Point(_point_id(vault, backup_id), backup_id, storage_id, create_time, {})
        found[backup_id].disks[name] = size_bytes
    return list(found.values())


def _shown(view: _View, points: Sequence[Point], now: datetime) -> list[Shown]:
    names = view.drives
    ends = _expirations(view.server.server_id, now) if points else {}
    order = list(names.values()).index
    return [
        Shown(
            point.point_id,
            point.create_time,
            tuple(sorted((names[disk] for disk in point.disks), key=order)),
            rules.stay(ends.get(point.backup_id), now),
        )
        for point in points
    ]


def _expirations(server_id: str, now: datetime) -> dict[str, datetime]:
    """Return the backups of a server that go within the warning window, and when."""
    coming = retention.expirations(now, settings.get().warning_window_days, server_ids=[server_id])
    return {one.backup_id: one.expire_time for one in coming}


def _point(view: _View, point_id: str) -> Point:
    for point in view.points:
        if point.point_id == point_id:
            return point
    raise PointNotFound(point_id=point_id)


def _point_id(vault: Vault, backup_id: str) -> str:
    mac = vault.mac("portal point", backup_id.encode())
    return base64.b32encode(mac[:15]).decode().lower()  # 24 letters and digits, that anybody can read out


def _disk_of(view: _View, drive: str) -> str:
    for disk, name in view.drives.items():
        if name == drive:
            return disk
    raise DriveNotFound(drive=drive)


def _is_shown(job: Job, server: Server) -> bool:
    """A user sees backups and restores of their time, and not what an administrator restored to a folder elsewhere."""
    own_time = server.history_time is None or job.create_time >= server.history_time
    hidden = job.type not in OPERATIONS or job.state == SKIPPED or bool(job.spec.get("target_folder"))
    return own_time and not hidden
