"""Access tokens over the wire: each scope against every method, lifetimes, revocation, and the last use."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from clients.gen.backupmanager.v1 import (
    access_token_pb2,
    access_token_service_pb2,
    job_service_pb2,
    storage_service_pb2,
    system_service_pb2,
)
from controller.security.permissions import RULES, allows
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused
from tests.controller.services.rpc import METHODS, call
from tests.servers.controller import Controller
from tests.servers.station import Station
from tests.waiting import wait_until_async

CREATE = access_token_service_pb2.CreateAccessTokenRequest
SCOPES = {
    "admin": access_token_pb2.ACCESS_SCOPE_ADMIN,
    "operator": access_token_pb2.ACCESS_SCOPE_OPERATOR,
    "viewer": access_token_pb2.ACCESS_SCOPE_VIEWER,
    "portal": access_token_pb2.ACCESS_SCOPE_PORTAL,
}
PUBLIC = sorted(name for name in METHODS if name.startswith("/backupmanager.v1."))


async def make(api: Api, scope: str, **fields: Any) -> access_token_service_pb2.CreateAccessTokenResponse:
    return await api.tokens.CreateAccessToken(CREATE(name=fresh(scope), scope=SCOPES[scope], **fields))


async def revoke(api: Api, token_id: str) -> access_token_pb2.AccessToken:
    request = access_token_service_pb2.RevokeAccessTokenRequest(access_token_id=token_id)
    return (await api.tokens.RevokeAccessToken(request)).access_token


@asynccontextmanager
async def caller(controller: Controller, secret: str) -> AsyncIterator[Api]:
    async with controller.channel(secret) as channel:
        yield Api(channel)


async def version(api: Api) -> system_service_pb2.GetVersionResponse:
    return await api.system.GetVersion(system_service_pb2.GetVersionRequest())


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    """A secret for each scope, made once for the whole table below."""
    return {}


@pytest.mark.feature("N4")
@pytest.mark.parametrize("method", PUBLIC)
async def test_every_scope_against_every_method(
    api: Api, controller: Controller, secrets: dict[str, str], method: str
) -> None:
    if not secrets:
        server = await api.make_server((await Station.enroll(controller, fresh("hv"))).name)
        portal = {"server_ids": [server.server_id], "lifetime": Duration(seconds=3600)}
        for scope in SCOPES:
            secrets[scope] = (await make(api, scope, **(portal if scope == "portal" else {}))).secret
    for scope in SCOPES:
        allowed = allows(scope, RULES[method].demand)  # type: ignore[arg-type]
        async with controller.channel(secrets[scope]) as channel:
            outcome = await call(channel, method)
        # What the empty request is refused with does not matter; that it was looked at does.
        assert (outcome.reason != "PERMISSION_DENIED") == allowed, (scope, outcome)
        assert outcome.reason not in {"UNAUTHENTICATED", "INTERNAL"}


@pytest.mark.feature("N4")
@pytest.mark.parametrize("method", PUBLIC)
async def test_no_method_answers_without_a_good_token(controller: Controller, method: str) -> None:
    async with controller.channel("") as channel:
        for secret in (None, "", "bmt_", "bmt_" + "x" * 43, controller.admin_token[:-1], "x" * 4000):
            metadata = [] if secret is None else [("authorization", f"Bearer {secret}")]
            outcome = await call(channel, method, metadata=metadata)
            assert (outcome.reason, outcome.status) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


@pytest.mark.parametrize("header", ["{}", "Basic {}", "Bearer  {} x", "Bearer{}"])
async def test_a_secret_in_the_wrong_form_is_none(controller: Controller, header: str) -> None:
    metadata = [("authorization", header.format(controller.admin_token))]
    async with controller.channel("") as channel:
        outcome = await call(channel, "/backupmanager.v1.SystemService/GetVersion", metadata=metadata)
    assert outcome.reason == "UNAUTHENTICATED"


async def test_two_secrets_are_none(controller: Controller) -> None:
    metadata = [("authorization", f"Bearer {controller.admin_token}")] * 2
    async with controller.channel("") as channel:
        outcome = await call(channel, "/backupmanager.v1.SystemService/GetVersion", metadata=metadata)
    assert outcome.reason == "UNAUTHENTICATED"


@pytest.mark.feature("N4")
async def test_a_token_says_who_it_is_and_its_secret_is_kept_nowhere(api: Api, controller: Controller) -> None:
    made = await make(api, "viewer")
    assert made.secret.startswith("bmt_")
    assert len(made.secret) == 47
    async with caller(controller, made.secret) as viewer:
        answer = await version(viewer)
    assert (answer.token_name, answer.token_scope) == (made.access_token.name, access_token_pb2.ACCESS_SCOPE_VIEWER)
    for secret in (made.secret, controller.admin_token):
        kept = b"".join(path.read_bytes() for path in controller.folder.rglob("*") if path.is_file())
        assert secret.encode() not in kept


@pytest.mark.feature("N4")
async def test_a_revoked_token_is_refused_from_the_next_call_on(api: Api, controller: Controller) -> None:
    made = await make(api, "operator")
    async with caller(controller, made.secret) as operator:
        await version(operator)
        revoked = await revoke(api, made.access_token.access_token_id)
        assert revoked.HasField("revoke_time")
        assert await refused(version(operator)) == "UNAUTHENTICATED"
    assert await revoke(api, made.access_token.access_token_id) == revoked, "it ended then, and stays so"
    again = CREATE(name=made.access_token.name, scope=SCOPES["operator"])
    assert (await api.tokens.CreateAccessToken(again)).access_token.name == made.access_token.name


@pytest.mark.feature("N4")
async def test_an_expired_token_is_refused(api: Api, controller: Controller) -> None:
    made = await make(api, "viewer", lifetime=Duration(seconds=1))
    left = made.access_token.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert 0 < left.total_seconds() <= 1
    async with caller(controller, made.secret) as viewer:

        async def expired() -> bool:
            outcome = await call(viewer.channel, "/backupmanager.v1.SystemService/GetVersion")
            return outcome.reason == "UNAUTHENTICATED"

        started = time.monotonic()
        await wait_until_async(expired, 10, "the token to expire")
    assert time.monotonic() - started < 5


@pytest.mark.feature("N4")
async def test_a_watch_ends_when_its_token_does(api: Api, controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    made = await make(api, "viewer")
    storage = await api.make_storage()
    async with station.session() as session, caller(controller, made.secret) as viewer:
        request = storage_service_pb2.TestStorageRequest(storage_id=storage.name, hypervisor_id=station.name)
        job_id = (await api.storages.TestStorage(request)).job_id
        command = await session.command()
        watch = viewer.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id))
        await watch.read()
        await revoke(api, made.access_token.access_token_id)
        await session.accept(command)
        outcome = await refusal(_drain(watch))
    assert outcome.reason == "UNAUTHENTICATED"


async def test_the_last_use_is_kept_to_the_minute(api: Api, controller: Controller) -> None:
    made = await make(api, "viewer")
    assert not made.access_token.HasField("last_use_time")
    async with caller(controller, made.secret) as viewer:
        await version(viewer)
    request = access_token_service_pb2.ListAccessTokensRequest
    rows = await all_pages(
        lambda token: api.tokens.ListAccessTokens(request(page_size=4, page_token=token)), "access_tokens"
    )
    found = next(row for row in rows if row.access_token_id == made.access_token.access_token_id)
    assert found.HasField("last_use_time")
    assert found.last_use_time.seconds % 60 == 0
    assert [row.name for row in rows] == sorted(row.name for row in rows)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CREATE(scope=SCOPES["viewer"]), "name"),
        (CREATE(name="a b", scope=SCOPES["viewer"]), "name"),
        (CREATE(name="x"), "scope"),
        (CREATE(name="x", scope=SCOPES["viewer"], lifetime=Duration(seconds=-1)), "lifetime"),
        (CREATE(name="x", scope=SCOPES["viewer"], lifetime=Duration(seconds=10**10)), "lifetime"),
        (CREATE(name="x", scope=SCOPES["viewer"], server_ids=["a"]), "server_ids"),
        (CREATE(name="x", scope=SCOPES["portal"], lifetime=Duration(seconds=60)), "server_ids"),
        (CREATE(name="x", scope=SCOPES["portal"], server_ids=["a"]), "lifetime"),
        (CREATE(name="admin", scope=SCOPES["viewer"]), "name"),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused_by_field(
    api: Api, request_: access_token_service_pb2.CreateAccessTokenRequest, field: str
) -> None:
    assert await field_refused(api.tokens.CreateAccessToken(request_)) == field


async def test_a_token_that_is_not_there_is_named(api: Api) -> None:
    nobody = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
    found = await refusal(revoke(api, nobody))
    assert (found.reason, found.facts) == ("ACCESS_TOKEN_NOT_FOUND", {"access_token_id": nobody})


async def _drain(watch: Any) -> None:
    while await watch.read() is not aio.EOF:
        pass
