"""Restore tickets taken back before their time: by a person, with a storage's way in, with storage and server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import (
    event_pb2,
    event_service_pb2,
    job_pb2,
    job_service_pb2,
    server_service_pb2,
    storage_pb2,
    storage_service_pb2,
    ticket_pb2,
    ticket_service_pb2,
)
from tests.controller.services.api import refused, ssh_key
from tests.controller.services.test_backups import NOBODY, House, house
from tests.controller.services.test_tickets import ask
from tests.waiting import wait_until_async

__all__ = ["house"]  # a fixture
pytestmark = pytest.mark.feature("M11")
ACTIVE, REVOKING, REVOKED, EXPIRED = (
    ticket_pb2.RESTORE_TICKET_STATE_ACTIVE,
    ticket_pb2.RESTORE_TICKET_STATE_REVOKING,
    ticket_pb2.RESTORE_TICKET_STATE_REVOKED,
    ticket_pb2.RESTORE_TICKET_STATE_EXPIRED,
)


async def order(house: House, **fields: Any) -> command_pb2.Command:
    """Have a ticket begun; return the command of its job, which the hypervisor has accepted."""
    backup = await house.back_up()
    await ask(house, backup.backup_id, **fields)
    command = await house.session.command()
    await house.session.accept(command)
    return command


async def leave(house: House, lifetime: timedelta = timedelta(hours=1)) -> str:
    """Have a ticket left, in the hypervisor's words, and return its id."""
    command = await order(house)
    await finish(house, command, lifetime)
    return command.job_id


async def finish(house: House, command: command_pb2.Command, lifetime: timedelta = timedelta(hours=1)) -> None:
    end = Timestamp()
    end.FromDatetime(datetime.now(UTC) + lifetime)
    left = job_pb2.TicketResult(path="/t.json", expire_time=end, command="bm-engine restore", disks=["vda"])
    await house.session.finish(command, job_pb2.JOB_STATE_COMPLETED, result=job_pb2.JobResult(ticket=left))


async def tickets(house: House, **fields: Any) -> list[ticket_pb2.RestoreTicket]:
    return list((await house.api.tickets.ListTickets(ticket_service_pb2.ListTicketsRequest(**fields))).tickets)


async def revoke(house: House, ticket_id: str) -> ticket_pb2.RestoreTicket:
    return (await house.api.tickets.RevokeTicket(ticket_service_pb2.RevokeTicketRequest(ticket_id=ticket_id))).ticket


async def state_comes_to(house: House, ticket_id: str, state: int) -> ticket_pb2.RestoreTicket:
    async def there() -> bool:
        return (await find(house, ticket_id)).state == state

    await wait_until_async(there, 10, "the ticket's state")
    return await find(house, ticket_id)


async def find(house: House, ticket_id: str) -> ticket_pb2.RestoreTicket:
    (found,) = [one for one in await tickets(house, include_ended=True) if one.ticket_id == ticket_id]
    return found


async def test_a_ticket_is_listed_revoked_and_gone_once_its_hypervisor_says_so(house: House) -> None:
    ticket_id = await leave(house)
    (before,) = await tickets(house, server_id=house.server.name, storage_id=house.storage.name)
    assert (before.ticket_id, before.state, before.path, list(before.disks)) == (ticket_id, ACTIVE, "/t.json", ["vda"])
    assert (before.requester, before.hypervisor_id) == ("admin", house.station.hypervisor_id)
    assert not await tickets(house, server_id=(await house.api.make_server(house.station.name)).name)

    revoking = await revoke(house, ticket_id)
    assert (revoking.state, revoking.revoker) == (REVOKING, "admin")
    assert revoking.revoke_reason == ticket_pb2.RESTORE_TICKET_REVOKE_REASON_REQUESTED
    command = (await house.session.next("command")).command
    assert (command.WhichOneof("body"), command.job_id) == ("revoke_ticket", ticket_id)
    assert (await revoke(house, ticket_id)).revoke_time == revoking.revoke_time

    receipt = command_pb2.CommandReceipt(command_id=command.command_id, ticket_gone=True)
    await house.session.say(command_receipt=receipt)
    gone = await state_comes_to(house, ticket_id, REVOKED)
    assert gone.gone_time.ToDatetime() >= gone.revoke_time.ToDatetime()
    assert ticket_id not in {one.ticket_id for one in await tickets(house)}
    polled = await house.api.events.PollEvents(
        event_service_pb2.PollEventsRequest(filter=event_pb2.EventFilter(kinds=["ticket."]), cursor=0)
    )
    assert ticket_id in {one.job_id for one in polled.events}
    assert await refused(revoke(house, NOBODY)) == "TICKET_NOT_FOUND"


async def test_a_hypervisor_that_is_away_is_told_when_it_comes_back(house: House) -> None:
    ticket_id = await leave(house)
    await house.session.close()
    assert (await revoke(house, ticket_id)).state == REVOKING
    async with house.station.session() as session:
        command = await session.command()
        assert (command.WhichOneof("body"), command.job_id) == ("revoke_ticket", ticket_id)
        await state_comes_to(house, ticket_id, REVOKED)


async def test_an_agent_that_does_not_know_the_word_leaves_the_ticket_revoking(house: House) -> None:
    ticket_id = await leave(house)
    await revoke(house, ticket_id)
    command = (await house.session.next("command")).command
    await house.session.say(command_receipt=command_pb2.CommandReceipt(command_id=command.command_id))
    other = await leave(house)  # the receipt was read before what came after it
    assert (await find(house, ticket_id)).state == REVOKING
    assert (await find(house, other)).state == ACTIVE


async def test_a_ticket_that_is_over_is_not_revoked(house: House) -> None:
    ticket_id = await leave(house, lifetime=timedelta(seconds=-1))
    assert (await revoke(house, ticket_id)).state == EXPIRED
    assert ticket_id not in {one.ticket_id for one in await tickets(house)}


async def test_another_way_into_the_storage_revokes_its_tickets_and_another_name_does_not(house: House) -> None:
    update = storage_service_pb2.UpdateStorageRequest
    house.storage = await make_sftp(house)
    ticket_id = await leave(house)
    renamed = storage_pb2.Storage(storage_id=house.storage.storage_id, name=f"{house.storage.name}-too")
    asked = update(storage=renamed, update_mask=FieldMask(paths=["name"]))
    assert (await house.api.storages.UpdateStorage(asked)).revoked_ticket_count == 0

    secrets = storage_service_pb2.StorageSecrets(sftp_private_key=ssh_key())
    asked = update(storage=storage_pb2.Storage(storage_id=house.storage.storage_id), secrets=secrets)
    assert (await house.api.storages.UpdateStorage(asked)).revoked_ticket_count == 1

    command = await house.session.command()
    assert command.WhichOneof("body") == "revoke_ticket"
    found = await state_comes_to(house, ticket_id, REVOKED)
    assert found.revoke_reason == ticket_pb2.RESTORE_TICKET_REVOKE_REASON_STORAGE_CHANGED
    assert not found.revoker


async def make_sftp(house: House) -> storage_pb2.Storage:
    config = storage_pb2.SftpConfig(host="nas.example", username="bm", path="/vault")
    request = storage_service_pb2.CreateStorageRequest(
        name=f"{house.storage.name}-sftp", sftp=config,
        secrets=storage_service_pb2.StorageSecrets(sftp_private_key=ssh_key()),
    )  # fmt: skip
    return (await house.api.storages.CreateStorage(request)).storage


async def test_a_deleted_server_leaves_no_ticket_and_one_on_its_way_comes_too_late(house: House) -> None:
    ticket_id = await leave(house)
    coming = await order(house)
    deleted = server_service_pb2.DeleteServerRequest(server_id=house.server.server_id)
    await house.api.servers.DeleteServer(deleted)

    bodies = {(one.job_id, one.WhichOneof("body")) for one in [await house.session.command() for _ in range(2)]}
    assert bodies == {(ticket_id, "revoke_ticket"), (coming.job_id, "cancel")}
    await finish(house, coming)  # the cancel came too late: it was left, and is taken back
    late = await house.session.command()
    assert (late.job_id, late.WhichOneof("body")) == (coming.job_id, "revoke_ticket")
    found = await state_comes_to(house, coming.job_id, REVOKED)
    assert found.revoke_reason == ticket_pb2.RESTORE_TICKET_REVOKE_REASON_CANCELLED


async def test_what_a_job_that_failed_may_have_left_is_taken_back_too(house: House) -> None:
    command = await order(house)
    await house.api.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=command.job_id))
    assert (await house.session.command()).WhichOneof("body") == "cancel"
    await house.session.finish(command, job_pb2.JOB_STATE_CANCELLED)
    late = await house.session.command()
    assert (late.job_id, late.WhichOneof("body")) == (command.job_id, "revoke_ticket")
    assert command.job_id not in {one.ticket_id for one in await tickets(house, include_ended=True)}
    assert await refused(revoke(house, command.job_id)) == "TICKET_NOT_FOUND"
