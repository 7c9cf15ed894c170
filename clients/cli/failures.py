"""How a verb ends when it does not end well: the exit code, one sentence with the reason, and what to do about it.

    bmctl: server web1 is busy with job 0199… [VM_BUSY]
           Watch that job with `bmctl job watch 0199…`, or end it with `bmctl job cancel 0199…`.

With `--output json` the same is one object on stderr: {"error": {"reason", "message", "facts"}}.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from clients.errors import CallRefused, ClientError
from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.job_pb2 import Job


class Exit(IntEnum):
    """What a script sees. The numbers are part of the interface: docs/bmctl.md and the help page name them."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    NOT_PERMITTED = 5
    UNREACHABLE = 6
    DATA_LOSS = 7
    CANCELLED = 8
    INTERNAL = 70
    INTERRUPTED = 130


EPILOG = """Exit codes: 0 done; 1 the job failed; 2 wrong usage or an invalid field; 3 not found; 4 refused in the present
state; 5 not permitted, not logged in, or an unknown authority; 6 controller, hypervisor or storage unreachable; 7 backup
data is damaged or missing; 8 cancelled; 70 an internal fault; 130 interrupted with Ctrl-C (a job that was started goes on)."""

_BY_STATUS = {
    "INVALID_ARGUMENT": Exit.USAGE,
    "OUT_OF_RANGE": Exit.USAGE,
    "NOT_FOUND": Exit.NOT_FOUND,
    "ALREADY_EXISTS": Exit.REFUSED,
    "FAILED_PRECONDITION": Exit.REFUSED,
    "ABORTED": Exit.REFUSED,
    "RESOURCE_EXHAUSTED": Exit.REFUSED,
    "UNIMPLEMENTED": Exit.REFUSED,
    "UNAUTHENTICATED": Exit.NOT_PERMITTED,
    "PERMISSION_DENIED": Exit.NOT_PERMITTED,
    "UNAVAILABLE": Exit.UNREACHABLE,
    "DEADLINE_EXCEEDED": Exit.UNREACHABLE,
    "DATA_LOSS": Exit.DATA_LOSS,
    "CANCELLED": Exit.CANCELLED,
}
# What bmctl finds out by itself.
_BY_LOCAL_REASON = {
    "INVALID_FIELD": Exit.USAGE,
    "ENROLLMENT_TOKEN_INVALID": Exit.USAGE,
    "PROFILE_UNREADABLE": Exit.USAGE,
    "ACCESS_TOKEN_NOT_FOUND": Exit.NOT_FOUND,
    "WEBHOOK_FAILED": Exit.UNREACHABLE,
    "NOT_LOGGED_IN": Exit.NOT_PERMITTED,
    "AUTHORITY_CHANGED": Exit.NOT_PERMITTED,
    "CONTROLLER_UNREACHABLE": Exit.UNREACHABLE,
    "DECLINED": Exit.CANCELLED,
    "INTERRUPTED": Exit.INTERRUPTED,
}
_DAMAGE = frozenset(
    {"FORMAT_INVALID", "FRAME_CORRUPT", "SEGMENT_CORRUPT", "MANIFEST_CORRUPT", "CHAIN_BROKEN", "VERIFY_FAILED"}
)
_HINTS = {
    "UNAUTHENTICATED": "Log in again with `bmctl login HOST:PORT`; the token may be revoked or expired.",
    "PERMISSION_DENIED": "Use a token of a wider scope; `bmctl version` shows the present one's.",
    "CONTROLLER_UNREACHABLE": "Check the address, and that the controller runs; `bmctl version` tries the connection.",
    "VM_BUSY": "Watch that job with `bmctl job watch {job_id}`, or end it with `bmctl job cancel {job_id}`.",
    "HYPERVISOR_UNREACHABLE": "Look at `bmctl hypervisor show {hypervisor_id}`, and whether bm-agent runs there.",
    "HYPERVISOR_BANNED": "Lift the ban with `bmctl hypervisor unban {hypervisor_id}`.",
    "HYPERVISOR_EXISTS": "To give it a new certificate, enroll it with `--renew`.",
    "CLOCK_SKEW": "Set the hypervisor's clock; it is {offset_seconds} s off.",
    "CONFIRMATION_STALE": "Something changed since the preview. Run the command again.",
    "ETAG_MISMATCH": "Someone else changed it at the same time. Run the command again.",
    "STORAGE_DISABLED": "Enable it with `bmctl storage update {storage_id} --enable`.",
    "STORAGE_READ_ONLY": "Allow writing with `bmctl storage update {storage_id} --read-write`.",
    "STORAGE_IN_USE": "Delete the backups and schedules on it first: `bmctl backup list --storage {storage_id}`, "
    "`bmctl schedule list --storage {storage_id}`.",
    "SCHEDULE_NOT_FOUND": "`bmctl schedule list` shows the schedules there are.",
    "SCHEDULE_EXISTS": "Change that one with `bmctl schedule set {schedule_id}`, or delete it first.",
    "SCHEDULE_DELETED": "Bring it back with `bmctl schedule undelete {schedule_id}`.",
    "PRESET_NOT_FOUND": "`bmctl preset list` shows the presets there are.",
    "STORAGE_OUT_OF_REACH": "Put that right on hypervisor {hypervisor_id}, wait some seconds until its agent has seen it, and try again.",
    "BIND_ADDRESS_UNSUPPORTED": "Leave `--bind-address` out, or drop the override with `--bind-address inherit`.",
    "DELETE_BOUND": "Leave `--hypervisor` out, or let another one delete: `bmctl storage set {storage_id} --delete-from NAME`.",
    "PURGE_NOT_FOUND": "`bmctl purge list --all` shows the purges there are.",
    "PURGE_ENDED": "`bmctl purge list --all` shows how it ended.",
    "PURGE_RUNNING": "Stop what is not deleted yet with `bmctl job cancel {job_id}`.",
    "TICKET_NOT_FOUND": "`bmctl ticket list --all` shows the tickets there are; one whose job goes on is ended by `bmctl job cancel`.",
    "JOB_ENDED": "Look at it with `bmctl job show {job_id}`.",
    "JOB_NOT_FOUND": "`bmctl job list` shows the jobs there are.",
    "SERVER_NOT_FOUND": "`bmctl server list` shows the servers there are.",
    "STORAGE_NOT_FOUND": "`bmctl storage list` shows the storages there are.",
    "BACKUP_NOT_FOUND": "`bmctl backup list` shows the backups there are.",
    "HYPERVISOR_NOT_FOUND": "`bmctl hypervisor list` shows the hypervisors there are.",
    "ACCESS_TOKEN_NOT_FOUND": "`bmctl token list` shows the tokens there are.",
    "WEBHOOK_NOT_FOUND": "`bmctl webhook list` shows the webhooks there are.",
    "WEBHOOK_DELIVERY_NOT_FOUND": "`bmctl webhook deliveries {webhook_id} --dead` shows what can be sent again.",
    "CURSOR_EXPIRED": "Read what you keep anew, and go on with `--cursor {newest}`.",
    "INTERNAL": "The controller's log has more, under error id {error_id}.",
}


class Usage(ClientError):
    """What was typed does not fit; `problem` is a sentence."""

    reason = "INVALID_FIELD"
    template = "{field}: {problem}"


class Declined(ClientError):
    reason = "DECLINED"
    template = "not confirmed; nothing was changed"


class Interrupted(ClientError):
    """Ctrl-C while waiting. The job is the hypervisor's and goes on."""

    reason = "INTERRUPTED"
    template = "stopped waiting; job {job_id} goes on"
    remedy = "Watch it with `bmctl job watch {job_id}`, or end it with `bmctl job cancel {job_id}`"


class ContactLost(ClientError):
    """The controller stayed away for too long while a job was being watched."""

    reason = "CONTROLLER_UNREACHABLE"
    template = "no contact with the controller for {seconds} s; job {job_id} may go on"
    remedy = "Watch it again with `bmctl job watch {job_id}`"


class JobEnded(Exception):
    """A job that was waited for did not end well. The job itself has been shown."""

    def __init__(self, job: Job) -> None:
        failure = job.failure
        self.cancelled = not job.HasField("failure") or failure.reason == "CANCELLED"
        self.reason = failure.reason or "CANCELLED"
        self.message = f"job {job.job_id}: {failure.message or 'was cancelled'}"
        self.facts = {"job_id": job.job_id, **failure.metadata}
        super().__init__(self.message)


def exit_code(error: BaseException) -> Exit:
    """Return the exit code of an error. What nobody foresaw is internal."""
    if isinstance(error, CallRefused):
        return _BY_STATUS.get(error.status.name, Exit.INTERNAL)
    if isinstance(error, JobEnded):
        return Exit.CANCELLED if error.cancelled else Exit.DATA_LOSS if error.reason in _DAMAGE else Exit.JOB_FAILED
    if isinstance(error, BackupManagerError):
        return _BY_LOCAL_REASON.get(error.reason, Exit.INTERNAL)
    return Exit.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Exit.INTERNAL


def report(error: BaseException, *, as_json: bool) -> None:
    """Say on stderr what went wrong: a sentence with its reason and a remedy, or one JSON object."""
    reason, message, facts, hint = describe(error)
    if as_json:
        text = json.dumps({"error": {"reason": reason, "message": message, "facts": facts}}, ensure_ascii=False)
        print(text, file=sys.stderr)
        return
    print(f"bmctl: {_printable(message)} [{reason}]", file=sys.stderr)
    if hint and hint.rstrip(".") not in message:
        print(f"       {_printable(hint)}", file=sys.stderr)


def describe(error: BaseException) -> tuple[str, str, dict[str, str], str]:
    """Return reason, sentence, facts and remedy of an error."""
    if isinstance(error, BackupManagerError):
        return error.reason, str(error), error.facts, _fill(error.remedy, error.facts)
    if isinstance(error, (CallRefused, JobEnded)):
        return error.reason, error.message, error.facts, _fill(_HINTS.get(error.reason, ""), error.facts)
    if isinstance(error, KeyboardInterrupt):
        return "INTERRUPTED", "interrupted", {}, ""
    sentence = f"{type(error).__name__}: {error}"
    return "INTERNAL", sentence, {}, "This is a fault of bmctl itself; BMCTL_DEBUG=1 shows where it happened."


def _fill(hint: str, facts: dict[str, str]) -> str:
    """Return a remedy with its facts in place, "" where one is missing: half a command is no help."""
    try:
        filled = hint.format_map(facts)
    except KeyError:
        return ""
    return f"{filled.rstrip('.')}." if filled else ""


def _printable(text: Any) -> str:
    """Return text without control characters: a message from elsewhere must not drive the terminal."""
    return "".join(one if one.isprintable() else " " for one in str(text))
