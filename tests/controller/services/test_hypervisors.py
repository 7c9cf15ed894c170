"""Hypervisors over the wire: enrolling, being seen, renewing, being banned."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from google.protobuf.duration_pb2 import Duration

from clients.connect import parse_enrollment_token
from clients.gen.backupmanager.agent.v1 import (
    enrollment_service_pb2,
    enrollment_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from clients.gen.backupmanager.v1 import hypervisor_pb2, hypervisor_service_pb2
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Station, domain, key_and_request
from tests.waiting import wait_until_async

TOKEN = hypervisor_service_pb2.CreateEnrollmentTokenRequest


async def get(api: Api, reference: str) -> hypervisor_pb2.Hypervisor:
    request = hypervisor_service_pb2.GetHypervisorRequest(hypervisor_id=reference)
    return (await api.hypervisors.GetHypervisor(request)).hypervisor


async def ban(api: Api, reference: str) -> hypervisor_pb2.Hypervisor:
    request = hypervisor_service_pb2.BanHypervisorRequest(hypervisor_id=reference)
    return (await api.hypervisors.BanHypervisor(request)).hypervisor


async def unban(api: Api, reference: str) -> hypervisor_pb2.Hypervisor:
    request = hypervisor_service_pb2.UnbanHypervisorRequest(hypervisor_id=reference)
    return (await api.hypervisors.UnbanHypervisor(request)).hypervisor


async def enroll(controller: Controller, secret: str, request: str) -> enrollment_service_pb2.EnrollResponse:
    async with controller.channel("") as channel:
        return await enrollment_service_pb2_grpc.EnrollmentServiceStub(channel).Enroll(
            enrollment_service_pb2.EnrollRequest(token=secret, certificate_request=request, agent_version="0.1.0")
        )


async def renew(station: Station, request: str) -> session_service_pb2.RenewCertificateResponse:
    async with station.controller.agents_channel(station.key, station.chain) as channel:
        return await session_service_pb2_grpc.SessionServiceStub(channel).RenewCertificate(
            session_service_pb2.RenewCertificateRequest(certificate_request=request)
        )


@pytest.mark.feature("N3")
async def test_a_one_time_token_becomes_a_certificate_once(api: Api, controller: Controller) -> None:
    made = await api.hypervisors.CreateEnrollmentToken(TOKEN(name=fresh("hv")))
    parts = parse_enrollment_token(made.token)
    assert parts.authority == controller.fingerprint
    left = made.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert 3500 < left.total_seconds() <= 3600

    assert await field_refused(enroll(controller, parts.secret, "garbage")) == "certificate_request"
    _, request = key_and_request()
    answer = await enroll(controller, parts.secret, request)
    assert answer.hypervisor_id == made.hypervisor_id
    assert answer.authority == controller.authority_pem
    assert answer.installation_id == controller.installation_id
    certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert certificate.subject.rfc4514_string() == f"CN={made.hypervisor_id}"
    found = await refusal(enroll(controller, parts.secret, request))
    assert (found.reason, found.status) == ("ENROLLMENT_TOKEN_INVALID", "UNAUTHENTICATED")


@pytest.mark.feature("N3")
@pytest.mark.parametrize("secret", ["", "unknown", "x" * 300])
async def test_a_token_of_nobody_is_refused(controller: Controller, secret: str) -> None:
    _, request = key_and_request()
    assert await refused(enroll(controller, secret, request)) == "ENROLLMENT_TOKEN_INVALID"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (TOKEN(), "name"),
        (TOKEN(name="a b"), "name"),
        (TOKEN(name="x" * 65), "name"),
        (TOKEN(name="x", lifetime=Duration(seconds=0)), "lifetime"),
        (TOKEN(name="x", lifetime=Duration(seconds=-1)), "lifetime"),
        (TOKEN(name="x", lifetime=Duration(seconds=8 * 86400)), "lifetime"),
    ],
)
async def test_a_wrong_enrollment_is_refused_by_field(
    api: Api, request_: hypervisor_service_pb2.CreateEnrollmentTokenRequest, field: str
) -> None:
    assert await field_refused(api.hypervisors.CreateEnrollmentToken(request_)) == field


@pytest.mark.feature("N3")
async def test_a_name_enrolls_again_only_when_that_is_meant(api: Api, controller: Controller) -> None:
    first = await Station.enroll(controller, fresh("hv"))
    found = await refusal(api.hypervisors.CreateEnrollmentToken(TOKEN(name=first.name)))
    assert (found.reason, found.facts["name"]) == ("HYPERVISOR_EXISTS", first.name)
    assert await refused(api.hypervisors.CreateEnrollmentToken(TOKEN(name=fresh("new"), renew=True))) == (
        "HYPERVISOR_NOT_FOUND"
    )
    async with first.session() as session:
        second = await Station.enroll(controller, first.name, renew=True)
        assert second.hypervisor_id == first.hypervisor_id
        end = await refusal(_raise(await session.ended()))
        assert end.reason == "UNAUTHENTICATED", "the certificate before is worth nothing now, also where it is in use"
        async with second.session():
            pass
    assert await refused(renew(first, key_and_request()[1])) == "UNAUTHENTICATED"


@pytest.mark.feature("N3")
async def test_a_certificate_is_renewed_with_itself(controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    assert await field_refused(renew(station, "garbage")) == "certificate_request"
    key, request = key_and_request()
    answer = await renew(station, request)
    fresh_one = Station(controller, station.name, station.hypervisor_id, key, answer.certificate.encode())
    assert answer.authority == controller.authority_pem
    async with fresh_one.session() as session:
        await session.heartbeat()
    assert await refused(renew(station, request)) == "UNAUTHENTICATED", (
        "the old one ended with the first use of the new"
    )


async def test_an_agent_that_is_connected_is_seen(api: Api, controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    before = await get(api, station.name)
    assert before == await get(api, station.hypervisor_id)
    assert before.state == hypervisor_pb2.HYPERVISOR_STATE_OFFLINE
    async with station.session() as session:
        await session.heartbeat()

        async def online() -> hypervisor_pb2.Hypervisor | None:
            seen = await get(api, station.name)
            return seen if seen.scratch_free_bytes else None

        seen = await wait_until_async(online, 10, "the heartbeat to be stored")
        assert seen is not None
        assert seen.state == hypervisor_pb2.HYPERVISOR_STATE_ONLINE
        assert seen.capabilities.libvirt_version == "9.0.0"
        assert abs(seen.clock_offset.ToTimedelta().total_seconds()) < 5


async def test_what_is_not_there_is_named(api: Api) -> None:
    found = await refusal(get(api, "nowhere"))
    assert (found.reason, found.status) == ("HYPERVISOR_NOT_FOUND", "NOT_FOUND")
    assert await refused(ban(api, "nowhere")) == "HYPERVISOR_NOT_FOUND"
    assert await refused(unban(api, "nowhere")) == "HYPERVISOR_NOT_FOUND"
    request = hypervisor_service_pb2.ListDomainsRequest(hypervisor_id="nowhere")
    assert await refused(api.hypervisors.ListDomains(request)) == "HYPERVISOR_NOT_FOUND"
    assert await field_refused(get(api, "")) == "hypervisor_id"


@pytest.mark.feature("N3")
async def test_a_ban_ends_the_live_session_and_holds_until_it_is_lifted(api: Api, controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    async with station.session() as session:
        assert (await ban(api, station.name)).state == hypervisor_pb2.HYPERVISOR_STATE_BANNED
        end = await refusal(_raise(await session.ended()))
        assert (end.reason, end.status) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert await refused(_open(station)) == "PERMISSION_DENIED"
    assert await refused(renew(station, key_and_request()[1])) == "PERMISSION_DENIED"
    assert (await unban(api, station.name)).state != hypervisor_pb2.HYPERVISOR_STATE_BANNED
    async with station.session():
        pass


@pytest.mark.feature("N3")
async def test_a_ban_survives_a_new_enrollment(api: Api, controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    await ban(api, station.name)
    assert await refused(Station.enroll(controller, station.name, renew=True)) == "HYPERVISOR_BANNED"


@pytest.mark.feature("N9")
async def test_domains_are_listed_page_by_page(api: Api, controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    names = sorted(f"vm-{number:03}" for number in range(40))
    request = hypervisor_service_pb2.ListDomainsRequest
    async with station.session() as session:
        await session.report([domain(name) for name in names])

        async def listed() -> list[hypervisor_pb2.Domain]:
            return await all_pages(
                lambda token: api.hypervisors.ListDomains(
                    request(hypervisor_id=station.name, page_size=9, page_token=token)
                ),
                "domains",
            )

        rows = await wait_until_async(listed, 10, "the inventory to be stored")
    assert [row.name for row in rows] == names
    page = await api.hypervisors.ListDomains(request(hypervisor_id=station.name))
    assert page.HasField("report_time")


@pytest.mark.feature("N9")
async def test_hypervisors_are_listed_page_by_page(api: Api, controller: Controller) -> None:
    made = {(await Station.enroll(controller, fresh("hv"))).name for _ in range(4)}
    request = hypervisor_service_pb2.ListHypervisorsRequest
    rows = await all_pages(
        lambda token: api.hypervisors.ListHypervisors(request(page_size=3, page_token=token)), "hypervisors"
    )
    assert made <= {row.name for row in rows}
    assert [row.name for row in rows] == sorted(row.name for row in rows)


async def _open(station: Station) -> None:
    async with station.session():
        pass


async def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error
