"""What is done with a server: its access level, whether it is in service, locked, and whose it is (A1-A5, X15, N1, N2).

What a panel says can be said again: the same word changes nothing, and no second event is made of it.
Sync functions, run by `Database.run`.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from controller import happenings, packages, servers
from controller.db import models
from controller.db.statements import chunks, find_row, find_where, value_lines
from controller.errors import AccessLevelDenied, EtagMismatch, ServerDeleted, ServerNotFound
from controller.rules import access as rules
from controller.rules.access import Lock, Resolved
from controller.servers import Server, ServerFilter

log = logging.getLogger(__name__)
Row = models.Server

# ---- looking ------------------------------------------------------------------------------------------------------------


def of_server(server_id: str) -> Resolved:
    """Return the level of a server and who set it. Raises ServerNotFound."""
    server = servers.find(server_id)
    return of_servers([server])[server.server_id]


def of_servers(chosen: Sequence[Server]) -> dict[str, Resolved]:
    """Return the levels of servers by id, with two statements for all of them."""
    package_levels = package_defaults(sorted({server.package_id for server in chosen} - {""}))
    schedule_levels = _schedule_defaults(sorted({server.hypervisor_id for server in chosen} - {""}))
    return {
        server.server_id: rules.resolve(
            server.access_override,
            package_levels.get(server.package_id, rules.INHERIT),
            schedule_levels.get(server.hypervisor_id, rules.INHERIT),
        )
        for server in chosen
    }


def lock_of(server_id: str, now: datetime | None = None) -> Lock | None:
    """Return a server's lock, None when it has none. With `now`, an expired one is none. Raises ServerNotFound."""
    lock = servers.find(server_id).lock
    return lock if lock is not None and (now is None or lock.holds(now)) else None


def commissioned(hypervisor_id: str) -> list[Server]:
    """Return the living servers of a hypervisor that the panel put into service, by name."""
    wanted = ServerFilter(hypervisor_id=hypervisor_id, commissioned=True)
    return servers.list_servers(wanted, limit=servers.OF_HYPERVISOR_MAX)


def check_enabled(server: Server, *, override: bool) -> bool:
    """Raise AccessLevelDenied for a server that is Disabled; return whether `override` was what let the caller pass (A7)."""
    if of_servers([server])[server.server_id].level != "disabled":
        return False
    if not override:
        raise AccessLevelDenied(server_id=server.server_id, level="disabled")
    return True


def note_override(server_id: str, job_id: str, requester: str, now: datetime) -> None:
    """Keep that somebody works on a server though its level is Disabled (A7)."""
    log.warning("access level overridden server_id=%s job_id=%s requester=%s", server_id, job_id, requester)
    happenings.record("access.overridden", now, job_id=job_id, server_id=server_id, body={"requester": requester})


# ---- changing -----------------------------------------------------------------------------------------------------------


def set_level(server_id: str, level: str, etag: str, now: datetime) -> Server:
    """Set a server's own level, "" to inherit. Raises ServerNotFound, EtagMismatch."""
    return _set(server_id, "server.access_set", now, etag, {"level": level}, access_override=level)


def set_levels(server_ids: Sequence[str], level: str, now: datetime) -> int:
    """Set the own level of many servers, whose ids are known to exist; return how many had another one."""
    changed = 0
    for chunk in chunks(server_ids):
        rows = list(Row.select(Row.server_id).where(Row.server_id.in_(chunk) & (Row.access_override != level)))
        for row in rows:
            set_level(row.server_id, level, "", now)
        changed += len(rows)
    return changed


def set_package(server_id: str, package: str, etag: str, now: datetime) -> Server:
    """Say what a server was sold as; "" for nothing. Raises ServerNotFound, PackageNotFound, EtagMismatch."""
    package_id = packages.find(package).package_id if package else ""
    return _set(server_id, "server.package_set", now, etag, {"package_id": package_id}, package_id=package_id)


def set_commissioned(server_id: str, now: datetime, *, commissioned: bool) -> Server:
    """Put a server into service, or take it out. Raises ServerNotFound, and ServerDeleted for one to be put into service."""
    if commissioned:
        _check_living(server_id)
    kind = "server.commissioned" if commissioned else "server.decommissioned"
    return _set(server_id, kind, now, commissioned=commissioned)


def set_owner(server_id: str, owner: str, now: datetime, *, keep_history: bool = False, etag: str = "") -> Server:
    """Say whose server it is. Another owner sees no older backup, unless `keep_history`; the same one changes nothing.

    Raises ServerNotFound, EtagMismatch.
    """
    server = servers.find(server_id)
    if server.owner == owner:
        return _set(server_id, "", now, etag)
    history_time = server.history_time if keep_history else now
    body = {"owner": owner, "keep_history": keep_history}
    values: dict[str, Any] = {"owner": owner, "owner_time": now, "history_time": history_time}
    return _set(server_id, "server.owner_set", now, etag, body, **values)


def set_lock(server_id: str, reason: str, expire_time: datetime | None, now: datetime) -> Server:
    """Lock a server, or replace its lock's reason and end. Raises ServerNotFound, ServerDeleted."""
    _check_living(server_id)
    lock = lock_of(server_id, now)
    since = now if lock is None else lock.lock_time
    body = {"reason": reason, "expire_time": expire_time.isoformat() if expire_time else None}
    values: dict[str, Any] = {"lock_reason": reason, "lock_time": since, "lock_expire_time": expire_time}
    return _set(server_id, "server.locked", now, "", body, **values)


def clear_lock(server_id: str, now: datetime) -> Server:
    """Take a server's lock away, if it has one. Raises ServerNotFound."""
    return _set(server_id, "server.unlocked", now, lock_reason="", lock_time=None, lock_expire_time=None)


# ---- inside -------------------------------------------------------------------------------------------------------------


def package_defaults(package_ids: Sequence[str]) -> dict[str, str]:
    """Return the levels that packages say, by id."""
    table = models.Package
    return {
        row.package_id: row.default_level
        for chunk in chunks(package_ids)
        for row in table.select().where(table.package_id.in_(chunk))
    }


def _schedule_defaults(hypervisor_ids: Sequence[str]) -> dict[str, str]:
    """Return what the live schedules of hypervisors say of their servers."""
    table = models.Schedule
    return {
        row.hypervisor_id: row.default_access
        for chunk in chunks(hypervisor_ids)
        for row in find_where(
            table, f"hypervisor_id IN ({value_lines(len(chunk), '?')}) AND delete_time IS NULL", *chunk
        )
    }


def _check_living(server_id: str) -> None:
    if servers.find(server_id).state == "deleted":
        raise ServerDeleted(server_id=server_id)


def _set(
    server_id: str, kind: str, now: datetime, etag: str = "", body: dict[str, Any] | None = None, **values: Any
) -> Server:
    """Change columns of a server and record the event, unless they have these values already."""
    row = find_row(Row.server_id, server_id)
    if row is None:
        raise ServerNotFound(server_id=server_id)
    if etag and etag != str(row.version):
        raise EtagMismatch(etag=str(row.version))
    if any(getattr(row, name) != value for name, value in values.items()):
        Row.update(**values, version=Row.version + 1).where(Row.server_id == server_id).execute()
        happenings.record(kind, now, server_id=server_id, hypervisor_id=row.hypervisor_id, body=body)
    return servers.find(server_id)
