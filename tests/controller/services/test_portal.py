"""The end users' service over the wire: who may what, and that nothing of the inside ever shows."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from grpc import aio

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    access_token_service_pb2,
    failure_pb2,
    job_pb2,
    portal_pb2,
    portal_service_pb2,
    portal_service_pb2_grpc,
    schedule_service_pb2,
    server_service_pb2,
    settings_pb2,
    settings_service_pb2,
)
from tests.controller.services.api import Api, field_refused, fresh, refusal, refused
from tests.controller.services.test_backups import House
from tests.servers.controller import Controller
from tests.servers.station import Station, domain

messages = portal_service_pb2
ALL = portal_service_pb2.DESCRIPTOR.services_by_name["PortalService"].methods
NOBODY = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


@dataclass
class Portal:
    """What a token reaches; everything that it is told is kept in `told`."""

    stub: portal_service_pb2_grpc.PortalServiceStub
    channel: aio.Channel
    told: list[str] = field(default_factory=list)
    called: set[str] = field(default_factory=set)

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Call a method by the end of its name."""
        descriptor = next(one for one in ALL if one.name == method)
        self.called.add(method)
        request = getattr(messages, descriptor.input_type.name)(**fields)
        try:
            answer = getattr(self.stub, method)(request)
            if descriptor.server_streaming:
                replies = [self._kept(one) async for one in answer]
                return replies[-1]
            return self._kept(await answer)
        except aio.AioRpcError as error:
            trailers = error.trailing_metadata() or ()
            self.told.append(f"{error.details()} {[(key, str(value)) for key, value in trailers]}")
            raise

    def _kept(self, message: Message) -> Message:
        self.told.append(f"{message!s} {message.SerializeToString()!r}")
        return message


@dataclass
class Home(House):
    """A house whose server is a customer's, and a token for them."""

    portal: Portal

    async def level(self, level: access_level_pb2.AccessLevel.ValueType) -> None:
        request = server_service_pb2.SetServerAccessRequest(server_id=self.server.server_id, level=level)
        await self.api.servers.SetServerAccess(request)

    async def do_backup(self, state: job_pb2.JobState.ValueType, **fields: Any) -> str:
        """Let the user start a backup, and the hypervisor end it; return the operation."""
        started = await self.portal("StartPortalBackup", server_id=self.server.server_id)
        command = await self.session.command()
        await self.session.accept(command)
        if state == job_pb2.JOB_STATE_COMPLETED:
            fields["record"] = self.record(command, "")
        await self.session.finish(command, state, **fields)
        await self.api.ended(started.operation.operation_id)
        return str(started.operation.operation_id)

    async def own(self) -> portal_pb2.PortalServer:
        found: portal_pb2.PortalServer = (await self.portal("GetPortalServer", server_id=self.server.server_id)).server
        return found


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """One whose clock does nothing by itself: no batch, no health check gets between a user and their server."""
    with Controller(tmp_path_factory.mktemp("controller") / "c", tick_seconds=3600) as running:
        yield running


@pytest.fixture
async def home(api: Api, controller: Controller) -> AsyncIterator[Home]:
    async with _home(api, controller) as ready:
        yield ready


@asynccontextmanager
async def _home(api: Api, controller: Controller) -> AsyncIterator[Home]:
    station = await Station.enroll(controller, fresh("secrethost"))
    one = domain(fresh("vm"), "vda", "vdb")
    async with station.session() as session:
        await session.report([one])
        server = await api.make_server(station.name, domain_uuid=one.domain_uuid, name=fresh("shop"), owner="alice")
        storage = await api.make_storage(fresh("secretstorage"))
        await api.schedules.CreateSchedule(
            schedule_service_pb2.CreateScheduleRequest(
                hypervisor_id=station.name,
                storage_id=storage.name,
                default_access=access_level_pb2.ACCESS_LEVEL_FULL_ACCESS,
            )
        )
        async with controller.channel(await mint(api, server.server_id)) as channel:
            portal = Portal(portal_service_pb2_grpc.PortalServiceStub(channel), channel)
            yield Home(api, station, session, server, storage, portal)


async def mint(api: Api, *server_ids: str, **fields: Any) -> str:
    request = access_token_service_pb2.CreatePortalTokenRequest(server_ids=server_ids, **fields)
    return (await api.tokens.CreatePortalToken(request)).secret


async def set_globally(api: Api, **values: Any) -> None:
    request = settings_service_pb2.UpdateSettingsRequest(
        settings=settings_pb2.Settings(**values), update_mask=FieldMask(paths=list(values))
    )
    await api.settings.UpdateSettings(request)


@pytest.mark.feature("U1", "U2", "U3", "U6")
async def test_a_user_sees_their_servers_drives_and_backups(home: Home) -> None:
    made = await home.back_up()
    (server,) = (await home.portal("ListPortalServers")).servers
    assert (server.server_id, server.name) == (home.server.server_id, home.server.name)
    assert server.last_backup_time == made.create_time
    assert server.HasField("next_backup_time")
    assert server.retention == "All backups are kept."
    assert (server.backup.allowed, server.restore.allowed) == (True, True)

    drives = (await home.portal("ListPortalDrives", server_id=server.server_id)).drives
    assert [(one.name, one.attached, one.backup_count) for one in drives] == [
        ("Drive A", True, 1),
        ("Drive B", True, 1),
    ]
    first = await home.portal("ListPortalDrives", server_id=server.server_id, page_size=1)
    rest = await home.portal("ListPortalDrives", server_id=server.server_id, page_token=first.next_page_token)
    assert [one.name for one in (*first.drives, *rest.drives)] == ["Drive A", "Drive B"]

    await home.back_up()
    page = await home.portal("ListPortalBackups", server_id=server.server_id, drive="Drive B", page_size=1)
    older = await home.portal(
        "ListPortalBackups", server_id=server.server_id, drive="Drive B", page_token=page.next_page_token
    )
    (point,) = older.backups
    assert (point.create_time, list(point.drives)) == (made.create_time, ["Drive A", "Drive B"])
    assert point.retention.text == "Currently Retained"
    no_drive = home.portal("ListPortalBackups", server_id=server.server_id, drive="Drive Z")
    assert await refused(no_drive) == "DRIVE_NOT_FOUND"


@pytest.mark.feature("A1", "U1", "U4", "U5")
async def test_levels_are_enforced_here_and_for_users_only(home: Home) -> None:
    await home.back_up()
    point = (await home.portal("ListPortalBackups", server_id=home.server.server_id)).backups[0].point_id
    asked = {"server_id": home.server.server_id}
    for level in (access_level_pb2.ACCESS_LEVEL_DISABLED, access_level_pb2.ACCESS_LEVEL_SCHEDULED_ONLY):
        await home.level(level)
        assert not (await home.portal("ListPortalServers")).servers
        for method in ("GetPortalServer", "ListPortalDrives", "ListPortalBackups", "StartPortalBackup"):
            assert await refused(home.portal(method, **asked)) == "ACCESS_LEVEL_DENIED", method
        assert await refused(home.portal("ListPortalOperations", **asked)) == "ACCESS_LEVEL_DENIED"
        assert await refused(home.portal("PreviewPortalRestore", point_id=point, **asked)) == "ACCESS_LEVEL_DENIED"
    await home.level(access_level_pb2.ACCESS_LEVEL_VIEW_AND_RESTORE)
    assert (await home.own()).backup.refusal == portal_pb2.PORTAL_REFUSAL_NOT_INCLUDED
    assert await refused(home.portal("StartPortalBackup", **asked)) == "ACCESS_LEVEL_DENIED"
    assert (await home.portal("PreviewPortalRestore", point_id=point, **asked)).drives == ["Drive A", "Drive B"]
    await home.back_up()  # an administrator is not bound
    await home.level(access_level_pb2.ACCESS_LEVEL_MANUAL_ONLY)
    assert not (await home.own()).HasField("next_backup_time")
    assert (await home.own()).backup.allowed


@pytest.mark.feature("U4", "G10", "G12")
async def test_only_a_success_of_the_user_starts_a_cooldown(home: Home) -> None:
    await home.back_up()
    assert (await home.own()).backup.allowed, "an administrator's backup starts none"
    await home.do_backup(job_pb2.JOB_STATE_FAILED, failure=failure_pb2.Failure(reason="STORAGE_FULL", message="full"))
    assert (await home.own()).backup.allowed
    await home.do_backup(job_pb2.JOB_STATE_COMPLETED)

    own = await home.own()
    assert own.backup.refusal == portal_pb2.PORTAL_REFUSAL_COOLDOWN
    left = own.backup.available_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(minutes=60)
    assert own.restore.allowed, "each kind has its own"
    found = await refusal(home.portal("StartPortalBackup", server_id=home.server.server_id))
    assert (found.reason, found.status) == ("COOLDOWN_ACTIVE", "FAILED_PRECONDITION")
    assert 3500 < int(found.facts["retry_seconds"]) <= 3600
    await home.back_up()  # an administrator is not bound
    await set_globally(home.api, backup_cooldown_minutes=0)
    try:
        assert (await home.own()).backup.allowed
    finally:
        await set_globally(home.api, backup_cooldown_minutes=60)


@pytest.mark.feature("G10", "G11")
async def test_the_switches_for_users(home: Home) -> None:
    await home.back_up()
    point = (await home.portal("ListPortalBackups", server_id=home.server.server_id)).backups[0].point_id
    await set_globally(home.api, manual_backups=False, manual_restores=False)
    try:
        own = await home.own()
        assert own.backup.refusal == own.restore.refusal == portal_pb2.PORTAL_REFUSAL_SWITCHED_OFF
        assert await refused(home.portal("StartPortalBackup", server_id=own.server_id)) == "SELF_SERVICE_OFF"
        preview = home.portal("PreviewPortalRestore", server_id=own.server_id, point_id=point)
        assert await refused(preview) == "SELF_SERVICE_OFF"
        await home.back_up()
    finally:
        await set_globally(home.api, manual_backups=True, manual_restores=True)


@pytest.mark.feature("U4", "N7")
async def test_a_request_said_twice_is_one_backup(home: Home) -> None:
    asked = {"server_id": home.server.server_id, "request_id": str(uuid.uuid4())}
    first = (await home.portal("StartPortalBackup", **asked)).operation
    assert (await home.portal("StartPortalBackup", **asked)).operation.operation_id == first.operation_id
    busy = await refusal(home.portal("StartPortalBackup", server_id=home.server.server_id))
    assert (busy.reason, busy.facts["refusal"]) == ("PORTAL_REFUSED", "busy")
    assert first.operation_id not in str(busy)
    (shown,) = (await home.portal("ListPortalServers")).servers
    assert shown.operation.operation_id == first.operation_id
    assert shown.backup.refusal == portal_pb2.PORTAL_REFUSAL_BUSY


@pytest.mark.feature("U5", "M15")
async def test_a_user_restores_what_they_saw(home: Home) -> None:
    await home.back_up()
    asked = {
        "server_id": home.server.server_id,
        "point_id": (await home.portal("ListPortalBackups", server_id=home.server.server_id)).backups[0].point_id,
        "drives": ["Drive B"],
    }
    preview = await home.portal("PreviewPortalRestore", **asked)
    assert (list(preview.drives), preview.stops_server) == (["Drive B"], True)
    other = {**asked, "drives": ["Drive A"]}
    stale = home.portal("StartPortalRestore", confirmation=preview.confirmation, **other)
    assert await refused(stale) == "CONFIRMATION_STALE"
    started = await home.portal("StartPortalRestore", confirmation=preview.confirmation, **asked)
    command = await home.session.command()
    assert list(command.run.restore.disks) == ["vdb"]
    await home.session.accept(command)
    await home.session.progress(command, 1, 4)
    await home.session.finish(command, job_pb2.JOB_STATE_COMPLETED)
    operation_id = started.operation.operation_id
    ended = (await home.portal("WatchPortalOperation", operation_id=operation_id)).operation
    assert (ended.state, ended.percent) == (portal_pb2.PORTAL_OPERATION_STATE_COMPLETED, 100)
    assert ended.type == portal_pb2.PORTAL_OPERATION_TYPE_RESTORE
    assert (await home.portal("PollPortalOperation", operation_id=operation_id)).operation == ended
    assert (await home.own()).restore.refusal == portal_pb2.PORTAL_REFUSAL_COOLDOWN


@pytest.mark.feature("N1", "N4", "U1")
async def test_another_s_servers_are_not_there(home: Home, controller: Controller) -> None:
    operation = await home.do_backup(job_pb2.JOB_STATE_COMPLETED)
    async with _home(home.api, controller) as other:
        asked = {"server_id": home.server.server_id}
        for method in ("GetPortalServer", "ListPortalDrives", "ListPortalBackups", "StartPortalBackup"):
            assert await refused(other.portal(method, **asked)) == "SERVER_NOT_FOUND"
        for method in ("GetPortalOperation", "WatchPortalOperation", "PollPortalOperation"):
            assert await refused(other.portal(method, operation_id=operation)) == "JOB_NOT_FOUND"
        own_point = (await home.portal("ListPortalBackups", **asked)).backups[0].point_id
        theirs = other.portal("PreviewPortalRestore", server_id=other.server.server_id, point_id=own_point)
        assert await refused(theirs) == "POINT_NOT_FOUND"
    admin = portal_service_pb2_grpc.PortalServiceStub(home.api.channel)
    assert await refused(admin.ListPortalServers(messages.ListPortalServersRequest())) == "PERMISSION_DENIED"
    assert await refused(Api(home.portal.channel).servers.ListServers(server_service_pb2.ListServersRequest())) == (
        "PERMISSION_DENIED"
    )


@pytest.mark.feature("N1", "N4")
async def test_a_new_owner_begins_anew_and_the_old_one_is_locked_out(home: Home, controller: Controller) -> None:
    operation = await home.do_backup(job_pb2.JOB_STATE_COMPLETED)
    request = server_service_pb2.SetServerOwnerRequest(server_id=home.server.server_id, owner="bob")
    await home.api.servers.SetServerOwner(request)

    assert await refused(home.own()) == "SERVER_NOT_FOUND"
    assert await refused(home.portal("GetPortalOperation", operation_id=operation)) == "JOB_NOT_FOUND"
    assert not (await home.portal("ListPortalServers")).servers
    async with controller.channel(await mint(home.api, home.server.server_id, owner="bob")) as channel:
        bob = Portal(portal_service_pb2_grpc.PortalServiceStub(channel), channel)
        asked = {"server_id": home.server.server_id}
        assert not (await bob("ListPortalBackups", **asked)).backups
        assert not (await bob("ListPortalOperations", **asked)).operations
        assert not (await bob("GetPortalServer", **asked)).server.HasField("last_backup_time")
        await home.back_up()
        assert len((await bob("ListPortalBackups", **asked)).backups) == 1


@pytest.mark.feature("N4")
async def test_a_portal_token_is_for_one_customer_s_servers(home: Home) -> None:
    other = await home.api.make_server(home.station.name, owner="bob")
    both = (home.server.server_id, other.server_id)
    assert await field_refused(mint(home.api, *both)) == "server_ids"
    assert await field_refused(mint(home.api, home.server.server_id, owner="bob")) == "server_ids"
    assert await field_refused(mint(home.api)) == "server_ids"
    assert await refused(mint(home.api, NOBODY)) == "SERVER_NOT_FOUND"
    assert await field_refused(mint(home.api, both[0], lifetime=timedelta(days=8))) == "lifetime"


def _fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for one in message.fields:
        yield one
        if one.message_type is not None:
            yield from _fields(one.message_type, seen)


@pytest.mark.feature("U6", "U7")
def test_no_answer_has_a_field_for_what_is_inside() -> None:
    hidden = (
        "chain",
        "storage",
        "hypervisor",
        "path",
        "host",
        "backup_id",
        "disk",
        "reason",
        "metadata",
        "step",
        "detail",
    )
    for method in ALL:
        for one in _fields(method.output_type, set()):
            assert one.containing_type is not None
            assert one.containing_type.file.name in {
                "backupmanager/v1/portal.proto",
                "backupmanager/v1/portal_service.proto",
                "google/protobuf/timestamp.proto",
                "google/protobuf/duration.proto",
            }, f"{method.name}: {one.full_name} is a message of the inside"
            assert not any(word in one.name for word in hidden), f"{method.name}: {one.full_name}"


@pytest.mark.feature("U6", "U7")
async def test_nothing_of_the_inside_shows_in_any_answer_or_refusal(home: Home) -> None:
    raw = "cannot open /srv/backups/secretpath on nas.secret.example: Permission denied"
    asked = {"server_id": home.server.server_id}
    made = await home.back_up()
    failure = failure_pb2.Failure(
        reason="STORAGE_PERMISSION_DENIED", message=raw, metadata={"step": raw}, step="commit"
    )
    failed = await home.do_backup(job_pb2.JOB_STATE_FAILED, failure=failure)
    await home.do_backup(job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS, warnings=[raw])
    operation = (await home.portal("GetPortalOperation", operation_id=failed)).operation
    assert (operation.failure, "support" in operation.message) == (portal_pb2.PORTAL_REFUSAL_CONTACT_SUPPORT, True)
    for method in (
        "ListPortalServers",
        "GetPortalServer",
        "ListPortalDrives",
        "ListPortalBackups",
        "ListPortalOperations",
    ):
        fields = {} if method == "ListPortalServers" else asked
        await home.portal(method, page_size=1, **fields) if method.startswith("List") else await home.portal(
            method, **fields
        )
    point = (await home.portal("ListPortalBackups", **asked)).backups[0].point_id
    preview = await home.portal("PreviewPortalRestore", point_id=point, **asked)
    await set_globally(home.api, backup_cooldown_minutes=0)
    try:
        await home.switch(enabled=False)  # a refusal that knows the storage, deep inside
        found = await refusal(home.portal("StartPortalBackup", **asked))
        assert (found.reason, found.facts["refusal"]) == ("PORTAL_REFUSED", "try_later")
    finally:
        await home.switch(enabled=True)
        await set_globally(home.api, backup_cooldown_minutes=60)
    started = await home.portal("StartPortalRestore", point_id=point, confirmation=preview.confirmation, **asked)
    command = await home.session.command()
    await home.session.accept(command)
    await home.session.finish(command, job_pb2.JOB_STATE_FAILED, failure=failure)
    for method in ("WatchPortalOperation", "PollPortalOperation"):
        await home.portal(method, operation_id=started.operation.operation_id)
    with pytest.raises(grpc.RpcError):
        await home.portal("PreviewPortalRestore", point_id=made.backup_id, **asked)

    assert home.portal.called == {method.name for method in ALL}, "each of them was asked"
    chains = {disk.chain_id for disk in made.disks}
    inside = {
        raw,
        "secretpath",
        "Permission denied",
        "STORAGE_",
        *chains,
        home.storage.storage_id,
        home.storage.name,
        home.storage.repository_id,
        home.station.name,
        home.station.hypervisor_id,
        home.server.domain_uuid,
        made.path,
        "vda",
        "frozen",
        "sha256",
    }
    told = "\n".join(home.portal.told[:-1])  # the last one repeats the id that it was asked for
    for secret in sorted(inside | {made.backup_id}):
        assert secret not in told, secret
