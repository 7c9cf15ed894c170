"""Restore tickets over the wire: to whom they go, what is sent, what is refused, and what stays in the database."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    audit_service_pb2,
    backup_service_pb2,
    job_pb2,
    server_service_pb2,
    storage_service_pb2,
)
from tests.controller.services.api import field_refused, fresh, refusal, refused
from tests.controller.services.test_backups import NOBODY, House, house
from tests.servers.controller import Controller
from tests.servers.station import Station

__all__ = ["house"]  # a fixture
PASSPHRASE = "correct horse battery staple"


async def ask(house: House, backup_id: str, **fields: Any) -> str:
    request = backup_service_pb2.CreateRestoreTicketRequest(backup_id=backup_id, **fields)
    return (await house.api.backups.CreateRestoreTicket(request)).job_id


@pytest.mark.feature("M11")
async def test_a_ticket_is_ordered_left_and_told(house: House) -> None:
    full = await house.back_up()
    last = await house.back_up(full.backup_id)
    request_id = str(uuid.uuid4())

    job_id = await ask(house, last.backup_id, disks=["vdb"], lifetime=Duration(seconds=3600), request_id=request_id)

    command = await house.session.command()
    work = command.run.ticket
    assert (work.server_id, work.backup_id, list(work.disks)) == (house.server.server_id, last.backup_id, ["vdb"])
    assert (work.manifest_digest, work.lifetime.seconds) == ("cd" * 32, 3600)
    assert await ask(
        house, last.backup_id, disks=["vdb"], lifetime=Duration(seconds=3600), request_id=request_id
    ) == job_id  # fmt: skip
    assert await refused(ask(house, last.backup_id, request_id=request_id)) == "REQUEST_ID_REUSED"
    await house.session.accept(command)
    end = Timestamp()
    end.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    left = job_pb2.TicketResult(path="/t.json", expire_time=end, command="bm-engine restore", disks=["vdb"])
    await house.session.finish(command, job_pb2.JOB_STATE_COMPLETED, result=job_pb2.JobResult(ticket=left))
    job = await house.api.ended(job_id)
    assert (job.type, job.backup_id, job.result.ticket) == (job_pb2.JOB_TYPE_TICKET, last.backup_id, left)
    entries = await house.api.audit.ListAuditEntries(audit_service_pb2.ListAuditEntriesRequest())
    audited = [(one.resource, one.made) for one in entries.entries if one.method.endswith("CreateRestoreTicket")]
    assert (last.backup_id, job_id) in audited


@pytest.mark.feature("M11", "S28")
async def test_the_keys_of_one_server_go_to_the_agent_and_nowhere_else(house: House) -> None:
    house.storage = await house.api.make_storage(
        encryption_enabled=True, secrets=storage_service_pb2.StorageSecrets(encryption_passphrase=PASSPHRASE)
    )
    backup = await house.back_up()

    job_id = await ask(house, backup.backup_id)

    command = await house.session.command()
    (key,) = command.run.ticket.server_keys
    assert len(key.key) == 32
    assert command.run.ticket.lifetime.seconds == 24 * 3600
    assert key.key.hex() not in str(await house.api.job(job_id))


@pytest.mark.feature("M11", "S21")
async def test_a_read_only_storage_gives_tickets_and_a_disabled_one_none(house: House) -> None:
    backup = await house.back_up()
    await house.switch(read_only=True)
    await ask(house, backup.backup_id)
    await house.session.command()
    await house.switch(enabled=False)
    assert await refused(ask(house, backup.backup_id)) == "STORAGE_DISABLED"


@pytest.mark.feature("M11")
async def test_a_local_folder_gives_tickets_only_where_it_is(house: House, controller: Controller) -> None:
    backup = await house.back_up()
    other = await Station.enroll(controller, fresh("hv"))
    async with other.session() as session:
        await session.report([])
        found = await refusal(ask(house, backup.backup_id, hypervisor_id=other.name))
        assert (found.reason, found.facts["field"]) == ("INVALID_FIELD", "hypervisor_id")
        assert "local folder" in found.facts["problem"]


@pytest.mark.feature("M11", "A7")
async def test_a_disabled_server_gives_a_ticket_only_to_who_knows(house: House) -> None:
    backup = await house.back_up()
    disabled = access_level_pb2.ACCESS_LEVEL_DISABLED
    request = server_service_pb2.SetServerAccessRequest(server_id=house.server.server_id, level=disabled)
    await house.api.servers.SetServerAccess(request)

    assert await refused(ask(house, backup.backup_id)) == "ACCESS_LEVEL_DENIED"
    await ask(house, backup.backup_id, override_access=True)
    assert (await house.session.command()).run.WhichOneof("verb") == "ticket"


@pytest.mark.feature("M11")
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"lifetime": Duration(seconds=299)}, "lifetime"),
        ({"lifetime": Duration(seconds=7 * 86_400 + 1)}, "lifetime"),
        ({"lifetime": Duration(seconds=-1)}, "lifetime"),
        ({"disks": ["v d a"]}, "disks"),
        ({"request_id": "x"}, "request_id"),
        ({"backup_id": "x"}, "backup_id"),
    ],
)
async def test_a_ticket_that_makes_no_sense_is_refused(house: House, fields: dict[str, Any], field: str) -> None:
    assert await field_refused(ask(house, **{"backup_id": NOBODY, **fields})) == field


@pytest.mark.feature("M11")
async def test_what_is_not_there_gives_no_ticket(house: House) -> None:
    assert await refused(ask(house, NOBODY)) == "BACKUP_NOT_FOUND"
    backup = await house.back_up()
    assert await refused(ask(house, backup.backup_id, disks=["vdx"])) == "DISK_NOT_FOUND"
    assert await refused(ask(house, backup.backup_id, hypervisor_id="nowhere")) == "HYPERVISOR_NOT_FOUND"
