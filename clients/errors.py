"""What can go wrong between a client and the controller, as exceptions with the reason and the facts of `ErrorReason`.

    controller ── google.rpc.Status in the trailers: ErrorInfo, RetryInfo ──► CallRefused
               └─ plain trailers backupmanager-reason, backupmanager-fact-* ──► the same, for when the former is not there
    no answer  ── UNAVAILABLE without either ──────────────────────────────► CallRefused, reason CONTROLLER_UNREACHABLE

grpc is imported inside the functions: `bmctl --help` has to know these classes and must not pay for it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from grpc import aio

DOMAIN = "backupmanager"
_REASON_TRAILER = "backupmanager-reason"
_FACT_TRAILER_PREFIX = "backupmanager-fact-"
# Statuses that gRPC itself makes without a word from the controller, and what they mean to a person.
_TRANSPORT = {
    "UNAVAILABLE": ("CONTROLLER_UNREACHABLE", "the controller cannot be reached"),
    "DEADLINE_EXCEEDED": ("CONTROLLER_SILENT", "the controller did not answer in time"),
    "UNIMPLEMENTED": ("UNSUPPORTED", "the controller does not know this call; it may be older than this program"),
    "CANCELLED": ("CANCELLED", "the call was cancelled"),
}


class CallRefused(Exception):
    """The controller refused a call, or could not be reached.

    `reason` is a name from ErrorReason, or CONTROLLER_UNREACHABLE, CONTROLLER_SILENT, or a gRPC status where nothing better
    is known. `retry_after` is in seconds, None where the controller said nothing of the kind.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        facts: dict[str, str],
        status: grpc.StatusCode,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.facts = facts
        self.status = status
        self.retry_after = retry_after


class ClientError(BackupManagerError):
    """Root of what a client finds out by itself, without the controller."""


class ControllerUnreachable(ClientError):
    reason = "CONTROLLER_UNREACHABLE"
    template = "the controller at {address} cannot be reached: {detail}"
    remedy = "Check the address, and that the controller runs"


class AuthorityChanged(ClientError):
    """Either the controller was set up anew, or someone else answers at its address."""

    reason = "AUTHORITY_CHANGED"
    template = "the controller at {address} shows authority {seen}, expected is {expected}"
    remedy = "If the controller was set up anew, compare the fingerprint with its own and log in again; else someone may be in between"


class EnrollmentTokenMalformed(ClientError):
    reason = "ENROLLMENT_TOKEN_INVALID"
    template = "this is not an enrollment token: {problem}"
    remedy = "Copy the whole text that `bmctl hypervisor enroll` prints"


def refusal(error: aio.AioRpcError) -> CallRefused:
    """Return what a failed call says, from its ErrorInfo, else from its trailers, else from its status alone."""
    status = error.code()
    reason, facts, retry_after = _from_details(error)
    trailers = [(str(name), value) for name, value in error.trailing_metadata() or ()]
    reason = reason or next((_text(value) for name, value in trailers if name == _REASON_TRAILER), "")
    if not facts:
        prefix = _FACT_TRAILER_PREFIX
        facts = {name.removeprefix(prefix): _text(value) for name, value in trailers if name.startswith(prefix)}
    message = error.details() or ""
    if reason:
        return CallRefused(reason, message or reason, facts, status, retry_after)
    reason, sentence = _TRANSPORT.get(status.name, (status.name, "the call failed"))
    return CallRefused(reason, f"{sentence}: {message}" if message else sentence, facts, status, retry_after)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the AioRpcError of any call in the block into CallRefused."""
    from grpc import aio

    try:
        yield
    except aio.AioRpcError as error:
        raise refusal(error) from error


def _from_details(error: aio.AioRpcError) -> tuple[str, dict[str, str], float | None]:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    reason, facts, retry_after = "", {}, None
    try:
        status = rpc_status.from_call(cast("Any", error))  # its stub knows only the calls of the synchronous API
    except ValueError:  # the status in the trailers is not the call's: something in between made its own
        status = None
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            reason, facts = info.reason, dict(info.metadata)
        elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return reason, facts, retry_after


def _text(value: str | bytes) -> str:
    """Return a trailer's value; trailers are ASCII, so what is not stands there percent-encoded."""
    return unquote(value.decode("ascii", "replace") if isinstance(value, bytes) else value)
