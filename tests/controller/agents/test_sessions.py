"""Sessions over a real stream: what an agent is told, what of it counts, and that nothing is lost or counted twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from clients.gen.backupmanager.agent.v1 import event_pb2, session_service_pb2
from clients.gen.backupmanager.v1 import backup_pb2, disk_pb2, hypervisor_pb2, job_pb2
from controller import backups, hypervisors, jobs
from controller.agents import session
from controller.agents.convert import Accepted
from controller.agents.outbox import Stamp
from controller.db import models
from controller.errors import PermissionDenied
from controller.jobs import Job
from controller.limits import Limits
from tests.controller.agents.stream import Controller, Stream
from tests.controller.world import World, record_of

ACCEPTED = event_pb2.OperationAccepted()


@pytest.fixture
async def controller(world: World) -> AsyncIterator[Controller]:
    async with Controller(world) as controller:
        yield controller


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition that another task makes true."""
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited for {what}"
        await asyncio.sleep(0.005)


def finished(job: Job, chain: str = "c1") -> event_pb2.OperationFinished:
    """Return the end of a backup that went well, with its record."""
    made = record_of(job, chain)
    backup = backup_pb2.Backup(
        backup_id=made.backup_id,
        server_id=made.server_id,
        job_id=made.job_id,
        disks=[disk_pb2.DiskBackup(disk="vda", type=disk_pb2.BACKUP_TYPE_FULL, chain_id=chain, stored_bytes=50)],
        consistency=disk_pb2.CONSISTENCY_REACHED_FROZEN,
    )
    backup.create_time.FromDatetime(made.create_time)
    record = event_pb2.BackupRecord(backup=backup, manifest_digest="d" * 64, needed_backup_ids=[made.backup_id])
    result = job_pb2.JobResult(backup=job_pb2.BackupResult(backup_id=made.backup_id))
    return event_pb2.OperationFinished(state=job_pb2.JOB_STATE_COMPLETED, record=record, result=result)


def running_backup(world: World, name: str = "web") -> tuple[Any, Job]:
    agent = world.enroll(f"host-{name}")
    return agent, world.backup(world.server(agent, name), world.storage(f"nas-{name}"))


async def test_hello_is_welcomed_and_kept(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")

    async with controller.dial(agent) as stream:
        welcome = await stream.hello()
        found = world.run(hypervisors.find, "h1", world.limits, world.now())

        assert welcome.protocol_version == 1
        assert welcome.heartbeat_interval.ToSeconds() == 10
        assert (welcome.stored_sequence, welcome.epoch) == (0, 1)
        assert welcome.session_id
        assert (found.state, found.agent_version) == ("online", "0.1.0")
        assert controller.sessions.connected() == {agent.hypervisor_id}
    await until(lambda: not controller.sessions.connected(), "the end of the session")


@pytest.mark.feature("M14")
async def test_a_job_from_command_to_result(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()

    async with controller.dial(agent) as stream:
        await stream.hello()
        job = world.backup(server, storage, consistency="freeze", disks=("vda",))
        command = await stream.next("command")
        assert command.job_id == job.job_id
        assert (command.attempt, command.generation, command.epoch) == (1, job.generation, 1)
        assert 110 < command.deadline.ToSeconds() <= 120
        work = command.run.backup
        assert (work.server_id, work.backup_id) == (server.server_id, job.backup_id)
        assert work.domain_uuid == server.domain_uuid
        assert (work.type, work.consistency) == (disk_pb2.BACKUP_TYPE_INCREMENTAL, disk_pb2.CONSISTENCY_MODE_FREEZE)
        assert list(work.disks) == ["vda"]
        assert command.run.storage.sftp.host == "backup.example"
        assert command.run.storage.repository_id == storage.repository_id

        await stream.send(command_receipt={"command_id": command.command_id})
        assert await stream.events(stream.event(job.stamp, accepted=ACCEPTED)) == 1
        assert world.job(job.job_id).state == "running"
        await stream.send(progress={"job_id": job.job_id, "attempt": 1, "progress": {"stage": "read", "bytes_done": 7}})
        await until(lambda: world.job(job.job_id).progress, "the progress")
        with controller.changes.watch(job.job_id) as watch:
            seen = world.job(job.job_id).version
            waiting = asyncio.create_task(watch.wait(seen, 10))
            assert await stream.events(stream.event(job.stamp, finished=finished(job))) == 2
            assert await waiting

    ended = world.job(job.job_id)
    assert ended.state == "completed"
    assert ended.result == {"backup": {"backup_id": job.backup_id}}
    assert world.run(backups.get, job.backup_id).disks[0].chain_id == "c1"


@pytest.mark.feature("S28", "N16")
async def test_secrets_travel_in_the_command_and_rest_nowhere_in_clear(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    storage = world.storage(secrets={"sftp_private_key": "VERY-SECRET-PEM", "sftp_key_passphrase": "pass-phrase"})
    job = world.backup(world.server(agent, "web"), storage)

    async with controller.dial(agent) as stream:
        await stream.hello()
        command = await stream.next("command")

    assert command.run.storage.sftp_private_key == "VERY-SECRET-PEM"
    assert command.run.storage.sftp_key_passphrase == "pass-phrase"
    assert world.commands_of(job, pending=False) == ["run"]
    for file in world.folder.iterdir():
        assert b"VERY-SECRET-PEM" not in file.read_bytes(), file


@pytest.mark.feature("S28", "D18")
@pytest.mark.parametrize(
    ("kind", "config", "secret"),
    [
        ("s3", {"bucket": "b", "region": "r", "access_key": "a", "part_size_bytes": "5242880"}, "s3_secret_key"),
        ("ftp", {"host": "h", "port": 21, "username": "u", "path": "/srv"}, "ftp_password"),
        ("rclone", {"remote": "r", "path": "p", "s3_concurrency": 4}, ""),
    ],
)
async def test_each_types_place_and_secret_travel_in_the_command(
    world: World, controller: Controller, kind: str, config: dict[str, Any], secret: str
) -> None:
    agent = world.enroll("h1")
    secrets = {secret: "VERY-SECRET"} if secret else {}
    storage = world.storage(type=kind, config={**config, "bind_address": "192.0.2.7"}, secrets=secrets)
    world.backup(world.server(agent, "web"), storage)

    async with controller.dial(agent) as stream:
        await stream.hello()
        access = (await stream.next("command")).run.storage

    assert access.WhichOneof("config") == kind
    sent = json_format.MessageToDict(getattr(access, kind), preserving_proto_field_name=True)
    assert sent == {**config, "bind_address": "192.0.2.7"}
    assert [name for name in ("s3_secret_key", "ftp_password", "sftp_private_key") if getattr(access, name)] == list(
        secrets
    )
    for file in world.folder.iterdir():
        assert b"VERY-SECRET" not in file.read_bytes(), file


async def test_a_command_is_sent_again_until_the_agent_has_it_and_once_in_a_session(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)

    async with controller.dial(agent) as stream:
        await stream.hello()
        first = await stream.next("command")
    async with controller.dial(agent) as stream:
        await stream.hello()
        again = await stream.next("command")
        await stream.send(command_receipt={"command_id": again.command_id})
        await until(lambda: world.commands_of(job) == [], "the receipt")
    async with controller.dial(agent) as stream:
        await stream.hello(command_ids=(again.command_id,))
        await stream.send(lease_check={"job_id": job.job_id, "attempt": 1, "generation": job.generation})
        await stream.next("lease_verdict")  # and no command before it

    assert first.command_id == again.command_id


async def test_a_command_that_lies_in_the_journal_is_not_sent_again_though_its_receipt_was_lost(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)
    async with controller.dial(agent) as stream:
        await stream.hello()
        command = await stream.next("command")

    async with controller.dial(agent) as stream:
        await stream.hello(command_ids=(command.command_id,))
        await stream.send(lease_check={"job_id": job.job_id, "attempt": 1, "generation": job.generation})
        await stream.next("lease_verdict")

    assert world.commands_of(job) == []
    assert world.job(job.job_id).state == "dispatched"


async def test_a_batch_that_comes_again_is_stored_once(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)

    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.next("command")
        batch = [stream.event(job.stamp, accepted=ACCEPTED), stream.event(job.stamp, finished=finished(job))]
        assert await stream.events(*batch) == 2
        version = world.job(job.job_id).version
        assert await stream.events(*batch) == 2
        assert await stream.events(*batch, stream.event(job.stamp, finished=finished(job))) == 3

    assert world.events_of(job) == [("accepted", "applied"), ("finished", "applied"), ("finished", "job ended")]
    assert world.job(job.job_id).version == version


async def test_a_journal_that_went_back_in_time_is_told_so_and_takes_nothing_more(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)
    agent.accept(job)
    other = world.enroll("other")
    for _ in range(4):
        agent.say(Stamp("no-job", 1, 1, 1), Accepted())

    async with controller.dial(agent) as stream:
        welcome = await stream.hello(job.stamp, last_sequence=2)
        assert welcome.stored_sequence == 5
        agent.sequence = 2  # an agent that does not listen reuses its numbers
        await stream.send(
            events=event_pb2.EventBatch(
                journal_id=agent.journal_id, events=[stream.event(job.stamp, finished=finished(job))]
            )
        )
        await stream.send(lease_check={"job_id": job.job_id, "attempt": 1, "generation": job.generation})
        assert (await stream.next("lease_verdict")).held  # no receipt came before it: the agent keeps the event
    async with controller.dial(agent) as stream:
        agent.sequence = 9  # nor does it get better by counting on
        assert (await stream.hello(job.stamp)).stored_sequence > 9
    assert world.job(job.job_id).state == "running"

    agent.journal_id, agent.sequence = "journal-2", 0
    async with controller.dial(agent) as stream:
        assert (await stream.hello(job.stamp)).stored_sequence == 0
        assert await stream.events(stream.event(job.stamp, finished=finished(job))) == 1
    assert world.job(job.job_id).state == "completed"
    assert other.hypervisor_id != agent.hypervisor_id


@pytest.mark.feature("X16")
async def test_an_agent_that_vanishes_and_returns_goes_on_and_its_result_counts_once(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)
    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.next("command")
        await stream.events(stream.event(job.stamp, accepted=ACCEPTED))

    world.clock.advance(3600)
    world.tick()
    found = world.run(hypervisors.find, agent.hypervisor_id, world.limits, world.now())
    assert (found.state, world.job(job.job_id).state) == ("offline", "running")

    async with controller.dial(agent) as stream:
        welcome = await stream.hello(job.stamp)
        assert [one.verdict for one in welcome.verdicts] == [session_service_pb2.VERDICT_KEEP]
        await stream.events(stream.event(job.stamp, finished=finished(job)))
    async with controller.dial(agent) as stream:  # the receipt got lost: the same again
        agent.sequence -= 1
        await stream.hello(job.stamp, last_sequence=2)
        assert await stream.events(stream.event(job.stamp, finished=finished(job))) == 2

    assert world.job(job.job_id).state == "completed"
    assert [outcome for _, outcome in world.events_of(job)] == ["applied", "applied"]
    assert world.run(models.Backup.select().count) == 1


async def test_a_controller_that_restarts_loses_nothing_and_counts_nothing_twice(world: World) -> None:
    agent, job = running_backup(world)
    waiting = world.backup(world.server(agent, "second"), world.storage("nas-2"))
    async with Controller(world) as controller, controller.dial(agent) as stream:
        await stream.hello()
        command = await stream.next("command")
        await stream.events(stream.event(job.stamp, accepted=ACCEPTED))
        await controller.stop()
        assert await stream.end() == "SHUTTING_DOWN"
    world.restart()

    assert (world.job(job.job_id).state, world.job(waiting.job_id).state) == ("running", "queued")
    world.tick()
    async with Controller(world) as controller, controller.dial(agent) as stream:
        welcome = await stream.hello(job.stamp)
        assert welcome.stored_sequence == 1
        assert [one.verdict for one in welcome.verdicts] == [session_service_pb2.VERDICT_KEEP]
        await stream.events(stream.event(job.stamp, finished=finished(job)))
        second = await stream.next("command")  # and not the first again
        assert (second.job_id, second.command_id != command.command_id) == (waiting.job_id, True)

    assert world.job(job.job_id).state == "completed"
    assert world.job(waiting.job_id).state == "dispatched"


async def test_stopping_answers_what_is_in_hand_and_says_why(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)
    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.next("command")
        batch = event_pb2.EventBatch(journal_id=agent.journal_id, events=[stream.event(job.stamp, accepted=ACCEPTED)])
        gate = asyncio.Event()
        original = world.database.run

        async def slow(function: Any, *args: Any, **kwargs: Any) -> Any:
            value = await original(function, *args, **kwargs)
            if function.__name__ == "store_batch":
                gate.set()
                await asyncio.sleep(0.2)  # the commit is done, the receipt is not written: now the stop comes
            return value

        world.database.run = slow  # type: ignore[method-assign]  # the one place to stand between commit and receipt
        await stream.send(events=batch)
        await gate.wait()
        await controller.stop()

        assert (await stream.next("event_receipt")).sequence == 1
        assert await stream.end() == "SHUTTING_DOWN"


async def test_a_newer_session_ends_the_older(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    server, storage = world.server(agent, "web"), world.storage()

    async with controller.dial(agent) as older, controller.dial(agent) as newer:
        await older.hello()
        await newer.hello()
        assert await older.end() == "STALE_GENERATION"
        job = world.backup(server, storage)
        assert (await newer.next("command")).job_id == job.job_id
        assert controller.sessions.connected() == {agent.hypervisor_id}


@pytest.mark.feature("N3")
async def test_a_ban_ends_the_session_and_refuses_the_next(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    async with controller.dial(agent) as stream:
        await stream.hello()
        world.run(hypervisors.ban, agent.hypervisor_id, world.now())
        controller.sessions.end(agent.hypervisor_id, PermissionDenied(problem="banned"))
        assert await stream.end() == "PERMISSION_DENIED"
    async with controller.dial(agent) as stream:
        assert await stream.end() == "PERMISSION_DENIED"

    world.run(hypervisors.unban, agent.hypervisor_id, world.now())
    async with controller.dial(agent) as stream:
        await stream.hello()


async def test_a_certificate_that_was_replaced_is_refused(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    agent.serial = "another"

    async with controller.dial(agent) as stream:
        assert await stream.end() == "UNAUTHENTICATED"


async def test_an_agent_that_falls_silent_is_let_go(world: World) -> None:
    world.limits = Limits(heartbeat_seconds=0.1)
    async with Controller(world) as controller:
        agent = world.enroll("h1")
        async with controller.dial(agent) as stream:
            await stream.hello()
            assert await stream.end() == "HYPERVISOR_UNREACHABLE"


async def test_a_fault_with_one_session_ends_it_and_the_others_are_looked_after(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.limits = Limits(heartbeat_seconds=0.1)
    faulty, silent = world.enroll("h1"), world.enroll("h2")
    look = session.Session.look

    def fail_for_one(self: session.Session) -> None:
        if self.hypervisor_id == faulty.hypervisor_id:
            raise ValueError("a fault")
        look(self)

    monkeypatch.setattr(session.Session, "look", fail_for_one)
    async with Controller(world) as controller, controller.dial(faulty) as one, controller.dial(silent) as other:
        await asyncio.gather(one.hello(), other.hello())
        assert await other.end() == "HYPERVISOR_UNREACHABLE"
        await until(lambda: not controller.sessions.connected(), "both to have ended")


async def test_heartbeats_keep_a_session_and_carry_the_clock(world: World) -> None:
    world.limits = Limits(heartbeat_seconds=0.2)
    async with Controller(world) as controller:
        agent = world.enroll("h1")
        async with controller.dial(agent) as stream:
            await stream.hello()
            beat = session_service_pb2.Heartbeat(load=1.5, scratch_free_bytes=123)
            beat.time.seconds = int(world.clock.time.timestamp()) + 400
            for _ in range(10):
                await stream.send(heartbeat=beat)
                await asyncio.sleep(0.1)
            assert controller.sessions.connected()
        found = world.run(hypervisors.find, "h1", world.limits, world.now())

    assert (found.load, found.scratch_free_bytes) == (1.5, 123)
    assert found.clock_offset is not None
    assert 398 < found.clock_offset.total_seconds() < 401


async def test_an_agent_that_goes_quietly_ends_its_session(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.half_close()
        assert await stream.end() == ""
    assert not controller.sessions.connected()


async def test_a_lease_is_held_by_the_current_attempt_of_a_live_job_only(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)
    stranger = world.enroll("stranger")

    async def held(stream: Stream, **values: Any) -> bool:
        check = {"job_id": job.job_id, "attempt": 1, "generation": job.generation, **values}
        await stream.send(lease_check=check)
        return bool((await stream.next("lease_verdict")).held)

    async with controller.dial(agent) as stream, controller.dial(stranger) as foreign:
        await stream.hello()
        await foreign.hello()
        await stream.next("command")
        await stream.events(stream.event(job.stamp, accepted=ACCEPTED))

        assert await held(stream)
        assert not await held(foreign)
        assert not await held(stream, attempt=2)
        assert not await held(stream, generation=job.generation + 1)
        assert not await held(stream, job_id="no-job")
        await stream.events(stream.event(job.stamp, finished=finished(job)))
        assert not await held(stream)


async def test_an_inventory_counts_when_all_its_parts_have_come(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")

    def part(version: int, number: int, count: int, *names: str) -> dict[str, Any]:
        domains = [
            hypervisor_pb2.Domain(domain_uuid=f"uuid-{name}", name=name, state=hypervisor_pb2.DOMAIN_STATE_RUNNING)
            for name in names
        ]
        return {"inventory": event_pb2.InventoryReport(version=version, part=number, part_count=count, domains=domains)}

    def names() -> list[str]:
        return [one.name for one in world.run(hypervisors.list_domains, agent.hypervisor_id)]

    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.send(**part(1, 0, 2, "a", "b"))
        await stream.send(**part(2, 1, 2, "c"))  # the second report overtakes the first, which never becomes whole
        await stream.send(**part(1, 1, 2, "x"))
        assert names() == []
        await stream.send(**part(2, 0, 2, "d"))
        await until(lambda: names() == ["c", "d"], "the second report")
        await stream.send(**part(3, 0, 1))
        await until(lambda: names() == [], "an empty host")
        await stream.send(**part(4, 2, 2, "z"))
        assert await stream.end() == "INVALID_FIELD"


@pytest.mark.feature("N16")
@pytest.mark.parametrize("excess", ["bytes", "bytes of parts that come again", "domains"])
async def test_an_inventory_has_bounds(
    world: World, controller: Controller, monkeypatch: pytest.MonkeyPatch, excess: str
) -> None:
    agent = world.enroll("h1")
    monkeypatch.setattr(session, "INVENTORY_BYTES_MAX", 100_000)
    domain = hypervisor_pb2.Domain(domain_uuid="u", name="web")
    domains = {
        "bytes": [hypervisor_pb2.Domain(name="x" * 100_000)],
        "bytes of parts that come again": [hypervisor_pb2.Domain(name="x" * 60_000)],
        "domains": [domain] * 5001,
    }[excess]

    async with controller.dial(agent) as stream:
        await stream.hello()
        report = event_pb2.InventoryReport(version=1, part=0, part_count=2, domains=domains)
        await stream.send(inventory=report)
        if excess.endswith("again"):
            await stream.send(inventory=report)
        assert await stream.end() == "INVALID_FIELD"


@pytest.mark.feature("N16")
async def test_a_hello_names_so_many_commands_and_no_more(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)
    many = [f"command {number}" for number in range(4999)]
    async with controller.dial(agent) as stream:
        await stream.hello()
        command_id = (await stream.next("command")).command_id

    async with controller.dial(agent) as stream:
        await stream.hello(command_ids=(*many, command_id))
    assert world.commands_of(job) == []
    async with controller.dial(agent) as stream:
        with pytest.raises(AssertionError, match="INVALID_FIELD"):
            await stream.hello(command_ids=(*many, command_id, "one more"))


@pytest.mark.feature("N7")
async def test_a_command_without_a_receipt_is_sent_again_within_the_session(
    world: World, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RESEND_SECONDS", 0.1)
    agent, job = running_backup(world)

    async with controller.dial(agent) as stream:
        await stream.hello()
        first, again = await stream.next("command"), await stream.next("command")
        await stream.send(command_receipt={"command_id": again.command_id})
        await until(lambda: world.commands_of(job) == [], "the receipt")

    assert first.command_id == again.command_id


@pytest.mark.feature("N15")
async def test_verdicts_keep_the_current_cancel_the_old_and_disown_the_unknown(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)
    agent.accept(job)
    others = world.enroll("h2")
    foreign = world.backup(world.server(others, "db"), world.storage("nas-3"))
    unknown = Stamp("0193a5b0-0000-7000-8000-000000000000", 1, 1, 1)
    old = Stamp(job.job_id, 1, job.generation - 1, 1)
    asked = [job.stamp, old, foreign.stamp, unknown, Stamp(job.job_id, 1, job.generation, 0)]

    async with controller.dial(agent) as stream:
        welcome = await stream.hello(*asked)

    keep, cancel = session_service_pb2.VERDICT_KEEP, session_service_pb2.VERDICT_CANCEL
    nobody = session_service_pb2.VERDICT_UNKNOWN
    assert [one.verdict for one in welcome.verdicts] == [keep, cancel, nobody, nobody, cancel]
    world.cancel(world.job(job.job_id))
    async with controller.dial(agent) as stream:
        assert [one.verdict for one in (await stream.hello(job.stamp)).verdicts] == [cancel]


async def test_an_operation_that_the_agent_does_not_know_is_lost_but_not_before_its_events_are_read(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)
    agent.accept(job)
    waiting = world.backup(world.server(agent, "second"), world.storage("nas-2"))

    async with controller.dial(agent) as stream:
        late = stream.event(job.stamp, finished=finished(job))
        await stream.hello()  # names no operation, but one event is still to come
        assert world.job(job.job_id).state == "running"
        await stream.events(late)
        assert world.job(job.job_id).state == "completed"
        await stream.next("command")
        await stream.events(stream.event(world.job(waiting.job_id).stamp, accepted=ACCEPTED))
    async with controller.dial(agent) as stream:
        await stream.hello()  # the host was restored from a snapshot: nothing in flight, nothing to say

        await until(lambda: world.job(waiting.job_id).ended, "the judgement")
        lost = world.job(waiting.job_id)

    assert lost.state == "failed"
    assert lost.failure is not None
    assert lost.failure.reason == "OPERATION_LOST"
    assert world.job(job.job_id).state == "completed"


async def test_an_operation_accepted_and_lost_before_its_acceptance_was_read_is_judged_by_it(
    world: World, controller: Controller
) -> None:
    agent, job = running_backup(world)
    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.next("command")

    async with controller.dial(agent) as stream:
        accepted = stream.event(job.stamp, accepted=ACCEPTED)
        await stream.hello()
        await stream.events(accepted)
        await until(lambda: world.job(job.job_id).ended, "the judgement")

    lost = world.job(job.job_id)
    assert lost.failure is not None
    assert lost.failure.reason == "OPERATION_LOST"


async def test_no_command_is_sent_before_the_past_is_known(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)

    async with controller.dial(agent) as stream:
        backlog = stream.event(Stamp("no-job", 1, 1, 1), accepted=ACCEPTED)
        await stream.hello()  # an event is still to come
        await stream.send(lease_check={"job_id": job.job_id, "attempt": 1, "generation": job.generation})
        assert (await stream.next("lease_verdict")).held
        await stream.events(backlog)
        assert (await stream.next("command")).job_id == job.job_id

    assert world.job(job.job_id).state == "dispatched"


@pytest.mark.feature("X16")
async def test_a_late_acceptance_is_answered_with_a_cancel(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)
    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.next("command")
        world.clock.advance(121)
        world.tick()
        assert (await stream.next("command")).WhichOneof("body") == "cancel"
        await stream.events(stream.event(job.stamp, accepted=ACCEPTED))
        cancel = await stream.next("command")

    assert cancel.WhichOneof("body") == "cancel"
    assert (cancel.job_id, cancel.generation) == (job.job_id, job.generation)
    ended = world.job(job.job_id)
    assert ended.failure is not None
    assert ended.failure.reason == "COMMAND_NOT_ACCEPTED"


async def test_jobs_that_wait_go_when_their_hypervisor_returns(world: World, controller: Controller) -> None:
    agent, job = running_backup(world)
    waiting = world.backup(world.server(agent, "second"), world.storage("nas-2"))
    agent.accept(job)
    world.clock.advance(60)
    world.run(jobs.end, job.job_id, jobs.End("failed"), world.now())
    world.tick()
    assert world.job(waiting.job_id).state == "queued"  # there is room, and nobody to do it

    async with controller.dial(agent) as stream:
        await stream.hello()
        assert (await stream.next("command")).job_id == waiting.job_id


@pytest.mark.feature("N13")
async def test_what_is_no_session_is_refused(world: World, controller: Controller) -> None:
    agent = world.enroll("h1")
    async with controller.dial(agent) as stream:
        await stream.send(hello=session_service_pb2.Hello(protocol_version=0, journal_id="j"))
        assert await stream.end() == "UNSUPPORTED"
    async with controller.dial(agent) as stream:
        await stream.send(hello=session_service_pb2.Hello(protocol_version=1))
        assert await stream.end() == "INVALID_FIELD"
    async with controller.dial(agent) as stream:
        await stream.send(heartbeat=session_service_pb2.Heartbeat())
        assert await stream.end() == "INVALID_FIELD"
    async with controller.dial(agent) as stream:
        await stream.hello(protocol_version=99)  # it speaks ours too; what it gets is Welcome with ours
        await stream.send(hello=session_service_pb2.Hello(protocol_version=1, journal_id="j"))
        assert await stream.end() == "INVALID_FIELD"


async def test_logs_of_jobs_arrive(world: World, controller: Controller, tmp_path: Path) -> None:
    agent, job = running_backup(world)
    line = event_pb2.JobLogLine(job_id=job.job_id, attempt=1, entry=job_pb2.JobLogEntry(sequence=1, message="hello"))

    async with controller.dial(agent) as stream:
        await stream.hello()
        await stream.send(logs=event_pb2.LogBatch(lines=[line]))
        await until(lambda: world.run(jobs.list_log, job.job_id), "the line")

    assert [entry.message for entry in world.run(jobs.list_log, job.job_id)] == ["hello"]


async def test_an_agent_that_does_not_read_is_dropped_and_may_come_again(
    world: World, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WRITE_SECONDS", 0.3)
    agent = world.enroll("h1")

    async with controller.dial(agent) as stuck:
        await stuck.hello()
        stuck.stop_reading()
        sending = asyncio.create_task(
            stuck.flood(job_id="x" * 500_000, count=40)
        )  # 20 MB of answers, far above any window
        await until(lambda: not controller.sessions.connected(), "the end of the stuck session")
        async with controller.dial(agent) as stream:
            await stream.hello()
            assert controller.sessions.connected()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
