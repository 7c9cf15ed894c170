"""Whom a client trusts, how it says who it is, and what it repeats: against a real gRPC server over TLS."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from clients import connect
from clients.connect import ClientCertificate, channel, fetch_authority, is_idempotent, parse_enrollment_token
from clients.errors import AuthorityChanged, CallRefused, ControllerUnreachable, EnrollmentTokenMalformed, translated
from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
)
from tests.clients.authority import Authority
from tests.servers.proxy import Proxy


def token_text(**parts: Any) -> str:
    return "bm1." + base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


class System(system_service_pb2_grpc.SystemServiceServicer):
    """Answers with the caller's authorization; refuses the first calls with what `refusals` holds."""

    def __init__(self) -> None:
        self.refusals: list[tuple[int, str, list[any_pb2.Any], tuple[tuple[str, str], ...]]] = []
        self.calls = 0

    async def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802  # the RPC's name
        raise NotImplementedError

    async def GetRecovery(self, request: Any, context: Any) -> Any:  # noqa: N802  # the RPC's name
        raise NotImplementedError

    async def GetVersion(self, request: Any, context: Any) -> Any:  # noqa: N802  # the RPC's name
        self.calls += 1
        if self.refusals:
            code, message, details, trailers = self.refusals.pop(0)
            if details:
                status = rpc_status.to_status(status_pb2.Status(code=code, message=message, details=details))
                await context.abort(status.code, status.details, status.trailing_metadata)
            await context.abort(
                next(one for one in grpc.StatusCode if one.value[0] == code), message, trailing_metadata=trailers
            )
        metadata = dict(tuple(context.invocation_metadata()))
        peer = context.auth_context().get("x509_common_name", [b""])[0].decode()
        return system_service_pb2.GetVersionResponse(version=metadata.get("authorization", ""), token_name=peer)


class Peer:
    def __init__(self, address: str, authority: Authority, service: System) -> None:
        self.address, self.authority, self.service = address, authority, service


async def _serve(authority: Authority, *, ask_certificate: bool = False) -> tuple[aio.Server, Peer]:
    server, service = aio.server(), System()
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(service, server)
    roots = authority.pem.encode() if ask_certificate else None
    credentials = grpc.ssl_server_credentials([authority.issue()], roots, ask_certificate)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, Peer(f"127.0.0.1:{port}", authority, service)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    server, peer = await _serve(Authority())
    yield peer
    await server.stop(None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "RETRY_SECONDS", (0.01, 0.01, 0.01))


async def version(peer: Peer, **options: Any) -> system_service_pb2.GetVersionResponse:
    async with channel(peer.address, peer.authority.pem, **options) as link:
        with translated():
            return await system_service_pb2_grpc.SystemServiceStub(link).GetVersion(
                system_service_pb2.GetVersionRequest(), timeout=10
            )


def packed(message: Any) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


@pytest.mark.feature("N3")
async def test_the_handshake_shows_the_authority(peer: Peer) -> None:
    pem, fingerprint = await in_thread(fetch_authority, peer.address)

    assert fingerprint == peer.authority.fingerprint
    assert connect.fingerprint_of(pem) == fingerprint
    assert await in_thread(expecting, peer.address, colons(fingerprint).upper()) == (pem, fingerprint)


@pytest.mark.feature("N3")
async def test_another_authority_is_refused(peer: Peer) -> None:
    with pytest.raises(AuthorityChanged) as caught:
        await in_thread(expecting, peer.address, "00" * 32)
    assert caught.value.facts["seen"] == peer.authority.fingerprint

    other = Authority()  # the same name, another key
    with pytest.raises(CallRefused) as refused:
        await version(Peer(peer.address, other, peer.service))
    assert refused.value.reason == "CONTROLLER_UNREACHABLE"
    assert peer.service.calls == 0


@pytest.mark.feature("N3", "N4")
async def test_token_and_certificate_go_along(peer: Peer) -> None:
    assert (await version(peer, token="bmt_secret")).version == "Bearer bmt_secret"
    assert (await version(peer)).version == ""

    server, agents = await _serve(peer.authority, ask_certificate=True)
    try:
        key, chain = peer.authority.issue("hypervisor-1")
        assert (await version(agents, certificate=ClientCertificate(key, chain))).token_name == "hypervisor-1"
        assert (await in_thread(fetch_authority, agents.address))[1] == peer.authority.fingerprint
    finally:
        await server.stop(None)


@pytest.mark.feature("N8")
async def test_a_refusal_arrives_with_reason_facts_and_delay(peer: Peer) -> None:
    info = error_details_pb2.ErrorInfo(domain="backupmanager", reason="VM_BUSY", metadata={"job_id": "j1"})
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=7, nanos=500_000_000))
    peer.service.refusals = [(code_pb2.FAILED_PRECONDITION, "busy", [packed(info), packed(retry)], ())]

    with pytest.raises(CallRefused) as caught:
        await version(peer)

    refused = caught.value
    assert (refused.reason, refused.message, refused.facts) == ("VM_BUSY", "busy", {"job_id": "j1"})
    assert (refused.status, refused.retry_after) == (grpc.StatusCode.FAILED_PRECONDITION, 7.5)


@pytest.mark.feature("N8")
async def test_plain_trailers_say_the_same(peer: Peer) -> None:
    trailers = (("backupmanager-reason", "VM_LOCKED"), ("backupmanager-fact-lock_reason", "r%C3%A9serv%C3%A9 100%25"))
    peer.service.refusals = [(code_pb2.FAILED_PRECONDITION, "locked", [], trailers)]

    with pytest.raises(CallRefused) as caught:
        await version(peer)

    assert (caught.value.reason, caught.value.facts) == ("VM_LOCKED", {"lock_reason": "réservé 100%"})


@pytest.mark.feature("N8")
async def test_an_error_of_another_domain_is_not_ours(peer: Peer) -> None:
    info = error_details_pb2.ErrorInfo(domain="proxy.example", reason="VM_BUSY")
    peer.service.refusals = [(code_pb2.INTERNAL, "proxy", [packed(info)], ())]

    with pytest.raises(CallRefused) as caught:
        await version(peer)

    assert caught.value.reason == "INTERNAL"


async def test_unavailable_is_tried_again_for_calls_that_may_be_repeated(peer: Peer) -> None:
    stopping = (("backupmanager-reason", "SHUTTING_DOWN"),)
    peer.service.refusals = [(code_pb2.UNAVAILABLE, "stopping", [], stopping), (code_pb2.UNAVAILABLE, "", [], ())]

    assert (await version(peer)).version == ""
    assert peer.service.calls == 3


async def test_tries_are_bounded_and_other_words_are_not_repeated(peer: Peer) -> None:
    peer.service.refusals = [(code_pb2.UNAVAILABLE, "", [], ())] * 9
    with pytest.raises(CallRefused):
        await version(peer)
    assert peer.service.calls == 4

    away = (("backupmanager-reason", "HYPERVISOR_UNREACHABLE"),)
    peer.service.calls, peer.service.refusals = 0, [(code_pb2.UNAVAILABLE, "away", [], away)]
    with pytest.raises(CallRefused):
        await version(peer)
    peer.service.refusals = [(code_pb2.ABORTED, "", [], ())]
    with pytest.raises(CallRefused):
        await version(peer)
    assert peer.service.calls == 2


async def test_only_reading_and_request_ids_may_be_repeated() -> None:
    start = backup_service_pb2.StartBackupRequest(server_id="a")
    cancel = job_service_pb2.CancelJobRequest(job_id="a")
    assert is_idempotent("/backupmanager.v1.JobService/GetJob", job_service_pb2.GetJobRequest())
    assert is_idempotent("/backupmanager.v1.BackupService/PreviewDelete", backup_service_pb2.PreviewDeleteRequest())
    assert not is_idempotent("/backupmanager.v1.BackupService/StartBackup", start)
    start.request_id = "r"
    assert is_idempotent("/backupmanager.v1.BackupService/StartBackup", start)
    assert not is_idempotent("/backupmanager.v1.JobService/CancelJob", cancel)


def test_waits_grow_and_are_spread() -> None:
    assert list(connect.backoff_seconds(lambda: 0.0)) == list(connect.RETRY_SECONDS)
    assert list(connect.backoff_seconds(lambda: 1.0)) == [one / 2 for one in connect.RETRY_SECONDS]


async def test_a_controller_far_away_is_reached(peer: Peer) -> None:
    """TCP, TLS and HTTP/2 take some round trips, of 400 ms here, as over a satellite."""
    host, port = connect.split_address(peer.address)
    with Proxy(port, host) as proxy:
        proxy.delay(0.2)
        async with channel(f"127.0.0.1:{proxy.port}", peer.authority.pem) as link:
            stub = system_service_pb2_grpc.SystemServiceStub(link)
            await stub.GetVersion(system_service_pb2.GetVersionRequest(), timeout=10)
    assert (proxy.connections, peer.service.calls) == (1, 1)


async def test_nobody_there_is_an_error_with_the_address(peer: Peer) -> None:
    async with channel("127.0.0.1:1", peer.authority.pem) as link:
        with pytest.raises(CallRefused) as caught, translated():
            await job_service_pb2_grpc.JobServiceStub(link).GetJob(job_service_pb2.GetJobRequest(), timeout=5)
    assert caught.value.reason == "CONTROLLER_UNREACHABLE"
    for address in ("127.0.0.1:1", "nonsense", "host:99999", "::1:80", ":80"):
        with pytest.raises(ControllerUnreachable):
            fetch_authority(address, seconds=2)


@pytest.mark.parametrize(
    ("address", "expected"), [("bm.example:7440", ("bm.example", 7440)), ("[::1]:7440", ("::1", 7440))]
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert connect.split_address(address) == expected


@pytest.mark.feature("N3")
def test_an_enrollment_token_is_read() -> None:
    token = parse_enrollment_token(f"  {token_text(secret='s3cret', ca='AB' * 32)}\n")

    assert (token.secret, token.authority) == ("s3cret", "ab" * 32)
    assert "s3cret" not in repr(token)


@pytest.mark.feature("N3", "S28")
@pytest.mark.parametrize(
    "text",
    ["", "bm2.abc", "bm1.", "bm1.!!", token_text(secret="s3cret"), token_text(secret=1, ca="aa"), token_text()[:-3]],
)
def test_a_damaged_enrollment_token_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(EnrollmentTokenMalformed) as caught:
        parse_enrollment_token(text)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_certificate_hides_its_key() -> None:
    assert "hidden" not in repr(ClientCertificate(b"hidden", b""))


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def expecting(address: str, fingerprint: str) -> tuple[str, str]:
    return fetch_authority(address, expected=fingerprint)


def colons(fingerprint: str) -> str:
    return ":".join(fingerprint[i : i + 2] for i in range(0, 64, 2))
