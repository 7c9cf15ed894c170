"""A schedule is refused where its hypervisor has no way to the storage, as its agent said; what nobody knows is in nobody's way."""

import hashlib
from typing import Any

import pytest

from controller import schedule_clones, schedules, storages
from controller.db import models
from controller.errors import StorageOutOfReach
from controller.rules import reach
from controller.schedules import NewSchedule, ScheduleChange
from tests.controller.world import World

ALL = ["local", "sftp", "s3", "ftp", "rclone"]


def has(*remotes: str, types: list[str] = ALL, known: bool = True) -> dict[str, Any]:
    digests = [hashlib.sha256(one.encode()).hexdigest() for one in remotes]
    return {"storage_types": types, "rclone_remotes": digests, "rclone_remotes_known": known}


@pytest.mark.feature("S14", "S15")
@pytest.mark.parametrize(
    ("kind", "capabilities", "problem"),
    [
        ("rclone", has("box", "other"), ""),
        ("rclone", has("Box"), "no remote box"),
        ("rclone", has(), "no remote box"),
        ("rclone", has(known=False), ""),
        ("rclone", has("box", types=ALL[:4]), "rclone is not installed"),
        ("s3", has(), ""),
        ("s3", has(types=["local", "sftp"]), "agent is too old"),
        ("s3", {}, ""),
        ("rclone", {"storage_types": ALL}, ""),  # an agent from before remotes were told
    ],
)
def test_what_is_missing_on_a_host(kind: str, capabilities: dict[str, Any], problem: str) -> None:
    found = reach.problem_of(kind, {"remote": "box"}, capabilities)
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.feature("S14", "S15", "D4")
def test_a_schedule_is_made_changed_enabled_and_cloned_where_its_storage_can_be_reached(world: World) -> None:
    hosts = {name: world.enroll(name) for name in ("h1", "h2", "h3")}
    world.storage("nas")
    world.storage("box", type="rclone", config={"remote": "box", "path": ""}, secrets={})

    def says(name: str, capabilities: dict[str, Any]) -> None:
        row = models.Hypervisor
        world.run(lambda: row.update(capabilities=capabilities).where(row.name == name).execute())

    def make(host: str, storage: str, **values: Any) -> schedules.Schedule:
        new = NewSchedule(host, storage, "scheduled_only", overrides={}, **values)
        return world.run(schedules.create, new, world.now())

    says("h1", has("other"))
    with pytest.raises(StorageOutOfReach) as caught:
        make("h1", "box")
    assert caught.value.facts["hypervisor_id"] == "h1"
    assert "no remote box" in str(caught.value.facts["problem"])
    made = make("h1", "nas")
    change = ScheduleChange(storage="box")
    with pytest.raises(StorageOutOfReach):
        world.run(schedules.update, made.schedule_id, change, "", world.now())

    says("h1", has("other", "box"))
    world.run(schedules.update, made.schedule_id, change, "", world.now())
    world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=False)
    says("h1", has("box", types=ALL[:4]))
    with pytest.raises(StorageOutOfReach):
        world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=True)
    assert not world.run(schedules.get, made.schedule_id).enabled

    says("h2", has("box"))
    says("h3", has())
    with pytest.raises(StorageOutOfReach) as caught:
        world.run(schedule_clones.clone, made.schedule_id, ["h2", "h3"], world.now())
    assert caught.value.facts["hypervisor_id"] == "h3"
    assert world.run(schedules.of_hypervisor, hosts["h2"].hypervisor_id) is None, "all or none"
    assert len(world.run(schedule_clones.clone, made.schedule_id, ["h2"], world.now()).schedules) == 1


@pytest.mark.feature("S0", "S14", "S15")
def test_a_storages_remote_is_changed_only_to_one_that_its_schedules_hypervisors_have(world: World) -> None:
    world.enroll("h1")
    world.storage("box", type="rclone", config={"remote": "box", "path": ""}, secrets={})
    row = models.Hypervisor

    def says(capabilities: dict[str, Any]) -> None:
        world.run(lambda: row.update(capabilities=capabilities).where(row.name == "h1").execute())

    def move_to(remote: str, **more: Any) -> dict[str, Any]:
        storage = world.run(storages.find, "box")
        change = storages.StorageChange(config={**storage.config, "remote": remote, **more})
        changed = world.run(storages.update, storage.storage_id, change, None, "", world.vault, world.now())
        return changed.config

    says(has("box", "other"))
    made = world.run(schedules.create, NewSchedule("h1", "box", "scheduled_only", overrides={}), world.now())
    with pytest.raises(StorageOutOfReach) as caught:
        move_to("missing")
    assert caught.value.facts["hypervisor_id"] == "h1"
    assert "no remote missing" in str(caught.value.facts["problem"])
    assert world.run(storages.find, "box").config["remote"] == "box"
    assert move_to("other")["remote"] == "other"

    says(has("box"))
    assert move_to("other", s3_concurrency=3)["s3_concurrency"] == 3, "what was missing before is in nobody's way"
    world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=False)
    assert move_to("missing")["remote"] == "missing", "a disabled schedule is looked at when it is enabled"
    with pytest.raises(StorageOutOfReach):
        world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=True)
