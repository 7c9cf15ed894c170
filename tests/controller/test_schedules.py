"""Schedules in the database: one for a hypervisor, when each is due, what a clone gets, what deleting keeps."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import schedules
from controller.schedules import NewSchedule, Schedule, ScheduleChange
from tests.controller.world import World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.open(tmp_path / "w")
    made.enroll("h1")
    made.storage("nas")
    yield made
    made.close()


def make(world: World, hypervisor: str = "h1", storage: str = "nas", **values: Any) -> Schedule:
    overrides = values.pop("overrides", {})
    new = NewSchedule(hypervisor, storage, "scheduled_only", overrides=overrides, **values)
    return world.run(schedules.create, new, world.now())


def change(world: World, schedule: Schedule, **values: Any) -> Schedule:
    etag = values.pop("etag", "")
    return world.run(schedules.update, schedule.schedule_id, ScheduleChange(**values), etag, world.now())


def due(world: World) -> list[str]:
    return [one.schedule_id for one in world.run(schedules.due, world.now())]


def start(world: World, schedule: Schedule) -> Schedule:
    return world.run(schedules.started, schedule.schedule_id, world.now())


@pytest.mark.feature("D1", "D28")
def test_a_new_schedule_is_due_at_once_and_then_an_interval_after_it_was_due(world: World) -> None:
    made = make(world, overrides={"interval_hours": 6})
    assert due(world) == [made.schedule_id]

    world.clock.advance(120)  # the tick that noticed
    ran = start(world, made)
    assert made.due_time is not None
    assert ran.due_time == made.due_time + 6 * HOUR, "from when it was due, not from the tick"
    assert due(world) == []

    world.clock.advance(6 * 3600)
    assert due(world) == [made.schedule_id]
    world.clock.advance(50 * 3600)  # a batch, a pause: eight firings were missed
    again = start(world, made)
    assert again.due_time is not None
    assert again.last_start_time is not None
    assert again.due_time == again.last_start_time + 6 * HOUR, "one run stands for all, and the interval counts from it"
    assert due(world) == []
