"""What is done with a server: levels, service, locks and owners, in the database."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controller import access, packages, previews, servers
from controller.db import models
from controller.errors import (
    AccessLevelDenied,
    EtagMismatch,
    PackageExists,
    PackageInUse,
    PackageNotFound,
    ServerDeleted,
    ServerLocked,
    ServerNotFound,
)
from controller.order_types import BackupOrder
from controller.rules.access import Resolved
from controller.servers import Server
from controller.storages import Storage
from tests.controller.world import Agent, World


@pytest.fixture
def agent(world: World) -> Agent:
    return world.enroll("h1")


@pytest.fixture
def web(world: World, agent: Agent) -> Server:
    return world.server(agent, "web")


@pytest.fixture
def storage(world: World) -> Storage:
    return world.storage()


def level(world: World, server: Server) -> Resolved:
    return world.run(access.of_server, server.server_id)


@pytest.mark.feature("A2", "A5")
def test_the_level_comes_from_the_server_its_package_or_its_schedule(
    world: World, agent: Agent, web: Server, storage: Storage
) -> None:
    assert level(world, web) == Resolved("scheduled_only", "default")

    def schedule() -> None:
        models.Schedule.create(
            schedule_id="s1",
            hypervisor_id=agent.hypervisor_id,
            storage_id=storage.storage_id,
            enabled=True,
            default_access="manual_only",
            create_time=world.now(),
            update_time=world.now(),
        )

    world.run(schedule)
    assert level(world, web) == Resolved("manual_only", "schedule")
    gold = world.run(packages.create, "gold", "full_access", world.now())
    world.run(access.set_package, web.server_id, "gold", "", world.now())
    assert level(world, web) == Resolved("full_access", "package")
    world.run(access.set_level, web.server_id, "view_and_restore", "", world.now())
    assert level(world, web) == Resolved("view_and_restore", "server")
    world.run(access.set_level, web.server_id, "", "", world.now())
    world.run(packages.update, gold.package_id, {"default_level": ""}, "", world.now())
    assert level(world, web) == Resolved("manual_only", "schedule")

    def delete_schedule() -> None:
        models.Schedule.update(delete_time=world.now()).execute()

    world.run(delete_schedule)
    assert level(world, web) == Resolved("scheduled_only", "default")


@pytest.mark.feature("A5")
def test_packages_have_names_of_their_own_and_stay_while_servers_have_them(world: World, web: Server) -> None:
    gold = world.run(packages.create, "gold", "", world.now())
    silver = world.run(packages.create, "silver", "disabled", world.now())
    with pytest.raises(PackageExists):
        world.run(packages.create, "gold", "", world.now())
    with pytest.raises(PackageExists):
        world.run(packages.update, "silver", {"name": "gold"}, "", world.now())
    with pytest.raises(EtagMismatch):
        world.run(packages.update, "silver", {"name": "tin"}, "7", world.now())
    assert [one.name for one in world.run(packages.list_packages, after=("gold",))] == ["silver"]

    world.run(access.set_package, web.server_id, silver.package_id, "", world.now())
    with pytest.raises(PackageInUse) as refused:
        world.run(packages.delete, "silver", world.now())
    assert refused.value.facts["server_count"] == "1"
    world.run(access.set_package, web.server_id, "", "", world.now())
    for one in (silver, gold):
        world.run(packages.delete, one.package_id, world.now())
    with pytest.raises(PackageNotFound):
        world.run(access.set_package, web.server_id, "gold", "", world.now())


@pytest.mark.feature("A3", "N2")
def test_only_servers_in_service_are_their_schedule_s(world: World, agent: Agent, web: Server) -> None:
    world.server(agent, "db")

    def names() -> list[str]:
        return [one.name for one in world.run(access.commissioned, agent.hypervisor_id)]

    assert names() == ["db", "web"]
    world.run(access.set_commissioned, web.server_id, world.now(), commissioned=False)
    assert names() == ["db"]
    world.run(servers.delete, web.server_id, world.now())
    with pytest.raises(ServerDeleted):
        world.run(access.set_commissioned, web.server_id, world.now(), commissioned=True)
    with pytest.raises(ServerNotFound):
        world.run(access.set_commissioned, "nobody", world.now(), commissioned=True)


@pytest.mark.feature("N2")
def test_a_word_said_twice_is_said_once(world: World, web: Server) -> None:
    world.run(packages.create, "gold", "", world.now())
    end = world.now() + timedelta(hours=1)

    def say() -> list[Server]:
        return [
            world.run(access.set_level, web.server_id, "full_access", "", world.now()),
            world.run(access.set_package, web.server_id, "gold", "", world.now()),
            world.run(access.set_owner, web.server_id, "alice", world.now()),
            world.run(access.set_lock, web.server_id, "rescue", end, world.now()),
            world.run(access.set_commissioned, web.server_id, world.now(), commissioned=False),
        ]

    first = say()[-1]
    count = len(world.events())
    assert say() == [first] * 5
    assert len(world.events()) == count
    with pytest.raises(EtagMismatch):
        world.run(access.set_owner, web.server_id, "alice", world.now(), etag=web.etag)


@pytest.mark.feature("N1")
def test_another_owner_s_history_begins_with_them(world: World, web: Server) -> None:
    alice = world.run(access.set_owner, web.server_id, "alice", world.now(), keep_history=True)
    assert (alice.history_time, alice.owner_time is not None) == (None, True)
    bob = world.run(access.set_owner, web.server_id, "bob", world.now())
    assert bob.history_time == bob.owner_time
    renamed = world.run(access.set_owner, web.server_id, "robert", world.now(), keep_history=True)
    assert renamed.history_time == bob.history_time
    assert renamed.owner_time is not None
    assert bob.owner_time is not None
    assert renamed.owner_time > bob.owner_time


@pytest.mark.feature("X15")
def test_a_locked_server_is_left_alone_until_the_lock_ends(
    world: World, agent: Agent, web: Server, storage: Storage
) -> None:
    backup_id = agent.back_up(web, storage, "chain-1")
    world.run(access.set_lock, web.server_id, "rescue", world.now() + timedelta(hours=1), world.now())
    with pytest.raises(ServerLocked) as refused:
        world.backup(web, storage)
    assert refused.value.facts["lock_reason"] == "rescue"
    with pytest.raises(ServerLocked):
        world.run(previews.preview_restore, backup_id, "", (), "", world.context())
    world.run(previews.preview_restore, backup_id, "", (), "/restored", world.context())  # files are not the server
    assert world.verify(backup_id).state == "dispatched"

    world.clock.advance(3600)
    agent.heartbeat()
    assert world.run(access.lock_of, web.server_id, world.now()) is None
    job = world.backup(web, storage)
    assert job.state == "dispatched"
    agent.accept(job)
    world.run(access.set_lock, web.server_id, "suspended", None, world.now())
    assert world.job(job.job_id).state == "running", "what runs goes on"
    agent.finish(job, "failed")
    with pytest.raises(ServerLocked):
        world.backup(web, storage)
    world.run(access.clear_lock, web.server_id, world.now())
    assert world.backup(web, storage).state == "dispatched"


@pytest.mark.feature("X15")
def test_a_lock_that_comes_while_a_job_waits_ends_it(world: World, agent: Agent, web: Server, storage: Storage) -> None:
    first = world.backup(world.server(agent, "db"), storage)
    waiting = world.backup(web, storage)
    world.run(access.set_lock, web.server_id, "rescue", None, world.now())

    agent.accept(first)
    agent.finish(first, "failed")

    failure = world.job(waiting.job_id).failure
    assert failure is not None
    assert (failure.reason, failure.metadata["lock_reason"]) == ("VM_LOCKED", "rescue")


@pytest.mark.feature("A7")
def test_a_disabled_server_needs_an_override_that_is_kept(
    world: World, agent: Agent, web: Server, storage: Storage
) -> None:
    world.run(access.set_level, web.server_id, "disabled", "", world.now())
    order = BackupOrder(web.server_id, storage.storage_id)
    with pytest.raises(AccessLevelDenied):
        world.start(order)

    job = world.start(replace(order, override_access=True))

    assert job.state == "dispatched"
    assert "access.overridden" in world.events()
    world.cancel(job)
    agent.accept(job)
    agent.finish(job, "cancelled")
    world.run(access.set_level, web.server_id, "scheduled_only", "", world.now())
    count = world.events().count("access.overridden")
    world.start(replace(order, override_access=True))
    assert world.events().count("access.overridden") == count, "there was nothing to override"
