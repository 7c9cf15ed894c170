"""The life of a job: made once, held by one, ended once."""

from datetime import timedelta
from typing import Any

import pytest

from controller import jobs, leases, order_types, orders
from controller.agents import outbox
from controller.agents.convert import Accepted, Finished
from controller.cycle import dispatch
from controller.db import models
from controller.errors import (
    ClockSkew,
    HypervisorBanned,
    HypervisorUnreachable,
    JobEnded,
    JobNotFound,
    RequestIdReused,
    ServerBusy,
    ServerDeleted,
    StorageDisabled,
    StorageReadOnly,
)
from controller.hypervisors import ban
from controller.jobs import Failure, JobFilter
from controller.order_types import BackupOrder
from controller.servers import delete as delete_server
from tests.controller.world import World, record_of

REQUEST = "7d5c2c1e-6e0a-4d38-9d0e-6a8b7d4f0f11"


@pytest.mark.feature("N7")
def test_the_same_request_twice_is_one_job_whatever_became_of_it(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()

    first = world.backup(server, storage, request_id=REQUEST)
    again = world.backup(server, storage, request_id=REQUEST)
    agent.accept(first)
    agent.finish(first, record=record_of(first, "c1"))
    later = world.backup(server, storage, request_id=REQUEST)

    assert first.job_id == again.job_id == later.job_id
    assert later.state == "completed"


@pytest.mark.feature("N7")
def test_the_same_request_with_another_body_is_refused(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    job = world.backup(server, storage, request_id=REQUEST)

    with pytest.raises(RequestIdReused) as refused:
        world.backup(server, storage, request_id=REQUEST, type="full")
    with pytest.raises(RequestIdReused):
        world.start(order_types.TestOrder(storage.storage_id, agent.hypervisor_id, request_id=REQUEST))

    assert refused.value.facts["job_id"] == job.job_id


@pytest.mark.feature("X4")
def test_a_second_single_of_a_server_is_refused_naming_the_first(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    job = world.backup(server, storage)

    with pytest.raises(ServerBusy) as refused:
        world.backup(server, storage)
    agent.accept(job)
    with pytest.raises(ServerBusy):
        world.backup(server, storage)
    agent.finish(job, "failed", failure=Failure("STORAGE_FULL", "full"))

    assert refused.value.facts["job_id"] == job.job_id
    assert world.backup(server, storage).state == "dispatched"


@pytest.mark.feature("X4")
def test_a_waiting_single_holds_its_server_too(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage()
    world.backup(world.server(agent, "first"), storage)
    second = world.server(agent, "second")
    waiting = world.backup(second, storage)

    with pytest.raises(ServerBusy) as refused:
        world.backup(second, storage)

    assert waiting.state == "queued"
    assert refused.value.facts["job_id"] == waiting.job_id


@pytest.mark.feature("X5")
def test_singles_of_other_servers_run_up_to_the_cap_and_then_one_after_the_other(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage(defaults={"backup_concurrency": 2})
    made = [world.backup(world.server(agent, f"s{number}"), storage) for number in range(4)]
    assert [world.job(job.job_id).state for job in made] == ["dispatched", "dispatched", "queued", "queued"]

    agent.accept(made[1])
    agent.finish(made[1], record=record_of(made[1], "c1"))

    assert [world.job(job.job_id).state for job in made] == ["dispatched", "completed", "dispatched", "queued"]


def test_another_hypervisor_has_slots_of_its_own(world: World) -> None:
    one, two, storage = world.enroll("h1"), world.enroll("h2"), world.storage()

    jobs_made = [world.backup(world.server(agent, f"on-{agent.serial}"), storage) for agent in (one, two)]

    assert [job.state for job in jobs_made] == ["dispatched", "dispatched"]


@pytest.mark.feature("X16")
def test_a_single_for_an_offline_hypervisor_is_refused_with_the_last_contact(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    agent.heartbeat()
    last = world.clock.time
    world.clock.advance(31)

    with pytest.raises(HypervisorUnreachable) as refused:
        world.backup(server, storage)
    agent.heartbeat()

    assert refused.value.facts["last_contact_time"] == last.isoformat()
    assert world.backup(server, storage).state == "dispatched"


@pytest.mark.feature("S20", "S21", "S22")
def test_a_storage_that_is_disabled_or_read_only_refuses(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    kept = agent.back_up(server, storage, "c1")

    world.change_storage(storage, read_only=True)
    with pytest.raises(StorageReadOnly):
        world.backup(server, storage)
    with pytest.raises(StorageReadOnly):
        world.delete([kept])
    assert agent.finish(world.verify(kept)).state == "completed"

    world.change_storage(storage, enabled=False)
    with pytest.raises(StorageDisabled):
        world.verify(kept)


@pytest.mark.feature("N14")
def test_a_clock_that_is_far_off_refuses_backups_and_deletes_only(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    kept = agent.back_up(server, storage, "c1")

    agent.heartbeat(offset_seconds=-301)
    with pytest.raises(ClockSkew) as refused:
        world.backup(server, storage)
    with pytest.raises(ClockSkew):
        world.delete([kept])

    assert refused.value.facts["offset_seconds"] == "-301"
    assert world.verify(kept).state == "dispatched"
    agent.heartbeat(offset_seconds=299)
    assert world.backup(server, storage).state == "dispatched"


def test_a_banned_hypervisor_and_a_deleted_server_are_refused(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    world.run(delete_server, server.server_id, world.now())
    with pytest.raises(ServerDeleted):
        world.backup(server, storage)

    other = world.server(agent, "db")
    world.run(ban, agent.hypervisor_id, world.now())
    with pytest.raises(HypervisorBanned):
        world.backup(other, storage)


def test_what_was_allowed_when_it_was_asked_for_is_looked_at_again_when_it_leaves_the_queue(world: World) -> None:
    agent = world.enroll("h1")
    first, second, storage = world.server(agent, "first"), world.server(agent, "second"), world.storage()
    running, waiting = world.backup(first, storage), world.backup(second, storage)

    world.change_storage(storage, enabled=False)
    done = agent.finish(running, record=record_of(running, "c1"))
    ended = world.job(waiting.job_id)

    assert done.state == "completed"
    assert ended.state == "failed"
    assert ended.failure is not None
    assert ended.failure.reason == "STORAGE_DISABLED"
    assert world.run(leases.holders, leases.server_resource(second.server_id)) == []


@pytest.mark.feature("M7")
def test_a_job_whose_end_was_asked_for_may_not_commit(world: World) -> None:
    agent = world.enroll("h1")
    job = world.backup(world.server(agent, "web"), world.storage())
    agent.accept(job)

    before = world.run(jobs.holds_lease, job.stamp, agent.hypervisor_id)
    world.cancel(job)
    after = world.run(jobs.holds_lease, job.stamp, agent.hypervisor_id)

    assert (before, after) == (True, False)


@pytest.mark.feature("M7")
def test_a_job_that_waits_is_cancelled_at_once(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage()
    world.backup(world.server(agent, "first"), storage)
    waiting = world.backup(world.server(agent, "second"), storage)

    cancelled = world.cancel(waiting)

    assert cancelled.state == "cancelled"
    assert world.commands_of(waiting, pending=False) == []
    with pytest.raises(JobEnded):
        world.cancel(waiting)


@pytest.mark.feature("M7")
def test_a_running_job_ends_as_cancelled_when_its_agent_says_so(world: World) -> None:
    agent = world.enroll("h1")
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))

    asked = world.cancel(job)
    world.cancel(job)  # again, while the first is on its way
    ended = agent.finish(job, "cancelled")

    assert (asked.state, asked.cancel_requested) == ("running", True)
    assert world.commands_of(job, pending=False) == ["run", "cancel"]
    assert (ended.state, ended.cancel_requested) == ("cancelled", False)


def test_work_that_was_done_before_its_cancel_arrived_counts(world: World) -> None:
    agent = world.enroll("h1")
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))
    world.cancel(job)

    assert agent.finish(job, record=record_of(job, "c1")).state == "completed"


def test_an_agent_that_stops_work_by_itself_has_failed(world: World) -> None:
    agent = world.enroll("h1")
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))

    ended = agent.finish(job, "cancelled")

    assert ended.state == "failed"
    assert ended.failure is not None
    assert ended.failure.reason == "CANCELLED"


def test_a_rejected_command_fails_the_job_and_the_queue_moves_on(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage()
    first = world.backup(world.server(agent, "first"), storage)
    second = world.backup(world.server(agent, "second"), storage)

    rejected = agent.reject(first)

    assert rejected.state == "failed"
    assert rejected.failure is not None
    assert rejected.failure.reason == "UNSUPPORTED"
    assert world.job(second.job_id).state == "dispatched"


@pytest.mark.feature("X9")
def test_a_late_result_of_an_earlier_generation_changes_nothing(world: World) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()
    job = world.backup(server, storage)
    world.clock.advance(121)
    agent.heartbeat()
    world.tick()
    next_job = world.backup(server, storage)
    assert next_job.generation > job.generation

    agent.say(job.stamp, Accepted())
    late = agent.finish(job, record=record_of(job, "c1"))

    assert late.state == "failed"
    assert late.failure is not None
    assert late.failure.reason == "COMMAND_NOT_ACCEPTED"
    assert world.events_of(job) == [("accepted", "stale generation"), ("finished", "stale generation")]
    assert world.run(models.Backup.select().count) == 0
    assert world.job(next_job.job_id).state == "dispatched"


def test_an_event_counts_for_the_hypervisor_of_its_certificate_only(world: World) -> None:
    own, other = world.enroll("h1"), world.enroll("h2")
    job = world.backup(world.server(own, "web"), world.storage())

    other.say(job.stamp, Accepted())
    other.say(job.stamp, Finished("completed", record=record_of(job, "c1")))

    assert world.job(job.job_id).state == "dispatched"
    assert world.events_of(job) == [("accepted", "unknown job"), ("finished", "unknown job")]


def test_progress_and_log_of_a_job_are_kept(world: World) -> None:
    from controller.job_log import Line, append

    agent = world.enroll("h1")
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))
    hypervisor = agent.hypervisor_id
    world.run(jobs.report, job.job_id, hypervisor, 1, {"stage": "read", "bytes_done": "5"})
    assert not world.run(jobs.report, job.job_id, "another", 1, {"stage": "write"})
    assert not world.run(jobs.report, job.job_id, hypervisor, 2, {"stage": "write"})

    lines = [Line(job.job_id, 1, number, world.now(), "info", f"line {number}") for number in (1, 2, 3)]
    assert world.run(append, hypervisor, [lines[0], lines[1]]) == 2
    assert world.run(append, hypervisor, lines) == 1  # what is there is not there twice
    assert world.run(append, "another", [Line(job.job_id, 1, 9, world.now(), "info", "forged")]) == 0

    after = world.job(job.job_id)
    log = world.run(jobs.list_log, job.job_id, after=(1, 1))
    assert after.progress == {"stage": "read", "bytes_done": "5"}
    assert after.version > job.version
    assert [(entry.position, entry.message) for entry in log] == [(2, "line 2"), (3, "line 3")]
    with pytest.raises(JobNotFound):
        world.run(jobs.list_log, "no-such-job")


@pytest.mark.feature("G8")
def test_a_log_ends_at_a_mebibyte_and_says_so(world: World) -> None:
    from controller.job_log import Line, append

    agent = world.enroll("h1")
    job = agent.accept(world.backup(world.server(agent, "web"), world.storage()))
    lines = [Line(job.job_id, 1, number, world.now(), "info", "x" * 4000) for number in range(1, 400)]

    world.run(append, agent.hypervisor_id, lines[:200])
    world.run(append, agent.hypervisor_id, lines[200:])

    log = world.run(jobs.list_log, job.job_id, limit=1000)
    assert sum(len(entry.message) for entry in log) <= 1 << 20
    assert "limit" in log[-1].message
    assert log[-1].level == "warning"
    assert "limit" not in log[-2].message


@pytest.mark.feature("M6")
def test_jobs_are_listed_newest_first_by_filter_and_page(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage()
    servers = [world.server(agent, f"s{number}") for number in range(3)]
    made = []
    for server in servers:
        made.append(world.backup(server, storage))
        agent.finish(made[-1], record=record_of(made[-1], server.name))
    made.append(world.verify(made[0].backup_id))

    def listed(wanted: JobFilter, **page: Any) -> list[str]:
        return [job.job_id for job in world.run(jobs.list_jobs, wanted, **page)]

    ids = [job.job_id for job in made]
    assert listed(JobFilter()) == ids[::-1]
    assert listed(JobFilter(types=("verify",))) == [ids[3]]
    assert listed(JobFilter(states=("completed",))) == ids[2::-1]
    assert listed(JobFilter(server_id=servers[0].server_id)) == [ids[3], ids[0]]
    assert listed(JobFilter(start_time=made[1].create_time, end_time=made[3].create_time)) == [ids[2], ids[1]]
    assert listed(JobFilter(), limit=2) == [ids[3], ids[2]]
    assert listed(JobFilter(), after=(ids[2],), limit=2) == [ids[1], ids[0]]


@pytest.mark.feature("N6")
def test_every_change_of_a_job_is_in_the_log_of_events_in_order(world: World) -> None:
    agent = world.enroll("h1")
    job = world.backup(world.server(agent, "web"), world.storage())
    agent.accept(job)
    world.cancel(job)
    agent.finish(job, "cancelled")

    def read() -> list[tuple[int, str]]:
        row = models.Event
        query = row.select().where(row.job_id == job.job_id).order_by(row.sequence)
        return [(one.sequence, one.kind) for one in query]

    found = world.run(read)
    assert [kind for _, kind in found] == [
        "job.created",
        "job.dispatched",
        "job.running",
        "job.cancel_requested",
        "job.cancelled",
    ]
    assert [number for number, _ in found] == sorted({number for number, _ in found})


def test_a_kill_between_the_statements_of_a_start_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()

    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    for module, name in ((orders, "_claim"), (dispatch, "run"), (outbox, "put"), (jobs, "dispatch")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(Killed):
                world.backup(server, storage, request_id=REQUEST)
        assert world.run(jobs.list_jobs, JobFilter()) == []
        assert world.run(models.LeaseHold.select().count) == 0
        assert world.run(models.OutboxCommand.select().count) == 0

    assert world.backup(server, storage, request_id=REQUEST).state == "dispatched"


def test_hours_in_the_queue_do_not_make_a_job_stale(world: World) -> None:
    agent = world.enroll("h1")
    storage = world.storage()
    running = agent.accept(world.backup(world.server(agent, "first"), storage))
    waiting = world.backup(world.server(agent, "second"), storage)

    world.clock.advance(timedelta(hours=24).total_seconds() + 1)
    world.tick()

    assert world.job(waiting.job_id).state == "queued"
    assert world.job(running.job_id).cancel_requested


def test_names_and_panel_ids_stand_for_ids(world: World) -> None:
    agent = world.enroll("h1")
    server = world.server(agent, "web")
    world.storage("nas")

    job = world.start(BackupOrder("panel-web", "nas"))

    assert job.server_id == server.server_id
