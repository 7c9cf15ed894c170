"""The agent dies at every step of an operation, and the next one ends it as if nothing had happened."""

import os
import shutil
import signal
import sys
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import job_pb2
from tests.agent.conftest import Scene
from tests.waiting import wait_until

FINISH = {"do": "finish", "state": "completed"}
WAIT = {"do": "wait", "file": "go"}
COMPLETED = job_pb2.JOB_STATE_COMPLETED

STEPS = [
    "agent.folder:Folder.create:before",
    "agent.folder:Folder.create:after",
    "agent.journal:Journal.take_run:after",
    "agent.journal:Journal.accept:before",
    "agent.journal:Journal.accept:after",
    "agent.folder:Folder.drop_spec:before",
    "agent.folder:Folder.start:after",
    "agent.operation:Runner._answer_commit:before",
    "agent.operation:Runner._answer_commit:after",
    "agent.operation:Runner._report:before",
    "agent.journal:Journal.finish:before",
    "agent.journal:Journal.finish:after",
    "agent.folder:Folder.remove:before",
    "agent.folder:Folder.remove:after",
]


def restart(scene: Scene, dead: bool = False) -> None:
    if not dead:
        scene.agent.kill()
    scene.agent.start()


def no_trace_of(scene: Scene, job_id: str) -> None:
    """Wait until nothing of an operation is left on the hypervisor."""
    folder = scene.agent.state_folder / "operations" / f"{job_id}.1"
    wait_until(lambda: not folder.exists(), 20, "the folder's end")


@pytest.mark.feature("X16", "N15")
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(scene: Scene, step: str) -> None:
    scene.connected()
    scene.agent.kill()
    normal, scene.agent.program = scene.agent.program, (sys.executable, "-m", "tests.agent.dying_agent", step)
    place = scene.place([{"do": "progress"}, {"do": "commit"}, FINISH])
    command = scene.run(place)
    scene.agent.start()
    assert scene.agent.wait_ended() == -signal.SIGKILL
    scene.agent.program = normal
    scene.agent.start()

    assert scene.finished(command).state == COMPLETED

    no_trace_of(scene, command.job_id)
    assert len(scene.seen(place, "process")) == 1
    assert [event.WhichOneof("event") for event in scene.controller.events] == ["accepted", "finished"]
    assert scene.healed() == []


@pytest.mark.feature("X16")
def test_adopted_in_the_middle_and_finished(scene: Scene) -> None:
    place = scene.place([{"do": "log", "message": "one"}, WAIT, {"do": "log", "message": "two"}, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "waits")

    restart(scene)
    scene.connected(2)
    assert [one.job_id for one in scene.controller.hellos[-1].operations] == [command.job_id]
    (place / "go").touch()

    assert scene.finished(command).state == COMPLETED
    expected = {1: "one 0", 2: "two 0"}  # log lines travel beside the events, so they may come after the last of them
    scene.controller.until(
        lambda: {line.entry.sequence: line.entry.message for line in scene.controller.log_lines} == expected, "the log"
    )


@pytest.mark.feature("X16")
def test_finished_while_no_agent_ran(scene: Scene) -> None:
    place = scene.place([WAIT, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    scene.agent.kill()

    (place / "go").touch()
    scene.wait_seen(place, "finished")
    wait_until(lambda: not list(scene.agent.engines()), 10, "the engine's end")
    scene.agent.start()

    assert scene.finished(command).state == COMPLETED
    assert len(scene.controller.of_job(command.job_id, "finished")) == 1


@pytest.mark.feature("C11")
def test_engine_killed_while_no_agent_ran(scene: Scene) -> None:
    place = scene.place([{"do": "stderr", "text": "MemoryError: a word that may be secret"}, WAIT])
    command = scene.run(place)
    (process,) = scene.wait_seen(place, "process")
    scene.wait_seen(place, "waits")
    scene.agent.kill()

    os.kill(process["pid"], signal.SIGKILL)
    scene.agent.start()

    finished = scene.finished(command)
    assert finished.failure.reason == "ENGINE_CRASHED"
    assert "MemoryError" in finished.failure.message
    assert "secret" not in finished.failure.message
    (healed,) = scene.healed()
    assert healed["domain_uuid"] == command.run.backup.domain_uuid
    assert healed["storage"] is False  # nobody knows its credentials any more


@pytest.mark.feature("N15")
def test_killed_between_the_start_of_an_engine_and_its_first_act(scene: Scene) -> None:
    place = scene.place([{"do": "before_process_file", "file": "go"}, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "process")

    restart(scene)
    scene.connected(2)
    (place / "go").touch()

    assert scene.finished(command).state == COMPLETED
    assert len(scene.seen(place, "process")) == 1


@pytest.mark.feature("M7")
def test_a_cancel_goes_on_after_a_restart(scene: Scene) -> None:
    place = scene.place([{"do": "deaf"}, WAIT])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    cancel = scene.cancel(command, grace_seconds=1.0)
    scene.controller.wait_receipt(cancel.command_id)

    restart(scene)

    assert scene.finished(command).state == job_pb2.JOB_STATE_CANCELLED
    assert len(scene.healed()) == 1


@pytest.mark.feature("X16")
def test_sigterm_stops_the_agent_and_leaves_engines_alone(scene: Scene) -> None:
    place = scene.place([WAIT, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "waits")

    assert scene.agent.stop() == 0
    assert len(list(scene.agent.engines())) == 1
    assert not scene.seen(place, "cancelled")
    scene.agent.start()
    (place / "go").touch()

    assert scene.finished(command).state == COMPLETED


def test_a_command_that_waited_for_its_turn_waits_on_after_a_restart(scene: Scene) -> None:
    place, second_place = scene.place([WAIT, FINISH]), scene.place([FINISH])
    first = scene.run(place)
    scene.wait_seen(place, "waits")
    second = scene.run(second_place)
    scene.controller.wait_receipt(second.command_id)

    restart(scene)
    scene.connected(2)
    assert second.command_id in scene.controller.hellos[-1].command_ids
    (place / "go").touch()

    scene.finished(first)
    assert scene.finished(second).state == COMPLETED


def test_an_engine_that_the_journal_does_not_know_is_ended(scene: Scene) -> None:
    place = scene.place([WAIT])
    scene.run(place)
    scene.wait_seen(place, "waits")
    scene.agent.kill()
    for file in scene.agent.state_folder.glob("journal.sqlite3*"):
        file.unlink()

    scene.agent.start()

    scene.wait_seen(place, "cancelled")
    wait_until(lambda: not list((scene.agent.state_folder / "operations").iterdir()), 10, "the folder's end")


@pytest.mark.feature("N11")
def test_a_journal_that_was_set_back_in_time_begins_anew(scene: Scene) -> None:
    place = scene.place([FINISH])
    scene.finished(scene.run(place))
    scene.agent.stop()
    copy = scene.folder / "copy"
    shutil.copytree(scene.agent.state_folder, copy)
    scene.agent.start()
    scene.finished(scene.run(place))
    scene.agent.kill()
    old_journal = scene.controller.hellos[-1].journal_id

    shutil.rmtree(scene.agent.state_folder)
    shutil.copytree(copy, scene.agent.state_folder)
    scene.agent.start()
    third: Any = scene.run(place)

    assert scene.finished(third).state == COMPLETED
    new_journal = scene.controller.hellos[-1].journal_id
    assert new_journal != old_journal
    assert scene.controller.stored[new_journal] >= 2
