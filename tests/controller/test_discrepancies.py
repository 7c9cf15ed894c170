"""What was done to a storage behind the product's back is told: in the overview, of each server, and in the log (N10)."""

from collections.abc import Sequence

import pytest

from controller import backups, diagnosis, discrepancies, overview, system_log
from controller.db import models
from controller.discrepancies import ADOPTED_SPAN, Discrepancy, Flaws
from controller.jobs import Job
from controller.order_types import ReindexOrder
from controller.overview import Overview
from controller.rules.diagnosis import Finding
from controller.servers import Server
from controller.storages import Storage
from controller.system_log import LogFilter
from tests.controller.world import Agent, World, record_of

pytestmark = pytest.mark.feature("N10")


def back_up(world: World, agent: Agent, server: Server, storage: Storage) -> Job:
    job = agent.accept(world.backup(server, storage))
    return agent.finish(job, record=record_of(job, f"c-{job.job_id}"))


def read(world: World, agent: Agent, storage: Storage, there: Sequence[Job], unreadable: Sequence[Job] = ()) -> Job:
    """Let the storage be read, on which only the backups of these jobs are there."""
    job = agent.accept(world.start(ReindexOrder(storage.storage_id, agent.hypervisor_id)))
    agent.find(job, *(record_of(one, f"c-{one.job_id}") for one in there))
    names = [f"servers/{one.server_id}/{one.backup_id}/backup.json" for one in unreadable]
    return agent.finish(job, result={"reindex": {"backup_count": str(len(there)), "unreadable": names}})


def forget(world: World, job: Job) -> None:
    world.run(lambda: models.Backup.delete().where(models.Backup.backup_id == job.backup_id).execute())


def take(world: World) -> Overview:
    return world.run(overview.take, world.limits, 8, world.now())


def catalog_finding(world: World, server: Server) -> Finding:
    found = world.run(diagnosis.of_server, server.server_id, world.limits, world.now()).findings
    return next(one for one in found if one.step == "catalog")


def log(world: World) -> list[tuple[str, str]]:
    found = world.run(system_log.list_entries, LogFilter(sources=("inventory",)))
    return [(one.level, one.message) for one in reversed(found)]


def test_deleted_damaged_and_added_behind_our_back_is_in_overview_diagnosis_and_log(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    web, db = world.server(agent, "web"), world.server(agent, "db")
    gone, broken, kept = (back_up(world, agent, web, storage) for _ in range(3))
    stranger = back_up(world, agent, db, storage)
    forget(world, stranger)
    assert take(world).discrepancies == ()
    assert catalog_finding(world, web).state == "ok"

    done = read(world, agent, storage, [kept, stranger], [broken])

    assert done.result is not None
    assert {name: done.result["reindex"][name] for name in ("missing_count", "damaged_count", "added_count")} == {
        "missing_count": "1", "damaged_count": "1", "added_count": "1",
    }  # fmt: skip
    shown = take(world)
    assert shown.discrepancies == (
        Discrepancy(web.server_id, storage.storage_id, 1, 1, 0),
        Discrepancy(db.server_id, storage.storage_id, 0, 0, 1),
    )
    counts = shown.counts
    assert (counts.missing_backup_count, counts.damaged_backup_count, counts.adopted_backup_count) == (1, 1, 1)
    assert (shown.names.servers[db.server_id], shown.names.storages[storage.storage_id]) == ("db", "nas")
    assert catalog_finding(world, web).sentence == "of its backups on storage nas: 1 gone, 1 damaged"
    assert catalog_finding(world, db).sentence == "of its backups on storage nas: 1 found there and taken in"
    assert log(world) == [("warning", "Storage nas was read: of its backups, 1 gone, 1 damaged, 1 new to the catalog")]
    assert world.run(backups.get, gone.backup_id).state == "missing"


def test_the_same_again_is_told_once_and_what_came_back_is_told_too(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    server = world.server(agent, "web")
    gone, kept = back_up(world, agent, server, storage), back_up(world, agent, server, storage)
    world.run(lambda: models.GlobalSettings.insert(number=1, chosen={"log_info_level": True}, version=1).execute())
    for _ in range(2):
        read(world, agent, storage, [kept])
    read(world, agent, storage, [gone, kept])
    assert log(world) == [
        ("warning", "Storage nas was read: of its backups, 1 gone"),
        ("info", "Storage nas was read: of its backups, all are as the catalog says again"),
    ]
    assert take(world).discrepancies == ()


def test_what_was_taken_in_is_told_for_a_week_and_what_is_gone_until_it_is_not(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    server = world.server(agent, "web")
    gone, stranger = back_up(world, agent, server, storage), back_up(world, agent, server, storage)
    forget(world, stranger)
    read(world, agent, storage, [stranger])
    assert take(world).discrepancies == (Discrepancy(server.server_id, storage.storage_id, 1, 0, 1),)

    world.clock.advance(ADOPTED_SPAN.total_seconds() + 1)
    assert take(world).discrepancies == (Discrepancy(server.server_id, storage.storage_id, 1, 0, 0),)
    agent.heartbeat()
    read(world, agent, storage, [gone, stranger])
    assert world.run(discrepancies.flaws) == Flaws(0, 0)
    assert take(world).discrepancies == ()


def test_nothing_wrong_costs_nothing_whatever_there_is(world: World) -> None:
    """The indexes hold only what differs, and the questions use them."""
    if world.url.startswith("postgresql"):
        pytest.skip("the other database plans by what it has counted, and has counted nothing here")

    def plan() -> str:
        asked = [discrepancies._STATES.format(""), discrepancies._WORST.format("").replace("?", "8")]
        asked.append(f"SELECT COUNT(*) {discrepancies._ADOPTED}".replace("?", "'0'"))
        asked.append(discrepancies._NEWEST_ADOPTED.format("").replace("?", "'0'"))
        return "\n".join(
            str(row[3]) for sql in asked for row in models.proxy.execute_sql(f"EXPLAIN QUERY PLAN {sql}").fetchall()
        )

    told = world.run(plan)
    assert told.count("backup_flawed") == 2, told
    assert told.count("backup_adopted") == 2, told
