"""The round: steps that cannot harm each other, and one controller at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest

from controller import settings
from controller.cycle import turn
from controller.cycle.steps import STEPS
from controller.cycle.tick import Round, Step, Tick
from controller.db import models
from tests.controller.world import World
from tests.waiting import wait_until_async


def make(
    world: World, *steps: Step, seconds: float = 60, step_seconds_max: float = 30, standby_seconds: float = 0.01
) -> Tick:
    return Tick(
        world.database,
        world.vault,
        world.clock,
        lambda: world.limits,
        seconds,
        steps,
        step_seconds_max=step_seconds_max,
        standby_seconds=standby_seconds,
    )


def noting(name: str, into: list[str]) -> Step:
    async def run(_: Round) -> None:
        into.append(name)

    return Step(name, run)


async def fail(_: Round) -> None:
    raise RuntimeError


async def hang(_: Round) -> None:
    await asyncio.Event().wait()


@pytest.mark.feature("X14")
async def test_a_step_that_fails_or_hangs_harms_no_other(world: World) -> None:
    done: list[str] = []
    steps = (Step("broken", fail), noting("first", done), Step("endless", hang), noting("second", done))

    reports = await make(world, *steps, step_seconds_max=0.05).once()

    assert done == ["first", "second"]
    assert [(one.name, one.error) for one in reports] == [
        ("broken", "RuntimeError"),
        ("first", ""),
        ("endless", "timeout"),
        ("second", ""),
    ]
    assert reports[2].seconds >= 0.05


@pytest.mark.feature("X14")
async def test_what_was_set_holds_from_the_next_round_on(world: World) -> None:
    seen: list[float] = []

    async def look(around: Round) -> None:
        seen.append((await around.database.run(settings.get)).max_batch_hours)

    tick = make(world, Step("look", look))
    await tick.once()
    world.run(settings.update, {"max_batch_hours": 7.0}, "", world.now())
    await tick.once()

    assert seen == [48, 7]


@pytest.mark.feature("X16")
async def test_the_cycle_of_the_product_ends_what_is_overdue(world: World) -> None:
    job = world.backup(world.server(world.enroll("h1"), "web"), world.storage())
    world.clock.advance(-200)
    tick = make(world, *STEPS)
    world.clock.advance(400)

    reports = await tick.once()

    assert {one.error for one in reports} == {""}
    ended = world.job(job.job_id).failure
    assert ended is not None
    assert ended.reason == "COMMAND_NOT_ACCEPTED"


async def test_rounds_come_until_it_is_stopped_and_the_turn_is_given_back(world: World) -> None:
    done: list[str] = []
    tick = make(world, noting("one", done), seconds=0.01)
    tick.start()
    await wait_until_async(_grows(done, 3), 10, "three rounds")
    await tick.stop()
    count = len(done)

    assert await world.database.run(models.Turn.select().count) == 0
    assert len(done) == count
    await make(world).stop()  # never started


async def test_while_another_has_the_turn_nothing_is_done(world: World) -> None:
    done: list[str] = []
    assert await world.database.run(turn.take, "tick", "another")
    tick = make(world, noting("one", done), seconds=0.01)
    tick.start()
    await wait_until_async(_asked(world), 10, "a look at the turn")
    assert not done

    await world.database.run(turn.give_back, "tick", "another")
    await wait_until_async(_grows(done, 1), 10, "a round")
    await tick.stop()


async def test_a_controller_that_waits_for_its_turn_looks_seldom(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own round is overdue all the time; so it looked a hundred times a second."""
    looks: list[float] = []
    take = turn.take

    def counting(name: str, holder: str) -> bool:
        looks.append(time.monotonic())
        return take(name, holder)

    monkeypatch.setattr(turn, "take", counting)
    world.run(take, "tick", "another")
    tick = make(world, seconds=0.01, standby_seconds=0.1)
    tick.start()
    await wait_until_async(_grows(looks, 4), 10, "four looks at the turn")
    await tick.stop()
    assert looks[3] - looks[0] >= 0.3


def test_a_turn_is_one_holders_until_it_expires(world: World) -> None:
    assert world.run(turn.take, "tick", "a")
    assert world.run(turn.take, "tick", "a")
    assert not world.run(turn.take, "tick", "b")
    assert world.run(turn.take, "other", "b")

    world.run(turn.take, "tick", "a", timedelta(seconds=-1))  # it has expired on the database's clock
    assert world.run(turn.take, "tick", "b")
    assert not world.run(turn.take, "tick", "a")


def _grows(done: Sequence[object], count: int) -> Callable[[], Awaitable[bool]]:
    async def enough() -> bool:
        return len(done) >= count

    return enough


def _asked(world: World) -> Callable[[], Awaitable[bool]]:
    looks = 0

    async def looked() -> bool:
        nonlocal looks
        looks += 1
        await world.database.run(models.Turn.select().count)
        return looks > 20

    return looked
