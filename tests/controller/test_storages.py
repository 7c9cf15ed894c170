"""Storages: what may change while backups lie there, and that keys open for work and for nothing else."""

from typing import Any

import pytest

from clients.gen.backupmanager.agent.v1.command_pb2 import Command
from controller import storages, totals
from controller.agents import commands, outbox
from controller.db import models
from controller.errors import (
    EncryptionImmutable,
    EtagMismatch,
    InvalidField,
    StorageExists,
    StorageImmutable,
    StorageInUse,
    StorageNotFound,
)
from controller.jobs import Job
from controller.order_types import TestOrder as StorageTestOrder
from controller.storages import NewStorage, StorageChange
from engine.format.keys import KeyObject, unwrap_key
from engine.ids import new_id
from tests.controller.world import Agent, World, record_of


def encrypted(world: World, name: str = "vault") -> storages.Storage:
    key = storages.make_key("correct horse", world.now())
    new = NewStorage(
        name, "local", {"path": "/srv"}, encryption_enabled=True, secrets={"encryption_passphrase": "correct horse"}
    )
    return world.run(storages.create, new, key, world.vault, world.now())


def command_for(world: World, agent: Agent, job: Job) -> Command:
    """Return what the agent is sent for a job."""
    (pending,) = world.run(outbox.pending, agent.hypervisor_id)
    command: Command = world.run(commands.build, pending, job, world.vault, world.limits, world.now())
    return command


def test_a_storage_is_found_listed_and_unique(world: World) -> None:
    nas, other = world.storage("nas"), world.storage("attic")

    assert world.run(storages.find, "nas") == world.run(storages.find, nas.storage_id) == nas
    assert [one.name for one in world.run(storages.list_storages)] == ["attic", "nas"]
    assert [one.name for one in world.run(storages.list_storages, after=("attic",))] == ["nas"]
    with pytest.raises(StorageExists):
        world.storage("nas")
    with pytest.raises(StorageExists):
        world.change_storage(other, name="nas")
    for reference in ("none", ""):
        with pytest.raises(StorageNotFound):
            world.run(storages.find, reference)
    assert nas.repository_id != other.repository_id


@pytest.mark.feature("S28", "N12")
def test_a_key_opens_for_work_and_by_the_passphrase_and_is_never_in_clear(world: World) -> None:
    storage = encrypted(world)

    (key,) = world.run(storages.open_keys, storage.storage_id, world.vault)
    wrapped = world.run(storages.wrapped_keys, storage.storage_id)[storage.key_id]
    opened = unwrap_key(KeyObject.load(wrapped.encode(), f"keys/{storage.key_id}.json"), "correct horse")
    assert opened == key
    assert key.key_id == storage.key_id
    for file in world.folder.iterdir():
        assert key.secret not in file.read_bytes(), file
        assert b"correct horse" not in file.read_bytes(), file
    assert [one.name for one in storage.secrets] == ["encryption_passphrase"]
    assert storage.secrets[0].fingerprint == world.vault.fingerprint("correct horse")


@pytest.mark.feature("N16")
def test_a_command_has_the_keys_of_its_server_only(world: World) -> None:
    agent, storage = world.enroll("h1"), encrypted(world)
    servers = [world.server(agent, name) for name in ("web", "db")]
    (key,) = world.run(storages.open_keys, storage.storage_id, world.vault)
    job = world.backup(servers[0], storage)

    command = command_for(world, agent, job)

    (own,) = command.run.backup.server_keys
    assert own.key == key.server_key(servers[0].server_id).secret
    assert command.run.storage.key_id == storage.key_id
    assert list(command.run.storage.wrapped_keys) == [storage.key_id]
    text = command.SerializeToString()
    assert key.secret not in text
    assert key.server_key(servers[1].server_id).secret not in text


@pytest.mark.feature("S29")
@pytest.mark.parametrize("kind", ["local", "sftp"])
def test_a_repository_is_expected_where_one_was_made(world: World, kind: Any) -> None:
    one, two = world.enroll("h1"), world.enroll("h2")
    local: dict[str, Any] = {"type": "local", "config": {"path": "/mnt/nas"}, "secrets": {}}
    storage = world.storage(**local) if kind == "local" else world.storage()
    server = world.server(one, "web")

    def expected() -> tuple[bool, ...]:
        found = world.run(storages.find, storage.storage_id)
        return tuple(world.run(storages.has_been_used, found, agent.hypervisor_id) for agent in (one, two))

    assert expected() == (False, False)
    job = world.backup(server, storage)
    assert not command_for(world, one, job).run.storage.repository_expected
    one.accept(job)
    one.finish(job, "failed")
    assert expected() == (False, False)
    one.back_up(server, storage, "c1")
    assert expected() == (True, kind == "sftp")  # a local folder is each hypervisor's own
    world.change_storage(storage, read_only=False, limits={"worker_threads": 2})
    assert expected() == (True, kind == "sftp")
    job = world.backup(server, storage)
    assert command_for(world, one, job).run.storage.repository_expected


@pytest.mark.feature("S29")
def test_a_test_made_the_repository_until_the_storage_moves(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage(type="local", config={"path": "/mnt/nas"}, secrets={})
    job = world.start(StorageTestOrder(storage.storage_id, agent.hypervisor_id))
    agent.accept(job)
    agent.finish(job)
    tested = world.run(storages.find, storage.storage_id)

    assert world.run(storages.has_been_used, tested, agent.hypervisor_id)
    moved = world.change_storage(tested, config={"path": "/mnt/other"})
    assert not world.run(storages.has_been_used, moved, agent.hypervisor_id)


@pytest.mark.feature("S0", "S25")
def test_the_place_and_the_encryption_stay_while_backups_lie_there_or_are_being_made(world: World) -> None:
    agent, storage = world.enroll("h1"), encrypted(world)
    job = world.backup(world.server(agent, "web"), storage)
    key = storages.make_key("another", world.now())

    def refused() -> None:
        with pytest.raises(StorageImmutable):
            world.change_storage(storage, config={"path": "/other"})
        with pytest.raises(EncryptionImmutable):
            world.change_storage(storage, encryption_enabled=False)
        with pytest.raises(EncryptionImmutable):
            world.run(storages.update, storage.storage_id, StorageChange(), key, "", world.vault, world.now())
        with pytest.raises(StorageInUse):
            world.run(storages.delete, storage.storage_id, world.now())

    refused()  # while the first backup is on its way
    agent.finish(job, record=record_of(job, "c1"))
    refused()
    assert world.change_storage(storage, limits={"worker_threads": 2}, read_only=True).limits == {"worker_threads": 2}
    there = world.run(totals.of_storages)[storage.storage_id]
    assert (there.backup_count, there.stored_bytes, there.server_count) == (1, 50, 1)


def test_an_empty_storage_may_change_and_go(world: World) -> None:
    storage = encrypted(world)
    key = storages.make_key("another", world.now())

    moved = world.change_storage(storage, config={"path": "/other"}, encryption_enabled=False)
    assert (moved.config, moved.encryption_enabled) == ({"path": "/other"}, False)
    rekeyed = world.run(storages.update, storage.storage_id, StorageChange(), key, moved.etag, world.vault, world.now())
    assert rekeyed.key_id == key.key.key_id
    with pytest.raises(EtagMismatch):
        world.run(storages.update, storage.storage_id, StorageChange(), None, moved.etag, world.vault, world.now())

    world.run(storages.delete, storage.storage_id, world.now())
    for table in (models.Storage, models.StorageKey, models.Secret):
        assert world.run(table.select().count) == 0


@pytest.mark.feature("S26")
def test_encryption_needs_a_passphrase(world: World) -> None:
    storage = world.storage()

    with pytest.raises(InvalidField):
        world.storage("other", encryption_enabled=True)
    with pytest.raises(InvalidField):
        world.change_storage(storage, encryption_enabled=True)


@pytest.mark.feature("S28")
def test_a_secret_that_is_not_given_is_kept(world: World) -> None:
    storage = world.storage()

    same = world.change_storage(storage, name="renamed", secrets={"sftp_private_key": ""})
    other = world.change_storage(storage, secrets={"sftp_private_key": "NEW"})

    assert same.secrets == storage.secrets
    assert other.secrets != storage.secrets


@pytest.mark.feature("S4", "S24")
def test_the_first_test_learns_the_host_key_and_later_ones_do_not(world: World) -> None:
    from controller.order_types import TestOrder as Order

    agent, storage = world.enroll("h1"), world.storage()
    first, second = (f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{letter * 43}" for letter in "AB")
    for seen in ("garbage", first, second):
        job = agent.accept(world.start(Order(storage.storage_id, "h1")))
        done = agent.finish(job, result={"test": {"steps": [], "host_key": seen}})
        assert done.state == "completed"

    assert world.run(storages.find, "nas").config["host_key"] == first


def test_what_opens_no_more_fails_the_job_and_not_the_session(world: World) -> None:
    from controller.agents import deliveries
    from controller.cycle import turn

    agent, storage = world.enroll("h1"), world.storage()
    job = world.backup(world.server(agent, "web"), storage)
    world.run(lambda: models.Secret.update(row_id=new_id(world.now()), box=b"x" * 40).execute())
    world.run(lambda: models.Secret.update(row_id=storage.storage_id).execute())
    session_id = agent.hello().session_id
    world.run(turn.take, "sessions:nobody", "nobody")

    sent = world.run(
        deliveries.take, agent.hypervisor_id, session_id, frozenset(), world.vault, world.limits, world.now()
    )

    ended = world.job(job.job_id)
    assert sent.commands == []
    assert ended.state == "failed"
    assert ended.failure is not None
    assert ended.failure.reason == "INTERNAL"
