"""Garbage into every method: a typed refusal that changes no row, or an answer, never a fault of ours.

Requests are made from the descriptors, so that a new field is fuzzed from the day it is there: each field gets NULs, huge
text, other ids, negative and largest numbers, values that an enum does not have, instants that no calendar knows. Ids are often those
of something that is there, so that a request comes as far as where something would be written. The controller's clock does nothing.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from clients.errors import CallRefused, refusal
from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2, session_service_pb2
from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    access_token_pb2,
    access_token_service_pb2,
    backup_pb2,
    backup_service_pb2,
    disk_pb2,
    errors_pb2,
    job_pb2,
    package_service_pb2,
    purge_service_pb2,
    schedule_service_pb2,
    server_service_pb2,
    storage_service_pb2,
    webhook_service_pb2,
)
from tests.controller.services.api import Api, fresh
from tests.controller.services.conftest import check_log
from tests.controller.services.rows import Rows
from tests.controller.services.rpc import METHODS, Outcome, call
from tests.servers.controller import Controller
from tests.servers.station import Session, Station, domain

KNOWN = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {"INTERNAL"}
STATUSES_WITHOUT_A_REASON = {"RESOURCE_EXHAUSTED"}  # gRPC itself: the message is too large
CLIENTS_OWN = "the client's own"
TEXTS = (
    "", "a\0b", "x" * 70_000, "ä" * 3000, "../../etc/passwd", "'; DROP TABLE job; --", "\u202e\ud7ff", "a\nb", "%s%n", " ",
    "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee", "-1", "\x7f",
)  # fmt: skip
NUMBERS = (0, 1, -1, 1001, 2**31 - 1, -(2**31))
BIG_NUMBERS = (*NUMBERS, 2**63 - 1, -(2**63))
ROUNDS = 25
IDS_SHARE = 0.7  # of a request's ids that name something that is there
_LAST = ("Ban", "Delete", "Purge", "Revoke")  # what is gone by an answered call is not there for the methods after it
UNARY = sorted(
    (name for name, method in METHODS.items() if not method.client_streaming),
    key=lambda name: (any(word in name.rpartition("/")[2] for word in _LAST), name),
)


Known = Mapping[str, Sequence[str]]
NOTHING: Known = {}


def value(field: FieldDescriptor, luck: random.Random, depth: int, known: Known) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        own = known.get(field.name) or known.get(field.name.removesuffix("s"))
        return luck.choice(own) if own and luck.random() < IDS_SHARE else luck.choice(TEXTS)
    if kind == FieldDescriptor.TYPE_BYTES:
        return luck.randbytes(luck.choice((0, 3, 5000)))
    if kind == FieldDescriptor.TYPE_BOOL:
        return luck.random() < 0.5
    if kind == FieldDescriptor.TYPE_ENUM:
        return luck.choice((0, 1, 2, 99, -1, 2**31 - 1))
    if kind in {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32}:
        return luck.choice(NUMBERS)
    if kind in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        return luck.choice((0.0, -1.0, float("nan"), float("inf")))
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return message(field.message_type, luck, depth + 1, known)
    return luck.choice(BIG_NUMBERS)


def message(kind: Descriptor | None, luck: random.Random, depth: int = 0, known: Known = NOTHING) -> Message:
    """Return a message with about half of its fields set, to anything but what makes sense."""
    assert kind is not None
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if luck.random() < 0.4 or depth > 4:
            continue
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                continue
            values = [value(field, luck, depth, known) for _ in range(luck.choice((1, 3)))]
            getattr(made, field.name).extend(values)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(value(field, luck, depth, known))
        else:
            setattr(made, field.name, value(field, luck, depth, known))
    return made


def requests(path: str, known: Known = NOTHING) -> Iterator[bytes]:
    """Yield messages of the method's type with wild values, and bytes that are no message."""
    luck = random.Random(path)  # the same in each run: what fails can be looked at again
    for _ in range(ROUNDS):
        yield message(METHODS[path].input_type, luck, 0, known).SerializeToString(deterministic=True)
    yield from (b"", b"\xff\xff", b"\x0a\x02\xff\xfe", luck.randbytes(50), luck.randbytes(2000))


def is_typed(outcome: Outcome) -> bool:
    return outcome.status == "OK" or outcome.reason in KNOWN or outcome.status in STATUSES_WITHOUT_A_REASON


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """One whose clock does nothing by itself, and whose hypervisors are patient: what changes is a call's doing."""
    folder = tmp_path_factory.mktemp("controller") / "c"
    with Controller(folder, tick_seconds=3600, heartbeat_seconds=300) as running:
        yield running
    check_log(running.log, running.admin_token)


@pytest.fixture(scope="module")
def known(controller: Controller) -> Known:
    """Make one of everything; return the ids by the names that fields have for them."""

    async def make() -> Known:
        station = await Station.enroll(controller, fresh("host"))
        async with controller.channel() as channel, station.session() as session:
            return await furnish(Api(channel), station, session)

    return asyncio.run(make())


async def furnish(api: Api, station: Station, session: Session) -> Known:
    one = domain(fresh("vm"), "vda")
    await session.report([one])
    server = await api.make_server(station.name, domain_uuid=one.domain_uuid)
    deleted = await api.make_server(station.name)
    storage, spare = await api.make_storage(), await api.make_storage()
    level = access_level_pb2.ACCESS_LEVEL_FULL_ACCESS
    schedule = schedule_service_pb2.CreateScheduleRequest(
        hypervisor_id=station.name, storage_id=storage.name, default_access=level
    )
    package = package_service_pb2.CreatePackageRequest(name=fresh("package"), default_level=level)
    webhook = webhook_service_pb2.CreateWebhookRequest(
        name=fresh("hook"), url="https://panel.example/", secret="a secret of many letters", disabled=True
    )
    token = access_token_service_pb2.CreateAccessTokenRequest(
        name=fresh("token"), scope=access_token_pb2.ACCESS_SCOPE_VIEWER
    )
    started = await api.backups.StartBackup(
        backup_service_pb2.StartBackupRequest(server_id=server.server_id, storage_id=storage.storage_id)
    )
    command = await session.command()
    await session.accept(command)
    await session.finish(command, job_pb2.JOB_STATE_COMPLETED, record=record_of(command))
    await api.servers.DeleteServer(server_service_pb2.DeleteServerRequest(server_id=deleted.server_id))
    purges = (await api.purges.ListPurges(purge_service_pb2.ListPurgesRequest(server_id=deleted.server_id))).purges
    etag = (await api.storages.GetStorage(storage_service_pb2.GetStorageRequest(storage_id=spare.name))).storage.etag
    return {
        "server_id": [server.server_id, server.server_id, deleted.server_id],
        "storage_id": [storage.storage_id, storage.storage_id, spare.storage_id],
        "schedule_id": [(await api.schedules.CreateSchedule(schedule)).schedule.schedule_id],
        "hypervisor_id": [station.hypervisor_id],
        "package_id": [(await api.packages.CreatePackage(package)).package.package_id],
        "webhook_id": [(await api.webhooks.CreateWebhook(webhook)).webhook.webhook_id],
        "access_token_id": [(await api.tokens.CreateAccessToken(token)).access_token.access_token_id],
        "purge_id": [one.purge_id for one in purges],
        "job_id": [started.job_id],
        "backup_id": [command.run.backup.backup_id],
        "disk": ["vda"],
        "etag": [etag, ""],
        "paths": ["name", "enabled", "retention", "keep_last", "overrides.keep_last", "hypervisor_id", "secrets"],
    }


def record_of(command: command_pb2.Command) -> event_pb2.BackupRecord:
    work, backup = command.run.backup, backup_pb2.Backup()
    backup.backup_id, backup.server_id, backup.job_id = work.backup_id, work.server_id, command.job_id
    backup.create_time.CopyFrom(work.create_time)
    backup.disks.add(disk="vda", chain_id=work.backup_id, type=disk_pb2.BACKUP_TYPE_FULL, stored_bytes=1)
    return event_pb2.BackupRecord(backup=backup, needed_backup_ids=[work.backup_id], manifest_digest="d" * 64)


@pytest.mark.feature("N8")
@pytest.mark.parametrize("path", [name for name in UNARY if "agent.v1.SessionService" not in name])
async def test_garbage_is_refused_with_a_reason_and_changes_nothing(
    controller: Controller, path: str, known: Known
) -> None:
    async with controller.channel() as channel:
        with Rows(controller.state) as rows:
            for data in requests(path, known):
                before = rows.digests()
                outcome = await call(channel, path, data)
                assert is_typed(outcome), (outcome, data[:500])
                if outcome.status != "OK":
                    assert not rows.changed(before), (outcome, rows.changed(before), data[:500])


@pytest.mark.feature("N8")
async def test_garbage_of_an_agent_is_refused_with_a_reason(controller: Controller) -> None:
    station = await Station.enroll(controller, "fuzzed")
    for path in sorted(set(METHODS)):
        if "agent.v1.SessionService" in path:
            async with controller.agents_channel(station.key, station.chain) as channel:
                for data in requests(path):
                    outcome = await call(channel, path, data)
                    assert is_typed(outcome), (path, outcome, data[:500])


def _reason(told: CallRefused) -> str:
    """Return the reason of a refusal. grpc.aio makes an INTERNAL of its own for who is still writing when it is refused."""
    return CLIENTS_OWN if told.reason == "INTERNAL" and "error_id" not in told.facts else told.reason


@pytest.mark.feature("N8", "N16")
async def test_garbage_in_the_middle_of_a_session_is_refused_or_passed_over(controller: Controller) -> None:
    """An agent that has said hello and then goes mad ends its own session at worst, and never the controller's peace."""
    station = await Station.enroll(controller, "mad")
    luck = random.Random("session")
    ends = set()
    for _ in range(40):
        async with station.session() as session:
            for _ in range(5):
                said = message(session_service_pb2.SessionRequest.DESCRIPTOR, luck)
                if not await session.dare(cast("Any", said)):
                    break
            await session.half_close()
            end = await session.ended()
        ends.add("OK" if end is None else _reason(refusal(cast("Any", end))))
    assert ends <= KNOWN | {"OK", CLIENTS_OWN}, ends
    assert ends & KNOWN
    async with station.session() as session:
        await session.heartbeat()


async def test_the_garbage_is_really_garbage(controller: Controller) -> None:
    """Were most of it accepted, or all refused for one and the same reason, the tests above would prove little."""
    outcomes = []
    async with controller.channel() as channel:
        for path in UNARY:
            if "agent.v1.SessionService" not in path:
                outcomes += [await call(channel, path, data) for data in list(requests(path))[:8]]
    reasons = {outcome.reason for outcome in outcomes}
    assert {"INVALID_FIELD"} < reasons
    assert sum(outcome.status == "OK" for outcome in outcomes) < len(outcomes) / 2
