"""Hypervisors as rows: who enrolled, who is online, what each last reported.

Online is no column: a hypervisor is online while its last sign of life is younger than three heartbeats. So it stays online
through a short break of its stream, and nothing has to be written when it falls silent.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from controller import happenings
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.statements import find_row, find_rows, find_where, statement
from controller.errors import (
    ClockSkew,
    HypervisorBanned,
    HypervisorNotFound,
    HypervisorUnreachable,
    PermissionDenied,
    Unauthenticated,
)
from controller.limits import CLOCK_OFFSET_MAX, Limits

State: TypeAlias = Literal["online", "offline", "banned"]
Row = models.Hypervisor
_ROWS_MAX = 500  # domains in one statement


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """A hypervisor as it stands. `capabilities` is the JSON form of HypervisorCapabilities."""

    hypervisor_id: str
    name: str
    state: State
    agent_version: str
    last_contact_time: datetime | None
    create_time: datetime
    certificate_expire_time: datetime | None
    certificate_serial: str
    clock_offset: timedelta | None
    capabilities: dict[str, Any]
    scratch_free_bytes: int
    load: float


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as a hypervisor last reported it. `disks` are JSON forms of Disk; `server_id` is "" where none is registered."""

    domain_uuid: str
    name: str
    state: str
    guest_agent: str
    disks: tuple[dict[str, Any], ...]
    server_id: str = ""


# ---- looking ------------------------------------------------------------------------------------------------------------


def find(reference: str, limits: Limits, now: datetime) -> Hypervisor:
    """Return the hypervisor with this id or name. Raises HypervisorNotFound."""
    row = find_row(Row.hypervisor_id, reference) or find_row(Row.name, reference)
    if row is None or not reference:
        raise HypervisorNotFound(hypervisor_id=reference)
    return _hypervisor(row, limits, now)


def list_hypervisors(
    limits: Limits, now: datetime, *, after: tuple[str] | None = None, limit: int = 101
) -> list[Hypervisor]:
    """Return hypervisors by name, those after the name in `after`."""
    query = Row.select() if after is None else Row.select().where(Row.name > after[0])
    return [_hypervisor(row, limits, now) for row in query.order_by(Row.name).limit(limit)]


def id_of(reference: str) -> str:
    """Return the id of a hypervisor that is given by id or name. Raises HypervisorNotFound."""
    row = find_row(Row.hypervisor_id, reference) or find_row(Row.name, reference)
    if row is None or not reference:
        raise HypervisorNotFound(hypervisor_id=reference)
    return str(row.hypervisor_id)


def online(limits: Limits, now: datetime) -> frozenset[str]:
    """Return the ids of all hypervisors that are online."""
    rows: Any = Row.select(Row.hypervisor_id, Row.last_contact_time).where(Row.banned == False).tuples()  # noqa: E712 - SQL
    return frozenset(one for one, last in rows if is_online(last, limits, now))


def is_online(last_contact_time: datetime | None, limits: Limits, now: datetime) -> bool:
    """Tell whether a hypervisor that was heard last at that time counts as online.

    Who counted as online when this controller began to listen has the time of a silence to come back: the silence was ours.
    """
    if last_contact_time is None:
        return False
    since = limits.listening_since
    heard = last_contact_time
    if since is not None and heard < since <= heard + limits.silence_max:
        heard = since
    return now - heard <= limits.silence_max


def list_domains(hypervisor_id: str, *, after: tuple[str, str] | None = None, limit: int = 101) -> list[Domain]:
    """Return a hypervisor's domains by (name, domain_uuid), with the servers registered for them."""
    domain, server = models.Domain, models.Server
    query = domain.select().where(domain.hypervisor_id == hypervisor_id)
    if after:
        name, domain_uuid = after
        query = query.where((domain.name > name) | ((domain.name == name) & (domain.domain_uuid > domain_uuid)))
    rows = list(query.order_by(domain.name, domain.domain_uuid).limit(limit))
    servers = {
        row.domain_uuid: row.server_id
        for row in server.select().where(
            (server.hypervisor_id == hypervisor_id)
            & server.delete_time.is_null()
            & server.domain_uuid.in_([one.domain_uuid for one in rows])
        )
    }
    return [_domain(row, servers.get(row.domain_uuid, "")) for row in rows]


def find_domain(hypervisor_id: str, *, domain_uuid: str = "", name: str = "") -> Domain | None:
    """Return the domain with this UUID, or the one with this name, as last reported."""
    domain = models.Domain
    which = (domain.domain_uuid == domain_uuid) if domain_uuid else (domain.name == name)
    row = domain.get_or_none((domain.hypervisor_id == hypervisor_id) & which)
    return None if row is None else _domain(row, "")


def find_domains(wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Domain]:
    """Return domains by (hypervisor_id, domain_uuid), those of the wanted ones that are reported."""
    found: dict[tuple[str, str], Domain] = {}
    for row in find_rows(models.Domain.domain_uuid, sorted({domain_uuid for _, domain_uuid in wanted})):
        if (row.hypervisor_id, row.domain_uuid) in wanted:
            found[row.hypervisor_id, row.domain_uuid] = _domain(row, "")
    return found


def inventory_time(hypervisor_id: str) -> datetime | None:
    """Return when the domains were reported, None when they never were."""
    row = find_row(Row.hypervisor_id, hypervisor_id)
    return None if row is None else row.inventory_time


# ---- rules --------------------------------------------------------------------------------------------------------------


def check_ready(hypervisor: Hypervisor) -> None:
    """Raise HypervisorBanned or HypervisorUnreachable unless the hypervisor can take up work now (X16)."""
    if hypervisor.state == "banned":
        raise HypervisorBanned(hypervisor_id=hypervisor.hypervisor_id)
    if hypervisor.state == "offline":
        last = hypervisor.last_contact_time
        raise HypervisorUnreachable(
            hypervisor_id=hypervisor.hypervisor_id, last_contact_time=last.isoformat() if last else "never"
        )


def check_clock(hypervisor: Hypervisor) -> None:
    """Raise ClockSkew when backups and deletes would carry wrong times (N14)."""
    offset = hypervisor.clock_offset
    if offset is not None and abs(offset) > CLOCK_OFFSET_MAX:
        raise ClockSkew(hypervisor_id=hypervisor.hypervisor_id, offset_seconds=round(offset.total_seconds()))


def check_certificate(hypervisor_id: str, serial: str) -> None:
    """Refuse a client certificate that does not speak for this hypervisor now.

    Raises PermissionDenied for a banned hypervisor, Unauthenticated for one that is unknown or whose certificate was replaced.
    """
    row = find_row(Row.hypervisor_id, hypervisor_id)
    if row is None:
        raise Unauthenticated(problem="the certificate is of no hypervisor of this installation")
    if row.banned:
        raise PermissionDenied(problem=f"hypervisor {hypervisor_id} is banned")
    if not serial or serial not in {row.certificate_serial, row.pending_serial}:
        raise Unauthenticated(problem="the certificate was replaced by a newer one")


# ---- changing -----------------------------------------------------------------------------------------------------------


def ban(hypervisor_id: str, now: datetime) -> None:
    """Refuse a hypervisor's certificate from now on. Raises HypervisorNotFound."""
    _set_banned(hypervisor_id, banned=True, now=now)


def unban(hypervisor_id: str, now: datetime) -> None:
    """Lift a ban. Raises HypervisorNotFound."""
    _set_banned(hypervisor_id, banned=False, now=now)


_HEARD = """
    UPDATE hypervisor SET last_contact_time = ?, clock_offset_microseconds = ?, load = ?, scratch_free_bytes = ?
    WHERE hypervisor_id = ?
"""


def heard(hypervisor_id: str, now: datetime, offset: timedelta | None, load: float, scratch_free_bytes: int) -> None:
    """Keep a sign of life."""
    statement(_HEARD, to_microseconds(now), _microseconds(offset), load, scratch_free_bytes, hypervisor_id)


def replace_domains(hypervisor_id: str, session_id: str, domains: Sequence[Domain], now: datetime) -> bool:
    """Keep a whole inventory in place of the last one. False when a newer session has taken over.

    One that says what the last one said is not written again: after a restart all agents send theirs at once.
    """
    changed = (
        Row.update(inventory_time=now)
        .where((Row.hypervisor_id == hypervisor_id) & (Row.session_id == session_id))
        .execute()
    )
    if changed != 1:
        return False
    domain = models.Domain
    rows = [
        {
            "hypervisor_id": hypervisor_id,
            "domain_uuid": one.domain_uuid,
            "name": one.name,
            "state": one.state,
            "guest_agent": one.guest_agent,
            "disks": list(one.disks),
        }
        for one in {one.domain_uuid: one for one in domains}.values()
    ]
    known = {row.domain_uuid: row.__data__ for row in find_where(domain, "hypervisor_id = ?", hypervisor_id)}
    if known == {row["domain_uuid"]: row for row in rows}:
        return True
    domain.delete().where(domain.hypervisor_id == hypervisor_id).execute()
    for start in range(0, len(rows), _ROWS_MAX):
        domain.insert_many(rows[start : start + _ROWS_MAX]).execute()
    return True


def set_domain_state(hypervisor_id: str, domain_uuid: str, state: str) -> None:
    """Keep what work on a domain has just made of it, until the next inventory says the same."""
    domain = models.Domain
    domain.update(state=state).where(
        (domain.hypervisor_id == hypervisor_id) & (domain.domain_uuid == domain_uuid)
    ).execute()


def _set_banned(hypervisor_id: str, *, banned: bool, now: datetime) -> None:
    changed = Row.update(banned=banned).where(Row.hypervisor_id == hypervisor_id).execute()
    if changed != 1:
        raise HypervisorNotFound(hypervisor_id=hypervisor_id)
    kind = "hypervisor.banned" if banned else "hypervisor.unbanned"
    happenings.record(kind, now, hypervisor_id=hypervisor_id)


def _microseconds(offset: timedelta | None) -> int | None:
    return None if offset is None else offset // timedelta(microseconds=1)


def _hypervisor(row: models.Hypervisor, limits: Limits, now: datetime) -> Hypervisor:
    last, offset = row.last_contact_time, row.clock_offset_microseconds
    return Hypervisor(
        hypervisor_id=row.hypervisor_id,
        name=row.name,
        state="banned" if row.banned else "online" if is_online(last, limits, now) else "offline",
        agent_version=row.agent_version,
        last_contact_time=last,
        create_time=row.create_time,
        certificate_expire_time=row.certificate_expire_time,
        certificate_serial=row.certificate_serial,
        clock_offset=None if offset is None else timedelta(microseconds=offset),
        capabilities=row.capabilities or {},
        scratch_free_bytes=row.scratch_free_bytes,
        load=row.load,
    )


def _domain(row: models.Domain, server_id: str) -> Domain:
    return Domain(row.domain_uuid, row.name, row.state, row.guest_agent, tuple(row.disks), server_id)
