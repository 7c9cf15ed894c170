"""Waiting for a job: a bar on a terminal, lines in a pipe, one document for scripts, and through broken connections."""

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from clients.cli import progress
from clients.cli.failures import ContactLost
from clients.cli.session import Controller
from clients.connect import channel
from clients.errors import CallRefused
from clients.gen.backupmanager.v1 import failure_pb2, job_pb2
from engine.units import GIB, MIB
from tests.clients import rows
from tests.clients.bmctl import Bmctl
from tests.clients.canned import TOKEN, Canned, completed
from tests.waiting import wait_until

if TYPE_CHECKING:
    import subprocess

START = ("backup", "start", "web1", "--storage", "offsite", "--wait")
BAR_CHARACTERS = "━╸╺"


def running(stage: str, done: int, **more: Any) -> dict[str, Any]:
    words = job_pb2.JobProgress(stage=stage, bytes_done=done, bytes_total=12 * GIB, bytes_per_second=120 * MIB, **more)
    return {"state": job_pb2.JOB_STATE_RUNNING, "progress": words}


def failed(reason: str) -> dict[str, Any]:
    failure = failure_pb2.Failure(reason=reason, message=f"it was {reason}", metadata={"storage": "offsite"})
    state = job_pb2.JOB_STATE_CANCELLED if reason == "CANCELLED" else job_pb2.JOB_STATE_FAILED
    return {"state": state, "failure": failure}


def backed_up() -> dict[str, Any]:
    result = job_pb2.BackupResult(backup_id=rows.INCREMENTAL, disks=rows.backups()[0].disks)
    return completed(backup_id=rows.INCREMENTAL, result=job_pb2.JobResult(backup=result))


@pytest.fixture
def pipe(bmctl: Bmctl, canned: Canned) -> Iterator["subprocess.Popen[str]"]:
    """A `--wait` in a pipe, with its stream open."""
    yield from started(bmctl, canned, START)


def started(bmctl: Bmctl, canned: Canned, arguments: tuple[str, ...]) -> Iterator["subprocess.Popen[str]"]:
    process = bmctl.start(*arguments)
    try:
        wait_until(canned.watching, 30, "the job's stream to be open")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.feature("M14", "M6")
def test_a_terminal_gets_a_bar_that_goes_away(bmctl: Bmctl, canned: Canned) -> None:
    with bmctl.on_terminal(*START, columns=100) as terminal:
        terminal.wait_for("queued, waits for other work")
        canned.change(rows.JOB, **running("read", 3 * GIB, remaining=Duration(seconds=77)))
        terminal.wait_for("25 %")
        during = terminal.screen()
        canned.change(rows.JOB, **running("read", 9 * GIB))
        terminal.wait_for("75 %")
        canned.change(rows.JOB, **backed_up())
        assert terminal.end() == 0
        after, raw = terminal.screen(), terminal.raw

    line = next(line for line in during.splitlines() if "25 %" in line)
    assert "read" in line
    assert "━━━" in line
    assert line.endswith("3.00 GiB of 12.0 GiB 120 MiB/s, 1 min 17 s left")
    assert len(line) <= 100
    assert not set(after) & set(BAR_CHARACTERS)
    assert "● completed" in after
    assert rows.INCREMENTAL in after
    assert raw.count(b"\x1b[?25l") == raw.count(b"\x1b[?25h") == 1  # the cursor hid, and came back
    assert raw.rindex(b"\x1b[?25h") > raw.rindex(b"\x1b[?25l")


@pytest.mark.feature("M14")
def test_a_pipe_gets_one_line_for_each_change(canned: Canned, pipe: "subprocess.Popen[str]") -> None:
    canned.change(rows.JOB, **running("read", 3 * GIB))
    canned.change(rows.JOB, **running("read", 3 * GIB + MIB))  # no tenth further: not worth a line
    canned.change(rows.JOB, **running("commit", 3 * GIB))
    canned.change(rows.JOB, **backed_up())
    out, err = pipe.communicate(timeout=30)

    assert pipe.returncode == 0, err
    words = [line[10:] for line in out.splitlines() if line[2:3] == ":"]
    assert words[0] == "queued, waits for other work to end"
    assert words[-1] == "completed"
    assert sum(word.startswith("read 25 %") for word in words) <= 1
    assert "\x1b" not in out
    assert "\r" not in out
    assert rows.INCREMENTAL in out
    assert err == ""


@pytest.mark.feature("M14")
def test_json_is_one_document_and_nothing_else(bmctl: Bmctl, canned: Canned) -> None:
    for process in started(bmctl, canned, (*START, "--output", "json")):
        canned.change(rows.JOB, **running("read", 3 * GIB))
        canned.change(rows.JOB, **backed_up())
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        job = bmctl.parse(out)["job"]
        assert job["state"] == "JOB_STATE_COMPLETED"
        assert job["result"]["backup"]["disks"][0]["stored_bytes"] == 400 * MIB


@pytest.mark.parametrize(
    ("reason", "code"), [("STORAGE_FULL", 1), ("CHAIN_BROKEN", 7), ("VERIFY_FAILED", 7), ("CANCELLED", 8)]
)
def test_how_a_job_ends_is_the_exit_code(bmctl: Bmctl, canned: Canned, reason: str, code: int) -> None:
    canned.change(rows.JOB, **failed(reason))

    ended = bmctl(*START, "--output", "json")

    assert ended.code == code
    assert ended.json["job"]["failure"]["reason"] == reason
    assert ended.error["reason"] == reason
    assert ended.error["facts"] == {"job_id": rows.JOB, "storage": "offsite"}


def test_without_wait_only_the_job_is_said(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl(*START[:-1], "-o", "json").json == {"job_id": rows.JOB}
    assert f"bmctl job watch {rows.JOB}" in bmctl(*START[:-1]).out
    assert not canned.calls["WatchJob"]


def test_ctrl_c_says_that_the_job_goes_on(canned: Canned, pipe: "subprocess.Popen[str]") -> None:
    pipe.send_signal(signal.SIGINT)
    _, err = pipe.communicate(timeout=30)

    assert pipe.returncode == 130
    assert f"job {rows.JOB} goes on" in err
    assert f"bmctl job watch {rows.JOB}" in err
    assert f"bmctl job cancel {rows.JOB}" in err
    assert "Traceback" not in err
    assert not canned.calls["CancelJob"]


def test_ctrl_c_leaves_a_clean_terminal(bmctl: Bmctl, canned: Canned) -> None:
    with bmctl.on_terminal(*START) as terminal:
        terminal.wait_for("queued, waits for other work")
        terminal.interrupt()
        assert terminal.end() == 130
        assert not set(terminal.screen()) & set(BAR_CHARACTERS)
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")


def test_being_ended_leaves_a_clean_terminal(bmctl: Bmctl, canned: Canned) -> None:
    with bmctl.on_terminal(*START) as terminal:
        terminal.wait_for("queued, waits for other work")
        terminal.interrupt(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")


def test_a_broken_stream_is_taken_up_again(canned: Canned, pipe: "subprocess.Popen[str]") -> None:
    canned.change(rows.JOB, **running("read", GIB))
    canned.break_streams()
    wait_until(lambda: canned.calls["PollJob"], 30, "PollJob after the stream broke")
    canned.change(rows.JOB, **running("commit", GIB))
    wait_until(lambda: len(canned.calls["WatchJob"]) > 1, 30, "a second stream")
    canned.change(rows.JOB, **backed_up())
    out, err = pipe.communicate(timeout=30)

    assert pipe.returncode == 0, err
    assert "completed" in out
    assert out.count("  queued") == 1  # the second stream began where the first one ended
    assert canned.calls["WatchJob"][1].cursor > 1


def test_a_controller_that_restarts_is_waited_for(bmctl: Bmctl) -> None:
    with Canned() as first:
        bmctl.log_in(first.address, first.authority, TOKEN)
        process = bmctl.start(*START)
        try:
            wait_until(first.watching, 30, "the job's stream to be open")
        except BaseException:
            process.kill()
            raise
    try:
        with Canned(first.authority, first.port) as second:
            second.jobs[rows.JOB].version = 7
            wait_until(second.watching, 60, "the stream to come back")
            second.change(rows.JOB, **backed_up())
            out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert "completed" in out


def test_where_there_are_no_streams_asking_is_enough(bmctl: Bmctl, canned: Canned) -> None:
    canned.watchable = False
    process = bmctl.start("job", "watch", rows.JOB)
    try:
        wait_until(lambda: len(canned.calls["PollJob"]) > 1, 30, "PollJob")
        canned.change(rows.JOB, **backed_up())
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert "completed" in out


class Heard:
    def __init__(self) -> None:
        self.lost_count = 0

    def change(self, job: job_pb2.Job) -> None: ...

    def lost(self) -> None:
        self.lost_count += 1


async def test_patience_ends(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PAUSE_SECONDS", (0.01, 0.01))
    canned.refuse("WatchJob", "", grpc.StatusCode.UNAVAILABLE, times=1000)
    canned.refuse("PollJob", "", grpc.StatusCode.INTERNAL, times=1000)
    heard = Heard()
    async with channel(canned.address, canned.authority.pem, token=TOKEN) as link:
        with pytest.raises(ContactLost) as caught:
            async for _ in progress.changes(Controller(link, None), rows.JOB, heard, 0.1):  # type: ignore[arg-type]
                pass
    assert caught.value.facts["job_id"] == rows.JOB
    assert heard.lost_count > 1


async def test_a_refusal_is_not_a_broken_stream(canned: Canned) -> None:
    canned.refuse("WatchJob", "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED)
    async with channel(canned.address, canned.authority.pem, token=TOKEN) as link:
        with pytest.raises(CallRefused) as caught:
            async for _ in progress.changes(Controller(link, None), rows.JOB, Heard()):  # type: ignore[arg-type]
                pass
    assert caught.value.reason == "PERMISSION_DENIED"
    assert not canned.calls["PollJob"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"state": job_pb2.JOB_STATE_QUEUED}, "queued, waits for other work to end"),
        ({"state": job_pb2.JOB_STATE_DISPATCHED}, "sent to the hypervisor"),
        ({"state": job_pb2.JOB_STATE_RUNNING}, "running"),
        ({"state": job_pb2.JOB_STATE_RUNNING, "cancel_requested": True}, "cancelling"),
        (running("read", 0), "read 0 % (0 B of 12.0 GiB, 120 MiB/s)"),
        (running("read", 12 * GIB - 1), "read 99 % (12.0 GiB of 12.0 GiB, 120 MiB/s)"),
        (running("read", 13 * GIB), "read 100 % (13.0 GiB of 12.0 GiB, 120 MiB/s)"),
    ],
)
def test_a_moment_in_words(fields: dict[str, Any], line: str) -> None:
    assert progress.figures(job_pb2.Job(**fields)).line == line
