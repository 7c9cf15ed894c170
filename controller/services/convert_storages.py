"""Storages, what fills them and how they are, as messages."""

from datetime import timedelta
from typing import Any

from clients.gen.backupmanager.v1 import (
    storage_pb2,
)
from controller import health as health_records
from controller import totals
from controller.health import Found, Health
from controller.rules import capabilities
from controller.services import convert, convert_schedules
from controller.services.storage_checks import types
from controller.storages import Storage
from controller.totals import ServerUsage, Total
from engine.storage.s3_parts import parts_of

STORAGE_CAPABILITIES = {
    kind: storage_pb2.StorageCapabilities(
        **{field.name: getattr(one, field.name) for field in storage_pb2.StorageCapabilities.DESCRIPTOR.fields}
    )
    for kind, one in capabilities.BY_TYPE.items()
}


def storage(
    record: Storage,
    total: Total = totals.NONE,
    found: Health = health_records.NEVER,
    blocked: bool = False,  # the last of `standing.Standing`, which is passed as it is
) -> storage_pb2.Storage:
    """Return a storage with what lies there, how it is, and whether deletes there are blocked."""
    # The field of a config is named by the type.
    config: dict[str, Any] = {record.type: convert.from_json(types.BY_TYPE[record.type].message, record.config)}
    return storage_pb2.Storage(
        storage_id=record.storage_id,
        name=record.name,
        compression=convert.from_json(storage_pb2.Compression, record.compression),
        encryption=storage_pb2.EncryptionStatus(enabled=record.encryption_enabled, key_id=record.key_id),
        limits=convert.from_json(storage_pb2.StorageLimits, record.limits),
        enabled=record.enabled,
        read_only=record.read_only,
        repository_id=record.repository_id,
        retention=convert.policy(record.retention),
        keep_last=record.keep_last,
        delete_hypervisor_id=record.delete_hypervisor_id,
        defaults=convert_schedules.defaults(record.defaults),
        secrets=[storage_pb2.SecretStatus(name=one.name, fingerprint=one.fingerprint) for one in record.secrets],
        capabilities=STORAGE_CAPABILITIES[record.type],
        create_time=convert.time(record.create_time),
        update_time=convert.time(record.update_time),
        backup_count=total.backup_count,
        stored_bytes=total.stored_bytes,
        etag=record.etag,
        health=storage_health(found),
        usage=storage_usage(total, found),
        last_backup_time=convert.time(total.last_backup_time),
        upload_memory=_upload_memory(record),
        deletes_blocked=blocked,
        **config,
    )


def _upload_memory(record: Storage) -> storage_pb2.UploadMemory | None:
    """Return what an upload's parts in flight cost (S6), by the engine's own rule; None for types that have no parts."""
    if record.type != "s3":  # the only type whose uploads are cut into parts that wait in memory
        return None
    size, concurrency = int(record.config.get("part_size_bytes", 0)), int(record.config["concurrency"])
    parts = parts_of(0, size, concurrency)
    return storage_pb2.UploadMemory(
        part_size_bytes=parts.size_bytes, parts_in_flight=parts.in_flight, memory_bytes=parts.memory_bytes
    )


def storage_health(found: Health) -> storage_pb2.StorageHealth:
    return storage_pb2.StorageHealth(
        state=convert.enum_number(storage_pb2.HealthState.DESCRIPTOR, found.state),
        change_time=convert.time(found.change_time),
        check_time=convert.time(found.check_time),
        hypervisor_id=found.hypervisor_id,
        failure=convert.failure_from_json(found.failure),
        detail=found.detail,
        healthy_count=found.healthy_count,
        unhealthy_count=found.unhealthy_count,
    )


def storage_usage(total: Total, found: Health) -> storage_pb2.StorageUsage:
    """Return what fills a storage; what others take is what is neither free nor ours."""
    used = found.total_bytes - found.free_bytes
    return storage_pb2.StorageUsage(
        total_bytes=found.total_bytes,
        free_bytes=found.free_bytes,
        backup_bytes=total.stored_bytes,
        other_bytes=max(0, used - total.stored_bytes) if found.total_bytes else 0,
        server_count=total.server_count,
        measure_time=convert.time(found.measure_time),
        hypervisor_id=found.measure_hypervisor_id,
    )


def storage_check(record: Found) -> storage_pb2.StorageCheck:
    return storage_pb2.StorageCheck(
        hypervisor_id=record.hypervisor_id,
        hypervisor_name=record.hypervisor_name,
        state=convert.enum_number(storage_pb2.HealthState.DESCRIPTOR, record.state or "unknown"),
        check_time=convert.time(record.check_time),
        failure=convert.failure_from_json(record.failure),
        failure_count=record.failure_count,
        latency=convert.span(timedelta(microseconds=record.latency_microseconds))
        if record.latency_microseconds
        else None,
        total_bytes=record.total_bytes,
        free_bytes=record.free_bytes,
        job_id=record.job_id,
    )


def server_usage(record: ServerUsage) -> storage_pb2.ServerUsage:
    return storage_pb2.ServerUsage(
        server_id=record.server_id,
        server_name=record.server_name,
        backup_count=record.backup_count,
        stored_bytes=record.stored_bytes,
        last_backup_time=convert.time(record.last_backup_time),
    )
