"""What the clock ends: commands that nobody accepts, jobs that take too long, and what an earlier epoch began."""

from datetime import timedelta

import pytest

from controller import installation, leases
from controller.cycle import stale
from controller.db import models
from controller.jobs import Job
from controller.limits import STALE_GRACE
from controller.rules.stale import Ages, Verdict, judge
from tests.clock import START
from tests.controller.world import Agent, World, record_of

DAY = 24 * 3600


def reason(job: Job) -> str:
    return job.failure.reason if job.failure else ""


def free(world: World, job: Job) -> bool:
    return world.run(leases.holders, leases.server_resource(job.server_id)) == []


@pytest.fixture
def agent(world: World) -> Agent:
    return world.enroll("h1")


@pytest.mark.feature("X16")
def test_a_command_that_reached_nobody_is_given_up_and_taken_back(world: World, agent: Agent) -> None:
    job = world.backup(world.server(agent, "web"), world.storage())

    world.clock.advance(119)
    world.tick()
    assert world.job(job.job_id).state == "dispatched"
    world.clock.advance(2)
    world.tick()
    ended = world.job(job.job_id)

    assert (ended.state, reason(ended)) == ("failed", "COMMAND_NOT_ACCEPTED")
    assert ended.generation > job.generation
    assert free(world, job)
    assert world.commands_of(job) == []  # the agent never hears of it


@pytest.mark.feature("X16")
def test_a_command_that_may_have_arrived_is_cancelled_when_given_up(world: World, agent: Agent) -> None:
    job = world.backup(world.server(agent, "web"), world.storage())
    world.run(lambda: models.OutboxCommand.update(send_time=world.now()).execute())

    world.clock.advance(121)
    world.tick()

    assert reason(world.job(job.job_id)) == "COMMAND_NOT_ACCEPTED"
    assert world.commands_of(job) == ["cancel"]


@pytest.mark.feature("X16")
def test_time_in_which_the_controller_was_away_does_not_count(world: World, agent: Agent) -> None:
    job = world.backup(world.server(agent, "web"), world.storage())
    world.clock.advance(3600)
    world.restart()
    started = world.now()

    world.tick(listening_since=started)
    assert world.job(job.job_id).state == "dispatched"  # its acceptance may wait in the agent's outbox
    world.clock.advance(121)
    world.tick(listening_since=started)
    assert reason(world.job(job.job_id)) == "COMMAND_NOT_ACCEPTED"


def test_a_job_that_was_to_be_cancelled_and_is_not_accepted_ends_as_cancelled(world: World, agent: Agent) -> None:
    job = world.backup(world.server(agent, "web"), world.storage())
    world.run(lambda: models.OutboxCommand.update(send_time=world.now()).execute())
    assert world.cancel(job).cancel_requested

    world.clock.advance(121)
    world.tick()

    assert world.job(job.job_id).state == "cancelled"


@pytest.mark.feature("X8")
def test_a_stale_job_is_cancelled_and_ends_as_stale_when_its_process_is_gone(world: World, agent: Agent) -> None:
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))

    world.clock.advance(DAY - 60)
    world.tick()
    assert not world.job(job.job_id).cancel_requested
    world.clock.advance(61)
    world.tick()
    world.tick()
    asked = world.job(job.job_id)
    assert (asked.state, asked.cancel_requested) == ("running", True)
    assert world.commands_of(job, pending=False) == ["run", "cancel"]
    assert not free(world, job)  # N15: not before the process is reaped

    ended = agent.finish(job, "cancelled")
    assert (ended.state, reason(ended)) == ("failed", "JOB_STALE")
    assert ended.failure is not None
    assert ended.failure.metadata["hours"] == "24"
    assert free(world, job)


@pytest.mark.feature("X8", "X9")
def test_a_stale_job_of_a_silent_host_is_given_up_and_its_late_result_changes_nothing(
    world: World, agent: Agent
) -> None:
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))
    world.clock.advance(DAY + 60)
    world.tick()

    world.clock.advance(STALE_GRACE.total_seconds() + 1)
    world.tick()
    ended = world.job(job.job_id)
    late = agent.finish(job, record=record_of(job, "c1"))

    assert (ended.state, reason(ended)) == ("failed", "JOB_STALE")
    assert free(world, job)
    assert (late.state, late.version) == (ended.state, ended.version)
    assert world.events_of(job)[-1] == ("finished", "stale generation")
    assert world.run(models.Backup.select().count) == 0


def test_work_of_an_earlier_epoch_is_lost(world: World, agent: Agent) -> None:
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))
    world.run(lambda: models.Installation.update(epoch=2).execute())

    assert world.run(stale.fail_earlier_epochs, world.limits, world.now()) == 1
    late = agent.finish(job, record=record_of(job, "c1"))

    assert (late.state, reason(late)) == ("failed", "OPERATION_LOST")
    assert world.run(installation.get).epoch == 2
    assert free(world, job)


@pytest.mark.parametrize(
    ("state", "age_seconds", "cancelled_seconds", "wanted"),
    [
        ("queued", DAY, None, Verdict.GO_ON),
        ("queued", 30 * DAY, None, Verdict.GO_ON),
        ("dispatched", 120, None, Verdict.GO_ON),
        ("dispatched", 121, None, Verdict.NOT_ACCEPTED),
        ("dispatched", 121, 1, Verdict.NOT_ACCEPTED),
        ("running", DAY, None, Verdict.GO_ON),
        ("running", DAY + 1, None, Verdict.CANCEL),
        ("running", DAY + 1, 1, Verdict.CANCEL),
        ("running", DAY + 601, 600, Verdict.CANCEL),
        ("running", DAY + 602, 601, Verdict.GIVE_UP),
        ("running", DAY + 60, 3600, Verdict.CANCEL),  # asked for by a person an hour ago: stale only now
        ("running", 7200, 3600, Verdict.GO_ON),
    ],
)
def test_the_rule(world: World, state: str, age_seconds: int, cancelled_seconds: int | None, wanted: Verdict) -> None:
    began = START - timedelta(seconds=age_seconds)
    asked = None if cancelled_seconds is None else START - timedelta(seconds=cancelled_seconds)

    assert judge(Ages(state, began, began, began, asked), world.limits, timedelta(days=1), began, START) is wanted
