"""The audit: a row for every call that changes something, whoever made it and however it ended, and no secret in it."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from clients.gen.backupmanager.agent.v1 import enrollment_service_pb2, enrollment_service_pb2_grpc
from clients.gen.backupmanager.v1 import access_token_pb2, access_token_service_pb2, storage_service_pb2
from tests.controller.services.api import Api, fresh, refused
from tests.controller.services.rpc import METHODS, call
from tests.servers.controller import Controller
from tests.servers.station import Station


def rows(controller: Controller, resource: str) -> list[dict[str, Any]]:
    """Read the table as anybody with the file could, while the controller runs."""
    with closing(sqlite3.connect(f"file:{controller.state / 'controller.db'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM audit WHERE resource = ? ORDER BY sequence", (resource,))
        return [dict(row) for row in found]


@pytest.mark.feature("N5")
async def test_a_change_is_kept_with_who_what_and_how_it_ended(api: Api, controller: Controller) -> None:
    made = await api.make_storage()
    assert await refused(api.make_storage(made.name)) == "STORAGE_EXISTS"
    create = [row for row in rows(controller, made.name) if row["method"].endswith("/CreateStorage")]
    assert [row["outcome"] for row in create] == ["OK", "STORAGE_EXISTS"]
    assert made.storage_id in create[0]["detail"]
    assert {row["token_name"] for row in create} == {"admin"}
    assert all("127.0.0.1" in row["peer"] for row in create)


@pytest.mark.feature("N5")
async def test_who_may_not_is_kept_too(api: Api, controller: Controller) -> None:
    name = fresh("viewer")
    token = access_token_service_pb2.CreateAccessTokenRequest(name=name, scope=access_token_pb2.ACCESS_SCOPE_VIEWER)
    secret = (await api.tokens.CreateAccessToken(token)).secret
    wanted = fresh("wanted")
    async with controller.channel(secret) as channel:
        request = storage_service_pb2.DeleteStorageRequest(storage_id=wanted)
        assert await refused(Api(channel).storages.DeleteStorage(request)) == "PERMISSION_DENIED"
        await Api(channel).storages.ListStorages(storage_service_pb2.ListStoragesRequest())
    (row,) = rows(controller, wanted)
    assert (row["token_name"], row["outcome"]) == (name, "PERMISSION_DENIED")


@pytest.mark.feature("N5")
async def test_looking_leaves_no_row(api: Api, controller: Controller) -> None:
    made = await api.make_storage()
    await api.storages.GetStorage(storage_service_pb2.GetStorageRequest(storage_id=made.storage_id))
    assert rows(controller, made.storage_id) == []


@pytest.mark.feature("N5", "N16")
async def test_an_enrollment_is_kept_by_the_id_it_brought(api: Api, controller: Controller) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    with closing(sqlite3.connect(f"file:{controller.state / 'controller.db'}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "SELECT method, token_name, outcome FROM audit WHERE detail LIKE ? ORDER BY sequence",
            (f"%{station.hypervisor_id}%",),
        ).fetchall()
    assert found == [
        ("/backupmanager.v1.HypervisorService/CreateEnrollmentToken", "admin", "OK"),
        ("/backupmanager.agent.v1.EnrollmentService/Enroll", "", "OK"),
    ]


@pytest.mark.feature("N5", "N16")
@pytest.mark.parametrize("token", ["", "nonsense", "x" * 256])
async def test_an_enrollment_with_a_token_of_nobody_leaves_no_row(controller: Controller, token: str) -> None:
    path = "/backupmanager.agent.v1.EnrollmentService/Enroll"
    before = _count(controller, path)
    async with controller.channel("") as channel:
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(channel)
        asked = stub.Enroll(enrollment_service_pb2.EnrollRequest(token=token, agent_version="0.1.0"))
        assert await refused(asked) == "ENROLLMENT_TOKEN_INVALID"
    assert _count(controller, path) == before


@pytest.mark.feature("N5")
async def test_every_changing_method_leaves_a_row_even_when_refused(controller: Controller) -> None:
    from controller.security.permissions import RULES

    async with controller.channel() as channel:
        for path in METHODS:
            rule = RULES[path]
            if not rule.audited or rule.demand in {"certificate", "open"}:
                continue
            before = _count(controller, path)
            await call(channel, path)
            assert _count(controller, path) == before + 1, path


def _count(controller: Controller, path: str) -> int:
    with closing(sqlite3.connect(f"file:{controller.state / 'controller.db'}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM audit WHERE method = ?", (path,)).fetchone()[0])
