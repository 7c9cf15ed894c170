"""The overview says what the rows say, and asks few questions however much there is."""

from typing import Any

import pytest

from controller import diagnosis, overview, schedules, servers
from controller.db import models
from controller.jobs import Failure
from controller.overview import Overview
from controller.schedules import NewSchedule
from tests.controller.world import World

FULL = Failure("STORAGE_FULL", "the storage is full", {}, "write")


def take(world: World, size: int = 8) -> Overview:
    return world.run(overview.take, world.limits, size, world.now())


@pytest.mark.feature("M1", "M2", "M3", "M4")
def test_what_is_there_is_counted_and_listed(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    web, db, idle = (world.server(agent, name) for name in ("web", "db", "idle"))
    gone = world.server(agent, "gone")
    agent.back_up(web, storage, "c1")
    agent.back_up(gone, storage, "c2")
    world.run(servers.delete, gone.server_id, world.now())
    for _ in range(2):
        job = world.backup(db, storage)
        agent.accept(job)
        agent.finish(job, "failed", failure=FULL)
    schedule = world.run(
        schedules.create, NewSchedule(agent.hypervisor_id, storage.name, "scheduled_only"), world.now()
    )
    running = agent.accept(world.backup(web, storage))
    world.backup(idle, storage)

    found = take(world)
    counts = found.counts
    assert (counts.running_job_count, counts.waiting_job_count) == (1, 1)
    assert (counts.server_count, counts.protected_server_count, counts.unprotected_server_count) == (3, 1, 2)
    assert (counts.failing_server_count, counts.pending_purge_count) == (1, 1)
    assert (counts.backup_count, counts.backup_bytes) == (2, 100)
    assert (counts.schedule_count, counts.enabled_schedule_count, counts.overdue_schedule_count) == (1, 1, 0)
    assert (counts.hypervisor_count, counts.online_hypervisor_count) == (1, 1)
    assert (counts.storage_count, counts.unhealthy_storage_count) == (1, 0)
    assert [(one.server_id, one.failure_count) for one in found.failing] == [(db.server_id, 2)]
    assert {one.server_name for one in found.unprotected} == {"db", "idle"}
    assert [(one.server_name, one.backup_count) for one in found.purges] == [("gone", 1)]
    assert next(one.job_id for one in found.errors) == job.job_id
    assert found.errors[0].failure is not None
    assert found.errors[0].failure["step"] == "write"
    assert [(one.schedule_id, one.overdue) for one in found.upcoming] == [(schedule.schedule_id, False)]
    assert found.names.servers[db.server_id] == "db"
    assert found.names.hypervisors[agent.hypervisor_id] == "kvm1"
    assert [one.total.backup_count for one in found.storages] == [2]
    assert running.state == "running"

    world.clock.advance(600)
    later = take(world)
    assert later.counts.overdue_schedule_count == 1
    assert later.upcoming[0].overdue
    assert later.counts.online_hypervisor_count == 0


@pytest.mark.feature("M1")
def test_the_number_of_queries_does_not_grow_with_what_there_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()

    def queries() -> int:
        seen: list[str] = []
        real = type(models.proxy.obj).execute_sql

        def counted(self: Any, sql: str, *arguments: Any, **options: Any) -> Any:
            seen.append(sql)
            return real(self, sql, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(models.proxy.obj), "execute_sql", counted)
            take(world)
        return len(seen)

    def grow(number: int) -> None:
        server = world.server(agent, f"s{number}")
        agent.back_up(server, storage, f"c{number}")
        failed = world.backup(server, storage)
        agent.accept(failed)
        agent.finish(failed, "failed", failure=FULL)
        world.storage(f"more{number}")

    grow(0)
    few = queries()
    for number in range(1, 7):
        grow(number)
    assert queries() == few
    assert few < 35


@pytest.mark.feature("E1")
def test_a_real_server_is_diagnosed_from_what_is_kept_of_it(world: World) -> None:
    agent, storage = world.enroll("kvm1"), world.storage()
    server = world.server(agent, "web")

    def diagnosed() -> diagnosis.Diagnosis:
        return world.run(diagnosis.of_server, "web", world.limits, world.now())

    assert diagnosed().summary == "hypervisor kvm1 has no schedule"
    world.run(schedules.create, NewSchedule(agent.hypervisor_id, storage.name, "scheduled_only"), world.now())
    found = diagnosed()
    assert found.will_be_backed_up
    assert found.next_time is not None
    assert found.summary.startswith("nothing stands in the way")
    world.change_storage(storage, read_only=True)
    assert diagnosed().summary == "storage nas is read-only"
    world.change_storage(storage, read_only=False)
    job = world.backup(server, storage)
    assert {one.step: one.facts.get("job_id") for one in diagnosed().findings}["busy"] == job.job_id
    world.clock.advance(600)
    assert not diagnosed().will_be_backed_up
    assert "not connected" in diagnosed().summary
