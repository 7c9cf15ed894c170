"""Commands become specs, results become messages, and nothing becomes larger than a message may be."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent import convert, convert_results
from agent.config import Config
from agent.errors import CommandUnsupported
from clients.gen.backupmanager.agent.v1 import event_pb2
from clients.gen.backupmanager.v1 import disk_pb2, job_pb2
from engine import spec
from engine.errors import InvalidSpec
from engine.hypervisor.domains import DiskInfo, DomainInfo
from tests.agent.conftest import KEY, run_command
from tests.agent.imitated_engine import backup, record
from tests.agent.test_journal import operation

NOW = datetime(2026, 11, 23, tzinfo=UTC)
MESSAGE_BYTES_MAX = 1 << 20


def finished(line: dict[str, object], verb: Any = "backup") -> event_pb2.Event:
    body = convert_results.finished(replace(operation(), verb=verb), NOW, {"warnings": [], "failure": None} | line, [])
    return event_pb2.Event.FromString(body)


@pytest.mark.parametrize("verb", ["backup", "restore", "verify", "delete", "reindex", "test"])
def test_every_verb_makes_a_spec_that_the_engine_reads(tmp_path: Path, verb: str) -> None:
    command = run_command(tmp_path, verb=verb, sftp=True, rate=5)

    made = convert.to_spec(command, Config(), "host", tmp_path / "control.jsonl")

    assert spec.load(spec.Operation, spec.dump(made)) == made
    (job,) = made.jobs
    assert getattr(job, verb) is not None
    assert made.managed
    assert made.storage.sftp is not None
    assert made.storage.sftp.port == 22
    assert made.settings.upload_limit == 5
    assert KEY not in repr(made)
    assert convert.to_record(command, uptime=1.0, boot_id="b").verb == verb


def test_defaults_of_a_command(tmp_path: Path) -> None:
    command = run_command(tmp_path, workers=0)
    command.run.compression.enabled = True

    made = convert.to_spec(command, Config(), "host", tmp_path / "control.jsonl")

    assert (made.settings.workers, made.settings.compression_level, made.settings.compression_threads) == (4, 3, 1)
    assert made.jobs[0].backup is not None
    assert made.jobs[0].backup.type == "incremental"
    assert made.jobs[0].backup.consistency == "freeze_or_pause"


@pytest.mark.feature("C12", "T29")
def test_single_disks_types_points_and_targets_reach_the_engine(tmp_path: Path) -> None:
    backing_up, restoring = run_command(tmp_path), run_command(tmp_path, verb="restore")
    backing_up.run.backup.disk_types["vdb"] = disk_pb2.BACKUP_TYPE_FULL
    backing_up.run.backup.interval.FromSeconds(3600)
    restoring.run.restore.points["vdb"] = "b"
    restoring.run.restore.targets["vda"] = "/dev/a"
    restoring.run.restore.target_format = disk_pb2.IMAGE_FORMAT_QCOW2
    restoring.run.restore.overwrite = True

    (first,) = convert.to_spec(backing_up, Config(), "host", tmp_path / "c").jobs
    (second,) = convert.to_spec(restoring, Config(), "host", tmp_path / "c").jobs

    assert first.backup is not None
    assert second.restore is not None
    assert (first.backup.disk_types, first.backup.interval_seconds) == ({"vdb": "full"}, 3600)
    assert (second.restore.points, second.restore.targets) == ({"vdb": "b"}, {"vda": "/dev/a"})
    assert (second.restore.target_format, second.restore.overwrite) == ("qcow2", True)


@pytest.mark.feature("S29")
@pytest.mark.parametrize("expected", [True, False])
def test_a_repository_that_has_been_there_is_expected(tmp_path: Path, *, expected: bool) -> None:
    command = run_command(tmp_path)
    command.run.storage.repository_expected = expected

    assert convert.to_spec(command, Config(), "host", tmp_path / "control.jsonl").storage.initialized is expected


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    too_many = run_command(tmp_path, workers=65)
    no_storage = run_command(tmp_path)
    no_storage.run.storage.ClearField("local")

    with pytest.raises(InvalidSpec):
        convert.to_record(too_many, uptime=0, boot_id="")
    with pytest.raises(CommandUnsupported):
        convert.to_spec(no_storage, Config(), "host", tmp_path)


@pytest.mark.parametrize(
    ("verb", "result"),
    [
        ("restore", {"disks": ["vda"], "bytes_written": 5, "server_started": True, "files": []}),
        ("delete", {"backup_ids": ["b"], "freed_bytes": 7}),
        ("test", {"steps": [{"name": "write", "seconds": 0.5, "bytes_per_second": 9}], "host_key": "ssh-ed25519 AAAA"}),
    ],
)
def test_results(verb: str, result: dict[str, object]) -> None:
    event = finished({"state": "completed", "result": result}, verb)

    assert event.finished.result.WhichOneof("result") == verb
    if verb == "test":
        assert event.finished.result.test.steps[0].duration.ToMilliseconds() == 500


def test_a_failure_travels_with_its_facts() -> None:
    failure = {"reason": "STORAGE_FULL", "message": "full", "facts": {"storage": "s", "step": 3}, "step": "read"}

    event = finished({"state": "failed", "failure": failure, "result": None})

    assert event.finished.state == job_pb2.JOB_STATE_FAILED
    assert dict(event.finished.failure.metadata) == {"storage": "s", "step": "3"}
    assert event.finished.failure.step == "read"


@pytest.mark.parametrize(
    "line",
    [
        {"state": "wonderful"},
        {"state": "completed", "result": {"backup_id": "x"}},
        {"state": "completed", "result": backup("x") | {"create_time": "yesterday"}},
        {"state": "failed", "failure": "no"},
        {"state": "completed", "warnings": [1]},
    ],
)
def test_an_end_that_makes_no_sense_is_a_typed_error(line: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec):
        finished(line)


@pytest.mark.feature("N9")
def test_the_largest_end_fits_a_message() -> None:
    damage = {
        "backup_id": "b" * 36, "disk": "vda", "object_name": "o" * 500, "frame": 1, "start": 0, "end": 1, "detail": "d" * 5000,
    }  # fmt: skip
    result = {"frames": 1, "stored_bytes": 1, "damaged_count": 5000, "damaged": [damage] * 5000}

    event = finished({"state": "failed", "result": result, "warnings": ["w" * 9000] * 5000}, "verify")

    assert event.ByteSize() < MESSAGE_BYTES_MAX
    assert event.finished.result.verify.damaged_count == 5000
    assert event.finished.warnings[-1].startswith("This report was too long")


@pytest.mark.feature("N9")
def test_records_are_cut_into_messages() -> None:
    large = record(1)
    large["unreadable_disks"] = ["x" * 4000] * 30
    records = [convert_results.found_record(large, "storage") for _ in range(50)]

    bodies = convert_results.record_batches(operation(), NOW, records)

    assert max(map(len, bodies)) < MESSAGE_BYTES_MAX
    assert sum(len(event_pb2.Event.FromString(body).records.backups) for body in bodies) == 50


@pytest.mark.feature("N9")
def test_a_large_inventory_is_cut_into_parts() -> None:
    disks = tuple(
        DiskInfo(
            f"vd{n}", "/images/" + "p" * 200, "qcow2", 1, 1, "disk", "virtio", "", False, False, False, "", True, ""
        )
        for n in range(20)
    )
    domains = [DomainInfo(f"uuid {n}", f"vm {n}", "running", True, disks, "connected") for n in range(1000)]

    parts = convert_results.inventory_parts(domains, 7)

    assert len(parts) > 3
    assert max(part.ByteSize() for part in parts) < MESSAGE_BYTES_MAX
    assert [(part.part, part.part_count, part.version) for part in parts] == [
        (n, len(parts), 7) for n in range(len(parts))
    ]
    assert sum(len(part.domains) for part in parts) == 1000
    (empty,) = convert_results.inventory_parts([], 1)
    assert (empty.part, empty.part_count) == (0, 1)
