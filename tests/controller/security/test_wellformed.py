"""What is refused of every request before a servicer sees it."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.agent.v1 import session_service_pb2
from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    hypervisor_service_pb2,
    job_service_pb2,
    storage_service_pb2,
)
from controller.errors import InvalidField
from controller.security import wellformed

# Any, so that values can be given that the stubs rightly refuse.
LIST_JOBS: Any = job_service_pb2.ListJobsRequest
START: Any = backup_service_pb2.StartBackupRequest
CREATE: Any = storage_service_pb2.CreateStorageRequest


def field_refused(request: object) -> str:
    with pytest.raises(InvalidField) as refusal:
        wellformed.check(request)
    return refusal.value.facts["field"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (LIST_JOBS(server_id="a\0b"), "server_id"),
        (LIST_JOBS(server_id="a\x1bb"), "server_id"),
        (LIST_JOBS(server_id="a\x7fb"), "server_id"),
        (START(disks=["vda", "v\0"]), "disks[1]"),
        (CREATE(sftp={"path": "/\0"}), "sftp.path"),
        (LIST_JOBS(states=[1, 99]), "states[1]"),
        (LIST_JOBS(states=[-1]), "states[0]"),
        (START(type=77), "type"),
        (CREATE(limits={"io_priority": 12}), "limits.io_priority"),
        (START(disks=["x"] * 1001), "disks"),
        (LIST_JOBS(start_time=Timestamp(seconds=10**12)), "start_time"),
        (LIST_JOBS(start_time=Timestamp(seconds=-(10**12))), "start_time"),
        (LIST_JOBS(start_time=Timestamp(nanos=-1)), "start_time"),
        (LIST_JOBS(start_time=Timestamp(nanos=10**9)), "start_time"),
        (job_service_pb2.PollJobRequest(wait=Duration(seconds=10**12)), "wait"),
        (job_service_pb2.PollJobRequest(wait=Duration(seconds=1, nanos=-1)), "wait"),
        (hypervisor_service_pb2.CreateEnrollmentTokenRequest(lifetime=Duration(nanos=-(10**9))), "lifetime"),
    ],
)
def test_what_is_malformed_in_itself_is_refused_by_the_field(request_: object, field: str) -> None:
    assert field_refused(request_) == field


def test_what_is_well_formed_passes() -> None:
    wellformed.check(LIST_JOBS(server_id="Käse\t\n", states=[0, 7], start_time=Timestamp(seconds=-5, nanos=3)))
    wellformed.check(job_service_pb2.PollJobRequest(wait=Duration(seconds=-1, nanos=-1)))
    wellformed.check(CREATE(secrets={"sftp_private_key": "-----BEGIN\r\nX\n"}))


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x08" * 3])
def test_bytes_that_are_no_message_become_a_refusal_and_no_fault(data: bytes) -> None:
    assert field_refused(wellformed.decoder(LIST_JOBS.FromString)(data)) == "request"


def test_a_streams_messages_are_looked_at_for_times_alone() -> None:
    session: Any = session_service_pb2.SessionRequest
    wellformed.check_times(session(hello={"agent_version": "a\0b", "time": Timestamp(seconds=5)}))
    for wrong in (
        session(hello={"time": Timestamp(seconds=10**12)}),
        session(progress={"progress": {"remaining": Duration(seconds=-(10**12))}}),
        session(logs={"lines": [{}, {"entry": {"time": Timestamp(nanos=-1)}}]}),
        wellformed.Malformed("is none"),
    ):
        with pytest.raises(InvalidField):
            wellformed.check_times(wrong)


def test_bytes_that_are_one_are_decoded() -> None:
    request = LIST_JOBS(server_id="x")
    assert wellformed.decoder(LIST_JOBS.FromString)(request.SerializeToString()) == request
