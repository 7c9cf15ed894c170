"""Servers over the wire: registering, finding, changing, deleting; and lists of many of them."""

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    backup_service_pb2,
    event_pb2,
    event_service_pb2,
    hypervisor_service_pb2,
    package_service_pb2,
    server_pb2,
    server_service_pb2,
)
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Station, domain
from tests.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

REGISTER = server_service_pb2.RegisterServerRequest


@pytest.fixture
async def station(controller: Controller) -> Station:
    return await Station.enroll(controller, fresh("hv"))


async def get(api: Api, reference: str) -> server_pb2.Server:
    return (await api.servers.GetServer(server_service_pb2.GetServerRequest(server_id=reference))).server


async def update(api: Api, server: server_pb2.Server, *paths: str) -> server_pb2.Server:
    request = server_service_pb2.UpdateServerRequest(server=server, update_mask=FieldMask(paths=paths))
    return (await api.servers.UpdateServer(request)).server


async def delete(api: Api, server_id: str) -> server_pb2.Server:
    return (await api.servers.DeleteServer(server_service_pb2.DeleteServerRequest(server_id=server_id))).server


@pytest.mark.feature("N1", "N2")
async def test_a_server_is_found_by_its_id_its_external_id_and_its_name(api: Api, station: Station) -> None:
    made = await api.make_server(station.name, external_id=fresh("panel"))
    assert made.hypervisor_id == station.hypervisor_id
    assert made.state == server_pb2.SERVER_STATE_ACTIVE
    for reference in (made.server_id, made.external_id, made.name):
        assert await get(api, reference) == made


@pytest.mark.feature("N2")
async def test_registering_twice_by_external_id_is_one_server(api: Api, station: Station) -> None:
    request = REGISTER(
        external_id=fresh("panel"), name=fresh("s"), hypervisor_id=station.name, domain_uuid=str(uuid.uuid4())
    )
    first = (await api.servers.RegisterServer(request)).server
    assert (await api.servers.RegisterServer(request)).server.server_id == first.server_id
    request.domain_uuid = str(uuid.uuid4())
    found = await refusal(api.servers.RegisterServer(request))
    assert (found.reason, found.status) == ("SERVER_EXISTS", "ALREADY_EXISTS")
    assert found.facts["server_id"] == first.server_id
    taken = REGISTER(external_id=fresh("panel"), hypervisor_id=station.name, domain_uuid=first.domain_uuid, name="x")
    assert await refused(api.servers.RegisterServer(taken)) == "SERVER_EXISTS"


async def test_what_the_hypervisor_reports_is_shown_with_the_server(api: Api, station: Station) -> None:
    one = domain(fresh("domain"), "vda", "vdb")
    async with station.session() as session:
        await session.report([one])
        listing = hypervisor_service_pb2.ListDomainsRequest(hypervisor_id=station.name)

        async def stored() -> bool:
            return bool((await api.hypervisors.ListDomains(listing)).domains)

        await wait_until_async(stored, 10, "the inventory to be stored")
    request = REGISTER(hypervisor_id=station.name, domain_name=one.name)
    made = (await api.servers.RegisterServer(request)).server
    assert (made.name, made.domain_name, made.domain_uuid) == (one.name, one.name, one.domain_uuid)
    assert [disk.disk for disk in made.disks] == ["vda", "vdb"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (REGISTER(hypervisor_id="hv"), "domain_uuid"),
        (REGISTER(domain_name="x"), "hypervisor_id"),
        (REGISTER(hypervisor_id="hv", domain_uuid="x"), "domain_uuid"),
        (REGISTER(hypervisor_id="hv", domain_name="x", name="n" * 129), "name"),
        (REGISTER(hypervisor_id="hv", domain_name="x", external_id="e" * 129), "external_id"),
        (REGISTER(hypervisor_id="hv", domain_name="x", external_id="a\nb"), "external_id"),
        (REGISTER(hypervisor_id="hv", domain_name="x" * 256), "domain_name"),
    ],
)
async def test_a_wrong_registration_is_refused_by_field(
    api: Api, request_: server_service_pb2.RegisterServerRequest, field: str
) -> None:
    assert await field_refused(api.servers.RegisterServer(request_)) == field


async def test_a_server_on_a_hypervisor_that_is_not_there_is_refused(api: Api) -> None:
    found = await refusal(api.make_server("nowhere"))
    assert (found.reason, found.facts) == ("HYPERVISOR_NOT_FOUND", {"hypervisor_id": "nowhere"})
    request = server_service_pb2.ListServersRequest(hypervisor_id="nowhere")
    assert await refused(api.servers.ListServers(request)) == "HYPERVISOR_NOT_FOUND"


async def test_an_update_changes_what_its_mask_names(api: Api, controller: Controller, station: Station) -> None:
    made = await api.make_server(station.name)
    other = await Station.enroll(controller, fresh("hv"))
    made.name, made.external_id, made.hypervisor_id = fresh("renamed"), fresh("panel"), other.name
    changed = await update(api, made, "name", "hypervisor_id")
    assert (changed.name, changed.external_id) == (made.name, "")
    assert changed.hypervisor_id == other.hypervisor_id
    assert await refused(update(api, made, "name")) == "ETAG_MISMATCH"
    taken = await api.make_server(station.name, external_id=fresh("panel"))
    changed.external_id = taken.external_id
    assert await refused(update(api, changed, "external_id")) == "SERVER_EXISTS"
    for paths in ((), ("state",)):
        assert await field_refused(update(api, changed, *paths)) == "update_mask"
    changed.name = ""
    assert await field_refused(update(api, changed, "name")) == "server.name"


@pytest.mark.feature("N1", "K1")
async def test_a_deleted_server_stays_and_its_external_id_is_free_again(api: Api, station: Station) -> None:
    made = await api.make_server(station.name, external_id=fresh("panel"))
    gone = await delete(api, made.server_id)
    assert gone.state == server_pb2.SERVER_STATE_DELETED
    assert gone.HasField("delete_time")
    assert (await delete(api, made.server_id)).delete_time == gone.delete_time
    again = await api.make_server(station.name, external_id=made.external_id)
    assert again.server_id != made.server_id, "ids are never used again"
    assert (await get(api, made.external_id)).server_id == again.server_id
    request = server_service_pb2.ListServersRequest
    for include_deleted in (False, True):
        rows = await all_pages(
            lambda token, deleted=include_deleted: api.servers.ListServers(  # type: ignore[misc]
                request(hypervisor_id=station.name, include_deleted=deleted, page_token=token)
            ),
            "servers",
        )
        assert (made.server_id in [row.server_id for row in rows]) == include_deleted


async def test_what_is_not_there_is_named(api: Api, station: Station) -> None:
    nobody = str(uuid.uuid4())
    assert await refused(get(api, "nobody")) == "SERVER_NOT_FOUND"
    assert await refused(delete(api, nobody)) == "SERVER_NOT_FOUND"
    named = await api.make_server(station.name, name=fresh("a-name"))
    assert await refused(delete(api, named.name)) == "SERVER_NOT_FOUND", (
        "what is deleted is said by its id or the panel's"
    )
    assert await get(api, named.name) == named
    assert await refused(update(api, server_pb2.Server(server_id=nobody, name="x"), "name")) == "SERVER_NOT_FOUND"


@pytest.mark.feature("N9")
async def test_many_servers_of_one_name_are_all_listed_once(api: Api, station: Station) -> None:
    made = {(await api.make_server(station.name, name="twin")).server_id for _ in range(12)}
    request = server_service_pb2.ListServersRequest
    rows = await all_pages(
        lambda token: api.servers.ListServers(request(hypervisor_id=station.name, page_size=5, page_token=token)),
        "servers",
    )
    assert [row.name for row in rows] == ["twin"] * 12
    assert {row.server_id for row in rows} == made
    page = await api.servers.ListServers(request(hypervisor_id=station.name, page_size=5))
    strange = request(hypervisor_id=station.name, include_deleted=True, page_token=page.next_page_token)
    assert await refused(api.servers.ListServers(strange)) == "INVALID_PAGE_TOKEN", "other filters, another list"


@pytest.mark.feature("A2", "A3", "A4", "A5")
async def test_levels_are_set_for_one_for_many_and_by_package(api: Api, station: Station) -> None:
    made = await api.packages.CreatePackage(
        package_service_pb2.CreatePackageRequest(
            name=fresh("gold"), default_level=access_level_pb2.ACCESS_LEVEL_FULL_ACCESS
        )
    )
    package = made.package
    one = await api.make_server(station.name, package_id=package.name)
    two = await api.make_server(station.name)
    out = await api.make_server(station.name, commissioned=False)
    assert (one.access.level, one.access.origin) == (
        access_level_pb2.ACCESS_LEVEL_FULL_ACCESS,
        server_pb2.ACCESS_ORIGIN_PACKAGE,
    )
    assert two.access.origin == server_pb2.ACCESS_ORIGIN_DEFAULT

    bulk = server_service_pb2.BulkSetServerAccessRequest
    disabled = access_level_pb2.ACCESS_LEVEL_DISABLED
    done = await api.servers.BulkSetServerAccess(bulk(hypervisor_id=station.name, level=disabled))
    assert (done.server_count, done.changed_count, done.group_id) == (2, 2, station.hypervisor_id)
    assert (await get(api, out.server_id)).access.origin == server_pb2.ACCESS_ORIGIN_DEFAULT
    done = await api.servers.BulkSetServerAccess(bulk(package_id=package.package_id))
    assert (done.server_count, done.changed_count) == (1, 1)
    assert (await get(api, one.server_id)).access.origin == server_pb2.ACCESS_ORIGIN_PACKAGE
    missing = bulk(server_ids=[two.server_id, str(uuid.uuid4())])
    assert await refused(api.servers.BulkSetServerAccess(missing)) == "SERVER_NOT_FOUND"
    assert (await get(api, two.server_id)).access.level == disabled, "all or none"
    assert await field_refused(api.servers.BulkSetServerAccess(bulk())) == "server_ids"

    listed = await api.servers.ListServers(
        server_service_pb2.ListServersRequest(hypervisor_id=station.name, commissioned_only=True, page_size=1)
    )
    assert (len(listed.servers), listed.total_count) == (1, 2)
    busy = api.packages.DeletePackage(package_service_pb2.DeletePackageRequest(package_id=package.package_id))
    assert await refused(busy) == "PACKAGE_IN_USE"
    set_level = server_service_pb2.SetServerAccessRequest(server_id=one.server_id, etag="0")
    assert await refused(api.servers.SetServerAccess(set_level)) == "ETAG_MISMATCH"


@pytest.mark.feature("N2", "X15")
async def test_a_panel_s_calls_go_by_its_own_id_and_can_be_repeated(api: Api, station: Station) -> None:
    panel = fresh("panel")
    made = await api.make_server(station.name, external_id=panel, owner="alice")
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: api.servers.DecommissionServer(server_service_pb2.DecommissionServerRequest(server_id=panel)),
        lambda: api.servers.CommissionServer(server_service_pb2.CommissionServerRequest(server_id=panel)),
        lambda: api.servers.SetServerLock(server_service_pb2.SetServerLockRequest(server_id=panel, reason="rescue")),
        lambda: api.servers.SetServerOwner(server_service_pb2.SetServerOwnerRequest(server_id=panel, owner="bob")),
        lambda: api.servers.SetServerPackage(server_service_pb2.SetServerPackageRequest(server_id=panel)),
        lambda: api.servers.SetServerAccess(server_service_pb2.SetServerAccessRequest(server_id=panel)),
    ]
    for call in calls:
        first = await call()
        assert (await call()).server == first.server
        assert first.server.server_id == made.server_id
    locked = await get(api, panel)
    assert (locked.lock.reason, locked.lock.HasField("expire_time"), locked.owner) == ("rescue", False, "bob")
    storage = await api.make_storage()
    start = backup_service_pb2.StartBackupRequest(server_id=panel, storage_id=storage.name)
    found = await refusal(api.backups.StartBackup(start))
    assert (found.reason, found.status, found.facts["lock_reason"]) == ("VM_LOCKED", "FAILED_PRECONDITION", "rescue")
    cleared = await api.servers.ClearServerLock(server_service_pb2.ClearServerLockRequest(server_id=panel))
    assert not cleared.server.HasField("lock")
    no_reason = server_service_pb2.SetServerLockRequest(server_id=panel)
    assert await field_refused(api.servers.SetServerLock(no_reason)) == "reason"
    assert await delete(api, panel) == await delete(api, panel)


@pytest.mark.feature("A7")
async def test_a_disabled_server_asks_an_administrator_for_an_override(api: Api, station: Station) -> None:
    made = await api.make_server(station.name)
    level = access_level_pb2.ACCESS_LEVEL_DISABLED
    await api.servers.SetServerAccess(server_service_pb2.SetServerAccessRequest(server_id=made.server_id, level=level))
    storage = await api.make_storage()
    start = backup_service_pb2.StartBackupRequest(server_id=made.server_id, storage_id=storage.name)
    found = await refusal(api.backups.StartBackup(start))
    assert (found.reason, found.facts["level"]) == ("ACCESS_LEVEL_DENIED", "disabled")
    start.override_access = True
    async with station.session() as session:
        await session.heartbeat()
        job_id = (await api.backups.StartBackup(start)).job_id
    wanted = event_pb2.EventFilter(kinds=["access.overridden"], server_id=made.server_id)
    poll = event_service_pb2.PollEventsRequest(filter=wanted, cursor=0)
    assert [one.job_id for one in (await api.events.PollEvents(poll)).events] == [job_id]
