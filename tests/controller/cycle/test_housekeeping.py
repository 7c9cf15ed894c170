"""What is past its time goes, in small steps; what lives, or what a backup needs, stays."""

from datetime import timedelta

import pytest

from controller import audit_log, backups, events, jobs, system_log
from controller import settings as settings_module
from controller.audit_log import AuditFilter
from controller.cycle import housekeeping
from controller.cycle.tick import Round
from controller.db import models
from controller.errors import RequestIdReused
from controller.events import EventFilter
from controller.job_log import Line, append
from controller.jobs import Job
from controller.system_log import LogFilter
from engine.ids import first_id, new_id
from tests.clock import START
from tests.controller.world import Agent, World


async def keep_house(world: World) -> None:
    now = world.now()
    await housekeeping.step(Round(world.database, world.limits, world.vault, now, now))


def pass_days(world: World, days: float) -> None:
    world.clock.advance(timedelta(days=days).total_seconds())


def is_there(world: World, job: Job) -> bool:
    return world.run(jobs.find, job.job_id) is not None


def lines(world: World, job: Job) -> int:
    return world.run(lambda: models.JobLog.select().where(models.JobLog.job == job.job_id).count())


def log_line(world: World, agent: Agent, job: Job) -> None:
    line = Line(job.job_id, 1, 1, world.now(), "info", "hello")
    assert world.run(append, agent.hypervisor_id, [line]) == 1


@pytest.mark.feature("G8", "N7")
async def test_an_ended_job_goes_after_its_days_with_all_that_is_its_and_a_needed_or_live_one_stays(
    world: World,
) -> None:
    agent = world.enroll("h1")
    web, storage = world.server(agent, "web"), world.storage()
    failed = world.backup(web, storage, request_id="0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee")
    agent.accept(failed)
    log_line(world, agent, failed)
    agent.finish(failed, "failed", failure=jobs.Failure("STORAGE_FULL", "no"))
    kept_backup = agent.back_up(web, storage, "chain")
    made = world.run(backups.get, kept_backup).job_id
    live = world.backup(world.server(agent, "live"), storage)
    agent.accept(live)
    log_line(world, agent, live)

    pass_days(world, 31)
    await keep_house(world)
    assert (lines(world, failed), lines(world, live)) == (0, 1)
    assert is_there(world, failed)
    with pytest.raises(RequestIdReused):  # its id is known as long as the job is
        world.backup(web, storage, type="full", request_id="0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee")

    pass_days(world, 90)
    await keep_house(world)
    assert not is_there(world, failed)
    assert world.events_of(failed) == []
    assert is_there(world, live)
    assert world.run(jobs.find, made) is not None
    assert world.run(backups.get, kept_backup).state == "available"

    world.run(backups.mark_deleted, [kept_backup], world.now())
    await keep_house(world)
    assert world.run(jobs.find, made) is None


@pytest.mark.feature("G8", "M9")
async def test_events_logs_and_calls_go_after_their_days(world: World) -> None:
    world.storage()
    world.run(system_log.write, "error", "purge", "old", world.now())
    world.run(lambda: models.Audit.create(time=world.now(), method="m", outcome="OK"))
    pass_days(world, 20)
    world.run(system_log.write, "error", "purge", "young", world.now())
    world.storage("young")
    pass_days(world, 11)
    await keep_house(world)

    assert [one.message for one in world.run(system_log.list_entries, LogFilter())] == ["young"]
    assert [one.kind for one in world.run(events.read, EventFilter(), 0, 10).events] == ["storage.created"]
    assert len(world.run(audit_log.list_entries, AuditFilter())) == 1
    pass_days(world, 90)
    await keep_house(world)
    assert world.run(audit_log.list_entries, AuditFilter()) == []


@pytest.mark.feature("G8")
async def test_days_are_settings_and_a_kill_in_between_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ROWS_MAX", 3)
    for _ in range(10):
        world.run(system_log.write, "error", "heal", "line", world.now())
    pass_days(world, 2)
    await keep_house(world)
    assert len(world.run(system_log.list_entries, LogFilter())) == 10
    world.run(settings_module.update, {"log_retention_days": 1}, "", world.now())

    real, calls = system_log.remove_before, 0

    def killed(*args: object) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(system_log, "remove_before", killed)
    with pytest.raises(KeyError):
        await keep_house(world)
    assert len(world.run(system_log.list_entries, LogFilter())) == 7
    await keep_house(world)
    assert world.run(system_log.list_entries, LogFilter()) == []


@pytest.mark.feature("G8")
async def test_a_batch_goes_once_its_jobs_have_gone(world: World) -> None:
    agent = world.enroll("h1")
    job = world.backup(world.server(agent, "web"), world.storage())

    def batch(state: str) -> str:
        row = models.Batch.create(
            batch_id=new_id(world.now()), hypervisor_id=agent.hypervisor_id, storage_id="", origin="force", state=state,
            spec={}, create_time=world.now(), end_time=None if state == "running" else world.now(),
        )  # fmt: skip
        return str(row.batch_id)

    empty, full, live = world.run(lambda: [batch(one) for one in ("completed", "failed", "running")])
    world.run(lambda: models.Job.update(batch_id=full).where(models.Job.job_id == job.job_id).execute())
    pass_days(world, 121)
    await keep_house(world)

    left = world.run(lambda: {row.batch_id for row in models.Batch.select()})
    assert left == {full, live}
    assert empty not in left


@pytest.mark.feature("G8")
async def test_jobs_that_must_stay_hold_up_no_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "JOBS_MAX", 2)
    agent = world.enroll("h1")
    storage = world.storage()
    server = world.server(agent, "web")
    for number in range(4):
        agent.back_up(server, storage, f"chain{number}")
    rejected = world.backup(server, storage)
    agent.reject(rejected)
    pass_days(world, 60)
    agent.heartbeat()
    shown = world.backup(server, storage)  # the server's last failure
    agent.reject(shown)
    pass_days(world, 121)
    await keep_house(world)
    assert not is_there(world, rejected)
    assert is_there(world, shown)
    assert len(world.run(jobs.list_jobs, jobs.JobFilter())) == 5


@pytest.mark.feature("M9", "G9")
def test_info_is_kept_only_while_it_is_wanted_and_all_filters_select(world: World) -> None:
    world.run(system_log.write, "info", "dispatcher", "nobody wants this", world.now())
    world.run(settings_module.update, {"log_info_level": True}, "", world.now())
    world.run(
        system_log.write, "info", "dispatcher", "Schedule of h1 is due", world.now(), schedule_id="d", batch_id="b"
    )
    middle = world.now()
    world.run(system_log.write, "warning", "prune", "storage 100% full", world.now(), storage_id="t", job_id="j")
    world.run(system_log.write, "error", "purge", "server gone", world.now(), server_id="s", hypervisor_id="h")

    def found(**values: object) -> list[str]:
        return [one.source for one in world.run(system_log.list_entries, LogFilter(**values))]  # type: ignore[arg-type]

    assert found() == ["purge", "prune", "dispatcher"]
    assert found(levels=("info", "error")) == ["purge", "dispatcher"]
    assert found(sources=("prune",)) == found(text="100%") == found(text="FULL") == ["prune"]
    assert found(text="1%") == []
    links = {
        "schedule_id": "d",
        "batch_id": "b",
        "storage_id": "t",
        "job_id": "j",
        "server_id": "s",
        "hypervisor_id": "h",
    }
    wanted = ["dispatcher"] * 2 + ["prune"] * 2 + ["purge"] * 2
    assert [found(**{name: value})[0] for name, value in links.items()] == wanted
    assert found(start_time=middle) == ["purge", "prune"]
    assert found(end_time=middle) == ["dispatcher"]
    with pytest.raises(ValueError, match="no link"):
        world.run(system_log.write, "error", "heal", "x", world.now(), nonsense="1")


def test_ids_of_a_time_lie_between_those_before_and_after() -> None:
    before, after = START - timedelta(milliseconds=1), START
    assert new_id(before) < first_id(START) < new_id(after)
