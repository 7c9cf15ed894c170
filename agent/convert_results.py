"""What the engine said, as messages to the controller: events, results, progress, log lines, domains.

A message never exceeds 1 MiB (N9): long lists are cut to what the contract promises, long sentences to a line's length, and
where the whole is still too large, details go before facts.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent.convert import time_of
from agent.records import Operation
from agent.telemetry import LogLine, Progress
from clients.gen.backupmanager.agent.v1 import event_pb2
from clients.gen.backupmanager.v1 import backup_pb2, disk_pb2, failure_pb2, hypervisor_pb2, job_pb2
from engine import results
from engine.errors import BackupManagerError, InvalidSpec
from engine.spec import from_json
from engine.units import KIB

if TYPE_CHECKING:  # libvirt is imported by the inventory's thread alone
    from engine.hypervisor.domains import DomainInfo

BODY_BYTES_MAX = 900 * KIB  # of one event: with its batch's own fields it stays below 1 MiB
RECORDS_MAX = 200
DAMAGED_MAX = 1000
HINTS_MAX = 20
UNREADABLE_MAX = 100
WARNINGS_MAX = 100
TEXT_MAX = 4096
DETAIL_MAX = 500

FinishedState: TypeAlias = Literal["completed", "completed_with_warnings", "failed", "cancelled"]
STATES: dict[str, "job_pb2.JobState.ValueType"] = {
    "completed": job_pb2.JOB_STATE_COMPLETED,
    "completed_with_warnings": job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS,
    "failed": job_pb2.JOB_STATE_FAILED,
    "cancelled": job_pb2.JOB_STATE_CANCELLED,
}
_TYPES: dict[str, "disk_pb2.BackupType.ValueType"] = {
    "full": disk_pb2.BACKUP_TYPE_FULL,
    "incremental": disk_pb2.BACKUP_TYPE_INCREMENTAL,
    "differential": disk_pb2.BACKUP_TYPE_DIFFERENTIAL,
    "copy": disk_pb2.BACKUP_TYPE_COPY,
}
_REACHED: dict[str, "disk_pb2.ConsistencyReached.ValueType"] = {
    "frozen": disk_pb2.CONSISTENCY_REACHED_FROZEN,
    "paused": disk_pb2.CONSISTENCY_REACHED_PAUSED,
    "crash": disk_pb2.CONSISTENCY_REACHED_CRASH,
    "offline": disk_pb2.CONSISTENCY_REACHED_OFFLINE,
}
_DOMAIN_STATES: dict[str, "hypervisor_pb2.DomainState.ValueType"] = {
    "running": hypervisor_pb2.DOMAIN_STATE_RUNNING,
    "stopping": hypervisor_pb2.DOMAIN_STATE_RUNNING,
    "paused": hypervisor_pb2.DOMAIN_STATE_PAUSED,
    "stopped": hypervisor_pb2.DOMAIN_STATE_SHUT_OFF,
}
_GUEST_AGENTS: dict[str, "hypervisor_pb2.GuestAgentState.ValueType"] = {
    "absent": hypervisor_pb2.GUEST_AGENT_STATE_ABSENT,
    "configured": hypervisor_pb2.GUEST_AGENT_STATE_DISCONNECTED,
    "connected": hypervisor_pb2.GUEST_AGENT_STATE_CONNECTED,
}


def stamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def span(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def cut(text: str, limit: int = TEXT_MAX) -> str:
    """Return a text of at most `limit` characters, with a mark where it was cut, fit for UTF-8."""
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair would make a message unsendable
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ---- events ------------------------------------------------------------------------------------------------------------


def event(operation: Operation, now: datetime) -> event_pb2.Event:
    """Return an event of an operation with nothing in it yet; its sequence is the outbox's business."""
    return event_pb2.Event(
        job_id=operation.job_id,
        attempt=operation.attempt,
        generation=operation.generation,
        epoch=operation.epoch,
        time=stamp(now),
    )


def accepted(operation: Operation, now: datetime) -> bytes:
    message = event(operation, now)
    message.accepted.SetInParent()
    return message.SerializeToString()


def rejected(message: event_pb2.Event, error: BackupManagerError) -> bytes:
    """Return the body of a refusal; `message` carries whose it is."""
    message.rejected.failure.CopyFrom(failure(error))
    return message.SerializeToString()


def failure(error: BackupManagerError, step: str = "") -> failure_pb2.Failure:
    facts = {name: cut(value, DETAIL_MAX) for name, value in error.facts.items()}
    return failure_pb2.Failure(reason=error.reason, message=cut(error.message), metadata=facts, step=step)


def ended_badly(
    operation: Operation, now: datetime, state: FinishedState, error: BackupManagerError, warnings: list[str]
) -> bytes:
    """Return the body of an end that the engine did not tell by itself."""
    message = event(operation, now)
    message.finished.state = STATES[state]
    message.finished.failure.CopyFrom(failure(error))
    message.finished.warnings.extend(cut(one) for one in warnings[:WARNINGS_MAX])
    return message.SerializeToString()


def finished(operation: Operation, now: datetime, line: dict[str, Any], more_warnings: list[str]) -> bytes:
    """Return the body of an end that the engine told in its `finished` line. Raises InvalidSpec when that makes no sense."""
    message = event(operation, now)
    end = message.finished
    state = line.get("state")
    if state not in STATES:
        raise InvalidSpec(field="finished.state", problem="is not a state")
    end.state = STATES[state]
    if line.get("failure") is not None:
        end.failure.CopyFrom(_failure(line["failure"]))
    warnings = from_json(tuple[str, ...], line.get("warnings") or [], "finished.warnings")
    end.warnings.extend(cut(one) for one in (*warnings, *more_warnings)[:WARNINGS_MAX])
    if line.get("result") is not None:
        _add_result(end, operation, line["result"])
    if message.ByteSize() > BODY_BYTES_MAX:
        _shrink(end)
    return message.SerializeToString()


def _shrink(end: event_pb2.OperationFinished) -> None:
    """Drop what explains before what counts, until the whole fits a message."""
    # Touching a member of a oneof that is not set would set it, and clear the other.
    if end.result.HasField("verify"):
        del end.result.verify.damaged[DAMAGED_MAX // 10 :]
    if end.result.HasField("reindex"):
        del end.result.reindex.unreadable[UNREADABLE_MAX // 10 :]
    del end.warnings[WARNINGS_MAX // 10 :]
    end.warnings.append("This report was too long; some details were left out")
    if end.ByteSize() > BODY_BYTES_MAX:
        end.ClearField("result")  # what is on the storage can be read from there


# ---- results -----------------------------------------------------------------------------------------------------------


def _add_result(end: event_pb2.OperationFinished, operation: Operation, data: Any) -> None:
    match operation.verb:
        case "backup":
            backup: results.BackupResult = from_json(results.BackupResult, data, "result")
            end.result.backup.CopyFrom(_backup_result(backup))
            end.record.CopyFrom(_backup_record(operation.server_id, operation.job_id, backup, ()))
            end.record.backup.storage_id = operation.storage_id
        case "restore":
            restore: results.RestoreResult = from_json(results.RestoreResult, data, "result")
            end.result.restore.disks.extend(restore.disks)
            end.result.restore.bytes_written = restore.bytes_written
            end.result.restore.server_started = restore.server_started
            end.result.restore.files.extend(restore.files)
        case "verify":
            verify: results.VerifyResult = from_json(results.VerifyResult, data, "result")
            end.result.verify.CopyFrom(_verify_result(verify))
        case "delete":
            delete: results.DeleteResult = from_json(results.DeleteResult, data, "result")
            end.result.delete.backup_ids.extend(delete.backup_ids)
            end.result.delete.freed_bytes = delete.freed_bytes
        case "reindex":
            reindex: results.ReindexResult = from_json(results.ReindexResult, data, "result")
            end.result.reindex.backup_count = reindex.backup_count
            end.result.reindex.unreadable.extend(cut(one, DETAIL_MAX) for one in reindex.unreadable[:UNREADABLE_MAX])
        case "test":
            test: results.TestResult = from_json(results.TestResult, data, "result")
            end.result.test.CopyFrom(_test_result(test))
        case "health":
            health: results.HealthResult = from_json(results.HealthResult, data, "result")
            end.result.health.CopyFrom(_health_result(health))
        case "ticket":
            ticket: results.TicketResult = from_json(results.TicketResult, data, "result")
            end.result.ticket.CopyFrom(_ticket_result(ticket))
        case "bundle":
            part: results.BundleResult = from_json(results.BundleResult, data, "result")
            end.result.bundle.CopyFrom(
                job_pb2.BundleResult(name=part.name, stored_bytes=part.stored_bytes, removed_count=part.removed_count)
            )


def _backup_result(result: results.BackupResult) -> job_pb2.BackupResult:
    return job_pb2.BackupResult(
        backup_id=result.backup_id,
        disks=[_disk(disk) for disk in result.disks],
        skipped_disks=[_skipped(disk) for disk in result.skipped],
        consistency=_REACHED.get(result.consistency, disk_pb2.CONSISTENCY_REACHED_UNSPECIFIED),
        quiesce_duration=span(result.quiesce_seconds),
    )


def _disk(disk: results.DiskResult) -> disk_pb2.DiskBackup:
    return disk_pb2.DiskBackup(
        disk=disk.disk,
        type=_TYPES.get(disk.type, disk_pb2.BACKUP_TYPE_UNSPECIFIED),
        chain_id=disk.chain_id,
        parent_backup_id=disk.parent_backup_id,
        size_bytes=disk.size_bytes,
        data_bytes=disk.data_bytes,
        stored_bytes=disk.stored_bytes,
        sha256=disk.sha256,
        fallback_reason=cut(disk.fallback_reason, DETAIL_MAX),
    )


def _skipped(disk: results.SkippedResult) -> disk_pb2.SkippedDisk:
    detail = cut(disk.detail, DETAIL_MAX)
    return disk_pb2.SkippedDisk(
        disk=disk.disk,
        failure=failure_pb2.Failure(reason=disk.reason, message=detail, metadata={"disk": disk.disk, "detail": detail}),
    )


def _verify_result(result: results.VerifyResult) -> job_pb2.VerifyResult:
    return job_pb2.VerifyResult(
        frames=result.frames,
        stored_bytes=result.stored_bytes,
        damaged_count=result.damaged_count,
        damaged=[
            job_pb2.DamagedFrame(
                backup_id=one.backup_id,
                disk=one.disk,
                object_name=one.object_name,
                frame=one.frame,
                start=one.start,
                end=one.end,
                detail=cut(one.detail, DETAIL_MAX),
            )
            for one in result.damaged[:DAMAGED_MAX]
        ],
    )


def _test_result(result: results.TestResult) -> job_pb2.StorageTestResult:
    return job_pb2.StorageTestResult(
        steps=[
            job_pb2.StorageTestStep(
                name=step.name,
                duration=span(step.seconds),
                bytes_per_second=step.bytes_per_second,
                failed=step.failed,
            )
            for step in result.steps
        ],
        host_key=result.host_key,
        pending_steps=result.pending,
        hints=[cut(one, DETAIL_MAX) for one in result.hints[:HINTS_MAX]],
    )


def _ticket_result(result: results.TicketResult) -> job_pb2.TicketResult:
    try:
        expire_time = time_of(result.expire_time)
    except ValueError as error:
        raise InvalidSpec(field="result.expire_time", problem="is not a time") from error
    return job_pb2.TicketResult(
        path=result.path, expire_time=stamp(expire_time), command=result.command, disks=result.disks
    )


def _health_result(result: results.HealthResult) -> job_pb2.HealthResult:
    made = job_pb2.HealthResult(latency=span(result.latency_seconds), initialized=result.initialized)
    if result.total_bytes > 0:
        made.room.total_bytes, made.room.free_bytes = result.total_bytes, result.free_bytes
    return made


def _failure(data: Any) -> failure_pb2.Failure:
    if not isinstance(data, dict):
        raise InvalidSpec(field="finished.failure", problem="must be an object")
    facts = data.get("facts") or {}
    return failure_pb2.Failure(
        reason=str(data.get("reason", "")),
        message=cut(str(data.get("message", ""))),
        metadata={str(name): cut(str(value), DETAIL_MAX) for name, value in facts.items()},
        step=str(data.get("step") or ""),
    )


# ---- records of backups ------------------------------------------------------------------------------------------------


def found_record(data: Any, storage_id: str) -> event_pb2.BackupRecord:
    """Return a `record` line's backup. Raises InvalidSpec."""
    found: results.BackupRecord = from_json(results.BackupRecord, data, "record")
    record = _backup_record(
        found.server_id, found.job_id, found.backup, {*found.unreadable_disks, *found.damaged_disks}
    )
    record.backup.storage_id = storage_id
    return record


def record_batches(operation: Operation, now: datetime, records: Iterable[event_pb2.BackupRecord]) -> list[bytes]:
    """Return the bodies of as many events as the records need, each within the limits of a message."""
    bodies: list[bytes] = []
    batch: list[event_pb2.BackupRecord] = []
    room = BODY_BYTES_MAX

    def close_batch() -> None:
        message = event(operation, now)
        message.records.backups.extend(batch)
        bodies.append(message.SerializeToString())

    for record in records:
        size = record.ByteSize()
        if batch and (size > room or len(batch) == RECORDS_MAX):
            close_batch()
            batch, room = [], BODY_BYTES_MAX
        batch.append(record)
        room -= size
    if batch:
        close_batch()
    return bodies


def _backup_record(
    server_id: str, job_id: str, backup: results.BackupResult, unreadable_disks: Iterable[str]
) -> event_pb2.BackupRecord:
    try:
        create_time = stamp(time_of(backup.create_time))
    except ValueError as error:
        raise InvalidSpec(field="result.create_time", problem="is not a time") from error
    return event_pb2.BackupRecord(
        backup=backup_pb2.Backup(
            backup_id=backup.backup_id,
            server_id=server_id,
            job_id=job_id,
            create_time=create_time,
            state=backup_pb2.BACKUP_STATE_AVAILABLE,
            disks=[_disk(disk) for disk in backup.disks],
            skipped_disks=[_skipped(disk) for disk in backup.skipped],
            consistency=_REACHED.get(backup.consistency, disk_pb2.CONSISTENCY_REACHED_UNSPECIFIED),
            encrypted=backup.encrypted,
            stored_bytes=sum(disk.stored_bytes for disk in backup.disks),
            path=backup.path,
            domain_name=backup.domain_name,
        ),
        manifest_digest=backup.manifest_digest,
        domain_uuid=backup.domain_uuid,
        needed_backup_ids=backup.needed_backup_ids,
        unreadable_disks=unreadable_disks,
    )


# ---- progress, log, domains ----------------------------------------------------------------------------------------------


def progress_report(progress: Progress) -> event_pb2.ProgressReport:
    remaining = None
    if progress.bytes_per_second > 0 and progress.bytes_total > progress.bytes_done:
        remaining = span((progress.bytes_total - progress.bytes_done) / progress.bytes_per_second)
    return event_pb2.ProgressReport(
        job_id=progress.job_id,
        attempt=progress.attempt,
        progress=job_pb2.JobProgress(
            stage=progress.stage,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_stored=progress.bytes_stored,
            bytes_per_second=progress.bytes_per_second,
            remaining=remaining,
            report_time=stamp(progress.time),
        ),
    )


def log_batch(lines: Iterable[LogLine]) -> event_pb2.LogBatch:
    return event_pb2.LogBatch(
        lines=[
            event_pb2.JobLogLine(
                job_id=line.job_id,
                attempt=line.attempt,
                entry=job_pb2.JobLogEntry(
                    sequence=line.sequence, time=stamp(line.time), level=line.level, message=line.message
                ),
            )
            for line in lines
        ]
    )


def domain(info: "DomainInfo") -> hypervisor_pb2.Domain:
    """Return a domain as the inventory reports it."""
    return hypervisor_pb2.Domain(
        domain_uuid=info.uuid,
        name=cut(info.name, DETAIL_MAX),
        state=_domain_state(info),
        guest_agent=_GUEST_AGENTS[info.guest_agent],
        disks=[
            disk_pb2.Disk(
                disk=disk.target,
                format=disk.format,
                size_bytes=disk.size_bytes,
                path=cut(disk.path),
                unsupported_reason=cut(disk.unsupported, DETAIL_MAX),
            )
            for disk in info.disks
        ],
    )


def _domain_state(info: "DomainInfo") -> "hypervisor_pb2.DomainState.ValueType":
    if info.migrating:
        return hypervisor_pb2.DOMAIN_STATE_MIGRATING
    return _DOMAIN_STATES.get(info.state, hypervisor_pb2.DOMAIN_STATE_OTHER)


def inventory_parts(domains: "Iterable[DomainInfo]", version: int) -> list[event_pb2.InventoryReport]:
    """Return an inventory as messages within the limit; an empty host is one empty part."""
    parts = [event_pb2.InventoryReport(version=version)]
    room = BODY_BYTES_MAX
    for info in domains:
        message = domain(info)
        size = message.ByteSize()
        if size > room and parts[-1].domains:
            parts.append(event_pb2.InventoryReport(version=version))
            room = BODY_BYTES_MAX
        parts[-1].domains.append(message)
        room -= size
    for number, part in enumerate(parts):
        part.part, part.part_count = number, len(parts)
    return parts
