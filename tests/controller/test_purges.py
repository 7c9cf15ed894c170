"""Purges: when a deleted server's backups go, what stops that, and what a person orders."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from controller import backups, jobs, previews, purge_orders, purges, schedules, servers, settings
from controller.cycle import purge
from controller.cycle.tick import Round
from controller.db import models
from controller.errors import ConfirmationStale, PurgeEnded, PurgeRunning, RequestIdReused
from controller.jobs import Failure, Job, JobFilter
from controller.order_types import DeleteOrder
from controller.previews import Chain
from controller.purge_orders import Target
from controller.purges import Purge
from controller.schedules import NewSchedule, Schedule
from controller.servers import Server
from controller.storages import Storage
from tests.controller.chains import DAY, left, put, put_chains
from tests.controller.world import Agent, World

DAY_SECONDS = 24 * 3600


@dataclass
class Place:
    world: World
    agent: Agent
    server: Server
    storage: Storage

    def delete_server(self, server: Server | None = None) -> None:
        self.world.run(servers.delete, (server or self.server).server_id, self.world.now())

    def tick(self) -> list[Job]:
        """Run the purge step and return the purge jobs that have not ended."""
        world = self.world
        self.agent.heartbeat()
        now = world.now()
        asyncio.run(purge.step(Round(world.database, world.limits, world.vault, now, now)))
        return world.run(jobs.list_jobs, JobFilter(types=("purge",), states=jobs.LIVE))

    def purges(self) -> list[Purge]:
        return self.world.run(purges.list_purges, ended=True)

    def done(self, job: Job, state: str = "completed", **values: Any) -> Job:
        result = {"delete": {"backup_ids": list(job.spec["backup_ids"]), "freed_bytes": "5"}}
        return self.agent.finish(self.agent.accept(job), state, **(values or {"result": result}))

    def schedule(self) -> Schedule:
        new = NewSchedule(self.agent.hypervisor_id, self.storage.storage_id, "scheduled_only")
        return self.world.run(schedules.create, new, self.world.now())

    def order(self, target: Target, request_id: str = "") -> list[Purge]:
        shown = self.world.run(purge_orders.preview, target, self.world.context())
        return self.world.run(purge_orders.order, target, shown.confirmation, request_id, self.world.context())


@pytest.fixture
def place(world: World) -> Place:
    agent = world.enroll("h1")
    made = Place(world, agent, world.server(agent, "web"), world.storage())
    put_chains(world, agent, made.server, made.storage, 2, 3)
    return made


@pytest.mark.feature("K1")
@pytest.mark.feature("G3")
def test_a_deleted_server_is_purged_after_the_delay_and_not_before(place: Place) -> None:
    place.delete_server()
    place.world.clock.advance(6.9 * DAY_SECONDS)
    assert place.tick() == []
    place.world.clock.advance(0.2 * DAY_SECONDS)

    (job,) = place.tick()
    assert len(job.spec["backup_ids"]) == 6
    place.done(job)

    place.tick()
    assert [one.state for one in place.purges()] == ["completed"]
    assert left(place.world, place.server) == set()


@pytest.mark.feature("K1")
def test_absence_from_an_inventory_purges_nothing(place: Place) -> None:
    place.agent.domains.clear()
    place.agent.report()
    place.world.clock.advance(100 * DAY_SECONDS)
    assert place.tick() == []
    assert place.purges() == []


@pytest.mark.feature("K1")
def test_a_purge_can_be_cancelled_until_it_runs_and_is_checked_again_when_it_does(place: Place) -> None:
    world, other = place.world, place.world.server(place.agent, "db")
    put_chains(world, place.agent, other, place.storage, 1)
    place.delete_server()
    (first,) = place.purges()
    assert world.run(purges.cancel, first.purge_id, world.now()).state == "cancelled"
    with pytest.raises(PurgeEnded):
        world.run(purges.cancel, first.purge_id, world.now())

    place.delete_server(other)
    row = models.Server
    world.run(row.update(delete_time=None).where(row.server_id == other.server_id).execute)  # it lives again
    world.clock.advance(8 * DAY_SECONDS)

    assert place.tick() == []
    assert [one.state for one in place.purges()] == ["cancelled", "cancelled"]
    assert len(left(world, place.server)) == 6


@pytest.mark.feature("K1")
def test_what_was_sent_is_not_cancelled_and_what_waits_in_the_queue_is_not_done(place: Place) -> None:
    world, other = place.world, place.world.server(place.agent, "db")
    put_chains(world, place.agent, other, place.storage, 1)
    for server in (place.server, other):
        place.delete_server(server)
    world.clock.advance(8 * DAY_SECONDS)
    found = sorted(place.tick(), key=lambda one: one.state)
    assert [one.state for one in found] == ["dispatched", "queued"]
    by_server = {one.server_id: one for one in place.purges()}

    with pytest.raises(PurgeRunning):
        world.run(purges.cancel, by_server[found[0].server_id].purge_id, world.now())
    world.run(purges.cancel, by_server[found[1].server_id].purge_id, world.now())
    place.done(found[0])

    ended = world.job(found[1].job_id)
    assert (ended.state, ended.failure and ended.failure.reason) == ("failed", "PURGE_ENDED")


@pytest.mark.feature("K2")
def test_after_three_failures_in_a_row_it_waits_for_two_days(place: Place) -> None:
    place.delete_server()
    place.world.clock.advance(8 * DAY_SECONDS)
    for _ in range(3):
        (job,) = place.tick()
        place.done(job, "failed", failure=Failure("STORAGE_UNREACHABLE", "no route"))
    assert place.tick() == []
    (purge_,) = place.purges()
    assert (purge_.failure_count, purge_.failure and purge_.failure.reason) == (3, "STORAGE_UNREACHABLE")

    place.world.clock.advance(47 * 3600)
    assert place.tick() == []
    place.world.clock.advance(2 * 3600)
    assert len(place.tick()) == 1


@pytest.mark.feature("K3")
def test_five_a_tick(place: Place) -> None:
    world = place.world
    for number in range(7):
        server = world.server(place.agent, f"s{number}")
        put(world, place.agent, server, place.storage, world.clock.time)
        place.delete_server(server)
    world.clock.advance(8 * DAY_SECONDS)
    assert [len(place.tick()) for _ in range(2)] == [5, 7]


@pytest.mark.feature("S22")
def test_a_read_only_storage_is_passed_over_and_is_no_failure(place: Place) -> None:
    place.delete_server()
    place.world.change_storage(place.storage, read_only=True)
    place.world.clock.advance(8 * DAY_SECONDS)
    assert place.tick() == []
    assert place.purges()[0].failure_count == 0
    place.world.change_storage(place.storage, read_only=False)
    place.world.clock.advance(16 * 60)
    assert len(place.tick()) == 1


def test_a_purge_whose_job_a_person_cancelled_is_cancelled(place: Place) -> None:
    place.delete_server()
    place.world.clock.advance(8 * DAY_SECONDS)
    (job,) = place.tick()
    place.world.cancel(job)
    if place.world.job(job.job_id).state != "cancelled":
        place.agent.finish(job, "cancelled")
    assert place.tick() == []
    assert place.purges()[0].state == "cancelled"


@pytest.mark.feature("D24")
def test_a_schedules_deleted_servers_are_purged_by_hand_at_once(place: Place) -> None:
    world, schedule = place.world, place.schedule()
    alive = world.server(place.agent, "db")
    put_chains(world, place.agent, alive, place.storage, 1)
    place.delete_server()

    ordered = place.order(Target(schedule_id=schedule.schedule_id))

    assert [one.server_id for one in ordered] == [place.server.server_id]
    (job,) = place.tick()
    assert job.server_id == place.server.server_id


@pytest.mark.feature("D25")
def test_purging_all_of_a_schedule_takes_what_was_shown_and_nothing_newer(place: Place) -> None:
    world, schedule = place.world, place.schedule()
    target = Target(schedule_id=schedule.schedule_id, include_active=True)
    shown = world.run(purge_orders.preview, target, world.context())
    assert [(one.server_id, one.backup_count, one.stored_bytes) for one in shown.shares] == [
        (place.server.server_id, 6, 300)
    ]

    new = put(world, place.agent, place.server, place.storage, world.now())
    with pytest.raises(ConfirmationStale):
        world.run(purge_orders.order, target, shown.confirmation, "", world.context())
    place.order(target)
    newer = put(world, place.agent, place.server, place.storage, world.now() + timedelta(seconds=1))
    world.clock.advance(60)

    (job,) = place.tick()
    assert new in job.spec["backup_ids"]
    assert len(job.spec["backup_ids"]) == 7
    place.done(job)
    assert left(world, place.server) == {newer}


@pytest.mark.feature("N7")
def test_the_same_request_orders_a_purge_once(place: Place) -> None:
    target, context = Target(server_id="web"), place.world.context()
    shown = place.world.run(purge_orders.preview, target, context)
    made = [place.world.run(purge_orders.order, target, shown.confirmation, "r1", context) for _ in range(2)]
    assert [one.purge_id for one in made[0]] == [one.purge_id for one in made[1]]
    with pytest.raises(RequestIdReused):
        place.world.run(purge_orders.order, Target(server_id="panel-web"), shown.confirmation, "r1", context)


@pytest.mark.feature("M12")
@pytest.mark.feature("M13")
def test_a_chain_is_deleted_as_it_was_shown(place: Place) -> None:
    world = place.world
    old, new = put_chains(world, place.agent, world.server(place.agent, "db"), place.storage, 2, 3)
    chain = Chain("db", "nas", old[0])
    shown = world.run(previews.preview_delete, (), world.context(), chain)
    assert {one.backup_id for one in shown.backups} == set(old)
    assert (shown.record_count, shown.active) == (3, False)
    assert world.run(previews.preview_delete, (), world.context(), Chain("db", "nas", new[0], "vda")).active

    server = world.run(servers.find, "db")
    put(world, place.agent, server, place.storage, world.clock.time - DAY / 2, tuple(old))
    with pytest.raises(ConfirmationStale):
        world.start(DeleteOrder((), shown.confirmation, chain=chain))
    shown = world.run(previews.preview_delete, (), world.context(), chain)
    job = world.start(DeleteOrder((), shown.confirmation, chain=chain))
    assert len(job.spec["backup_ids"]) == 4
    place.done(job)
    assert left(world, server) == set(new)


def test_missing_backups_are_forgotten_with_the_rest(place: Place) -> None:
    row = models.Backup
    place.world.run(row.update(state=backups.MISSING).where(row.server_id == place.server.server_id).execute)
    place.delete_server()
    place.world.clock.advance(8 * DAY_SECONDS)
    assert place.tick() == []
    assert place.purges()[0].state == "completed"
    assert left(place.world, place.server) == set()
    place.world.run(settings.get)
