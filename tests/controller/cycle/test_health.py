"""Storages are looked at when it is their time, by those who may; a look that hangs is called by its name."""

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from controller import health, hypervisors, jobs, schedules
from controller.cycle import health as step
from controller.db import models
from controller.jobs import Failure, Job
from controller.schedules import NewSchedule
from tests.controller.world import Agent, World

if TYPE_CHECKING:
    from controller.storages import Storage

AWAY = Failure("STORAGE_UNREACHABLE", "away", {}, "connect")


class Setting:
    """Two hypervisors whose schedules use one storage, and a third that has none."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.storage: Storage = world.storage()
        self.agents: list[Agent] = [world.enroll(name) for name in ("h1", "h2", "h3")]
        for agent in self.agents[:2]:
            new = NewSchedule(agent.hypervisor_id, self.storage.name, "scheduled_only")
            world.run(schedules.create, new, world.now())

    def round(self, minutes: float = 0) -> list[Job]:
        """Let time pass with everybody alive, do the step once, and return the looks that are under way."""
        world = self.world
        world.clock.advance(minutes * 60)
        for agent in self.agents:
            agent.heartbeat()
        return self.step()

    def step(self) -> list[Job]:
        world, now = self.world, self.world.now()
        for job_id in world.run(step.hanging, now):
            world.run(step.give_up, job_id, now)
        for storage_id, hypervisor_id in world.run(step.due, world.limits, now):
            world.run(step.look, storage_id, hypervisor_id, world.limits, world.vault, now)
        live = jobs.JobFilter(types=("health",), states=jobs.LIVE)
        return world.run(jobs.list_jobs, live)

    def end(self, job: Job, state: str = "completed", failure: Failure | None = None) -> None:
        agent = next(one for one in self.agents if one.hypervisor_id == job.hypervisor_id)
        agent.accept(job)
        agent.finish(job, state, failure=failure)

    def state(self) -> str:
        return self.world.run(health.of_storage, self.storage.storage_id).state


@pytest.fixture
def setting(world: World) -> Setting:
    return Setting(world)


@pytest.mark.feature("H1", "G7")
def test_those_whose_schedule_uses_it_look_in_turn(setting: Setting) -> None:
    seen = []
    for _ in range(4):
        (job,) = setting.round(30)
        assert setting.round() == [job], "nobody else is asked while one is at it"
        setting.end(job)
        seen.append(job.hypervisor_id)
        assert setting.round(29) == []
        setting.world.clock.advance(-29 * 60)
    first, second = (one.hypervisor_id for one in setting.agents[:2])
    assert sorted(seen[:2]) == sorted((first, second))
    assert seen[2:] == seen[:2]
    assert setting.state() == "healthy"
    kept = setting.world.run(lambda: models.Job.select().where(models.Job.type == "health").count())
    assert kept == 2, "of each hypervisor the last look's job"


@pytest.mark.feature("H1")
def test_a_failure_is_looked_at_by_the_other_and_again_after_a_quarter(setting: Setting) -> None:
    (first,) = setting.round()
    setting.end(first, "failed", AWAY)
    assert setting.state() == "unhealthy"
    (second,) = setting.round(1)
    assert second.hypervisor_id != first.hypervisor_id
    setting.end(second)
    assert setting.state() == "degraded"
    assert setting.round(13) == []
    (again,) = setting.round(2)
    assert again.hypervisor_id == first.hypervisor_id
    setting.end(again)
    assert setting.state() == "healthy"


@pytest.mark.feature("H1")
def test_nobody_online_is_unknown_and_a_disabled_storage_is_left_alone(setting: Setting) -> None:
    (job,) = setting.round()
    setting.end(job, "failed", AWAY)
    setting.world.clock.advance(3600)
    assert setting.step() == []
    assert setting.state() == "unknown"
    setting.round()
    assert setting.state() == "unhealthy", "what was found still holds once somebody can look again"
    setting.world.change_storage(setting.storage, enabled=False)
    for live in setting.world.run(jobs.live):
        setting.world.cancel(live)
    assert setting.round(60) == []
    assert setting.state() == "unknown"


@pytest.mark.feature("H1")
def test_a_look_that_hangs_makes_the_storage_unhealthy_and_is_ended(setting: Setting) -> None:
    (job,) = setting.round()
    agent = next(one for one in setting.agents if one.hypervisor_id == job.hypervisor_id)
    agent.accept(job)
    setting.round(11)
    assert setting.world.job(job.job_id).cancel_requested
    found = setting.world.run(health.of_storage, setting.storage.storage_id)
    assert found.state == "unhealthy"
    assert found.failure is not None
    assert found.failure["reason"] == "STORAGE_HANGS"


@pytest.mark.feature("E2")
def test_a_silence_that_was_the_controllers_own_is_forgiven_once(world: World) -> None:
    agent = world.enroll("h1")
    heard, silence = world.now(), world.limits.silence_max
    agent.heartbeat()
    started = heard + silence - timedelta(seconds=2)  # it counted as online when the controller began to listen
    limits = replace(world.limits, listening_since=started)

    def state(after: timedelta, with_limits: object = limits) -> str:
        return world.run(hypervisors.find, agent.hypervisor_id, with_limits, started + after).state  # type: ignore[arg-type]

    assert state(silence - timedelta(seconds=1)) == "online"
    assert state(silence - timedelta(seconds=1), world.limits) == "offline"
    assert state(silence + timedelta(seconds=1)) == "offline"
    late = replace(world.limits, listening_since=heard + 3 * silence)
    assert world.run(hypervisors.find, agent.hypervisor_id, late, heard + 3 * silence).state == "offline"
