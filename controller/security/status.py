"""What a refused call looks like on the wire: a gRPC status, rich details, and the same as plain trailers.

    BackupManagerError(reason, facts)  ──►  google.rpc.Status
                                              ErrorInfo    reason, domain "backupmanager", facts as metadata
                                              BadRequest   for INVALID_FIELD: the field and what is wrong with it
                                              RetryInfo    for what passes by itself
                                            trailers `backupmanager-reason`, `backupmanager-fact-<name>`

A trailer's value is percent-encoded UTF-8, since HTTP/2 trailers are ASCII; facts are cut to a length, since a peer drops a
call whose trailers exceed 8 KiB.
"""

from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from engine.errors import BackupManagerError

DOMAIN = "backupmanager"
FACT_CHARACTERS_MAX = 256
MESSAGE_CHARACTERS_MAX = 512
RETRY_SECONDS = 5  # half a heartbeat: long enough for an agent or a controller to be back
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

STATUS: dict[str, grpc.StatusCode] = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": grpc.StatusCode.INVALID_ARGUMENT,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "ENROLLMENT_TOKEN_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "PERMISSION_DENIED": grpc.StatusCode.PERMISSION_DENIED,
    "HYPERVISOR_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "SERVER_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "STORAGE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "SCHEDULE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "PRESET_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "BACKUP_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "JOB_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "ACCESS_TOKEN_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "PACKAGE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "POINT_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "DRIVE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "DISK_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "HYPERVISOR_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "SERVER_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "STORAGE_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "SCHEDULE_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "WEBHOOK_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "WEBHOOK_DELIVERY_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "WEBHOOK_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "CURSOR_EXPIRED": grpc.StatusCode.OUT_OF_RANGE,
    "PACKAGE_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "REQUEST_ID_REUSED": grpc.StatusCode.FAILED_PRECONDITION,
    "CONFIRMATION_STALE": grpc.StatusCode.FAILED_PRECONDITION,
    "HYPERVISOR_BANNED": grpc.StatusCode.FAILED_PRECONDITION,
    "CLOCK_SKEW": grpc.StatusCode.FAILED_PRECONDITION,
    "VM_BUSY": grpc.StatusCode.FAILED_PRECONDITION,
    "VM_LOCKED": grpc.StatusCode.FAILED_PRECONDITION,
    "SERVER_DELETED": grpc.StatusCode.FAILED_PRECONDITION,
    "SERVER_CONFLICT": grpc.StatusCode.FAILED_PRECONDITION,
    "ACCESS_LEVEL_DENIED": grpc.StatusCode.FAILED_PRECONDITION,
    "PACKAGE_IN_USE": grpc.StatusCode.FAILED_PRECONDITION,
    "COOLDOWN_ACTIVE": grpc.StatusCode.FAILED_PRECONDITION,
    "SELF_SERVICE_OFF": grpc.StatusCode.FAILED_PRECONDITION,
    "PORTAL_REFUSED": grpc.StatusCode.FAILED_PRECONDITION,
    "STORAGE_DISABLED": grpc.StatusCode.FAILED_PRECONDITION,
    "STORAGE_READ_ONLY": grpc.StatusCode.FAILED_PRECONDITION,
    "STORAGE_IN_USE": grpc.StatusCode.FAILED_PRECONDITION,
    "SCHEDULE_DELETED": grpc.StatusCode.FAILED_PRECONDITION,
    "STORAGE_OUT_OF_REACH": grpc.StatusCode.FAILED_PRECONDITION,
    "BIND_ADDRESS_UNSUPPORTED": grpc.StatusCode.FAILED_PRECONDITION,
    "ENCRYPTION_IMMUTABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "ENCRYPTION_UNPROVEN": grpc.StatusCode.FAILED_PRECONDITION,
    "STORAGE_IMMUTABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "PURGE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "TICKET_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "STORAGE_UNRECONCILED": grpc.StatusCode.FAILED_PRECONDITION,
    "DELETE_BOUND": grpc.StatusCode.FAILED_PRECONDITION,
    "PURGE_ENDED": grpc.StatusCode.FAILED_PRECONDITION,
    "PURGE_RUNNING": grpc.StatusCode.FAILED_PRECONDITION,
    "JOB_ENDED": grpc.StatusCode.FAILED_PRECONDITION,
    "BATCH_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "BATCH_ENDED": grpc.StatusCode.FAILED_PRECONDITION,
    "BATCH_WAITING": grpc.StatusCode.FAILED_PRECONDITION,
    "NOTHING_TO_RETRY": grpc.StatusCode.FAILED_PRECONDITION,
    "DISPATCH_PAUSED": grpc.StatusCode.FAILED_PRECONDITION,
    "WRONG_KEY": grpc.StatusCode.FAILED_PRECONDITION,
    "KEY_MISSING": grpc.StatusCode.FAILED_PRECONDITION,
    "MANIFEST_UNSUPPORTED": grpc.StatusCode.FAILED_PRECONDITION,
    "STILL_NEEDED": grpc.StatusCode.FAILED_PRECONDITION,
    "ETAG_MISMATCH": grpc.StatusCode.ABORTED,
    "STALE_GENERATION": grpc.StatusCode.ABORTED,
    "LEASE_LOST": grpc.StatusCode.ABORTED,
    "HYPERVISOR_UNREACHABLE": grpc.StatusCode.UNAVAILABLE,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "FORMAT_INVALID": grpc.StatusCode.DATA_LOSS,
    "FRAME_CORRUPT": grpc.StatusCode.DATA_LOSS,
    "SEGMENT_CORRUPT": grpc.StatusCode.DATA_LOSS,
    "MANIFEST_CORRUPT": grpc.StatusCode.DATA_LOSS,
    "CHAIN_BROKEN": grpc.StatusCode.DATA_LOSS,
    "UNSUPPORTED": grpc.StatusCode.UNIMPLEMENTED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
"""Reason -> status, for every reason that a call can end with. The others are only ever the end of a job."""


def leaves_calls(error: BackupManagerError) -> bool:
    """Tell whether an error has a status; one that has none reached a call through a fault of ours."""
    return error.reason in STATUS


def status_of(error: BackupManagerError) -> "grpc.Status":
    """Return the status that a call refused with `error` ends with. The error's reason must be in STATUS."""
    facts = {name: _cut(value) for name, value in error.facts.items()}
    code = STATUS[error.reason]
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)]
    if error.reason == "INVALID_FIELD":
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=facts.get("field", ""), description=facts.get("problem", "")
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if code is grpc.StatusCode.UNAVAILABLE or "retry_seconds" in facts:
        seconds = int(facts.get("retry_seconds", RETRY_SECONDS))
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds)))
    rich = status_pb2.Status(
        code=code_pb2.Code.Value(code.name),
        message=_cut(error.message, MESSAGE_CHARACTERS_MAX),
        details=[_packed(one) for one in details],
    )
    return rpc_status.to_status(rich)


def trailers_of(error: BackupManagerError) -> tuple[tuple[str, str], ...]:
    """Return reason and facts as trailers, for clients without a helper for rich errors (N8)."""
    facts = ((f"backupmanager-fact-{name}", quote(_cut(text), safe=_PRINTABLE)) for name, text in error.facts.items())
    return (("backupmanager-reason", error.reason), *facts)


def _packed(message: "error_details_pb2.ErrorInfo") -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _cut(text: str, length: int = FACT_CHARACTERS_MAX) -> str:
    """Return at most `length` characters, and such as a wire can carry."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"
