"""Exit codes and sentences, for every reason that there is."""

import json

import grpc
import pytest

from clients.cli import failures
from clients.cli.failures import Exit, exit_code
from clients.errors import CallRefused
from clients.gen.backupmanager.v1 import failure_pb2, job_pb2
from clients.gen.backupmanager.v1.errors_pb2 import ErrorReason
from controller.security.status import STATUS
from tests.clients.bmctl import Bmctl
from tests.clients.canned import Canned

EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.USAGE,
    grpc.StatusCode.OUT_OF_RANGE: Exit.USAGE,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Exit.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.REFUSED,
    grpc.StatusCode.ABORTED: Exit.REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: Exit.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Exit.NOT_PERMITTED,
    grpc.StatusCode.PERMISSION_DENIED: Exit.NOT_PERMITTED,
    grpc.StatusCode.UNAVAILABLE: Exit.UNREACHABLE,
    grpc.StatusCode.DATA_LOSS: Exit.DATA_LOSS,
    grpc.StatusCode.INTERNAL: Exit.INTERNAL,
}


@pytest.mark.feature("N8")
@pytest.mark.parametrize("reason", sorted(STATUS))
def test_every_reason_of_the_controller_has_an_exit_code(reason: str) -> None:
    assert exit_code(CallRefused(reason, "", {}, STATUS[reason])) == EXPECTED[STATUS[reason]]


@pytest.mark.feature("N8")
def test_every_reason_that_ends_a_job_has_an_exit_code() -> None:
    damage = {"FORMAT_INVALID", "FRAME_CORRUPT", "SEGMENT_CORRUPT", "MANIFEST_CORRUPT", "CHAIN_BROKEN", "VERIFY_FAILED"}
    for value in ErrorReason.DESCRIPTOR.values:
        reason = value.name.removeprefix("ERROR_REASON_")
        job = job_pb2.Job(state=job_pb2.JOB_STATE_FAILED, failure=failure_pb2.Failure(reason=reason))
        expected = Exit.DATA_LOSS if reason in damage else Exit.CANCELLED if reason == "CANCELLED" else Exit.JOB_FAILED
        assert exit_code(failures.JobEnded(job)) == expected, reason


def test_the_help_page_names_every_exit_code() -> None:
    for code in Exit:
        assert f" {code.value} " in f" {failures.EPILOG} ".replace("\n", " ")


@pytest.mark.feature("N8")
@pytest.mark.parametrize(
    ("reason", "status", "code", "hint"),
    [
        ("VM_BUSY", grpc.StatusCode.FAILED_PRECONDITION, 4, "bmctl job watch j1"),
        ("SERVER_NOT_FOUND", grpc.StatusCode.NOT_FOUND, 3, "bmctl server list"),
        ("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED, 5, "wider scope"),
        ("HYPERVISOR_UNREACHABLE", grpc.StatusCode.UNAVAILABLE, 6, ""),
        ("CHAIN_BROKEN", grpc.StatusCode.DATA_LOSS, 7, ""),
        ("INTERNAL", grpc.StatusCode.INTERNAL, 70, ""),
    ],
)
def test_a_refusal_is_a_sentence_a_reason_and_a_remedy(
    bmctl: Bmctl, canned: Canned, reason: str, status: grpc.StatusCode, code: int, hint: str
) -> None:
    canned.refuse("StartBackup", reason, status, job_id="j1")

    ended = bmctl("backup", "start", "web1", "--storage", "offsite")

    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith(f"bmctl: the canned controller says {reason} [{reason}]\n")
    assert hint in ended.err


@pytest.mark.feature("N8")
def test_with_json_the_error_is_an_object_on_stderr(bmctl: Bmctl, canned: Canned) -> None:
    canned.refuse("StartBackup", "VM_BUSY", grpc.StatusCode.FAILED_PRECONDITION, job_id="j1")

    ended = bmctl("backup", "start", "web1", "--storage", "offsite", "--output=json")

    assert (ended.code, ended.out) == (4, "")
    message = "the canned controller says VM_BUSY"
    assert ended.error == {"reason": "VM_BUSY", "message": message, "facts": {"job_id": "j1"}}


@pytest.mark.parametrize(
    "arguments",
    [
        ("backup", "restore"),
        ("backup", "list", "--since", "yesterday"),
        ("backup", "start", "web1", "--storage", "s", "--request-id", "no"),
        ("job", "list", "--state", "sleeping"),
        ("storage", "update", "offsite"),
        ("server", "frobnicate"),
    ],
)
def test_wrong_usage_is_2_in_words_and_in_json(bmctl: Bmctl, arguments: tuple[str, ...]) -> None:
    ended = bmctl(*arguments, "--output", "json", BMCTL_OUTPUT="json")

    assert (ended.code, ended.out) == (2, "")
    assert ended.error["reason"] == "INVALID_FIELD"
    assert bmctl(*arguments).code == 2


def test_nobody_at_the_address_is_6(bmctl: Bmctl, canned: Canned) -> None:
    bmctl.log_in("127.0.0.1:1", canned.authority, "bmt_x")
    ended = bmctl("server", "list")
    assert ended.code == 6
    assert "[CONTROLLER_UNREACHABLE]" in ended.err
    assert ended.err.count("\n") == 2


def test_not_logged_in_is_5(bmctl: Bmctl) -> None:
    bmctl.profile.unlink()
    ended = bmctl("server", "list", BMCTL_OUTPUT="json")
    assert (ended.code, ended.error["reason"]) == (5, "NOT_LOGGED_IN")


def test_a_message_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = CallRefused("VM_BUSY", "busy\x1b[2J\nbmctl: all is well", {}, grpc.StatusCode.ABORTED)
    failures.report(evil, as_json=False)
    written = capsys.readouterr().err
    assert "\x1b" not in written
    assert written.count("\n") == 1
    failures.report(evil, as_json=True)
    assert json.loads(capsys.readouterr().err)["error"]["message"] == evil.message


def test_an_unforeseen_fault_is_70_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    fault = ZeroDivisionError("by zero")
    failures.report(fault, as_json=False)
    assert exit_code(fault) == 70
    assert capsys.readouterr().err.startswith("bmctl: ZeroDivisionError: by zero [INTERNAL]\n")
