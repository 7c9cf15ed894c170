"""What agents say is cut to what a row may hold: whoever reads a page gets it in one message, whatever an agent sent."""

import json

import pytest

from clients.gen.backupmanager.agent.v1 import event_pb2
from clients.gen.backupmanager.v1 import disk_pb2, failure_pb2, hypervisor_pb2, job_pb2
from controller.agents import convert
from engine.units import KIB, MIB

LONG = "\N{SNOWMAN}" * (64 * KIB)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJuJ7pNsCYQLVpLw0CEFqZpOnHtHUmQXnPFmBhwfHY1W"


def _bytes(*values: object) -> int:
    return len(json.dumps(values, default=str, ensure_ascii=False).encode())


@pytest.mark.feature("N9", "N16")
def test_a_domain_with_endless_disks_fits_a_page() -> None:
    disk = disk_pb2.Disk(disk=LONG, format=LONG, path=LONG, unsupported_reason=LONG)
    domain = convert.domain(hypervisor_pb2.Domain(domain_uuid=LONG, name=LONG, disks=[disk] * 100))

    assert len(domain.disks) == convert.DISKS_MAX
    assert _bytes(domain.domain_uuid, domain.name, domain.disks) < MIB


@pytest.mark.feature("N9", "N16")
def test_an_end_with_endless_words_fits_a_page() -> None:
    failure = failure_pb2.Failure(
        reason=LONG, message=LONG, step=LONG, metadata={f"{n}{LONG}": LONG for n in range(40)}
    )
    damaged = [job_pb2.DamagedFrame(detail=LONG)] * 40
    end = event_pb2.OperationFinished(
        state=job_pb2.JOB_STATE_FAILED,
        failure=failure,
        warnings=[LONG] * 120,
        result=job_pb2.JobResult(verify=job_pb2.VerifyResult(damaged=damaged, damaged_count=40)),
    )
    record = end.record
    record.backup.disks.extend([disk_pb2.DiskBackup(disk=LONG, chain_id=LONG, sha256=LONG, fallback_reason=LONG)] * 70)
    record.backup.skipped_disks.extend([disk_pb2.SkippedDisk(disk=LONG, failure=failure)] * 10)
    record.backup.path = LONG

    said = convert.event(event_pb2.Event(job_id=LONG, finished=end)).said

    assert isinstance(said, convert.Finished)
    assert said.record is not None
    assert said.result is not None
    assert said.result["verify"]["damaged_count"] == "40"  # what counts is kept
    assert _bytes(said.failure, said.warnings, said.result) < MIB
    assert _bytes(said.record) < MIB


def test_a_long_deletion_is_told_whole() -> None:
    ids = [f"{number:036}" for number in range(3000)]
    message = job_pb2.JobResult(delete=job_pb2.DeleteResult(backup_ids=ids))

    assert convert.to_json(message)["delete"]["backup_ids"] == ids


@pytest.mark.feature("S4")
@pytest.mark.parametrize(
    "text", ["", "garbage", "ssh-ed25519 AAAA", KEY.replace("ed25519 ", "rsa "), f"{KEY}\n{KEY}", f"{KEY}{'A' * 9000}"]
)
def test_what_is_no_host_key_is_none(text: str) -> None:
    assert convert.host_key(text) == ""


@pytest.mark.feature("S4")
def test_a_host_key_is_kept_without_its_comment() -> None:
    assert convert.host_key(f"{KEY} somebody@somewhere") == KEY
