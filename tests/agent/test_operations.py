"""One operation from its command to its end, with a real agent and real processes."""

import pytest

from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import disk_pb2, job_pb2
from tests.agent.conftest import Scene, fresh_id, run_command
from tests.agent.imitated_engine import backup
from tests.waiting import wait_until

BACKUP_ID = "018f0000-0000-7000-8000-000000000001"
FINISH = {"do": "finish", "state": "completed"}
WAIT = {"do": "wait", "file": "go"}


@pytest.mark.feature("M6")
def test_a_backup_is_accepted_done_and_reported_once(scene: Scene) -> None:
    result = backup(BACKUP_ID)
    place = scene.place([
        {"do": "stage", "stage": "read"}, {"do": "progress"}, {"do": "log", "message": "hello"}, {"do": "rubbish"},
        {"do": "commit"}, {"do": "finish", "state": "completed_with_warnings", "result": result, "warnings": ["mind this"]},
    ])  # fmt: skip

    command = scene.run(place)
    finished = scene.finished(command)

    assert finished.state == job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS
    assert list(finished.warnings) == ["mind this"]
    assert finished.result.backup.consistency == disk_pb2.CONSISTENCY_REACHED_FROZEN
    assert finished.result.backup.quiesce_duration.ToMilliseconds() == 250
    assert finished.record.backup.stored_bytes == 1 << 19
    assert finished.record.backup.storage_id == str(place)
    assert finished.record.manifest_digest == "cd" * 32
    kinds = [event.WhichOneof("event") for event in scene.controller.events]
    assert kinds == ["accepted", "finished"]
    assert {(event.generation, event.epoch) for event in scene.controller.events} == {(1, 7)}
    scene.controller.until(lambda: scene.controller.log_lines, "the log")
    assert scene.controller.log_lines[0].entry.message == "hello 0"
    folder = scene.agent.state_folder / "operations" / f"{command.job_id}.1"
    scene.controller.until(lambda: not folder.exists(), "the folder's end")
    assert scene.healed() == []


@pytest.mark.feature("N15")
def test_a_command_delivered_twice_is_done_once(scene: Scene) -> None:
    place = scene.place([WAIT, FINISH])
    command = scene.run(place)
    scene.controller.wait_receipt(command.command_id)

    scene.controller.send(command)
    wait_until(lambda: scene.controller.receipts.count(command.command_id) == 2, 10, "the second receipt")
    (place / "go").touch()
    scene.finished(command)
    scene.controller.send(command)  # and once more when it is over and acknowledged
    wait_until(lambda: scene.controller.receipts.count(command.command_id) == 3, 10, "the third receipt")

    assert len(scene.seen(place, "process")) == 1
    assert [event.WhichOneof("event") for event in scene.controller.events] == ["accepted", "finished"]


@pytest.mark.feature("N13")
def test_what_is_not_known_is_rejected(scene: Scene) -> None:
    unknown = command_pb2.Command(command_id=fresh_id(), job_id=fresh_id(), attempt=1, generation=3, epoch=7)
    scene.controller.send(unknown)
    new_verb = run_command(scene.folder)
    new_verb.run.ClearField("backup")
    scene.controller.send(new_verb)
    new_type = run_command(scene.folder)
    new_type.run.backup.type = 77  # type: ignore[assignment]  # what a newer controller may send
    scene.controller.send(new_type)
    path_in_id = run_command(scene.folder, job_id="../../etc")
    scene.controller.send(path_in_id)

    reasons = [
        scene.controller.wait_event(one.job_id, "rejected").rejected.failure.reason
        for one in (unknown, new_verb, new_type, path_in_id)
    ]

    assert reasons == ["UNSUPPORTED", "UNSUPPORTED", "UNSUPPORTED", "INVALID_FIELD"]
    assert scene.controller.wait_event(unknown.job_id, "rejected").generation == 3
    scene.controller.wait_receipt(unknown.command_id)


@pytest.mark.feature("M7")
def test_cancel_by_word(scene: Scene) -> None:
    place = scene.place([WAIT])
    command = scene.run(place)
    scene.wait_seen(place, "waits")

    cancel = scene.cancel(command)

    assert scene.finished(command).state == job_pb2.JOB_STATE_CANCELLED
    scene.controller.wait_receipt(cancel.command_id)
    assert scene.seen(place, "cancelled")
    assert scene.healed() == []


@pytest.mark.feature("M7")
def test_cancel_by_signal(scene: Scene) -> None:
    place = scene.place([{"do": "deaf_to_words"}, WAIT])
    command = scene.run(place)
    scene.wait_seen(place, "waits")

    scene.cancel(command)

    assert scene.finished(command).state == job_pb2.JOB_STATE_CANCELLED
    assert scene.seen(place, "signal")


@pytest.mark.feature("M7", "C11")
def test_cancel_by_kill_and_tidying_up(scene: Scene) -> None:
    place = scene.place([{"do": "deaf"}, WAIT])
    command = scene.run(place)
    scene.wait_seen(place, "waits")

    scene.cancel(command, grace_seconds=0.3)

    finished = scene.finished(command)
    assert finished.state == job_pb2.JOB_STATE_CANCELLED
    assert finished.failure.reason == "CANCELLED"
    assert scene.seen(place, "signal")
    healed = scene.healed()
    assert [one["domain_uuid"] for one in healed] == [command.run.backup.domain_uuid]
    assert healed[0]["storage"] is True
    assert list(finished.warnings) == ["thawed"]


@pytest.mark.feature("M7")
def test_cancel_before_the_command(scene: Scene) -> None:
    place = scene.place([FINISH])
    command = run_command(place)
    cancel = scene.cancel(command)
    scene.controller.wait_receipt(cancel.command_id)

    scene.controller.send(command)

    assert scene.finished(command).state == job_pb2.JOB_STATE_CANCELLED
    assert not scene.seen(place, "process")


@pytest.mark.feature("C11")
def test_a_crash_is_reported_once_with_its_last_words_and_tidied_up(scene: Scene) -> None:
    key = bytes(range(32)).hex()
    place = scene.place([{"do": "stderr", "text": f"Traceback\nValueError: key {key} is odd"}, {"do": "crash"}])

    command = scene.run(place)
    finished = scene.finished(command)

    assert finished.state == job_pb2.JOB_STATE_FAILED
    assert finished.failure.reason == "ENGINE_CRASHED"
    assert "exit status 3" in finished.failure.message
    assert "ValueError: key [secret] is odd" in finished.failure.message
    assert len(scene.healed()) == 1
    assert key not in scene.agent.log


@pytest.mark.feature("C12")
@pytest.mark.parametrize("times", [1, 2])
def test_an_engine_that_is_killed_is_followed_by_another(scene: Scene, times: int) -> None:
    place = scene.place([{"do": "log", "message": "before"}, {"do": "die", "times": times}, {"do": "commit"}, FINISH])
    command = scene.run(place)

    assert scene.finished(command).state == job_pb2.JOB_STATE_COMPLETED

    assert len(scene.seen(place, "process")) == times + 1
    assert [one["resume_job_id"] for one in scene.healed()] == [command.job_id] * times
    assert len(scene.controller.of_job(command.job_id, "accepted")) == 1
    assert len(scene.controller.of_job(command.job_id, "finished")) == 1

    def told() -> list[str]:
        return [line.entry.message for line in scene.controller.log_lines if "restart" in line.entry.message]

    scene.controller.until(lambda: len(told()) == times, "the log")
    assert "killed by SIGKILL" in told()[0]
    assert "goes on with it, restart 1 of 2" in told()[0]
    sequences = [line.entry.sequence for line in scene.controller.log_lines]
    assert len(set(sequences)) == len(sequences)


@pytest.mark.feature("C12")
def test_a_word_that_was_cut_off_by_the_death_spoils_no_other(scene: Scene) -> None:
    place = scene.place([{"do": "torn_death"}, FINISH])
    assert scene.finished(scene.run(place)).state == job_pb2.JOB_STATE_COMPLETED


@pytest.mark.feature("C11")
@pytest.mark.feature("C12")
def test_engines_that_are_killed_fail_their_job_once(scene: Scene) -> None:
    place = scene.place([{"do": "die", "times": 9}])
    command = scene.run(place)

    finished = scene.finished(command)

    assert finished.failure.reason == "ENGINE_CRASHED"
    assert "SIGKILL" in finished.failure.message
    assert len(scene.seen(place, "process")) == 3
    assert ["resume_job_id" in one for one in scene.healed()] == [True, True, False]  # the last tidies up
    assert len(scene.controller.of_job(command.job_id, "finished")) == 1


@pytest.mark.feature("C12")
def test_what_another_engine_left_is_tidied_up_when_the_next_one_fails(scene: Scene) -> None:
    place = scene.place([{"do": "die"}, {"do": "finish", "state": "failed"}])
    command = scene.run(place)

    assert scene.finished(command).state == job_pb2.JOB_STATE_FAILED
    assert ["resume_job_id" in one for one in scene.healed()] == [True, False]


@pytest.mark.feature("C12")
def test_no_other_engine_follows_one_that_asked_for_its_commit(scene: Scene) -> None:
    place = scene.place([{"do": "commit"}, {"do": "die"}, FINISH])
    command = scene.run(place)

    assert scene.finished(command).failure.reason == "ENGINE_CRASHED"
    assert len(scene.seen(place, "process")) == 1
    assert ["resume_job_id" in one for one in scene.healed()] == [False]


@pytest.mark.feature("C12")
@pytest.mark.parametrize("verb", ["restore", "delete"])
def test_only_a_backup_is_gone_on_with(scene: Scene, verb: str) -> None:
    place = scene.place([{"do": "die"}, FINISH])
    command = scene.run(place, verb=verb)
    assert scene.finished(command).failure.reason == "ENGINE_CRASHED"
    assert len(scene.seen(place, "process")) == 1


@pytest.mark.feature("C12")
def test_the_secrets_of_a_followed_engine_lie_nowhere(scene: Scene) -> None:
    key = bytes(range(32)).hex()
    place = scene.place([{"do": "die"}, WAIT, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    folder = scene.agent.state_folder / "operations"
    assert not list(folder.rglob("spec.json"))
    assert not [path for path in folder.rglob("*") if path.is_file() and key in path.read_text(errors="replace")]
    (place / "go").touch()
    assert scene.finished(command).state == job_pb2.JOB_STATE_COMPLETED


@pytest.mark.feature("C11")
def test_a_crash_after_the_commit_ends_with_the_backup(scene: Scene) -> None:
    place = scene.place([WAIT, {"do": "crash"}])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    scene.storage_has(command, command.job_id)
    (place / "go").touch()

    finished = scene.finished(command)

    assert finished.state == job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS
    assert finished.record.backup.backup_id == finished.result.backup.backup_id == BACKUP_ID
    assert "exit status 3" in finished.warnings[0]
    assert not finished.HasField("failure")


@pytest.mark.feature("C11", "N16")
def test_a_record_of_another_job_is_no_proof(scene: Scene) -> None:
    place = scene.place([WAIT, {"do": "crash"}])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    scene.storage_has(command, fresh_id())
    (place / "go").touch()

    finished = scene.finished(command)

    assert finished.failure.reason == "ENGINE_CRASHED"
    assert not finished.HasField("record")


def test_a_last_line_that_was_cut_off_is_no_end(scene: Scene) -> None:
    place = scene.place([{"do": "torn"}])

    finished = scene.finished(scene.run(place))

    assert finished.failure.reason == "ENGINE_CRASHED"


def test_a_crashed_restore_never_has_its_source_removed(scene: Scene) -> None:
    place = scene.place([{"do": "crash"}])

    command = scene.run(place, verb="restore")
    scene.finished(command)

    (healed,) = scene.healed()
    assert healed["domain_uuid"] == command.run.restore.domain_uuid
    assert healed["backup_id"] == ""
    assert healed["storage"] is False


@pytest.mark.feature("N15")
def test_a_server_waits_for_the_tidying_up_of_its_last_engine(scene: Scene) -> None:
    (scene.agent.scratch_folder / "heal-fails").touch()
    crashed = scene.run(scene.place([{"do": "crash"}]))
    finished = scene.finished(crashed)
    assert "libvirt is away" in finished.warnings[0]
    place = scene.place([FINISH])
    second, other = run_command(place), run_command(place, server_id="server-2")

    scene.controller.send(second)
    scene.controller.send(other)

    scene.finished(other)  # another server does not wait
    scene.controller.wait_receipt(second.command_id)
    assert not scene.controller.of_job(second.job_id, "accepted")
    (scene.agent.scratch_folder / "heal-fails").unlink()
    scene.finished(second)
    assert len(scene.healed()) >= 2


@pytest.mark.feature("X16")
def test_a_command_that_cannot_begin_in_time_is_rejected(scene: Scene) -> None:
    place = scene.place([WAIT, FINISH])
    first = scene.run(place)
    scene.wait_seen(place, "waits")

    late = scene.run(place, deadline_seconds=0.3)

    rejected = scene.controller.wait_event(late.job_id, "rejected").rejected
    assert rejected.failure.reason == "COMMAND_NOT_ACCEPTED"
    assert rejected.failure.metadata["job_id"] == first.job_id
    assert len(scene.seen(place, "process")) == 1
    (place / "go").touch()
    scene.finished(first)


@pytest.mark.feature("N15")
def test_a_new_attempt_waits_for_the_old_one_and_ends_it(scene: Scene) -> None:
    place = scene.place([WAIT, FINISH])
    first = scene.run(place)
    scene.wait_seen(place, "waits")

    second = scene.run(place, job_id=first.job_id, attempt=2, generation=2)
    scene.wait_seen(place, "waits", 2)

    ended = scene.controller.of_job(first.job_id, "finished")
    assert [(one.attempt, one.finished.state) for one in ended] == [(1, job_pb2.JOB_STATE_CANCELLED)]
    (place / "go").touch()
    wait_until(lambda: len(scene.controller.of_job(second.job_id, "finished")) == 2, 10, "the second end")


@pytest.mark.feature("P1", "S27")
def test_processes_on_one_storage_share_its_budget(scene: Scene) -> None:
    place, other_place = scene.place([WAIT, FINISH]), scene.place([{"do": "wait", "file": "go"}, FINISH])
    budget = {"storage_id": "one", "workers": 5, "rate": 1000}
    first = scene.run(place, server_id="a", **budget)
    scene.wait_seen(place, "told")
    second = scene.run(other_place, server_id="b", **budget)
    scene.wait_seen(place, "told", 2)
    (other_place / "go").touch()
    scene.finished(second)
    told = [one["line"] for one in scene.wait_seen(place, "told", 3)]
    (place / "go").touch()
    scene.finished(first)

    assert [(line["workers"], line["upload_limit"]) for line in told] == [(5, 1000), (3, 500), (5, 1000)]
    grants = [one["line"] for one in scene.seen(other_place, "told")]
    assert [(line["workers"], line["upload_limit"]) for line in grants] == [(2, 500)]


def test_the_controller_decides_on_the_commit(scene: Scene) -> None:
    scene.controller.lease_held = False
    place = scene.place([{"do": "commit"}, FINISH])

    finished = scene.finished(scene.run(place))

    assert finished.failure.reason == "LEASE_LOST"
    assert len(scene.controller.lease_checks) == 1


def test_without_a_controller_the_journal_decides_on_the_commit(scene: Scene) -> None:
    place = scene.place([WAIT, {"do": "commit"}, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    scene.controller.go_offline()

    (place / "go").touch()
    scene.wait_seen(place, "finished")
    scene.controller.go_online()

    assert scene.finished(command).state == job_pb2.JOB_STATE_COMPLETED
    assert not scene.controller.lease_checks


@pytest.mark.feature("N9")
def test_records_of_a_reindex_arrive_all_in_order_and_in_small_messages(scene: Scene) -> None:
    place = scene.place([
        {"do": "record", "count": 450}, WAIT, {"do": "record", "count": 50, "first": 450},
        {"do": "finish", "result": {"backup_count": 500, "unreadable": ["servers/x/backup.json"]}},
    ])  # fmt: skip
    command = scene.run(place, verb="reindex")
    scene.wait_seen(place, "waits")
    scene.controller.cut()
    (place / "go").touch()

    finished = scene.finished(command)

    batches = [event.records.backups for event in scene.controller.of_job(command.job_id, "records")]
    numbers = [int(record.backup.backup_id[-12:]) for batch in batches for record in batch]
    assert numbers == list(range(500))
    assert max(len(batch) for batch in batches) <= 200
    assert finished.result.reindex.backup_count == 500
    assert list(finished.result.reindex.unreadable) == ["servers/x/backup.json"]
