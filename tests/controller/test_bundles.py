"""Recovery bundles on their way to a storage: after changes and no more often, in parts, again after a failure."""

from datetime import timedelta
from pathlib import Path

import pytest

from controller import bundle, bundles, installation, rescue, servers, settings, storages
from controller.bundler import Bundler
from controller.config import Settings
from controller.db import models
from controller.errors import StorageOfBundles
from controller.jobs import Failure, Job
from controller.order_types import HealthOrder
from controller.security.authority import Authority
from tests.controller.world import Agent, World


def bundler_of(world: World) -> Bundler:
    config = Settings(state_folder=world.folder, database=world.url)
    if not config.authority_folder.exists():
        Authority.create(config.authority_folder, (), world.now())
    return Bundler(config, world.database, world.vault, world.clock, lambda: world.limits)


async def once(world: World, bundler: Bundler) -> str:
    world.now()
    return await bundler.once()


def choose(world: World, name: str) -> None:
    world.run(settings.update, {"bundle_storage_id": name}, "", world.now())


def make_key(world: World) -> bytes:
    return bundle.parse_key(rescue.backup(Settings(state_folder=world.folder, database=world.url), None).key)


def jobs_of(world: World, bundle_id: str) -> list[Job]:
    row = models.BundlePart
    found = world.run(lambda: list(row.select().where(row.bundle_id == bundle_id).order_by(row.number)))
    return [world.job(one.job_id) for one in found]


def write(world: World, agent: Agent, bundle_id: str) -> list[bytes]:
    """Let the agent write a bundle; return its parts."""
    parts = []
    for job in jobs_of(world, bundle_id):
        parts.append(world.run(bundles.part, bundle_id, job.spec["number"]))
        agent.finish(agent.accept(job), result={"bundle": {"name": "controller/x"}})
    return parts


@pytest.mark.feature("N11")
async def test_a_bundle_goes_to_its_storage_after_a_change_and_brings_everything_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "PART_BYTES", 700)
    bundler, agent = bundler_of(world), world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    assert await once(world, bundler) == "", "no storage was chosen"
    key = make_key(world)
    choose(world, "nas")

    first = await once(world, bundler)
    chosen = jobs_of(world, first)
    assert len(chosen) > 2
    assert [job.spec["keep"] for job in chosen] == [0] * (len(chosen) - 1) + [10]
    assert {(job.type, job.state, job.storage_id) for job in chosen} == {("bundle", "dispatched", storage.storage_id)}
    assert await once(world, bundler) == "", "one at a time"
    parts = write(world, agent, first)
    assert await once(world, bundler) == ""
    standing = world.run(bundles.standing)
    assert standing.newest is not None
    assert (standing.newest.bundle_id, standing.writing, standing.failure) == (first, False, None)
    assert not world.run(models.BundlePart.select().count)

    agent.heartbeat()
    world.clock.advance(bundles.PAUSE.total_seconds())
    agent.heartbeat()
    assert await once(world, bundler) == "", "a heartbeat is no change"
    world.run(servers.update, server.server_id, {"name": "web2"}, "", world.now())
    assert await once(world, bundler) != ""

    world.close()
    (tmp_path / "bundle").write_bytes(b"".join(parts))
    made = rescue.restore(Settings(state_folder=tmp_path / "new"), tmp_path / "bundle", key)
    assert (made.server_count, made.storages, made.epoch) == (1, ("nas",), 2)


@pytest.mark.feature("N11")
async def test_what_keeps_a_bundle_from_being_written_is_told_and_tried_again(world: World) -> None:
    bundler, agent = bundler_of(world), world.enroll("kvm1")
    storage = world.storage()
    choose(world, storage.storage_id)
    for _ in range(2):
        assert await once(world, bundler) == ""
    failure = world.run(bundles.standing).failure
    assert failure is not None
    assert failure.reason == "RECOVERY_KEY_MISSING"
    assert world.run(models.SystemLog.select().count) == 1, "told once"

    make_key(world)
    lost = await once(world, bundler)
    (job,) = jobs_of(world, lost)
    agent.finish(agent.accept(job), "failed", failure=Failure("STORAGE_FULL", "full"))
    assert await once(world, bundler) == ""
    failure = world.run(bundles.standing).failure
    assert failure is not None
    assert (failure.reason, world.run(models.BundlePart.select().count)) == ("STORAGE_FULL", 0)
    world.clock.advance(bundles.TRY_AGAIN.total_seconds())
    agent.heartbeat()
    again = await once(world, bundler)
    assert again not in {"", lost}
    write(world, agent, again)
    await once(world, bundler)
    assert world.run(bundles.standing).failure is None
    with pytest.raises(StorageOfBundles):
        world.run(storages.delete, storage.storage_id, world.now())


@pytest.mark.feature("N11")
@pytest.mark.parametrize("how", ["no key", "nobody online", "storage disabled", "storage read-only"])
async def test_a_bundle_that_cannot_go_is_refused_before_anything_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bundler = bundler_of(world)
    world.enroll("kvm1")
    storage = world.storage()
    choose(world, "nas")
    if how != "no key":
        make_key(world)
    match how:
        case "nobody online":
            world.clock.advance(3600)
        case "storage disabled":
            world.change_storage(storage, enabled=False)
        case "storage read-only":
            world.change_storage(storage, read_only=True)

    def collect(*_: object) -> None:
        raise AssertionError("a whole database was read for nothing")

    monkeypatch.setattr(rescue, "collect", collect)
    assert await once(world, bundler) == ""
    failure = world.run(bundles.standing).failure
    assert failure is not None
    assert (
        failure.reason
        == {
            "no key": "RECOVERY_KEY_MISSING",
            "nobody online": "HYPERVISOR_UNREACHABLE",
            "storage disabled": "STORAGE_DISABLED",
            "storage read-only": "STORAGE_READ_ONLY",
        }[how]
    )


@pytest.mark.feature("N11", "N10")
async def test_a_new_epoch_removes_no_bundle_and_says_where_deletes_are_blocked(world: World) -> None:
    bundler, agent = bundler_of(world), world.enroll("kvm1")
    storage = world.storage()
    make_key(world)
    choose(world, "nas")
    assert world.run(bundles.blocked) == []
    world.run(models.Installation.update(epoch=models.Installation.epoch + 1).execute)
    assert world.run(installation.get).epoch == 2

    assert [(one.name, places) for one, places in world.run(bundles.blocked)] == [("nas", [])]
    (job,) = jobs_of(world, await once(world, bundler))
    assert job.spec["keep"] == 0
    reindex = agent.accept(world.reindex(storage, agent))
    agent.finish(reindex, result={"reindex": {"backup_count": "0"}})
    assert world.run(bundles.blocked) == []
    assert world.start(HealthOrder(storage.storage_id)).type == "health"
    assert timedelta(days=1) < bundles.REFRESH
