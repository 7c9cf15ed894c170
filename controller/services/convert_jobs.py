"""Jobs, their log and batches as messages."""

from collections.abc import Mapping
from datetime import datetime

from clients.gen.backupmanager.v1 import (
    batch_pb2,
    job_pb2,
)
from controller.batches import Batch
from controller.jobs import Job, LogEntry
from controller.rules import states
from controller.services import convert


def job(record: Job) -> job_pb2.Job:
    return job_pb2.Job(
        job_id=record.job_id,
        type=convert.enum_number(job_pb2.JobType.DESCRIPTOR, record.type),
        state=convert.enum_number(job_pb2.JobState.DESCRIPTOR, record.state),
        server_id=record.server_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        backup_id=record.backup_id,
        attempt=record.attempt,
        create_time=convert.time(record.create_time),
        start_time=convert.time(record.start_time),
        end_time=convert.time(record.end_time),
        progress=None if record.progress is None else convert.from_json(job_pb2.JobProgress, record.progress),
        failure=None if record.failure is None else convert.failure(record.failure),
        warnings=record.warnings,
        result=None if record.result is None else convert.from_json(job_pb2.JobResult, record.result),
        cancel_requested=record.cancel_requested,
        requester=record.requester,
        version=record.version,
        batch_id=record.batch_id,
    )


def batch(record: Batch, counts: Mapping[str, int]) -> batch_pb2.Batch:
    wait = record.wait
    return batch_pb2.Batch(
        batch_id=record.batch_id,
        schedule_id=record.schedule_id,
        hypervisor_id=record.hypervisor_id,
        storage_id=record.storage_id,
        origin=convert.enum_number(batch_pb2.BatchOrigin.DESCRIPTOR, record.origin),
        origin_batch_id=record.origin_batch_id,
        state=convert.enum_number(batch_pb2.BatchState.DESCRIPTOR, record.state),
        wait=None
        if wait is None
        else batch_pb2.BatchWait(
            reason=wait["reason"], text=wait["text"], since_time=convert.time(datetime.fromisoformat(wait["since"]))
        ),
        due_time=convert.time(record.due_time),
        create_time=convert.time(record.create_time),
        start_time=convert.time(record.start_time),
        accept_time=convert.time(record.accept_time),
        close_time=convert.time(record.close_time),
        end_time=convert.time(record.end_time),
        cancel_requested=record.cancel_time is not None and not record.ended,
        failure=convert.failure_from_json(record.failure),
        counts=batch_pb2.BatchCounts(
            servers=sum(counts.values()),
            pending=counts.get(states.PENDING, 0) + counts.get(states.DISPATCHED, 0),
            running=counts.get(states.RUNNING, 0),
            completed=sum(counts.get(state, 0) for state in states.WELL),
            failed=counts.get(states.FAILED, 0),
            cancelled=counts.get(states.CANCELLED, 0),
            skipped=counts.get(states.SKIPPED, 0),
        ),
        requester=record.requester,
    )


def log_entry(record: LogEntry) -> job_pb2.JobLogEntry:
    return job_pb2.JobLogEntry(
        sequence=record.position, time=convert.time(record.time), level=record.level, message=record.message
    )
