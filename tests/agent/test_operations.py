"""One operation from its command to its end, with a real agent and real processes."""

import pytest

from clients.gen.backupmanager.v1 import disk_pb2, job_pb2
from tests.agent.conftest import Scene
from tests.agent.imitated_engine import backup

BACKUP_ID = "018f0000-0000-7000-8000-000000000001"


@pytest.mark.feature("N15", "M6")
def test_a_backup_is_accepted_done_and_reported_once(scene: Scene) -> None:
    result = backup(BACKUP_ID)
    place = scene.place([
        {"do": "stage", "stage": "read"}, {"do": "progress"}, {"do": "log", "message": "hello"},
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
