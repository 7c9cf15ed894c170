"""Two listeners, each for its own callers: what answers where, to whom, and what a wrong caller reads."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from clients import connect
from clients.gen.backupmanager.v1 import hypervisor_service_pb2, storage_service_pb2, system_service_pb2
from controller.security.authority import Authority
from controller.serving import PUBLIC_SERVICES
from engine.ids import new_id
from tests.controller.services.api import Api, fresh, refused
from tests.controller.services.rpc import METHODS, call
from tests.servers.controller import Controller
from tests.servers.station import Station, key_and_request

ON_AGENTS_PORT = {name for name in METHODS if "SessionService" in name}


async def test_the_api_says_who_it_is(api: Api, controller: Controller) -> None:
    answer = await api.system.GetVersion(system_service_pb2.GetVersionRequest())
    assert answer.installation_id == controller.installation_id
    assert answer.version == "0.1.0"
    assert answer.protocol_version == 1
    can = await api.system.GetCapabilities(system_service_pb2.GetCapabilitiesRequest())
    assert {one.type: one.capabilities.bind_address for one in can.storage_types} == {
        **dict.fromkeys(("sftp", "s3", "ftp", "rclone"), True),
        "local": False,
    }


@pytest.mark.feature("N3")
@pytest.mark.parametrize("method", sorted(set(METHODS) - ON_AGENTS_PORT))
async def test_no_public_method_answers_on_the_agents_port(
    controller: Controller, station: Station, method: str
) -> None:
    async with controller.agents_channel(station.key, station.chain, controller.admin_token) as channel:
        outcome = await call(channel, method)
    assert outcome.reason == "PERMISSION_DENIED"


@pytest.mark.feature("N3")
@pytest.mark.parametrize("method", sorted(ON_AGENTS_PORT))
async def test_no_agents_method_answers_on_the_public_port(
    controller: Controller, station: Station, method: str
) -> None:
    async with controller.channel() as channel:
        outcome = await call(channel, method)
        assert outcome.reason == "UNAUTHENTICATED", outcome
    certificate = connect.ClientCertificate(station.key, station.chain)
    async with connect.channel(controller.api, controller.authority_pem, certificate=certificate) as channel:
        assert (await call(channel, method)).reason == "UNAUTHENTICATED", "a certificate is not asked for there"


@pytest.fixture
async def station(controller: Controller) -> Station:
    return await Station.enroll(controller, fresh("hv"))


@pytest.mark.feature("N3")
async def test_a_certificate_of_another_authority_does_not_get_in(controller: Controller, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    foreign = Authority.create(tmp_path / "foreign", (), now)
    key, request = key_and_request()
    made = foreign.sign_client(request, new_id(now), now)
    async with controller.agents_channel(key, made.certificate.encode()) as channel:
        outcome = await call(channel, "/backupmanager.agent.v1.SessionService/RenewCertificate")
    assert outcome.status == "UNAVAILABLE"
    async with connect.channel(controller.agents, controller.authority_pem) as channel:
        outcome = await call(channel, "/backupmanager.agent.v1.SessionService/RenewCertificate")
    assert outcome.status == "UNAVAILABLE", "and none at all does not either"


@pytest.mark.feature("N3", "N16")
async def test_a_certificate_of_ours_for_a_hypervisor_of_nobody_does_nothing(controller: Controller) -> None:
    now = datetime.now(UTC)
    ours = Authority.load(controller.state / "authority", (), now)
    key, request = key_and_request()
    made = ours.sign_client(request, new_id(now), now)
    async with controller.agents_channel(key, made.certificate.encode()) as channel:
        for method in sorted(ON_AGENTS_PORT):
            assert (await call(channel, method)).reason == "UNAUTHENTICATED"


@pytest.mark.feature("N4")
async def test_permission_is_looked_at_before_what_exists_and_what_makes_sense(
    api: Api, controller: Controller
) -> None:
    from clients.gen.backupmanager.v1 import access_token_pb2, access_token_service_pb2

    create = access_token_service_pb2.CreateAccessTokenRequest
    viewer = await api.tokens.CreateAccessToken(
        create(name=fresh("viewer"), scope=access_token_pb2.ACCESS_SCOPE_VIEWER)
    )
    async with controller.channel(viewer.secret) as channel:
        stub = Api(channel)
        missing = storage_service_pb2.DeleteStorageRequest(storage_id="nowhere")
        assert await refused(stub.storages.DeleteStorage(missing)) == "PERMISSION_DENIED"
        malformed = hypervisor_service_pb2.BanHypervisorRequest(hypervisor_id="a\0b")
        assert await refused(stub.hypervisors.BanHypervisor(malformed)) == "PERMISSION_DENIED"


async def test_health_needs_no_token(controller: Controller) -> None:
    async with controller.channel("") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", *PUBLIC_SERVICES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_what_is_public(controller: Controller) -> None:
    async with controller.channel("") as channel:
        plain: Any = channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="backupmanager.v1.JobService"),
        ]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    listed = {one.name for one in answers[0].list_services_response.service}
    assert set(PUBLIC_SERVICES) <= listed
    assert "backupmanager.agent.v1.SessionService" not in listed
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_a_method_of_nobody_is_unimplemented(controller: Controller) -> None:
    async with controller.channel() as channel:
        unknown: Any = channel.unary_unary("/backupmanager.v1.JobService/Explode")
        with pytest.raises(aio.AioRpcError) as caught:
            await unknown(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.feature("N9")
async def test_a_message_above_one_mebibyte_is_refused(controller: Controller) -> None:
    path = "/backupmanager.v1.JobService/GetJob"
    async with controller.channel() as channel:
        assert (await call(channel, path, b"\x0a" + _varint((1 << 20) + 1) + b"x" * ((1 << 20) + 1))).status == (
            "RESOURCE_EXHAUSTED"
        )
        size = (1 << 20) - 100
        assert (await call(channel, path, b"\x0a" + _varint(size) + b"x" * size)).reason == "INVALID_FIELD"


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
