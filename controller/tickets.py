"""Restore tickets: which were left on hypervisors, and taking them back before their time (M11).

    ticket job completed ──► ticket ──revoke──► outbox ──► agent: its file says no more than that ──► receipt ──► gone_time
                                └── its time is over: nothing to do, the agent removes it by itself

Also revoked: a storage's tickets when it gets other credentials or another place, or is deleted, a server's when it is deleted, and one
whose job was cancelled too late. All functions run inside Database.run. A controller that is set back to an earlier state
does not know what it revoked since; the tickets themselves do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from google.protobuf.json_format import ParseDict

from clients.gen.backupmanager.v1 import job_pb2
from controller import happenings, jobs
from controller.agents import outbox
from controller.db import models
from controller.db.statements import find_row
from controller.errors import TicketNotFound
from controller.jobs import LIVE, JobFilter
from controller.rules import tickets as rules

Reason: TypeAlias = Literal["requested", "storage_changed", "storage_deleted", "server_deleted", "cancelled"]
Row = models.Ticket
TICKETS_MAX = 10_000  # of one storage or server at once: they live for a week at most


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket that was left; `state` is that of the moment it was read at."""

    ticket_id: str
    state: rules.State
    backup_id: str
    server_id: str
    storage_id: str
    hypervisor_id: str
    path: str
    disks: tuple[str, ...]
    requester: str
    create_time: datetime
    expire_time: datetime
    revoke_time: datetime | None
    revoke_reason: str
    revoker: str
    gone_time: datetime | None


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which tickets; ids, "" for all. `ended`: also those that cannot be used any more."""

    server_id: str = ""
    storage_id: str = ""
    hypervisor_id: str = ""
    ended: bool = False


def get(ticket_id: str, now: datetime) -> Ticket:
    """Return a ticket. Raises TicketNotFound."""
    row = find_row(Row.ticket_id, ticket_id)
    if row is None:
        raise TicketNotFound(ticket_id=ticket_id)
    return _ticket(row, now)


def list_tickets(
    wanted: TicketFilter, now: datetime, *, after: tuple[str] | None = None, limit: int = 101
) -> list[Ticket]:
    """Return tickets, newest first, those after the id in `after`."""
    query = Row.select()
    for column, value in (
        (Row.server_id, wanted.server_id),
        (Row.storage_id, wanted.storage_id),
        (Row.hypervisor_id, wanted.hypervisor_id),
    ):
        if value:
            query = query.where(column == value)
    if not wanted.ended:
        query = query.where((Row.expire_time > now) & Row.gone_time.is_null())
    if after:
        query = query.where(Row.ticket_id < after[0])
    return [_ticket(row, now) for row in query.order_by(Row.ticket_id.desc()).limit(limit)]


def left(job: jobs.Job, result: Mapping[str, Any], now: datetime) -> None:
    """Take in that a job has left its ticket; where somebody asked for the job's end meanwhile, it is revoked at once."""
    told = ParseDict(dict(result), job_pb2.TicketResult(), ignore_unknown_fields=True)
    latest = now + timedelta(seconds=job.spec["lifetime_seconds"])
    expire_time = told.expire_time.ToDatetime(tzinfo=now.tzinfo) if told.HasField("expire_time") else latest
    Row.insert(
        ticket_id=job.job_id,
        backup_id=job.backup_id,
        server_id=job.server_id,
        storage_id=job.storage_id,
        hypervisor_id=job.hypervisor_id,
        path=told.path,
        disks=list(told.disks),
        requester=job.requester,
        create_time=now,
        expire_time=expire_time,
    ).on_conflict_ignore().execute()
    if job.cancel_time is not None:
        _revoke(job.job_id, "cancelled", "", now)


def revoke(ticket_id: str, revoker: str, now: datetime) -> Ticket:
    """Revoke a ticket; one that is revoked or over stays as it is. Raises TicketNotFound."""
    if get(ticket_id, now).state == "active":
        _revoke(ticket_id, "requested", revoker, now)
    return get(ticket_id, now)


def revoke_all(reason: Reason, now: datetime, *, storage_id: str = "", server_id: str = "") -> int:
    """Revoke all tickets of a storage or of a server, and end the jobs that would leave further ones; return how many there were."""
    found = list_tickets(TicketFilter(server_id, storage_id), now, limit=TICKETS_MAX)
    active = [one for one in found if one.state == "active"]
    for one in active:
        _revoke(one.ticket_id, reason, "", now)
    coming = JobFilter(server_id=server_id, storage_id=storage_id, types=("ticket",), states=LIVE)
    for job in jobs.list_jobs(coming, limit=TICKETS_MAX):
        jobs.request_cancel(job, "CANCELLED", now)
    return len(active)


def confirm(hypervisor_id: str, command_id: str, now: datetime) -> None:
    """Take in that nothing can be restored any more with the ticket that a command revokes."""
    command = find_row(models.OutboxCommand.command_id, command_id)
    if command is not None and command.hypervisor_id == hypervisor_id and command.kind == "revoke_ticket":
        Row.update(gone_time=now).where(
            (Row.ticket_id == command.job_id) & Row.revoke_time.is_null(False) & Row.gone_time.is_null()
        ).execute()


def _revoke(ticket_id: str, reason: Reason, revoker: str, now: datetime) -> None:
    Row.update(revoke_time=now, revoke_reason=reason, revoker=revoker).where(Row.ticket_id == ticket_id).execute()
    job = jobs.get(ticket_id)
    outbox.put(job.hypervisor_id, "revoke_ticket", job.stamp, now)
    happenings.record(
        "ticket.revoked",
        now,
        job_id=ticket_id,
        server_id=job.server_id,
        storage_id=job.storage_id,
        hypervisor_id=job.hypervisor_id,
        body={"reason": reason},
    )


def _ticket(row: models.Ticket, now: datetime) -> Ticket:
    values = {name: getattr(row, name) for name in Ticket.__dataclass_fields__ if name != "state"}
    values["disks"] = tuple(row.disks)
    return Ticket(**values, state=rules.state_of(row.expire_time, row.revoke_time, row.gone_time, now))


def remove_before(before: datetime, limit: int) -> int:
    """Forget tickets that were over before a time, at most `limit`; return how many."""
    old = Row.select(Row.ticket_id).where(Row.expire_time < before).limit(limit)
    ids = [row.ticket_id for row in old]
    return int(Row.delete().where(Row.ticket_id.in_(ids)).execute()) if ids else 0
