"""Levels, locks and service of servers in the database."""

import pytest

from controller import access
from controller.db import models
from controller.errors import ServerNotFound
from controller.rules.access import Resolved
from tests.controller.world import World


@pytest.mark.feature("A2", "A3")
def test_a_server_that_nobody_spoke_of_is_protected_and_not_for_its_user(world: World) -> None:
    agent = world.enroll("h1")
    web, db = world.server(agent, "web"), world.server(agent, "db")

    assert world.run(access.of_server, web.server_id) == Resolved("scheduled_only", "default")
    assert world.run(access.lock_of, web.server_id) is None
    assert [one.name for one in world.run(access.commissioned, agent.hypervisor_id)] == ["db", "web"]

    def decommission() -> None:
        models.Server.update(commissioned=False).where(models.Server.server_id == db.server_id).execute()

    world.run(decommission)
    assert [one.name for one in world.run(access.commissioned, agent.hypervisor_id)] == ["web"]
    with pytest.raises(ServerNotFound):
        world.run(access.of_server, "nobody")
