"""What an end user gets, as messages: made field by field from what `controller/portal.py` shows, never from an inner message."""

from clients.gen.backupmanager.v1 import job_pb2, portal_pb2
from controller.jobs import Job
from controller.portal import Drive, PortalServer, Shown
from controller.rules import portal as rules
from controller.rules.portal import Permit
from controller.rules.states import CANCELLED, FAILED, RUNNING, WELL
from controller.services.convert import enum_number, from_json, time

_FAILURE_STATES = {
    FAILED: portal_pb2.PORTAL_OPERATION_STATE_FAILED,
    CANCELLED: portal_pb2.PORTAL_OPERATION_STATE_CANCELLED,
}
_MESSAGES = {
    portal_pb2.PORTAL_OPERATION_STATE_WAITING: "Waiting for its turn.",
    portal_pb2.PORTAL_OPERATION_STATE_RUNNING: "In progress.",
    portal_pb2.PORTAL_OPERATION_STATE_COMPLETED: "Done.",
    portal_pb2.PORTAL_OPERATION_STATE_CANCELLED: "Cancelled.",
}


def server(record: PortalServer) -> portal_pb2.PortalServer:
    return portal_pb2.PortalServer(
        server_id=record.server_id,
        name=record.name,
        last_backup_time=time(record.last_backup_time),
        next_backup_time=time(record.next_backup_time),
        retention=record.retention,
        backup=permit(record.backup),
        restore=permit(record.restore),
        operation=None if record.operation is None else operation(record.operation),
    )


def permit(record: Permit) -> portal_pb2.PortalPermit:
    return portal_pb2.PortalPermit(
        allowed=record.refusal is None,
        refusal=enum_number(portal_pb2.PortalRefusal.DESCRIPTOR, record.refusal or ""),
        message=record.message,
        available_time=time(record.available_time),
    )


def drive(record: Drive) -> portal_pb2.PortalDrive:
    return portal_pb2.PortalDrive(
        name=record.name,
        size_bytes=record.size_bytes,
        attached=record.attached,
        backup_count=record.backup_count,
        first_backup_time=time(record.first_backup_time),
        last_backup_time=time(record.last_backup_time),
    )


def point(record: Shown) -> portal_pb2.PortalBackup:
    return portal_pb2.PortalBackup(
        point_id=record.point_id,
        create_time=time(record.create_time),
        drives=record.drives,
        retention=portal_pb2.PortalRetention(
            state=enum_number(portal_pb2.PortalRetentionState.DESCRIPTOR, record.stay.state),
            expire_time=time(record.stay.expire_time),
            days_left=record.stay.days_left,
            text=record.stay.text,
        ),
    )


def operation(record: Job) -> portal_pb2.PortalOperation:
    state = _state(record.state)
    failed = state == portal_pb2.PORTAL_OPERATION_STATE_FAILED
    refusal = rules.refusal_of(record.failure.reason if record.failure else "")
    made = portal_pb2.PortalOperation(
        operation_id=record.job_id,
        server_id=record.server_id,
        type=enum_number(portal_pb2.PortalOperationType.DESCRIPTOR, record.type),
        state=state,
        create_time=time(record.create_time),
        end_time=time(record.end_time),
        failure=enum_number(portal_pb2.PortalRefusal.DESCRIPTOR, refusal if failed else ""),
        message=rules.ADVICE[refusal] if failed else _MESSAGES[state],
        version=record.version,
    )
    if state == portal_pb2.PORTAL_OPERATION_STATE_COMPLETED:
        made.percent = 100
    elif record.progress is not None and not record.ended:
        progress = from_json(job_pb2.JobProgress, record.progress)
        made.percent = rules.percent(progress.bytes_done, progress.bytes_total)
        if progress.HasField("remaining"):
            made.remaining.CopyFrom(progress.remaining)
    return made


def _state(state: str) -> portal_pb2.PortalOperationState.ValueType:
    if state in WELL:
        return portal_pb2.PORTAL_OPERATION_STATE_COMPLETED
    if state == RUNNING:
        return portal_pb2.PORTAL_OPERATION_STATE_RUNNING
    return _FAILURE_STATES.get(state, portal_pb2.PORTAL_OPERATION_STATE_WAITING)
