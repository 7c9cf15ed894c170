"""What is not proven is refused: another encryption while backups may lie unseen, another place that is not the same one."""

from datetime import timedelta
from typing import Any

import pytest

from controller import order_types, probes, schedules, set_back, storages
from controller.db import models, secrets
from controller.errors import EncryptionImmutable, EncryptionUnproven, EtagMismatch, InvalidField, StorageImmutable
from controller.jobs import Job
from controller.order_types import ProbeOrder
from controller.schedules import NewSchedule
from controller.storages import Storage
from engine.format import keys
from engine.format.crypto import StorageKey
from tests.controller.world import Agent, World, record_of

PLACE = {"host": "backup.example", "port": 22, "username": "bm", "path": "/srv"}
ELSEWHERE = {**PLACE, "host": "new.example"}


def key(world: World) -> storages.NewKey:
    return storages.make_key("long enough", world.now())


def encrypt(world: World, storage: Storage) -> Storage:
    change = storages.StorageChange(encryption_enabled=True)
    return world.run(storages.update, storage.storage_id, change, key(world), "", world.vault, world.now())


def read(world: World, agent: Agent, storage: Storage, *found: Job, unreadable: int = 0) -> None:
    job = agent.accept(world.reindex(storage, agent))
    agent.find(job, *(record_of(one, "c1") for one in found))
    names = [f"servers/{number}/backup.json" for number in range(unreadable)]
    agent.finish(job, result={"reindex": {"backup_count": str(len(found)), "unreadable": names}})


def try_out(world: World, agent: Agent, storage: Storage) -> Job:
    job = agent.accept(world.start(order_types.TestOrder(storage.storage_id, agent.hypervisor_id)))
    return agent.finish(job)


@pytest.mark.feature("S25")
def test_what_was_never_written_to_can_be_encrypted_at_once(world: World) -> None:
    assert encrypt(world, world.storage()).encryption_enabled


@pytest.mark.feature("S25")
def test_what_was_written_to_is_read_first(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    try_out(world, agent, storage)
    with pytest.raises(EncryptionUnproven) as refused:
        encrypt(world, storage)
    assert refused.value.facts["problem"] == "it was not read as a whole"
    read(world, agent, storage)
    assert encrypt(world, storage).encryption_enabled


@pytest.mark.feature("S25")
def test_a_reading_is_no_proof_for_long(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    try_out(world, agent, storage)
    read(world, agent, storage)
    world.clock.advance(timedelta(hours=2).total_seconds())
    with pytest.raises(EncryptionUnproven):
        encrypt(world, storage)


@pytest.mark.feature("S25")
def test_a_backup_that_ran_since_may_have_left_what_nobody_heard_of(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    server = world.server(agent, "web")
    try_out(world, agent, storage)
    read(world, agent, storage)
    job = agent.accept(world.backup(server, storage))
    with pytest.raises(EncryptionImmutable):
        encrypt(world, storage)
    agent.finish(job, "failed")
    with pytest.raises(EncryptionUnproven) as refused:
        encrypt(world, storage)
    assert refused.value.facts["problem"] == "backups ran since it was last read as a whole"
    read(world, agent, storage)
    assert encrypt(world, storage).encryption_enabled


@pytest.mark.feature("S25")
def test_a_backup_that_only_the_repository_knows_keeps_encryption_as_it_is(world: World) -> None:
    """The record of a backup was lost: the job failed for the controller, and the backup lies there all the same."""
    agent, storage = world.enroll("h1"), world.storage()
    lost = agent.accept(world.backup(world.server(agent, "web"), storage))
    agent.finish(lost, "failed")
    with pytest.raises(EncryptionUnproven):
        encrypt(world, storage)
    read(world, agent, storage, lost)
    with pytest.raises(EncryptionImmutable):
        encrypt(world, storage)


@pytest.mark.feature("S25")
def test_what_cannot_be_read_may_be_a_backup(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    try_out(world, agent, storage)
    read(world, agent, storage, unreadable=1)
    with pytest.raises(EncryptionUnproven):
        encrypt(world, storage)


@pytest.mark.feature("S25", "N11")
def test_after_the_memory_was_set_back_even_an_unused_storage_is_read_first(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    world.run(set_back.notice, "a test says so", world.limits, world.now())
    agent.heartbeat()
    with pytest.raises(EncryptionUnproven):
        encrypt(world, storage)


@pytest.mark.feature("S25", "S3")
def test_a_local_folder_is_read_on_each_hypervisor_that_may_have_written_there(world: World) -> None:
    first, second = world.enroll("h1"), world.enroll("h2")
    storage = world.storage(type="local", config={"path": "/backups"}, secrets={})
    for agent in (first, second):
        try_out(world, agent, storage)
    read(world, first, storage)
    with pytest.raises(EncryptionUnproven) as refused:
        encrypt(world, storage)
    assert second.hypervisor_id in refused.value.facts["problem"]
    read(world, second, storage)
    assert encrypt(world, storage).encryption_enabled


@pytest.mark.feature("S25", "D5")
def test_a_schedules_override_is_held_to_the_same(world: World) -> None:
    agent = world.enroll("h1")
    storage = encrypt(world, world.storage())
    lost = agent.accept(world.backup(world.server(agent, "web"), storage))
    agent.finish(lost, "failed")

    def plan(hypervisor_id: str) -> Any:
        new = NewSchedule(hypervisor_id, storage.storage_id, "scheduled_only", False, "", {"encryption": False})
        return world.run(schedules.create, new, world.now())

    with pytest.raises(EncryptionUnproven):
        plan(agent.hypervisor_id)
    read(world, agent, storage)
    assert plan(agent.hypervisor_id).overrides == {"encryption": False}
    assert plan(world.enroll("h2").hypervisor_id), "one that never wrote there has nothing there"


# ---- another place ------------------------------------------------------------------------------------------------------


def probe(world: World, agent: Agent, storage: Storage, place: dict[str, Any], **given: str) -> Job:
    prints = {name: world.vault.fingerprint(value) for name, value in given.items()}
    order = ProbeOrder(storage.storage_id, agent.hypervisor_id, storage.type, place, prints)
    return agent.accept(world.job(world.run(probes.start, order, given, world.vault, world.context())))


FOUND: dict[str, Any] = {"health": {"initialized": True}}


@pytest.mark.feature("S0")
def test_a_place_in_use_changes_only_to_where_the_same_repository_was_found(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    agent.back_up(world.server(agent, "web"), storage, "c1")
    with pytest.raises(StorageImmutable):
        world.change_storage(storage, config=ELSEWHERE)
    agent.finish(probe(world, agent, storage, {**PLACE, "path": "/other"}), result=FOUND)
    with pytest.raises(StorageImmutable):  # that was another place
        world.change_storage(storage, config=ELSEWHERE)

    agent.finish(probe(world, agent, storage, ELSEWHERE), result=FOUND)

    assert world.change_storage(storage, config=ELSEWHERE).config == ELSEWHERE


@pytest.mark.feature("S0")
@pytest.mark.parametrize("how", ["failed", "empty", "long ago"])
def test_a_probe_that_found_nothing_proves_nothing(world: World, how: str) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    agent.back_up(world.server(agent, "web"), storage, "c1")
    job = probe(world, agent, storage, ELSEWHERE)
    found = {"health": {}} if how == "empty" else FOUND
    agent.finish(job, "failed" if how == "failed" else "completed", result=found)
    if how == "long ago":
        world.clock.advance(timedelta(hours=2).total_seconds())
    with pytest.raises(StorageImmutable):
        world.change_storage(storage, config=ELSEWHERE)


@pytest.mark.feature("S0", "S3")
def test_a_local_folder_is_found_by_each_hypervisor_that_has_backups_in_it(world: World) -> None:
    first, second = world.enroll("h1"), world.enroll("h2")
    storage = world.storage(type="local", config={"path": "/backups"}, secrets={})
    first.back_up(world.server(first, "web"), storage, "c1")
    second.back_up(world.server(second, "db"), storage, "c2")
    moved = {"path": "/mnt/backups"}
    first.finish(probe(world, first, storage, moved), result=FOUND)
    with pytest.raises(StorageImmutable):
        world.change_storage(storage, config=moved)
    second.finish(probe(world, second, storage, moved), result=FOUND)
    assert world.change_storage(storage, config=moved).config == moved


@pytest.mark.feature("S0", "S28", "H1")
def test_a_probe_says_nothing_of_the_storages_health_and_leaves_no_secret_behind(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    job = probe(world, agent, storage, ELSEWHERE, sftp_private_key="ANOTHER-PEM")
    assert world.run(probes.secrets_for, job, world.vault) == {"sftp_private_key": "ANOTHER-PEM"}
    agent.finish(job, "failed", failure=None)

    assert world.run(secrets.fingerprints, probes.TABLE, job.job_id) == {}
    assert world.run(models.StorageCheck.select().count) == 0


@pytest.mark.feature("S0")
def test_a_probe_is_of_the_storages_own_type(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    order = ProbeOrder(storage.storage_id, agent.hypervisor_id, "local", {"path": "/srv"})
    with pytest.raises(StorageImmutable):
        world.run(probes.start, order, {}, world.vault, world.context())


@pytest.mark.feature("S25")
def test_a_new_place_has_to_be_read_before_its_encryption_changes(world: World) -> None:
    agent, storage = world.enroll("h1"), world.storage()
    try_out(world, agent, storage)
    read(world, agent, storage)
    moved = world.change_storage(storage, config=ELSEWHERE)
    with pytest.raises(EncryptionUnproven):
        encrypt(world, moved)


# ---- a further passphrase -----------------------------------------------------------------------------------------------


@pytest.mark.feature("S25", "S26")
def test_a_further_passphrase_opens_the_same_key_while_backups_lie_there(world: World) -> None:
    agent, storage = world.enroll("h1"), encrypt(world, world.storage())
    agent.back_up(world.server(agent, "web"), storage, "c1")
    (opened,) = world.run(storages.open_keys, storage.storage_id, world.vault)
    before = world.run(storages.wrapped_keys, storage.storage_id)[storage.key_id]

    after = storages.with_passphrase(opened, before, "another long one", world.now())
    world.run(storages.set_wrapped, storage.storage_id, storage.key_id, before, after)

    kept = world.run(storages.wrapped_keys, storage.storage_id)[storage.key_id]
    closed = keys.KeyObject.load(kept.encode(), f"keys/{storage.key_id}.json")
    for passphrase in ("long enough", "another long one"):
        assert keys.unwrap_key(closed, passphrase) == opened
    assert storages.with_passphrase(opened, after, "another long one", world.now()) == after, "it opens already"
    with pytest.raises(EtagMismatch):  # somebody else was quicker
        world.run(storages.set_wrapped, storage.storage_id, storage.key_id, before, after)


@pytest.mark.feature("S25")
def test_there_is_an_end_of_passphrases(world: World) -> None:
    opened = StorageKey.generate("018f0000-0000-7000-8000-000000000001")
    cheap = keys.ScryptCost(n=2)
    closed = keys.wrap_key(opened, "first", "2026-11-23T00:00:00.000Z", cheap)
    for number in range(keys.SLOTS_MAX - 1):
        closed = keys.add_slot(closed, opened, f"passphrase {number}", closed.create_time, cheap)
    with pytest.raises(InvalidField):
        storages.with_passphrase(opened, closed.dump().decode(), "one too many", world.now())
