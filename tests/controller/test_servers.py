"""Servers: ids made once, found by many names, moved only while nothing works on them."""

import pytest

from controller import servers
from controller.errors import (
    EtagMismatch,
    HypervisorNotFound,
    InvalidField,
    ServerBusy,
    ServerExists,
    ServerNotFound,
)
from controller.hypervisors import Domain, list_domains
from controller.servers import NewServer, Server, ServerFilter
from tests.controller.world import Agent, World


@pytest.fixture
def agent(world: World) -> Agent:
    agent = world.enroll("h1")
    for name in ("web", "db"):
        agent.domains[name] = Domain(f"uuid-{name}", name, "running", "connected", ({"disk": "vda"},))
    agent.report()
    return agent


def register(world: World, external_id: str = "", name: str = "", domain: str = "web", host: str = "h1") -> Server:
    return world.run(servers.register, NewServer(external_id, name, host, "", domain), world.now())


def update(world: World, server: Server, etag: str = "", **changes: str) -> Server:
    return world.run(servers.update, server.server_id, changes, etag, world.now())


@pytest.mark.feature("N2")
def test_registering_is_idempotent_by_the_panel_s_id(world: World, agent: Agent) -> None:
    server = register(world, "42")

    assert register(world, "42") == server
    assert (server.name, server.domain_uuid, server.domain_state) == ("web", "uuid-web", "running")
    assert server.hypervisor_id == agent.hypervisor_id
    with pytest.raises(ServerExists) as refused:
        register(world, "42", domain="db")  # the same id for another machine
    assert refused.value.facts["server_id"] == server.server_id
    with pytest.raises(ServerExists):
        register(world, "43")  # another id for the same machine
    assert [one.server_id for one in world.run(list_domains, agent.hypervisor_id)] == ["", server.server_id]


@pytest.mark.feature("N1")
def test_a_panel_that_uses_its_id_again_gets_another_server(world: World, agent: Agent) -> None:
    first = register(world, "42")
    world.run(servers.delete, first.server_id, world.now())

    second = register(world, "42", domain="db")

    assert second.server_id != first.server_id
    assert world.run(servers.find, "42").server_id == second.server_id
    assert world.run(servers.find, first.server_id).state == "deleted"


def test_a_domain_that_was_not_reported_needs_its_uuid(world: World, agent: Agent) -> None:
    with pytest.raises(InvalidField):
        register(world, domain="unknown")
    with pytest.raises(HypervisorNotFound):
        register(world, host="h9")
    server = world.run(servers.register, NewServer("7", "", "h1", "uuid-new", ""), world.now())

    assert (server.name, server.domain_name, server.disks) == ("uuid-new", "", ())


def test_a_server_is_found_by_id_panel_id_and_unique_name(world: World, agent: Agent) -> None:
    web, db = register(world, "42", "shop"), register(world, "43", "shop", "db")

    assert world.run(servers.find, web.server_id) == web
    assert world.run(servers.find, "43") == db
    for reference in ("shop", "none", ""):
        with pytest.raises(ServerNotFound):
            world.run(servers.find, reference)
    world.run(servers.delete, db.server_id, world.now())
    assert world.run(servers.find, "shop").server_id == web.server_id  # of two names, the living one
    assert world.run(servers.find, "43").server_id == db.server_id


def test_servers_are_listed_by_name(world: World, agent: Agent) -> None:
    web, db = register(world, "1", "b"), register(world, "2", "a", "db")

    def listed(include_deleted: bool = False, after: tuple[str, str] | None = None) -> list[str]:
        wanted = ServerFilter(include_deleted=include_deleted)
        return [one.name for one in world.run(servers.list_servers, wanted, after=after)]

    assert listed() == ["a", "b"]
    assert listed(after=("a", db.server_id)) == ["b"]
    world.run(servers.delete, web.server_id, world.now())
    assert listed() == ["a"]
    assert listed(include_deleted=True) == ["a", "b"]
    assert world.run(servers.list_servers, ServerFilter(hypervisor_id="another")) == []


@pytest.mark.feature("N1")
def test_a_server_moves_only_while_nothing_works_on_it(world: World, agent: Agent) -> None:
    server, other = register(world, "42"), world.enroll("h2")
    job = world.backup(server, world.storage())

    assert update(world, server, name="renamed").name == "renamed"
    with pytest.raises(ServerBusy) as refused:
        update(world, server, hypervisor_id="h2")
    with pytest.raises(ServerBusy):
        world.run(servers.delete, server.server_id, world.now())
    assert refused.value.facts["job_id"] == job.job_id
    assert world.run(servers.find, "42").busy_job_id == job.job_id
    world.cancel(job)

    moved = update(world, server, hypervisor_id="h2")
    assert moved.hypervisor_id == other.hypervisor_id
    assert moved.domain_state == ""


def test_an_update_needs_the_version_that_was_read_and_a_free_place(world: World, agent: Agent) -> None:
    web, db = register(world, "42"), register(world, "43", domain="db")

    changed = update(world, web, etag=web.etag, external_id="44")
    assert (changed.external_id, changed.etag != web.etag) == ("44", True)
    with pytest.raises(EtagMismatch):
        update(world, web, etag=web.etag, name="x")
    with pytest.raises(ServerExists):
        update(world, db, external_id="44")
    with pytest.raises(ServerExists):
        update(world, db, domain_uuid="uuid-web")
    with pytest.raises(HypervisorNotFound):
        update(world, db, hypervisor_id="h9")
    with pytest.raises(ServerNotFound):
        world.run(servers.update, "nobody", {"name": "x"}, "", world.now())
