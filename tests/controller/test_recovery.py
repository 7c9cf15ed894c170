"""The controller's memory is lost or set back: what it notices, what it refuses, and what lets it go on."""

import asyncio
from pathlib import Path

import pytest

from controller import backups, installation, purges, reconciliation, schedules, servers, set_back, settings
from controller.cycle import prune, reconcile
from controller.cycle.tick import Round
from controller.db import models
from controller.errors import CannotStart, StorageUnreconciled
from controller.files import write_json
from controller.jobs import Job
from controller.order_types import ReindexOrder
from controller.purges import NewPurge
from controller.schedules import NewSchedule
from controller.servers import Server
from controller.storages import Storage
from tests.controller.chains import put_chains
from tests.controller.world import Agent, World, record_of

EMPTY = {"reindex": {"backup_count": "0"}}


def lose(world: World) -> int:
    return world.run(set_back.notice, "a test says so", world.limits, world.now())


def read_all(agent: Agent, job: Job, *made: Job) -> Job:
    """Let a reindex find what the jobs `made`, and end."""
    agent.accept(job)
    agent.find(job, *(record_of(one, "c1") for one in made))
    return agent.finish(job, result={"reindex": {"backup_count": str(len(made))}})


def back_up(world: World, agent: Agent, server: Server, storage: Storage) -> Job:
    job = agent.accept(world.backup(server, storage))
    return agent.finish(job, record=record_of(job, "c1"))


@pytest.mark.feature("N11")
def test_a_new_epoch_blocks_deletes_on_each_storage_until_it_is_reconciled(world: World) -> None:
    agent = world.enroll("kvm1")
    server, storage, other = world.server(agent, "web"), world.storage(), world.storage("other")
    made, elsewhere = back_up(world, agent, server, storage), back_up(world, agent, server, other)
    assert lose(world) == 2
    for backup_id in (made.backup_id, elsewhere.backup_id):
        with pytest.raises(StorageUnreconciled):
            world.delete([backup_id])

    done = read_all(agent, world.start(ReindexOrder(storage.storage_id, agent.hypervisor_id)), made)

    assert done.state == "completed"
    assert world.delete([made.backup_id]).type == "delete"
    with pytest.raises(StorageUnreconciled):
        world.delete([elsewhere.backup_id])


@pytest.mark.feature("N11")
@pytest.mark.parametrize("how", ["one server", "failed", "too much unreadable"])
def test_what_is_no_whole_reading_lifts_nothing(world: World, how: str) -> None:
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    made = back_up(world, agent, server, storage)
    lose(world)
    server_id = server.server_id if how == "one server" else ""
    job = agent.accept(world.start(ReindexOrder(storage.storage_id, agent.hypervisor_id, server_id)))
    agent.find(job, record_of(made, "c1"))
    unreadable = [f"servers/{number}/backup.json" for number in range(100)] if "unreadable" in how else []
    agent.finish(
        job,
        "failed" if how == "failed" else "completed",
        result={"reindex": {"backup_count": "1", "unreadable": unreadable}},
    )
    with pytest.raises(StorageUnreconciled):
        world.delete([made.backup_id])


@pytest.mark.feature("N11")
def test_a_reading_of_an_earlier_epoch_lifts_nothing(world: World) -> None:
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    made = back_up(world, agent, server, storage)
    job = agent.accept(world.reindex(storage, agent))
    lose(world)
    agent.finish(job, result=EMPTY)
    assert world.job(job.job_id).state == "failed"
    with pytest.raises(StorageUnreconciled):
        world.delete([made.backup_id])


@pytest.mark.feature("N11")
def test_a_delete_that_was_under_way_is_neither_sent_nor_queued_again(world: World) -> None:
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    made = back_up(world, agent, server, storage)
    job = world.delete([made.backup_id])
    assert world.commands_of(job) == ["run"]
    lose(world)
    assert (world.job(job.job_id).state, world.commands_of(job)) == ("failed", [])
    world.tick()
    assert world.run(backups.get, made.backup_id).state == "available"


@pytest.mark.feature("N11")
def test_a_local_folder_is_reconciled_on_each_hypervisor_by_itself(world: World) -> None:
    first, second = world.enroll("kvm1"), world.enroll("kvm2")
    storage = world.storage("disk", type="local", config={"path": "/srv"}, secrets={})
    here = back_up(world, first, world.server(first, "web"), storage)
    there = back_up(world, second, world.server(second, "db"), storage)
    lose(world)
    read_all(first, world.reindex(storage, first), here)
    assert world.delete([here.backup_id]).type == "delete"
    with pytest.raises(StorageUnreconciled):
        world.delete([there.backup_id])


@pytest.mark.feature("N11", "K1", "D25")
def test_purges_that_waited_are_doubted(world: World) -> None:
    """A purge may have been cancelled since, and a memory that was set back does not know."""
    agent = world.enroll("kvm1")
    server, other, storage = world.server(agent, "web"), world.server(agent, "old"), world.storage()
    made = back_up(world, agent, server, storage)
    back_up(world, agent, other, storage)
    world.run(settings.update, {"purge_delay_days": 0}, "", world.now())
    world.run(servers.delete, other.server_id, world.now())
    confirmed = world.run(purges.insert, NewPurge(server.server_id, "", purges.ALL, "tester"), world.now(), world.now())
    assert len(world.run(purges.due, 10, world.now())) == 2
    (running,) = [one for one in world.run(purges.due, 10, world.now()) if one != confirmed]
    assert world.run(purges.start, running, world.limits, world.vault, world.now()) == 1

    lose(world)
    read_all(agent, world.reindex(storage, agent), made)

    assert world.run(purges.get, confirmed).state == purges.CANCELLED
    assert world.run(purges.get, running).state == purges.SCHEDULED
    assert world.run(purges.due, 10, world.now()) == []
    world.clock.advance(purges.DOUBT.total_seconds() + 1)
    assert world.run(purges.due, 10, world.now()) == [running], (
        "the server is deleted still, and somebody had a day to look"
    )


@pytest.mark.feature("N11", "R11")
def test_retention_deletes_nothing_on_the_first_day_of_an_epoch(world: World) -> None:
    """Its policies may be yesterday's: somebody has a day to look at them, also where the storage was read at once."""
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage(retention={"preset": "keep-last"}, keep_last=0)
    put_chains(world, agent, server, storage, 2, 1)
    assert world.run(reconciliation.retention_resume_time, world.now()) is None
    lose(world)

    def prune_jobs() -> int:
        agent.heartbeat()
        asyncio.run(prune.run(world.database, world.limits, world.vault, world.now()))
        return world.run(lambda: models.Job.select().where(models.Job.type == "prune").count())

    everything = world.run(lambda: [one.backup_id for one in models.Backup.select()])
    job = agent.accept(world.reindex(storage, agent))
    world.run(lambda: models.Backup.update(see_time=world.now()).execute())
    agent.finish(job, result={"reindex": {"backup_count": str(len(everything))}})
    assert prune_jobs() == 0
    world.clock.advance(reconciliation.LOOK_SPAN.total_seconds() + 1)
    assert world.run(reconciliation.retention_resume_time, world.now()) is None
    assert prune_jobs() == 1


# ---- noticing it --------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N11")
def test_yesterday_s_database_put_back_is_noticed_by_its_mark_and_deletes_nothing(world: World, tmp_path: Path) -> None:
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    made = back_up(world, agent, server, storage)
    file = tmp_path / "mark.json"
    installation_id, mark = world.run(set_back.count)
    write_json(file, {"installation_id": installation_id, "mark": mark})
    assert not world.run(set_back.check_mark, file, world.limits, world.now()), "the present database is no old one"
    write_json(file, {"installation_id": installation_id, "mark": mark + 1})  # as it was when the newer one was lost

    assert world.run(set_back.check_mark, file, world.limits, world.now())

    assert world.run(installation.get).epoch == 2
    with pytest.raises(StorageUnreconciled):
        world.delete([made.backup_id])
    assert not world.run(set_back.check_mark, file, world.limits, world.now()), "once is enough"


def test_a_mark_of_another_installation_says_nothing_and_a_damaged_one_stops_us(world: World, tmp_path: Path) -> None:
    file = tmp_path / "mark.json"
    write_json(file, {"installation_id": "another", "mark": 1000})
    assert not world.run(set_back.check_mark, file, world.limits, world.now())
    file.write_text("{")
    with pytest.raises(CannotStart):
        world.run(set_back.check_mark, file, world.limits, world.now())


@pytest.mark.feature("N11")
def test_a_whole_machine_set_back_is_noticed_by_the_first_agent_that_knows_more(world: World) -> None:
    agent, other = world.enroll("kvm1"), world.enroll("kvm2")
    server, storage = world.server(agent, "web"), world.storage()
    made = back_up(world, agent, server, storage)
    other.hello()
    agent.hello(acknowledged_sequence=agent.sequence)
    assert world.run(installation.get).epoch == 1
    deletion = world.delete([made.backup_id])  # as the older memory has it

    welcome = agent.hello(acknowledged_sequence=agent.sequence + 5, last_sequence=agent.sequence + 5)

    assert welcome.epoch == 2
    assert (world.job(deletion.job_id).state, world.commands_of(deletion)) == ("failed", [])
    with pytest.raises(StorageUnreconciled):
        world.delete([made.backup_id])
    other.hello(acknowledged_sequence=other.sequence + 7, last_sequence=other.sequence + 7)
    agent.hello(acknowledged_sequence=agent.sequence + 9, last_sequence=agent.sequence + 9)
    assert world.run(installation.get).epoch == 2, "one loss is one epoch, and nobody's word ends more than one"


# ---- by the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N10")
def test_storages_are_read_daily_and_at_once_in_a_new_epoch(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    world.run(schedules.create, NewSchedule(agent.hypervisor_id, storage.storage_id, "full_access"), world.now())

    def tick() -> int:
        agent.heartbeat()
        now = world.now()
        asyncio.run(reconcile.step(Round(world.database, world.limits, world.vault, now, now)))
        return world.run(lambda: models.Job.select().where(models.Job.type == "reindex").count())

    def last() -> Job:
        return world.job(world.run(lambda: models.Job.select().order_by(models.Job.job_id.desc()).get().job_id))

    assert tick() == 0, "what was made today is known"
    world.clock.advance(86400)
    assert tick() == 1
    assert tick() == 1
    agent.finish(agent.accept(last()), result=EMPTY)
    assert tick() == 1
    lose(world)
    world.clock.advance(3600)
    assert tick() == 2
    agent.finish(agent.accept(last()), "failed")
    assert tick() == 2, "a failure waits an hour"
    world.clock.advance(3600)
    assert tick() == 3
    agent.finish(agent.accept(last()), result=EMPTY)
    assert world.run(reconciliation.due, world.limits, world.now()) == []


@pytest.mark.feature("N10")
def test_reconciliation_marks_what_is_gone_adopts_its_own_strangers_and_deletes_nothing(world: World) -> None:
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    gone, kept = back_up(world, agent, server, storage), back_up(world, agent, server, storage)
    stranger = back_up(world, agent, server, storage)
    world.run(lambda: models.Backup.delete().where(models.Backup.backup_id == stranger.backup_id).execute())

    job = world.start(ReindexOrder(storage.storage_id, ""))
    read_all(agent, job, kept, stranger)

    assert {one: world.run(backups.get, one).state for one in (gone.backup_id, kept.backup_id, stranger.backup_id)} == {
        gone.backup_id: "missing",
        kept.backup_id: "available",
        stranger.backup_id: "available",
    }
    assert {one.type for one in world.run(live_and_ended)} == {"backup", "reindex"}


def live_and_ended() -> list[models.Job]:
    return list(models.Job.select())
