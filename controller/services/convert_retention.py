"""Retention's and purges' records as messages."""

from collections.abc import Mapping

from clients.gen.backupmanager.v1 import purge_pb2, retention_pb2, retention_service_pb2
from controller.purges import DELETED, Purge
from controller.retention import Applied, Expiration
from controller.rules import retention as rules
from controller.services import convert
from engine.retention import Verdict


def applied(record: Applied) -> retention_pb2.AppliedRetention:
    return retention_pb2.AppliedRetention(
        policy=convert.policy(record.policy),
        keep_last=record.keep_last,
        time_zone=record.time_zone,
        schedule_id=record.schedule_id,
        policy_origin=record.policy_origin,
        keep_last_origin=record.keep_last_origin,
        words=rules.words(record.policy),
    )


def verdict(
    record: Verdict, server_id: str = "", storage_id: str = "", stored_bytes: Mapping[str, int] | None = None
) -> retention_pb2.RetentionVerdict:
    """`server_id` "" stands for imagined backups, which have no ids."""
    return retention_pb2.RetentionVerdict(
        backup_id=record.backup_id if server_id else "",
        server_id=server_id,
        storage_id=storage_id,
        create_time=convert.time(record.create_time),
        reasons=[
            retention_pb2.RetentionReason(rule=one.rule, of=one.of if server_id else "") for one in record.reasons
        ],
        expire_time=convert.time(record.expire_time),
        stored_bytes=(stored_bytes or {}).get(record.backup_id, 0),
        kept=record.kept,
    )


def expiration(record: Expiration) -> retention_service_pb2.Expiration:
    return retention_service_pb2.Expiration(
        backup_id=record.backup_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        create_time=convert.time(record.create_time),
        expire_time=convert.time(record.expire_time),
    )


def purge(record: Purge) -> purge_pb2.Purge:
    return purge_pb2.Purge(
        purge_id=record.purge_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        schedule_id=record.schedule_id,
        state=convert.enum_number(purge_pb2.PurgeState.DESCRIPTOR, record.state),
        needs_deleted_server=record.kind == DELETED,
        due_time=convert.time(record.due_time),
        bound_time=convert.time(record.bound_time),
        failure_count=record.failure_count,
        failure=None if record.failure is None else convert.failure(record.failure),
        retry_time=convert.time(record.retry_time),
        job_ids=record.job_ids,
        requester=record.requester,
        create_time=convert.time(record.create_time),
        end_time=convert.time(record.end_time),
    )
