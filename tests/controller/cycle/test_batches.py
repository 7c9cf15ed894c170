"""Batches from the due schedule to their end, on a real database, with agents that say what agents would."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from controller import access, batches, diagnosis, leases, previews, schedules, servers, settings
from controller.batches import Batch
from controller.cycle import batch_dispatch, batch_work
from controller.db import models
from controller.errors import BatchWaiting, DispatchPaused, NothingToRetry, RequestIdReused, ServerBusy, ServerLocked
from controller.jobs import Failure, Job, holds_lease, of_batch
from controller.order_types import BackupOrder, RestoreOrder
from controller.rules import batch as rules
from controller.schedules import NewSchedule, Schedule
from controller.servers import Server
from controller.storages import Storage
from tests.controller.world import Agent, World, record_of

HOUR = 3600


@dataclass
class House:
    """A hypervisor with a schedule for its servers."""

    world: World
    agent: Agent
    storage: Storage
    servers: dict[str, Server]
    schedule: Schedule

    def tick(self) -> None:
        self.agent.heartbeat()
        self.world.tick()

    def receive(self) -> None:
        """Let the agent confirm every command that it was sent."""
        row, now = models.OutboxCommand, self.world.now()
        change = row.update(send_time=now, settle_time=now, outcome="received").where(row.settle_time.is_null())
        self.world.run(change.execute)

    def batches(self) -> list[Batch]:
        """Return the batches, oldest first."""
        found = self.world.run(batches.list_batches)
        return found[::-1]

    def jobs(self, batch: Batch) -> dict[str, Job]:
        names = {one.server_id: name for name, one in self.servers.items()}
        return {names[job.server_id]: job for job in self.world.run(of_batch, batch.batch_id)}

    def batch(self, number: int = -1) -> Batch:
        return self.batches()[number]

    def run(self, batch: Batch, *, failing: Iterable[str] = ()) -> Batch:
        """Let the agent do all of a batch."""
        for name, job in self.jobs(batch).items():
            if job.state == "dispatched":
                self.finish(job, "failed" if name in set(failing) else "completed")
        return self.world.run(batches.get, batch.batch_id)

    def finish(self, job: Job, state: str = "completed") -> Job:
        self.agent.accept(job)
        if state == "failed":
            return self.agent.finish(job, "failed", failure=Failure("STORAGE_FULL", "full"))
        return self.agent.finish(job, record=record_of(job, f"chain-{job.server_id}"))


def furnish(world: World, name: str = "h1", count: int = 3, **overrides: Any) -> House:
    agent, storage = world.enroll(name), world.storage(f"nas-{name}")
    known = {f"{name}-{number}": world.server(agent, f"{name}-{number}") for number in range(count)}
    new = NewSchedule(agent.hypervisor_id, storage.storage_id, "full_access", overrides=overrides)
    return House(world, agent, storage, known, world.run(schedules.create, new, world.now()))


def change_settings(world: World, **values: Any) -> None:
    world.run(settings.update, values, "", world.now())


def force(house: House, request_id: str = "") -> Batch:
    world = house.world
    made = world.run(batch_dispatch.force, house.schedule.schedule_id, "admin", request_id, world.limits, world.now())
    return world.run(batches.get, made)


@pytest.mark.feature("X13", "X1", "M5")
def test_a_due_schedule_becomes_one_batch_of_its_servers_and_ends_by_them(world: World) -> None:
    house = furnish(world)
    house.tick()
    batch = house.batch()

    jobs = house.jobs(batch)
    assert (batch.state, batch.origin) == ("dispatched", "schedule")
    assert {job.state for job in jobs.values()} == {"dispatched"}
    assert world.commands_of(jobs["h1-0"]) == ["run"]
    house.tick()
    assert len(house.batches()) == 1  # due again only after its interval

    house.finish(jobs["h1-0"])
    assert house.batch().state == "running"
    ended = house.run(batch, failing=["h1-1"])
    assert ended.state == "partial"
    assert world.run(models.LeaseHold.select().count) == 0
    assert house.schedule.due_time is not None
    due_time = world.run(schedules.get, house.schedule.schedule_id).due_time
    assert due_time == house.schedule.due_time + timedelta(days=1)


@pytest.mark.feature("X13")
def test_the_order_is_never_then_oldest_and_those_cut_off_come_first(world: World) -> None:
    house = furnish(world, count=4)
    for name in ("h1-2", "h1-1"):
        house.agent.back_up(house.servers[name], house.storage, f"chain-{house.servers[name].server_id}")
    house.tick()
    first = house.batch()
    never = sorted(["h1-0", "h1-3"], key=lambda name: house.servers[name].server_id)
    assert list(house.jobs(first)) == [*never, "h1-2", "h1-1"]

    jobs = house.jobs(first)
    house.receive()
    for name in ("h1-0", "h1-3", "h1-2"):
        house.finish(jobs[name])
    world.clock.advance(49 * HOUR)
    house.tick()
    assert house.jobs(first)["h1-1"].cancel_requested
    house.agent.finish(jobs["h1-1"], "cancelled")
    assert house.batch(0).state == "failed"
    house.tick()
    assert next(iter(house.jobs(house.batch()))) == "h1-1"


@pytest.mark.feature("X1")
def test_a_second_batch_of_a_hypervisor_waits_as_one_row_with_the_reason(world: World) -> None:
    house = furnish(world)
    house.tick()
    running = house.batch()
    house.receive()

    world.clock.advance(25 * HOUR)
    for _ in range(3):
        house.tick()

    first, waiting = house.batches()
    assert waiting.state == "deferred"
    assert waiting.wait is not None
    assert waiting.wait["reason"] == batch_dispatch.BUSY
    assert running.batch_id in waiting.wait["text"]
    with pytest.raises(BatchWaiting):
        force(house)
    house.run(first)
    house.tick()
    assert house.batch().state == "dispatched"


@pytest.mark.feature("X3")
def test_a_single_defers_a_batch_until_the_next_tick_but_cannot_starve_it(world: World) -> None:
    house = furnish(world)
    single = house.agent.accept(world.backup(house.servers["h1-0"], house.storage))
    house.tick()
    assert house.batch().state == "deferred"
    old = world.backup(house.servers["h1-1"], house.storage)  # queued: one at a time

    world.clock.advance(HOUR + 60)
    house.tick()
    new = world.backup(house.servers["h1-2"], house.storage)
    house.agent.finish(single, record=record_of(single, "c0"))
    assert world.job(old.job_id).state == "dispatched"  # it was there before
    house.agent.accept(old)
    house.agent.finish(old, record=record_of(old, "c1"))
    assert world.job(new.job_id).state == "queued"  # it came after an hour of waiting
    house.tick()
    batch = house.batch()
    assert batch.state == "dispatched"
    assert {job.state for job in house.jobs(batch).values()} == {"dispatched"}  # the one that waits stepped back

    house.run(batch)
    assert world.job(new.job_id).state == "dispatched"


@pytest.mark.feature("X2", "X4")
def test_a_single_waits_for_the_batch_and_one_for_each_server_at_most(world: World) -> None:
    house = furnish(world)
    house.tick()
    single = world.backup(house.servers["h1-0"], house.storage)
    other = world.backup(house.servers["h1-1"], house.storage)

    assert (single.state, other.state) == ("queued", "queued")
    with pytest.raises(ServerBusy) as caught:
        world.backup(house.servers["h1-0"], house.storage)
    assert caught.value.facts["job_id"] == single.job_id
    house.run(house.batch())
    assert {world.job(one.job_id).state for one in (single, other)} == {"queued", "dispatched"}
    assert world.run(leases.holders, leases.server_resource(single.server_id)) == [single.job_id]


@pytest.mark.feature("X10", "X14")
def test_paused_no_batch_begins_and_what_runs_goes_on(world: World) -> None:
    house = furnish(world)
    change_settings(world, dispatch_paused=True)
    house.tick()
    assert house.batches() == []
    with pytest.raises(DispatchPaused):
        force(house)

    change_settings(world, dispatch_paused=False)
    house.tick()
    change_settings(world, dispatch_paused=True)
    assert house.run(house.batch()).state == "completed"


@pytest.mark.feature("X11")
def test_no_more_batches_at_once_than_the_cap_and_it_holds_from_the_next_tick(world: World) -> None:
    houses = [furnish(world, name, count=1) for name in ("h1", "h2", "h3")]
    change_settings(world, max_concurrent_batches=2)
    for house in houses:
        house.agent.heartbeat()
    world.tick()
    found = houses[0].batches()
    assert sorted(one.state for one in found) == ["deferred", "dispatched", "dispatched"]
    waiting = next(one for one in found if one.state == "deferred")
    assert waiting.wait is not None
    assert waiting.wait["reason"] == batch_dispatch.CAPPED

    change_settings(world, max_concurrent_batches=3)
    world.tick()
    assert {one.state for one in houses[0].batches()} == {"dispatched"}


@pytest.mark.feature("X7", "X9", "X8")
@pytest.mark.parametrize(("interval_hours", "hours"), [(24, 48), (2, 6)])
def test_a_stale_batch_is_stopped_and_fails_with_its_open_jobs(world: World, interval_hours: int, hours: int) -> None:
    house = furnish(world, interval_hours=interval_hours)
    house.tick()
    jobs = house.jobs(house.batch())
    house.finish(jobs["h1-0"])
    running = house.agent.accept(jobs["h1-1"])
    house.receive()

    world.clock.advance(hours * HOUR - 600)
    house.tick()
    assert house.batch(0).cancel_time is None
    world.clock.advance(601)
    house.tick()
    assert house.batch(0).cancel_reason == "JOB_STALE"
    assert world.commands_of(running) == ["cancel"]
    ended = house.agent.finish(running, "cancelled")
    assert ended.failure is not None
    assert (ended.state, ended.failure.reason) == ("failed", "JOB_STALE")
    assert ended.failure.metadata["hours"] == str(float(hours))

    for _ in range(2):  # the agent never says a word of the third
        world.clock.advance(601)
        house.tick()
    batch = house.batch(0)
    assert batch.state == "failed"
    assert batch.failure is not None
    assert batch.failure["reason"] == "JOB_STALE"
    late = house.agent.finish(jobs["h1-2"], record=record_of(jobs["h1-2"], "c"))
    assert late.state == "failed"


@pytest.mark.feature("X16")
def test_a_due_batch_of_an_offline_hypervisor_waits_and_is_reported_once(world: World) -> None:
    house = furnish(world)
    world.clock.advance(300)
    for _ in range(3):
        world.tick()

    waiting = house.batch()
    assert waiting.state == "deferred"
    assert waiting.wait is not None
    assert waiting.wait["reason"] == "hypervisor_unreachable"
    assert world.run(models.SystemLog.select().where(models.SystemLog.level == "error").count) == 1
    house.tick()
    assert house.batch().state == "dispatched"


@pytest.mark.feature("X16")
def test_jobs_of_a_batch_that_nobody_accepts_fail_and_those_that_wait_their_turn_do_not(world: World) -> None:
    house = furnish(world, count=2)
    house.tick()
    first, second = house.jobs(house.batch()).values()
    row = models.OutboxCommand
    world.run(
        lambda: row.update(settle_time=world.now(), outcome="received").where(row.job_id == first.job_id).execute()
    )

    world.clock.advance(HOUR)
    house.tick()

    assert world.job(first.job_id).state == "dispatched"
    failed = world.job(second.job_id)
    assert failed.failure is not None
    assert failed.failure.reason == "COMMAND_NOT_ACCEPTED"


@pytest.mark.feature("S21", "S20")
def test_skips_for_the_storages_state_are_no_failure(world: World) -> None:
    house = furnish(world)
    world.change_storage(house.storage, read_only=True)
    house.tick()
    batch = house.batch()

    assert batch.state == "completed_with_warnings"
    jobs = house.jobs(batch)
    assert {job.state for job in jobs.values()} == {"skipped"}
    assert {job.failure.reason for job in jobs.values() if job.failure} == {"STORAGE_READ_ONLY"}
    with pytest.raises(NothingToRetry):
        world.run(batch_dispatch.retry, batch.batch_id, "admin", "", world.limits, world.now())


@pytest.mark.feature("A1", "X13")
def test_only_servers_whose_level_has_them_backed_up_take_part(world: World) -> None:
    house = furnish(world)
    row = models.Server
    for name, level in (("h1-0", "manual_only"), ("h1-1", "disabled")):
        change = row.update(access_override=level).where(row.server_id == house.servers[name].server_id)
        world.run(change.execute)
    house.tick()
    assert list(house.jobs(house.batch())) == ["h1-2"]
    assert world.run(servers.find, "h1-0").busy_job_id == ""


@pytest.mark.feature("X15")
def test_a_locked_server_is_skipped_with_the_reason(world: World) -> None:
    house = furnish(world, count=2)
    row = models.Server
    locked = house.servers["h1-0"].server_id
    world.run(lambda: row.update(lock_reason="rescue", lock_time=world.now()).where(row.server_id == locked).execute())
    house.tick()
    jobs = house.jobs(house.batch())

    assert jobs["h1-0"].state == "skipped"
    assert jobs["h1-0"].failure is not None
    assert jobs["h1-0"].failure.reason == "VM_LOCKED"
    assert house.run(house.batch()).state == "completed_with_warnings"


@pytest.mark.feature("D26", "D21", "N7")
def test_a_schedule_runs_by_force_whatever_its_hours_and_the_same_request_is_the_same_batch(world: World) -> None:
    house = furnish(world, interval_hours=0, window={"start": "02:00", "end": "03:00"})  # it is noon
    house.tick()
    assert house.batches() == []

    made = force(house, "r1")
    assert (made.state, made.origin, made.close_time) == ("dispatched", "force", None)
    assert force(house, "r1").batch_id == made.batch_id
    house.run(made, failing=["h1-0"])
    with pytest.raises(RequestIdReused):
        world.run(batch_dispatch.retry, made.batch_id, "admin", "r1", world.limits, world.now())


@pytest.mark.feature("D26", "D28", "X1")
def test_a_run_that_was_forced_or_switched_off_between_two_looks_is_not_fired_again(world: World) -> None:
    forced, off = furnish(world, "h1"), furnish(world, "h2")
    now = world.now()
    assert set(world.run(batch_dispatch.due, now)) == {forced.schedule.schedule_id, off.schedule.schedule_id}

    made = force(forced)
    world.run(partial(schedules.set_enabled, off.schedule.schedule_id, now, enabled=False))

    for house in (forced, off):
        assert world.run(batch_dispatch.fire, house.schedule.schedule_id, world.limits, now) == ""
    assert [one.batch_id for one in forced.batches()] == [made.batch_id]


@pytest.mark.feature("X13")
def test_retry_failed_is_a_batch_of_only_those(world: World) -> None:
    house = furnish(world)
    house.tick()
    ended = house.run(house.batch(), failing=["h1-1", "h1-2"])
    assert ended.state == "partial"

    again = world.run(batch_dispatch.retry, ended.batch_id, "admin", "", world.limits, world.now())
    batch = house.batch()
    assert (batch.batch_id, batch.origin, batch.origin_batch_id) == (again, "retry", ended.batch_id)
    assert set(house.jobs(batch)) == {"h1-1", "h1-2"}
    assert house.run(batch).state == "completed"


@pytest.mark.feature("M7")
def test_cancelling_a_batch_ends_all_of_it_and_a_deferred_one_at_once(world: World) -> None:
    house = furnish(world)
    house.tick()
    batch = house.batch()
    jobs = house.jobs(batch)
    house.finish(jobs["h1-0"])
    running = house.agent.accept(jobs["h1-1"])
    house.receive()
    world.clock.advance(25 * HOUR)
    house.tick()
    waiting = house.batch()

    for one in (batch, waiting):
        assert world.run(batch_work.cancel, one.batch_id, "CANCELLED", world.now())
    assert house.batch().state == "cancelled"
    assert world.commands_of(running) == ["cancel"]
    for job in (running, jobs["h1-2"]):
        house.agent.finish(job, "cancelled")
    assert house.batch(0).state == "cancelled"
    assert [job.state for job in house.jobs(house.batch(0)).values()].count("completed") == 1
    assert not world.run(batch_work.cancel, batch.batch_id, "CANCELLED", world.now())


@pytest.mark.feature("M7")
def test_one_job_of_a_batch_can_be_cancelled_alone(world: World) -> None:
    house = furnish(world)
    house.tick()
    jobs = house.jobs(house.batch())
    assert world.cancel(jobs["h1-1"]).state == "cancelled"  # it had not been sent yet

    assert house.run(house.batch()).state == "completed_with_warnings"


@pytest.mark.feature("D14")
def test_at_the_windows_end_nobody_begins_and_who_runs_finishes(world: World) -> None:
    house = furnish(world, window={"start": "11:00", "end": "13:00"})  # it is noon
    house.tick()
    batch = house.batch()
    assert batch.close_time is not None
    jobs = house.jobs(batch)
    late = house.agent.reject(jobs["h1-2"], "WINDOW_CLOSED")

    assert late.state == "skipped"
    assert house.run(batch).state == "completed_with_warnings"


@pytest.mark.feature("X12")
def test_a_batch_larger_than_an_agent_takes_at_once_is_sent_in_portions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "SENT_MAX", 2)
    house = furnish(world)
    house.tick()
    batch = house.batch()
    jobs = house.jobs(batch)
    assert [job.state for job in jobs.values()] == ["dispatched", "dispatched", "pending"]

    house.finish(next(iter(jobs.values())))
    assert [job.state for job in house.jobs(batch).values()] == ["completed", "dispatched", "dispatched"]


@pytest.mark.feature("X9")
def test_a_phantom_batch_ends_at_the_next_tick(world: World) -> None:
    house = furnish(world)
    house.tick()
    row = models.Job
    world.run(lambda: row.update(state="failed").execute())
    house.tick()

    assert house.batch().state == "failed"
    assert world.run(leases.holders, leases.work_resource(house.agent.hypervisor_id)) == []


@pytest.mark.feature("X2")
def test_an_admins_restore_may_be_let_in_between_two_servers_of_a_batch(world: World) -> None:
    house = furnish(world)
    backup_id = house.agent.back_up(house.servers["h1-0"], house.storage, "c0")
    house.tick()
    batch = house.batch()
    house.receive()

    preview = world.run(previews.preview_restore, backup_id, "", (), "", world.context())
    restore = world.start(RestoreOrder(backup_id, confirmation=preview.confirmation, during_batch=True))
    assert restore.state == "dispatched"  # the hypervisor makes room for it
    world.clock.advance(HOUR)  # as long as the servers in progress take
    house.receive()
    house.tick()
    assert world.job(restore.job_id).state == "dispatched"
    house.agent.accept(restore)
    assert world.run(holds_lease, restore.stamp, house.agent.hypervisor_id)

    house.run(batch)
    assert house.batch(0).ended
    world.clock.advance(25 * HOUR)
    world.run(models.Job.update(start_time=world.now()).where(models.Job.job_id == restore.job_id).execute)
    house.tick()
    assert house.batch().state == "deferred"  # it is still being restored
    house.agent.finish(restore)
    house.tick()
    assert house.batch().state == "dispatched"


def migrating(house: House, name: str, state: str = "migrating") -> None:
    """Let the agent report a domain that is on its way."""
    house.agent.domains[name] = replace(house.agent.domains[name], state=state)
    house.agent.report()


@pytest.mark.feature("X15")
def test_a_server_that_its_agent_reports_as_migrating_is_refused_until_it_has_arrived(world: World) -> None:
    house = furnish(world)
    server, storage = house.servers["h1-1"], house.storage
    migrating(house, "h1-1")
    house.tick()

    job = house.jobs(house.batch())["h1-1"]
    assert job.state == "skipped"
    assert job.failure is not None
    assert (job.failure.reason, "migrating" in job.failure.message) == ("VM_LOCKED", True)
    house.run(house.batch())
    with pytest.raises(ServerLocked, match="migrating"):
        world.start(BackupOrder(server.server_id, storage.storage_id))
    found = world.run(diagnosis.of_server, server.server_id, world.limits, world.now())
    assert [(one.state, one.reason) for one in found.findings if one.step == "lock"] == [("waits", "VM_LOCKED")]

    migrating(house, "h1-1", "running")
    assert world.start(BackupOrder(server.server_id, storage.storage_id)).state == "dispatched"


@pytest.mark.feature("X15", "S20", "X13")
def test_what_a_batch_has_not_sent_yet_is_asked_again_before_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "SENT_MAX", 1)
    house = furnish(world, count=4)
    house.tick()
    batch = house.batch()
    first, locked, moving, last = sorted(house.jobs(batch), key=lambda name: house.jobs(batch)[name].job_id)
    world.run(access.set_lock, house.servers[locked].server_id, "rescue", None, world.now())
    migrating(house, moving)

    house.finish(house.jobs(batch)[first])
    assert {name: job.state for name, job in house.jobs(batch).items()} == {
        first: "completed", locked: "skipped", moving: "skipped", last: "dispatched",
    }  # fmt: skip

    house.finish(house.jobs(batch)[last])
    other = furnish(world, "h2")
    other.tick()
    world.change_storage(other.storage, enabled=False)
    begun = next(job for job in other.jobs(other.batch()).values() if job.state == "dispatched")
    other.finish(begun)
    left = [job for job in other.jobs(other.batch()).values() if job.job_id != begun.job_id]
    assert {(job.state, job.failure.reason if job.failure else "") for job in left} == {("skipped", "STORAGE_DISABLED")}
