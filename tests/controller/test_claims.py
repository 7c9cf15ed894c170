"""Where a server lives when hypervisors disagree: it moves on the old one's word or the panel's, and never on a guess."""

from dataclasses import replace

import pytest

from controller import claims, hypervisors, servers
from controller.db import models
from controller.errors import ServerConflict
from controller.order_types import BackupOrder
from controller.servers import Server
from tests.controller.world import Agent, World

pytestmark = pytest.mark.feature("N1")


class Scene:
    """A server `web` on h1, which reported it, and two more hypervisors that have reported nothing of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.h1, self.h2, self.h3 = (world.enroll(name) for name in ("h1", "h2", "h3"))
        self.server = world.server(self.h1, "web")
        self.domain = self.h1.domains["web"]

    def shows(self, agent: Agent, *, has: bool) -> None:
        """Let a hypervisor report that it has the domain, or that it has not."""
        agent.domains = {"web": self.domain} if has else {}
        agent.report()

    def now(self) -> Server:
        return self.world.run(servers.find, self.server.server_id)

    def events(self) -> list[str]:
        return [kind for kind in self.world.events() if kind.startswith("server.")]


@pytest.fixture
def scene(world: World) -> Scene:
    scene = Scene(world)
    scene.shows(scene.h1, has=True)
    return scene


def test_it_moves_once_the_old_hypervisor_says_that_it_is_gone(scene: Scene) -> None:
    scene.shows(scene.h1, has=False)
    assert (scene.now().hypervisor_id, scene.now().place_state) == (scene.h1.hypervisor_id, "gone")

    scene.shows(scene.h2, has=True)

    moved = scene.now()
    assert (moved.hypervisor_id, moved.place_state, moved.state) == (scene.h2.hypervisor_id, "present", "active")
    assert scene.events()[-2:] == ["server.domain_gone", "server.moved"]


def test_two_claims_are_a_conflict_until_one_is_taken_back(scene: Scene) -> None:
    storage = scene.world.storage()
    scene.shows(scene.h2, has=True)

    assert (scene.now().state, scene.now().rival_hypervisor_ids) == ("conflict", (scene.h2.hypervisor_id,))
    with pytest.raises(ServerConflict) as refused:
        scene.world.backup(scene.server, storage)
    assert scene.h2.hypervisor_id in refused.value.facts["hypervisor_ids"]

    scene.shows(scene.h2, has=False)
    assert scene.now().state == "active"
    scene.shows(scene.h2, has=True)
    scene.shows(scene.h1, has=False)
    assert (scene.now().state, scene.now().hypervisor_id) == ("active", scene.h2.hypervisor_id)
    scene.h2.heartbeat()
    assert scene.world.backup(scene.server, storage).state == "dispatched"


def test_of_two_that_claim_a_lost_server_neither_gets_it(scene: Scene) -> None:
    scene.shows(scene.h1, has=False)
    scene.h1.domains.clear()
    scene.shows(scene.h2, has=True)
    assert scene.now().hypervisor_id == scene.h2.hypervisor_id
    scene.shows(scene.h3, has=True)
    scene.shows(scene.h1, has=True)
    scene.shows(scene.h2, has=False)

    assert scene.now().state == "conflict"
    assert scene.now().hypervisor_id == scene.h2.hypervisor_id, "nobody guesses which"
    scene.shows(scene.h1, has=False)
    assert (scene.now().state, scene.now().hypervisor_id) == ("active", scene.h3.hypervisor_id)


def test_a_silent_hypervisor_has_lost_nothing(scene: Scene) -> None:
    scene.world.clock.advance(7 * 86400)
    scene.h2.heartbeat()
    scene.shows(scene.h2, has=True)

    assert scene.now().state == "conflict"
    assert scene.now().hypervisor_id == scene.h1.hypervisor_id


def test_the_panel_s_word_settles_it_until_a_claim_is_made_anew(scene: Scene) -> None:
    scene.shows(scene.h2, has=True)

    scene.world.run(servers.update, scene.server.server_id, {"hypervisor_id": "h2"}, "", scene.world.now())
    assert (scene.now().state, scene.now().hypervisor_id) == ("active", scene.h2.hypervisor_id)
    scene.shows(scene.h1, has=True)  # what was left behind there is reported again and again
    assert scene.now().state == "active"
    scene.shows(scene.h1, has=False)
    scene.shows(scene.h1, has=True)  # but this is news
    assert scene.now().state == "conflict"


def test_the_panel_can_confirm_where_it_is(scene: Scene) -> None:
    scene.shows(scene.h2, has=True)
    scene.world.run(servers.update, scene.server.server_id, {"hypervisor_id": "h1"}, "", scene.world.now())
    assert (scene.now().state, scene.now().hypervisor_id) == ("active", scene.h1.hypervisor_id)
    scene.shows(scene.h1, has=False)
    assert scene.now().hypervisor_id == scene.h1.hypervisor_id, "a claim that the panel refused moves nothing"


def test_a_server_that_its_hypervisor_never_reported_is_not_gone_from_there(scene: Scene) -> None:
    scene.world.run(servers.update, scene.server.server_id, {"hypervisor_id": "h3"}, "", scene.world.now())
    scene.shows(scene.h1, has=False)
    scene.shows(scene.h3, has=False)
    scene.shows(scene.h2, has=True)

    assert (scene.now().hypervisor_id, scene.now().state) == (scene.h3.hypervisor_id, "conflict")


def test_a_busy_server_moves_when_its_job_has_ended(scene: Scene) -> None:
    job = scene.world.backup(scene.server, scene.world.storage())
    scene.h1.accept(job)
    scene.shows(scene.h1, has=False)
    scene.shows(scene.h2, has=True)
    assert scene.now().hypervisor_id == scene.h1.hypervisor_id

    scene.h1.finish(job, "failed")
    scene.world.run(claims.settle_all, scene.world.now())

    assert scene.now().hypervisor_id == scene.h2.hypervisor_id


def test_a_server_of_one_s_own_is_no_claim_on_another_s(scene: Scene) -> None:
    """Two machines with one UUID, as a careless copy makes them: each has its server, on its hypervisor."""
    new = servers.NewServer("twin", "twin", "h2", scene.domain.domain_uuid, "")
    twin = scene.world.run(servers.register, new, scene.world.now())
    scene.shows(scene.h2, has=True)
    scene.shows(scene.h1, has=False)

    assert scene.now().hypervisor_id == scene.h1.hypervisor_id
    assert scene.world.run(servers.find, twin.server_id).state == "active"


@pytest.mark.feature("N2")
def test_registering_again_finds_a_server_that_moved(scene: Scene) -> None:
    again = servers.NewServer(scene.server.external_id, "web", "h1", "", "web")
    scene.shows(scene.h1, has=False)
    scene.shows(scene.h2, has=True)

    assert scene.world.run(servers.register, again, scene.world.now()) == scene.now()
    by_uuid = replace(again, domain_name="", domain_uuid=scene.domain.domain_uuid)
    assert scene.world.run(servers.register, by_uuid, scene.world.now()) == scene.now()


@pytest.mark.feature("X15")
def test_a_conflict_that_comes_while_a_job_waits_ends_it(scene: Scene) -> None:
    other = scene.world.server(scene.h1, "db")
    scene.h1.domains["web"] = scene.domain
    scene.h1.report()
    storage = scene.world.storage()
    first = scene.world.backup(other, storage)
    waiting = scene.world.start(BackupOrder(scene.server.server_id, storage.storage_id))
    assert waiting.state == "queued"
    scene.shows(scene.h2, has=True)

    scene.h1.accept(first)
    scene.h1.finish(first, "failed")

    failure = scene.world.job(waiting.job_id).failure
    assert failure is not None
    assert failure.reason == "SERVER_CONFLICT"


def test_an_inventory_that_says_the_same_again_is_not_written_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletions: list[object] = []
    delete = models.Domain.delete

    def noted() -> object:
        deletions.append(None)
        return delete()

    monkeypatch.setattr(models.Domain, "delete", noted)
    before = scene.world.run(hypervisors.inventory_time, scene.h1.hypervisor_id)

    scene.world.clock.advance(1)
    scene.shows(scene.h1, has=True)
    assert deletions == []
    assert scene.world.run(hypervisors.inventory_time, scene.h1.hypervisor_id) != before

    scene.domain = replace(scene.domain, state="shutoff")
    scene.shows(scene.h1, has=True)
    assert deletions
    (domain,) = scene.world.run(hypervisors.list_domains, scene.h1.hypervisor_id)
    assert domain.state == "shutoff"
