"""Servers: what the panel says there is, beside what hypervisors report (N1, N2).

A server's id is made here and never again, also when a panel uses its own id for another machine later. Domain UUID, name and
place are attributes. Its domain's state and disks are looked up in the hypervisor's last report, and are not kept here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import peewee

from controller import auto_purge, claims, happenings, hypervisors, leases, packages, tickets, totals
from controller.db import models
from controller.db.statements import chunks, fetch, find_row, find_rows, statement
from controller.errors import (
    EtagMismatch,
    HypervisorNotFound,
    InvalidField,
    ServerBusy,
    ServerExists,
    ServerNotFound,
)
from controller.hypervisors import Domain
from controller.rules.access import Lock
from engine.ids import new_id

OF_HYPERVISOR_MAX = 10_000  # servers that one hypervisor can have: as many as an inventory may name
Row = models.Server


@dataclass(frozen=True, slots=True)
class Server:
    """A server as it stands. `disks` are JSON forms of Disk; `hypervisor_id` is "" for one that lives nowhere (any more).

    `lock` may have expired; `access_override` is "" where the package or the schedule decides. The owner sees no backup that
    is older than `history_time`, and a portal token older than `owner_time` was another owner's.
    """

    server_id: str
    external_id: str
    name: str
    hypervisor_id: str
    domain_uuid: str
    domain_name: str
    domain_state: str
    disks: tuple[dict[str, Any], ...]
    guest_agent: str
    state: Literal["active", "deleted", "conflict"]
    busy_job_id: str
    create_time: datetime
    delete_time: datetime | None
    last_backup_time: datetime | None
    etag: str
    package_id: str = ""
    access_override: str = ""
    commissioned: bool = True
    owner: str = ""
    owner_time: datetime | None = None
    history_time: datetime | None = None
    lock: Lock | None = None
    place_state: str = ""
    rival_hypervisor_ids: tuple[str, ...] = ()

    @property
    def conflict(self) -> bool:
        """More than one hypervisor claims to have it: nothing is dispatched until one gives up, or the panel decides (N1)."""
        return bool(self.rival_hypervisor_ids)


@dataclass(frozen=True, slots=True)
class NewServer:
    """What a panel registers. `hypervisor_id` is an id or a name; one of the domain's UUID and name is needed."""

    external_id: str
    name: str
    hypervisor_id: str
    domain_uuid: str = ""
    domain_name: str = ""
    package_id: str = ""
    owner: str = ""
    commissioned: bool = True


# ---- looking ------------------------------------------------------------------------------------------------------------


def find(reference: str) -> Server:
    """Return the server with this id, external id or unique name, living ones first. Raises ServerNotFound."""
    return _server(_find(reference))


def find_exact(reference: str) -> Server:
    """Return the server with this id or external id, living ones first; a name says too little here. Raises ServerNotFound."""
    return _server(_find(reference, by_name=False))


@dataclass(frozen=True, slots=True)
class ServerFilter:
    """Which servers; empty means all of those that live."""

    hypervisor_id: str = ""
    package_id: str = ""
    owner: str = ""
    commissioned: bool | None = None
    include_deleted: bool = False


def list_servers(
    wanted: ServerFilter | None = None, *, after: tuple[str, str] | None = None, limit: int = 101
) -> list[Server]:
    """Return servers by (name, server_id), those after the key in `after`."""
    query = Row.select().where(*_conditions(wanted or ServerFilter()))
    if after:
        name, server_id = after
        query = query.where((Row.name > name) | ((Row.name == name) & (Row.server_id > server_id)))
    return _servers(fetch(query.order_by(Row.name, Row.server_id).limit(limit)))


_COUNT = "SELECT COUNT(*) FROM server"


def count_servers(wanted: ServerFilter) -> int:
    """Return how many servers there are."""
    if wanted == ServerFilter():
        return count_living()
    return int(Row.select().where(*_conditions(wanted)).count())


def count_living() -> int:
    """Return how many servers there are that are not deleted.

    The deleted have an index of their own, and all of them can be counted in any; those that live would be read row by row.
    """
    (everyone,), (deleted,) = (statement(sql)[0] for sql in (_COUNT, f"{_COUNT} WHERE delete_time IS NOT NULL"))
    return int(everyone) - int(deleted)


def ids_of_package(package_id: str) -> list[str]:
    """Return the living servers of a package."""
    rows = Row.select(Row.server_id).where((Row.package_id == package_id) & Row.delete_time.is_null())
    return [row.server_id for row in rows]


def find_all(server_ids: Sequence[str]) -> list[Server]:
    """Return the living ones of these servers, by (name, server_id)."""
    rows = [
        row
        for chunk in chunks(server_ids)
        for row in fetch(Row.select().where(Row.server_id.in_(chunk) & Row.delete_time.is_null()))
    ]
    return _servers(sorted(rows, key=lambda row: (row.name, row.server_id)))


# ---- changing -----------------------------------------------------------------------------------------------------------


def register(new: NewServer, now: datetime) -> Server:
    """Register a server; the same external id for the same domain returns the same server, wherever it has moved since.

    Raises HypervisorNotFound, PackageNotFound, InvalidField for a domain that cannot be told, ServerExists.
    """
    hypervisor_id = _hypervisor_id(new.hypervisor_id)
    known = _living(Row.external_id == new.external_id) if new.external_id else None
    domain = hypervisors.find_domain(hypervisor_id, domain_uuid=new.domain_uuid, name=new.domain_name)
    if domain is None and not new.domain_uuid:
        if known is not None and known.hypervisor_id != hypervisor_id:
            moved = _server(known)
            if moved.domain_name == new.domain_name:
                return moved
        raise InvalidField(field="domain_name", problem="is not among the domains that the hypervisor reported")
    domain_uuid = new.domain_uuid or (domain.domain_uuid if domain else "")
    if known is not None:
        if known.domain_uuid != domain_uuid:
            raise ServerExists(server_id=known.server_id)
        return _server(known)
    values = {
        "external_id": new.external_id,
        "name": new.name or (domain.name if domain else domain_uuid),
        "hypervisor_id": hypervisor_id,
        "domain_uuid": domain_uuid,
        "package_id": packages.find(new.package_id).package_id if new.package_id else "",
        "owner": new.owner,
    }
    _check_free(values, "")
    server_id = new_id(now)
    Row.insert(
        server_id=server_id,
        create_time=now,
        commissioned=new.commissioned,
        owner_time=now if new.owner else None,
        **values,
    ).execute()
    claims.decide(server_id, now)
    totals.add_server(server_id)
    _event("server.registered", server_id, hypervisor_id, now)
    return find(server_id)


def update(server_id: str, changes: dict[str, str], etag: str, now: datetime) -> Server:
    """Change name, external_id, hypervisor_id (id or name) or domain_uuid. Naming a place settles every claim on the server.

    Raises ServerNotFound, EtagMismatch, HypervisorNotFound, ServerExists, and ServerBusy for another place while a job works
    on the server: the job's commands have gone to the old one.
    """
    row = find_row(Row.server_id, server_id)
    if row is None:
        raise ServerNotFound(server_id=server_id)
    if etag and etag != str(row.version):
        raise EtagMismatch(etag=str(row.version))
    values = dict(changes)
    if values.get("hypervisor_id"):
        values["hypervisor_id"] = _hypervisor_id(values["hypervisor_id"])
    if any(values.get(name, getattr(row, name)) != getattr(row, name) for name in ("hypervisor_id", "domain_uuid")):
        _check_idle(server_id)
    if row.delete_time is None:
        _check_free(
            {name: getattr(row, name) for name in ("external_id", "hypervisor_id", "domain_uuid")} | values, server_id
        )
    Row.update(**values, version=Row.version + 1).where(Row.server_id == server_id).execute()
    if values.keys() & {"hypervisor_id", "domain_uuid"}:
        claims.decide(server_id, now)
    _event("server.updated", server_id, values.get("hypervisor_id", row.hypervisor_id), now)
    return find(server_id)


def delete(server_id: str, now: datetime) -> Server:
    """Mark a server as deleted in the panel; its backups stay until its purge (auto_purge.py). Raises ServerNotFound, ServerBusy."""
    server = find(server_id)
    if server.state == "deleted":
        return server
    _check_idle(server.server_id)
    Row.update(delete_time=now, version=Row.version + 1).where(Row.server_id == server.server_id).execute()
    claims.forget(server.server_id)
    totals.remove_server(server.server_id)
    _event("server.deleted", server.server_id, server.hypervisor_id, now)
    auto_purge.schedule(server.server_id, now)
    tickets.revoke_all("server_deleted", now, server_id=server.server_id)
    return find(server.server_id)


def adopt(server_id: str, name: str, domain_uuid: str, hypervisor_id: str, now: datetime) -> bool:
    """Take a server that only a storage knows of back into the list; False when it is known.

    It lives on `hypervisor_id` if that reports the domain and no other server has it, else nowhere until somebody says so. It is
    never taken for deleted: what the panel did not delete must not be purged one day. Nor is it in service before the panel says so.
    """
    if find_row(Row.server_id, server_id) is not None:
        return False
    domain = hypervisors.find_domain(hypervisor_id, domain_uuid=domain_uuid) if domain_uuid else None
    taken = _living((Row.hypervisor_id == hypervisor_id) & (Row.domain_uuid == domain_uuid))
    place = hypervisor_id if domain is not None and taken is None else ""
    Row.insert(
        server_id=server_id,
        name=name or server_id,
        hypervisor_id=place,
        domain_uuid=domain_uuid,
        create_time=now,
        commissioned=False,
        place_state=claims.PRESENT if place else "",
    ).execute()
    totals.add_server(server_id)
    _event("server.adopted", server_id, place, now)
    return True


# ---- inside -------------------------------------------------------------------------------------------------------------


def _conditions(wanted: ServerFilter) -> list[Any]:
    columns = (
        (Row.hypervisor_id, wanted.hypervisor_id),
        (Row.package_id, wanted.package_id),
        (Row.owner, wanted.owner),
    )
    conditions: list[Any] = [column == value for column, value in columns if value]
    if wanted.commissioned is not None:
        conditions.append(Row.commissioned == wanted.commissioned)
    if not wanted.include_deleted:
        conditions.append(Row.delete_time.is_null())
    return conditions or [peewee.Value(1) == 1]


def _find(reference: str, *, by_name: bool = True) -> models.Server:
    if reference:
        row = find_row(Row.server_id, reference)
        if isinstance(row, Row):
            return row
        for column in (Row.external_id, Row.name) if by_name else (Row.external_id,):
            for condition in (Row.delete_time.is_null(), Row.delete_time.is_null(False)):
                rows = list(
                    Row.select().where((column == reference) & condition).order_by(Row.delete_time.desc()).limit(2)
                )
                if len(rows) == 1 or (rows and column is Row.external_id):  # of several that used it, the last
                    return rows[0]
                if rows:  # a name that several have says nothing
                    raise ServerNotFound(server_id=reference)
    raise ServerNotFound(server_id=reference)


def _living(condition: peewee.Expression) -> models.Server | None:
    row: models.Server | None = Row.get_or_none(condition & Row.delete_time.is_null())
    return row


def _check_free(values: dict[str, str], server_id: str) -> None:
    """Raise ServerExists when another living server has the external id or the domain."""
    conditions = []
    if values["external_id"]:
        conditions.append(Row.external_id == values["external_id"])
    if values["hypervisor_id"]:
        conditions.append((Row.hypervisor_id == values["hypervisor_id"]) & (Row.domain_uuid == values["domain_uuid"]))
    for condition in conditions:
        other = _living(condition & (Row.server_id != server_id))
        if other is not None:
            raise ServerExists(server_id=other.server_id)


def _check_idle(server_id: str) -> None:
    busy = _busy_job(server_id)
    if busy:
        raise ServerBusy(server_id=server_id, job_id=busy)


def _busy_job(server_id: str) -> str:
    return next(iter(leases.holders(leases.server_resource(server_id))), "")


def _hypervisor_id(reference: str) -> str:
    """Return the id of a hypervisor that is given by id or name. Raises HypervisorNotFound."""
    table = models.Hypervisor
    row = find_row(table.hypervisor_id, reference) or find_row(table.name, reference)
    if row is None:
        raise HypervisorNotFound(hypervisor_id=reference)
    return str(row.hypervisor_id)


def _server(row: models.Server) -> Server:
    return _servers([row])[0]


def _servers(rows: Sequence[models.Server]) -> list[Server]:
    """Return records of rows, with as many statements for a thousand as for one."""
    ids = [row.server_id for row in rows]
    domains = hypervisors.find_domains({(row.hypervisor_id, row.domain_uuid) for row in rows if row.hypervisor_id})
    newest = totals.last_backup_times(ids)
    busy = leases.first_holders([leases.server_resource(one) for one in ids])
    rivals = _rivals(ids)
    return [
        _record(
            row,
            domains.get((row.hypervisor_id, row.domain_uuid)),
            newest.get(row.server_id),
            busy.get(leases.server_resource(row.server_id), ""),
            tuple(rivals.get(row.server_id, ())),
        )
        for row in rows
    ]


def _record(
    row: models.Server, domain: Domain | None, newest: datetime | None, busy_job_id: str, rivals: tuple[str, ...]
) -> Server:
    lock = None if row.lock_time is None else Lock(row.lock_reason, row.lock_time, row.lock_expire_time)
    return Server(
        server_id=row.server_id,
        external_id=row.external_id,
        name=row.name,
        hypervisor_id=row.hypervisor_id,
        domain_uuid=row.domain_uuid,
        domain_name=domain.name if domain else "",
        domain_state=domain.state if domain else "",
        disks=domain.disks if domain else (),
        guest_agent=domain.guest_agent if domain else "",
        state="deleted" if row.delete_time is not None else "conflict" if rivals else "active",
        busy_job_id=busy_job_id,
        create_time=row.create_time,
        delete_time=row.delete_time,
        last_backup_time=newest,
        etag=str(row.version),
        package_id=row.package_id,
        access_override=row.access_override,
        commissioned=row.commissioned,
        owner=row.owner,
        owner_time=row.owner_time,
        history_time=row.history_time,
        lock=lock,
        place_state=row.place_state,
        rival_hypervisor_ids=rivals,
    )


def _rivals(server_ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in sorted(find_rows(models.ServerClaim.server_id, server_ids), key=lambda row: row.hypervisor_id):
        if not row.refused:
            found.setdefault(row.server_id, []).append(row.hypervisor_id)
    return found


def _event(kind: str, server_id: str, hypervisor_id: str, now: datetime) -> None:
    happenings.record(kind, now, server_id=server_id, hypervisor_id=hypervisor_id)
