"""Hypervisors that come and go, as the log of events tells it."""

from datetime import timedelta

import pytest

from controller import system_log
from controller.cycle import presence
from controller.db import models
from controller.system_log import LogFilter
from tests.controller.world import World


def told(world: World) -> list[str]:
    def read() -> list[str]:
        row = models.Event
        wanted = row.kind.in_(("hypervisor.online", "hypervisor.offline"))
        return [one.kind.partition(".")[2] for one in row.select().where(wanted).order_by(row.sequence)]

    return world.run(read)


@pytest.mark.feature("N6")
def test_a_hypervisor_is_told_of_once_when_it_comes_and_once_when_it_goes(world: World) -> None:
    agent = world.enroll("h1")
    since = world.now()
    world.run(presence.run, world.limits, since, world.now())
    assert told(world) == []  # it enrolled, and has never begun a session

    agent.hello()
    agent.hello()
    agent.heartbeat()
    world.run(presence.run, world.limits, since, world.now())
    assert told(world) == ["online"]

    world.clock.advance(world.limits.silence_max.total_seconds() + 1)
    world.run(presence.run, world.limits, since, world.now())
    world.run(presence.run, world.limits, since, world.now())
    assert told(world) == ["online", "offline"]
    [line] = world.run(system_log.list_entries, LogFilter(levels=("warning",), sources=("inventory",)))
    assert line.hypervisor_id == agent.hypervisor_id

    agent.heartbeat()  # the same session, after a long silence
    world.run(presence.run, world.limits, since, world.now())
    assert told(world) == ["online", "offline", "online"]


@pytest.mark.feature("N6")
def test_a_controller_that_has_only_begun_to_listen_calls_nobody_silent(world: World) -> None:
    agent = world.enroll("h1")
    agent.hello()
    agent.heartbeat()
    world.clock.advance(timedelta(hours=2).total_seconds())

    world.run(presence.run, world.limits, world.now(), world.now())

    assert told(world) == ["online"]
