"""What checks leave behind: the state of each storage and hypervisor, the change as an event and a line, and nothing refused."""

from dataclasses import replace
from typing import Any

import pytest

from controller import failing, health, totals
from controller.db import models
from controller.errors import HypervisorUnreachable, StorageDisabled
from controller.jobs import Failure, Job
from controller.order_types import HealthOrder
from controller.storages import Storage
from engine.ids import new_id
from tests.controller.world import Agent, World, record_of

UNREACHABLE = Failure("STORAGE_UNREACHABLE", "the storage is away", {}, "connect")
ROOM = {"health": {"latency": "0.25s", "initialized": True, "room": {"total_bytes": "1000", "free_bytes": "400"}}}


def look(world: World, storage: Storage, agent: Agent, state: str = "completed", **values: Any) -> Job:
    """Check a storage from a hypervisor and let it end."""
    job = world.start(HealthOrder(storage.storage_id, agent.hypervisor_id))
    agent.accept(job)
    return agent.finish(job, state, **values)


def kinds(world: World, kind: str) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        row = models.Event
        return [one.body for one in row.select().where(row.kind == kind).order_by(row.sequence)]

    return world.run(read)


@pytest.mark.feature("H1", "H4")
def test_a_check_that_went_well_tells_state_latency_and_room(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    assert world.run(health.of_storage, storage.storage_id).state == "unknown"
    look(world, storage, agent, result=ROOM)
    found = world.run(health.of_storage, storage.storage_id)
    assert (found.state, found.total_bytes, found.free_bytes) == ("healthy", 1000, 400)
    assert (found.hypervisor_id, found.measure_hypervisor_id) == (agent.hypervisor_id, agent.hypervisor_id)
    (check,) = world.run(health.list_checks, storage.storage_id)
    assert (check.hypervisor_name, check.latency_microseconds, check.failure_count) == ("kvm1", 250_000, 0)
    assert [one["state"] for one in kinds(world, "storage.health_changed")] == ["healthy"]


@pytest.mark.feature("H1")
def test_a_failure_is_told_with_its_cause_and_a_change_is_recorded_once(world: World) -> None:
    first, second, storage = world.enroll("kvm1"), world.enroll("kvm2"), world.storage()
    look(world, storage, first)
    for _ in range(3):
        look(world, storage, first, "failed", failure=UNREACHABLE)
    found = world.run(health.of_storage, storage.storage_id)
    assert found.state == "unhealthy"
    assert found.failure is not None
    assert found.failure["reason"] == "STORAGE_UNREACHABLE"
    (check,) = world.run(health.list_checks, storage.storage_id)
    assert check.failure_count == 3
    look(world, storage, second)
    assert world.run(health.of_storage, storage.storage_id).state == "degraded"
    assert [one.hypervisor_name for one in world.run(health.list_checks, storage.storage_id)] == ["kvm1", "kvm2"]
    look(world, storage, first)
    assert world.run(health.of_storage, storage.storage_id).state == "healthy"
    told = [(one["before"], one["state"]) for one in kinds(world, "storage.health_changed")]
    assert told == [
        ("unknown", "healthy"),
        ("healthy", "unhealthy"),
        ("unhealthy", "degraded"),
        ("degraded", "healthy"),
    ]
    assert [one["reason"] for one in kinds(world, "storage.health_changed")][1] == "STORAGE_UNREACHABLE"


@pytest.mark.feature("H1")
def test_an_end_that_says_nothing_of_the_storage_changes_nothing(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    look(world, storage, agent)
    job = world.start(HealthOrder(storage.storage_id, agent.hypervisor_id))
    agent.reject(job, "UNSUPPORTED")
    world.cancel(world.start(HealthOrder(storage.storage_id, agent.hypervisor_id)))
    assert world.run(health.of_storage, storage.storage_id).state == "healthy"


@pytest.mark.feature("H1")
def test_health_never_stops_a_backup_and_a_check_runs_beside_it(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    server = world.server(agent, "web")
    look(world, storage, agent, "failed", failure=UNREACHABLE)
    backup = world.backup(server, storage)
    assert backup.state == "dispatched"
    assert look(world, storage, agent).state == "completed"


@pytest.mark.feature("H3")
def test_check_now_chooses_who_is_online_and_refuses_what_cannot_be(world: World) -> None:
    storage = world.storage()
    with pytest.raises(HypervisorUnreachable):
        world.start(HealthOrder(storage.storage_id))
    agents = [world.enroll("kvm1"), world.enroll("kvm2")]
    chosen = {world.start(HealthOrder(storage.storage_id)).hypervisor_id for _ in range(2)}
    assert chosen == {one.hypervisor_id for one in agents}, "each in turn"
    off = world.storage("off")
    world.change_storage(off, enabled=False)
    with pytest.raises(StorageDisabled):
        world.start(HealthOrder(off.storage_id))


def test_a_storage_that_is_being_looked_at_may_still_change_its_place(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    world.start(HealthOrder(storage.storage_id, agent.hypervisor_id))
    moved = world.change_storage(storage, config={**storage.config, "path": "/elsewhere"})
    assert moved.config["path"] == "/elsewhere"


@pytest.mark.feature("M3")
def test_failures_in_a_row_are_counted_until_one_backup_ends_well(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    server = world.server(agent, "web")
    assert [one.server_id for one in world.run(lambda: list(models.UnprotectedServer.select()))] == [server.server_id]
    for expected in (1, 2):
        job = world.backup(server, storage)
        agent.accept(job)
        agent.finish(job, "failed", failure=UNREACHABLE)
        failed = world.run(failing.of_server, server.server_id)
        assert failed is not None
        assert (failed.failure_count, failed.job_id) == (expected, job.job_id)
    world.cancel(world.backup(server, storage))
    agent.back_up(server, storage, "c1")
    assert world.run(failing.of_server, server.server_id) is None
    assert world.run(lambda: list(models.UnprotectedServer.select())) == []


@pytest.mark.feature("S21")
@pytest.mark.parametrize("reason", ["STORAGE_READ_ONLY", "STORAGE_DISABLED"])
def test_what_was_skipped_for_the_storages_state_is_no_failure(world: World, reason: str) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    server = world.server(agent, "web")
    agent.reject(world.backup(server, storage), reason)
    assert world.run(failing.of_server, server.server_id) is None


def added_up() -> tuple[list[Any], list[Any]]:
    """Return the totals as they are kept, and as they are when all is added up anew."""

    def read() -> list[Any]:
        total, bare = models.BackupTotal, models.UnprotectedServer
        rows = list(total.select().order_by(total.server_id, total.storage_id).tuples())
        whole = models.StorageTotal
        sums = list(whole.select().where(whole.backup_count > 0).order_by(whole.storage_id).tuples())
        return [rows, list(bare.select(bare.server_id).order_by(bare.server_id).tuples()), sums]

    kept = read()
    totals.recount_all()
    return kept, read()


@pytest.mark.feature("M1", "M4")
def test_totals_stay_what_the_rows_add_up_to(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    servers = [world.server(agent, name) for name in ("web", "db", "idle")]
    first = agent.back_up(servers[0], storage, "c1")
    second = agent.back_up(servers[0], storage, "c1", [first])
    other = agent.back_up(servers[1], storage, "c2")
    assert world.run(totals.of_storages)[storage.storage_id].backup_count == 3
    assert set(world.run(totals.last_backup_times, [one.server_id for one in servers])) == {
        servers[0].server_id,
        servers[1].server_id,
    }
    kept, counted = world.run(added_up)
    assert kept == counted
    verify = world.verify(other)
    agent.accept(verify)
    damage = {"verify": {"damaged_count": "1", "damaged": [{"backup_id": other}]}}
    agent.finish(verify, "failed", failure=Failure("VERIFY_FAILED", "damage"), result=damage)
    kept, counted = world.run(added_up)
    assert kept == counted
    assert (servers[1].server_id,) in kept[1], "nothing usable is left of it"
    delete = world.delete([second])
    agent.accept(delete)
    agent.finish(delete, result={"delete": {"backup_ids": [second]}})
    kept, counted = world.run(added_up)
    assert kept == counted
    assert world.run(totals.of_storages)[storage.storage_id].backup_count == 2
    reindex = world.reindex(storage, agent)
    agent.accept(reindex)
    agent.find(reindex, record_of(reindex_job(world, servers[2], reindex), "c3"))
    agent.finish(reindex, result={"reindex": {"backup_count": "1"}})
    kept, counted = world.run(added_up)
    assert kept == counted


def reindex_job(world: World, server: Any, job: Job) -> Job:
    """Return a job whose backup the reindex finds: one that this controller never heard of."""
    return replace(job, server_id=server.server_id, backup_id=new_id(world.now()))
