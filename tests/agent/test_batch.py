"""A batch on a hypervisor: a real agent, the engine's real process, and jobs that wait for a word of the test."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import job_pb2, storage_pb2
from tests.agent.conftest import Scene, fresh_id, run_command
from tests.agent.scripted_controller import ScriptedController
from tests.servers.agent import Agent
from tests.waiting import wait_until

COMPLETED, FAILED, CANCELLED = (
    job_pb2.JOB_STATE_COMPLETED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
)


@dataclass
class BatchOf:
    """A batch's commands by server name, on one storage folder."""

    scene: Scene
    place: Path
    commands: dict[str, command_pb2.Command] = field(default_factory=dict)

    def send(self) -> "BatchOf":
        for command in self.commands.values():
            self.scene.controller.send(command)
        return self

    def begun(self) -> list[str]:
        return [one["server"] for one in self.scene.seen(self.place, "begins")]

    def wait_begun(self, *servers: str) -> None:
        wait_until(lambda: set(servers) <= set(self.begun()), 20, f"{servers} to begin")

    def pids(self) -> dict[str, int]:
        return {one["server"]: one["pid"] for one in self.scene.seen(self.place, "begins")}

    def let(self, server: str, end: str = "go") -> None:
        (self.place / f"{server}.{end}").touch()

    def end(self, server: str) -> Any:
        return self.scene.finished(self.commands[server])

    def kinds(self, server: str) -> list[str]:
        job_id = self.commands[server].job_id
        events = list(self.scene.controller.events)
        return [one.WhichOneof("event") or "" for one in events if one.job_id == job_id]

    def accepted(self, server: str) -> None:
        self.scene.controller.wait_event(self.commands[server].job_id, "accepted")


@pytest.fixture
def scene(tmp_path: Path, controller: ScriptedController) -> Iterator[Scene]:
    agent = Agent(
        tmp_path / "agent",
        controller=controller.address,
        token=controller.enrollment_token,
        libvirt_uri="test:///default",
        engine_command=(sys.executable, "-m", "tests.agent.imitated_batch"),
        cancel_word_seconds=0.5,
    )
    with agent:
        yield Scene(tmp_path, controller, agent)


def batch_of(scene: Scene, *servers: str, concurrency: int = 1, **options: Any) -> BatchOf:
    made = BatchOf(scene, scene.place([]))
    batch_id = fresh_id()
    for position, server in enumerate(servers):
        command = run_command(made.place, server_id=server, **options)
        membership = command_pb2.BatchMembership(
            batch_id=batch_id, position=position, concurrency=concurrency, job_count=len(servers)
        )
        command.run.batch.CopyFrom(membership)
        made.commands[server] = command
    return made


def operations(scene: Scene) -> list[Path]:
    folder = scene.agent.state_folder / "operations"
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.feature("X13", "P2", "M5")
def test_one_process_does_all_of_a_batch_so_many_at_a_time_and_each_job_has_its_own_end(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", "c", concurrency=2).send()
    batch.wait_begun("a", "b")
    for server in ("a", "b"):
        batch.accepted(server)
    assert batch.kinds("c") == []  # its turn has not come

    batch.let("a", "fail")
    failed = batch.end("a")
    assert (failed.state, failed.failure.reason) == (FAILED, "STORAGE_FULL")
    batch.wait_begun("c")
    for server in ("b", "c"):
        batch.let(server)
        ended = batch.end(server)
        assert ended.state == COMPLETED
        assert ended.record.backup.job_id == batch.commands[server].job_id

    assert len(set(batch.pids().values())) == 1
    assert batch.kinds("c") == ["accepted", "finished"]
    lines = [one for one in scene.controller.log_lines if one.job_id == batch.commands["b"].job_id]
    assert next(one.entry.message for one in lines) == "hello of b"
    wait_until(lambda: operations(scene) == [], 20, "the folders' end")


@pytest.mark.feature("M7")
def test_one_job_of_a_batch_is_cancelled_at_work_or_before_its_turn(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", "c", "d").send()
    batch.wait_begun("a")
    scene.cancel(batch.commands["c"])
    assert batch.end("c").state == CANCELLED
    assert batch.kinds("c") == ["finished"]

    scene.cancel(batch.commands["a"])
    assert batch.end("a").state == CANCELLED
    batch.wait_begun("b")
    for server in ("b", "d"):
        scene.cancel(batch.commands[server])
    assert [batch.end(server).state for server in ("b", "d")] == [CANCELLED, CANCELLED]
    assert len(set(batch.pids().values())) == 1
    assert scene.healed() == []


@pytest.mark.feature("X13", "N15")
def test_when_the_process_dies_its_running_jobs_fail_and_another_takes_the_rest(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", "c", "d", concurrency=2).send()
    batch.wait_begun("a", "b")
    for server in ("a", "b"):
        batch.accepted(server)
    batch.let("a", "die")

    for server in ("a", "b"):
        ended = batch.end(server)
        assert (ended.state, ended.failure.reason) == (FAILED, "ENGINE_CRASHED")
    batch.wait_begun("c", "d")
    for server in ("c", "d"):
        batch.let(server)
        assert batch.end(server).state == COMPLETED
    assert batch.pids()["c"] == batch.pids()["d"] != batch.pids()["a"]
    assert sorted(one["server_id"] for one in scene.healed()) == ["a", "b"]
    wait_until(lambda: operations(scene) == [], 20, "the folders' end")


@pytest.mark.feature("X13", "X16")
def test_a_batch_outlives_its_agent(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", "c").send()
    batch.wait_begun("a")
    batch.accepted("a")
    scene.agent.kill()
    batch.let("a")
    batch.wait_begun("b")  # the process goes on without an agent
    scene.agent.start()

    for server in ("b", "c"):
        batch.wait_begun(server)
        batch.let(server)
    assert [batch.end(server).state for server in ("a", "b", "c")] == [COMPLETED] * 3
    assert [batch.kinds(server) for server in ("a", "b", "c")] == [["accepted", "finished"]] * 3
    assert len(set(batch.pids().values())) == 1
    wait_until(lambda: operations(scene) == [], 20, "the folders' end")


@pytest.mark.feature("P3", "P4")
def test_a_batch_works_at_the_storages_priority(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", concurrency=2)
    for command in batch.commands.values():
        command.run.limits.io_priority = storage_pb2.WORK_PRIORITY_IDLE
        command.run.limits.cpu_priority = storage_pb2.WORK_PRIORITY_LOW
    batch.send().wait_begun("a", "b")

    pid = batch.pids()["a"]
    nices = {
        int((task / "stat").read_text().rpartition(")")[2].split()[16]) for task in Path(f"/proc/{pid}/task").iterdir()
    }
    assert nices == {max(10, os.nice(0))}  # of every thread of the process
    assert {tuple(one["ionice"]) for one in scene.seen(batch.place, "begins")} == {(3, 0)}
    for server in ("a", "b"):
        batch.let(server)
        assert batch.end(server).state == COMPLETED


@pytest.mark.feature("P1", "P8", "P9")
def test_a_batch_and_a_single_share_the_storages_budget(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", concurrency=2, rate=1000).send()
    batch.wait_begun("a", "b")
    single = run_command(batch.place, verb="verify", server_id="z")
    scene.controller.send(single)
    batch.wait_begun("z")

    def granted(server: str) -> list[int]:
        return [one["workers"] for one in scene.seen(batch.place, "granted") if one["server"] == server]

    wait_until(lambda: granted("a")[-1:] == granted("z")[-1:] == [2], 20, "two workers each")
    batch.let("z")
    scene.finished(single)
    wait_until(lambda: granted("a")[-1] == granted("b")[-1] == 4, 20, "all four workers for the batch")
    for server in ("a", "b"):
        batch.let(server)
        batch.end(server)


@pytest.mark.feature("X2")
def test_a_restore_during_a_batch_runs_between_two_of_its_jobs(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", "c").send()
    batch.wait_begun("a")
    restore = run_command(batch.place, verb="restore", server_id="b")
    restore.run.restore.during_batch = True
    scene.controller.send(restore)
    scene.controller.wait_receipt(restore.command_id)
    words = [one / "events.jsonl" for one in operations(scene)]
    wait_until(lambda: any(one.exists() and '"held"' in one.read_text() for one in words), 20, "the batch to be held")
    assert batch.begun() == ["a"]

    batch.let("a")
    batch.end("a")
    wait_until(lambda: batch.begun() == ["a", "b"], 20, "the restore")
    assert scene.controller.of_job(restore.job_id, "accepted")
    assert batch.kinds("b") == []
    batch.let("b")
    assert scene.finished(restore).state == COMPLETED
    assert batch.end("b").state == COMPLETED  # the batch goes on by itself
    batch.wait_begun("c")
    batch.let("c")
    assert batch.end("c").state == COMPLETED


@pytest.mark.feature("D14")
def test_what_has_not_begun_when_its_time_is_over_never_begins(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b", deadline_seconds=2).send()
    batch.wait_begun("a")
    command = batch.commands["b"]
    sent = time.monotonic()
    wait_until(lambda: time.monotonic() - sent > 2.2, 20, "the end of the window")
    batch.let("a")

    assert batch.end("a").state == COMPLETED  # who runs, finishes
    late = scene.finished(command)
    assert (late.state, late.failure.reason) == (FAILED, "WINDOW_CLOSED")
    assert batch.kinds("b") == ["finished"]


@pytest.mark.feature("M7", "N15")
def test_a_job_that_obeys_no_word_takes_its_process_along_and_the_rest_goes_on(scene: Scene) -> None:
    batch = batch_of(scene, "a", "b").send()
    batch.wait_begun("a")
    batch.accepted("a")
    os.kill(batch.pids()["a"], signal.SIGSTOP)

    scene.cancel(batch.commands["a"], grace_seconds=0.3)

    assert batch.end("a").state == CANCELLED
    batch.wait_begun("b")
    batch.let("b")
    assert batch.end("b").state == COMPLETED
