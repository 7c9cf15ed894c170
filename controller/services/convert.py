"""Our records as messages, and messages as plain values. The only place of the controller's public side that knows both.

Records carry what agents reported as the JSON form of its message; enum values are the lower-case text of the proto's
value without its prefix, "" for unspecified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    access_token_pb2,
    audit_pb2,
    backup_pb2,
    batch_pb2,
    disk_pb2,
    event_pb2,
    failure_pb2,
    hypervisor_pb2,
    job_pb2,
    package_pb2,
    preset_pb2,
    retention_pb2,
    schedule_pb2,
    server_pb2,
    settings_pb2,
    storage_pb2,
    system_log_pb2,
    webhook_pb2,
)
from controller import health as health_records
from controller import totals
from controller.audit_log import AuditEntry
from controller.backups import Backup
from controller.batches import Batch
from controller.deliveries import Delivery
from controller.events import Event
from controller.health import Found, Health
from controller.hypervisors import Domain, Hypervisor
from controller.jobs import Failure, Job, LogEntry
from controller.packages import Package
from controller.rules import capabilities, states
from controller.rules import retention as retention_rules
from controller.rules.access import Lock
from controller.rules.access import Resolved as ResolvedAccess
from controller.rules.presets import Preset
from controller.rules.schedule import Run
from controller.rules.settings import DEFAULTS, Resolved, origins, to_value
from controller.rules.tree import Chain
from controller.schedules import Schedule
from controller.security.tokens import AccessToken
from controller.servers import Server
from controller.settings import Stored
from controller.settings import as_dict as settings_by_name
from controller.storages import Storage
from controller.system_log import LogEntry as SystemLogEntry
from controller.totals import ServerUsage, Total
from controller.webhooks import Webhook

M = TypeVar("M", bound=Message)

STORAGE_CAPABILITIES = {
    kind: storage_pb2.StorageCapabilities(
        incremental=one.incremental, encryption=one.encryption, bind_address=one.bind_address, usage=one.usage
    )
    for kind, one in capabilities.BY_TYPE.items()
}

# ---- scalars -----------------------------------------------------------------------------------------------------------


def time(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    made = Timestamp()
    made.FromDatetime(value)
    return made


def span(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    made = Duration()
    made.FromTimedelta(value)
    return made


def enum_number(kind: EnumDescriptor, word: str) -> Any:
    """Return the number of an enum's value by its word, such as `full` or `shut_off`; "" and unknown words are 0."""
    value = kind.values_by_name.get(f"{_enum_prefix(kind)}{word.upper()}")
    return value.number if value is not None and word else 0


def enum_word(kind: EnumDescriptor, number: int) -> str:
    """Return the word of an enum's value; 0 is ""."""
    return kind.values_by_number[number].name.removeprefix(_enum_prefix(kind)).lower() if number else ""


def _enum_prefix(kind: EnumDescriptor) -> str:
    return kind.values_by_number[0].name.removesuffix("UNSPECIFIED")


def to_json(message: Message) -> dict[str, Any]:
    """Return the JSON form in which records keep a message."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def from_json(kind: type[M], value: Mapping[str, Any] | None) -> M:
    """Return the message of a JSON form. What a newer version added to it is left out."""
    return json_format.ParseDict(dict(value or {}), kind(), ignore_unknown_fields=True)


def _all_from_json(kind: type[M], values: Sequence[Mapping[str, Any]]) -> list[M]:
    return [from_json(kind, one) for one in values]


# ---- records -----------------------------------------------------------------------------------------------------------


def hypervisor(record: Hypervisor) -> hypervisor_pb2.Hypervisor:
    return hypervisor_pb2.Hypervisor(
        hypervisor_id=record.hypervisor_id,
        name=record.name,
        state=enum_number(hypervisor_pb2.HypervisorState.DESCRIPTOR, record.state),
        agent_version=record.agent_version,
        last_contact_time=time(record.last_contact_time),
        create_time=time(record.create_time),
        certificate_expire_time=time(record.certificate_expire_time),
        clock_offset=span(record.clock_offset),
        capabilities=from_json(hypervisor_pb2.HypervisorCapabilities, record.capabilities),
        scratch_free_bytes=record.scratch_free_bytes,
        load=record.load,
    )


def domain(record: Domain) -> hypervisor_pb2.Domain:
    return hypervisor_pb2.Domain(
        domain_uuid=record.domain_uuid,
        name=record.name,
        state=enum_number(hypervisor_pb2.DomainState.DESCRIPTOR, record.state),
        disks=_all_from_json(disk_pb2.Disk, record.disks),
        guest_agent=enum_number(hypervisor_pb2.GuestAgentState.DESCRIPTOR, record.guest_agent),
        server_id=record.server_id,
    )


def server(record: Server, access: ResolvedAccess, now: datetime) -> server_pb2.Server:
    lock = record.lock if record.lock is not None and record.lock.holds(now) else None
    return server_pb2.Server(
        server_id=record.server_id,
        external_id=record.external_id,
        name=record.name,
        hypervisor_id=record.hypervisor_id,
        domain_uuid=record.domain_uuid,
        domain_name=record.domain_name,
        domain_state=enum_number(hypervisor_pb2.DomainState.DESCRIPTOR, record.domain_state),
        disks=_all_from_json(disk_pb2.Disk, record.disks),
        guest_agent=enum_number(hypervisor_pb2.GuestAgentState.DESCRIPTOR, record.guest_agent),
        state=enum_number(server_pb2.ServerState.DESCRIPTOR, record.state),
        busy_job_id=record.busy_job_id,
        create_time=time(record.create_time),
        delete_time=time(record.delete_time),
        last_backup_time=time(record.last_backup_time),
        etag=record.etag,
        package_id=record.package_id,
        access=server_pb2.ServerAccess(
            level=_level(access.level),
            origin=enum_number(server_pb2.AccessOrigin.DESCRIPTOR, access.origin),
            override=_level(record.access_override),
        ),
        commissioned=record.commissioned,
        owner=record.owner,
        owner_time=time(record.owner_time),
        history_time=time(record.history_time),
        lock=None if lock is None else _lock(lock),
        rival_hypervisor_ids=record.rival_hypervisor_ids,
        domain_gone=record.place_state == "gone",
    )


def package(record: Package) -> package_pb2.Package:
    return package_pb2.Package(
        package_id=record.package_id,
        name=record.name,
        default_level=_level(record.default_level),
        server_count=record.server_count,
        create_time=time(record.create_time),
        update_time=time(record.update_time),
        etag=record.etag,
    )


def _lock(record: Lock) -> server_pb2.ServerLock:
    return server_pb2.ServerLock(
        reason=record.reason, lock_time=time(record.lock_time), expire_time=time(record.expire_time)
    )


def _level(word: str) -> Any:
    return enum_number(access_level_pb2.AccessLevel.DESCRIPTOR, word)


def storage(record: Storage, total: Total = totals.NONE, found: Health = health_records.NEVER) -> storage_pb2.Storage:
    """Return a storage with what lies there and how it is."""
    return storage_pb2.Storage(
        storage_id=record.storage_id,
        name=record.name,
        local=from_json(storage_pb2.LocalConfig, record.config) if record.type == "local" else None,
        sftp=from_json(storage_pb2.SftpConfig, record.config) if record.type == "sftp" else None,
        compression=from_json(storage_pb2.Compression, record.compression),
        encryption=storage_pb2.EncryptionStatus(enabled=record.encryption_enabled, key_id=record.key_id),
        limits=from_json(storage_pb2.StorageLimits, record.limits),
        enabled=record.enabled,
        read_only=record.read_only,
        repository_id=record.repository_id,
        retention=policy(record.retention),
        keep_last=record.keep_last,
        delete_hypervisor_id=record.delete_hypervisor_id,
        defaults=defaults(record.defaults),
        secrets=[storage_pb2.SecretStatus(name=one.name, fingerprint=one.fingerprint) for one in record.secrets],
        capabilities=STORAGE_CAPABILITIES[record.type],
        create_time=time(record.create_time),
        update_time=time(record.update_time),
        backup_count=total.backup_count,
        stored_bytes=total.stored_bytes,
        etag=record.etag,
        health=storage_health(found),
        usage=storage_usage(total, found),
        last_backup_time=time(total.last_backup_time),
    )


def storage_health(found: Health) -> storage_pb2.StorageHealth:
    return storage_pb2.StorageHealth(
        state=enum_number(storage_pb2.HealthState.DESCRIPTOR, found.state),
        change_time=time(found.change_time),
        check_time=time(found.check_time),
        hypervisor_id=found.hypervisor_id,
        failure=failure_from_json(found.failure),
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
        measure_time=time(found.measure_time),
        hypervisor_id=found.measure_hypervisor_id,
    )


def storage_check(record: Found) -> storage_pb2.StorageCheck:
    return storage_pb2.StorageCheck(
        hypervisor_id=record.hypervisor_id,
        hypervisor_name=record.hypervisor_name,
        state=enum_number(storage_pb2.HealthState.DESCRIPTOR, record.state or "unknown"),
        check_time=time(record.check_time),
        failure=failure_from_json(record.failure),
        failure_count=record.failure_count,
        latency=span(timedelta(microseconds=record.latency_microseconds)) if record.latency_microseconds else None,
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
        last_backup_time=time(record.last_backup_time),
    )


def failure_from_json(value: Mapping[str, Any] | None) -> failure_pb2.Failure | None:
    return None if value is None else from_json(failure_pb2.Failure, value)


def policy(value: Mapping[str, Any]) -> retention_pb2.RetentionPolicy | None:
    """Return a retention policy with its preset's numbers filled in; None for none."""
    numbers = retention_rules.policy_of(value)
    if numbers is None:
        return None
    return retention_pb2.RetentionPolicy(
        preset=value.get("preset", ""), trim_tails=value.get("trim_tails", False), **asdict(numbers)
    )


def policy_json(message: retention_pb2.RetentionPolicy, field: str = "retention") -> dict[str, Any]:
    """Return a retention policy's JSON form, checked. Raises InvalidField."""
    return retention_rules.checked(to_json(message), field)


# ---- settings ----------------------------------------------------------------------------------------------------------


def settings(record: Stored) -> settings_pb2.Settings:
    values = {name: value for name, value in settings_by_name(record.settings).items() if value is not None}
    return settings_pb2.Settings(**values, update_time=time(record.update_time), etag=record.etag)


def overrides(values: Mapping[str, Any]) -> schedule_pb2.ScheduleOverrides:
    """Return settings by name, as they are kept, as a message."""
    made = schedule_pb2.ScheduleOverrides()
    for name, stored in values.items():
        _set(made, name, to_value(name, stored))
    return made


def defaults(values: Mapping[str, Any]) -> storage_pb2.StorageDefaults:
    made = storage_pb2.StorageDefaults()
    for name, stored in values.items():
        _set(made, name, to_value(name, stored))
    return made


def resolved(record: Resolved) -> schedule_pb2.ResolvedSettings:
    made = schedule_pb2.ResolvedSettings(time_zone=record.time_zone.value)
    for name in DEFAULTS:
        _set(made.values, name, getattr(record, name).value)
    for name, origin in origins(record).items():
        made.sources.add(setting=name, origin=_ORIGINS[origin])
    return made


_ORIGINS: dict[str, Any] = {
    "schedule": schedule_pb2.SETTING_ORIGIN_SCHEDULE,
    "storage": schedule_pb2.SETTING_ORIGIN_STORAGE,
    "default": schedule_pb2.SETTING_ORIGIN_DEFAULT,
}


def _set(message: Any, name: str, value: Any) -> None:
    """Set a field to a setting's value, in a way that shows that it is set."""
    match name:
        case "window":
            message.window.start, message.window.end = f"{value.start:%H:%M}", f"{value.end:%H:%M}"
        case "allowed_days":
            message.allowed_days.SetInParent()
            message.allowed_days.days.extend(sorted(value))
        case "retention":
            message.retention.SetInParent()
            message.retention.MergeFrom(policy(value) or retention_pb2.RetentionPolicy())
        case "consistency" | "io_priority" | "cpu_priority":
            kind = message.DESCRIPTOR.fields_by_name[name].enum_type
            setattr(message, name, enum_number(kind, value))
        case _:
            setattr(message, name, value)


def schedule(record: Schedule) -> schedule_pb2.Schedule:
    return schedule_pb2.Schedule(
        schedule_id=record.schedule_id,
        hypervisor_id=record.hypervisor_id,
        storage_id=record.storage_id,
        enabled=record.enabled,
        default_access=enum_number(access_level_pb2.AccessLevel.DESCRIPTOR, record.default_access),
        time_zone=record.own_time_zone,
        overrides=overrides(record.overrides),
        resolved=resolved(record.resolved),
        due_time=time(record.due_time),
        last_start_time=time(record.last_start_time),
        create_time=time(record.create_time),
        update_time=time(record.update_time),
        delete_time=time(record.delete_time),
        etag=record.etag,
    )


def scheduled_run(record: Run) -> schedule_pb2.ScheduledRun:
    return schedule_pb2.ScheduledRun(
        due_time=time(record.due_time), start_time=time(record.start_time), close_time=time(record.close_time)
    )


def preset(record: Preset) -> preset_pb2.Preset:
    return preset_pb2.Preset(
        name=record.name,
        description=record.description,
        settings=overrides(record.settings),
        compression_level=record.compression_level,
        compression_threads=record.compression_threads,
        cleared=record.cleared,
        left_alone=record.left_alone,
    )


def backup(record: Backup) -> backup_pb2.Backup:
    disks = [
        disk_pb2.DiskBackup(
            disk=one.disk,
            type=enum_number(disk_pb2.BackupType.DESCRIPTOR, one.type),
            chain_id=one.chain_id,
            parent_backup_id=one.parent_backup_id,
            size_bytes=one.size_bytes,
            data_bytes=one.data_bytes,
            stored_bytes=one.stored_bytes,
            sha256=one.sha256,
            fallback_reason=one.fallback_reason,
        )
        for one in record.disks
    ]
    return backup_pb2.Backup(
        backup_id=record.backup_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        job_id=record.job_id,
        create_time=time(record.create_time),
        state=enum_number(backup_pb2.BackupState.DESCRIPTOR, record.state),
        disks=disks,
        skipped_disks=_all_from_json(disk_pb2.SkippedDisk, record.skipped_disks),
        consistency=enum_number(disk_pb2.ConsistencyReached.DESCRIPTOR, record.consistency),
        encrypted=record.encrypted,
        stored_bytes=record.stored_bytes,
        path=record.path,
        domain_name=record.domain_name,
    )


def backup_chain(record: Chain, storage_name: str) -> backup_pb2.BackupChain:
    return backup_pb2.BackupChain(
        disk=record.disk,
        storage_id=record.storage_id,
        storage_name=storage_name,
        chain_id=record.chain_id,
        copies=record.copies,
        current=record.current,
        disk_removed=record.disk_removed,
        backup_count=record.backup_count,
        stored_bytes=record.stored_bytes,
        start_time=time(record.start_time),
        last_time=time(record.last_time),
        records=[
            backup_pb2.ChainRecord(
                backup_id=one.backup_id,
                create_time=time(one.create_time),
                type=enum_number(disk_pb2.BackupType.DESCRIPTOR, one.type),
                state=enum_number(backup_pb2.BackupState.DESCRIPTOR, one.state),
                parent_backup_id=one.parent_backup_id,
                size_bytes=one.size_bytes,
                data_bytes=one.data_bytes,
                stored_bytes=one.stored_bytes,
                fallback_reason=one.fallback_reason,
            )
            for one in record.records
        ],
    )


def job(record: Job) -> job_pb2.Job:
    return job_pb2.Job(
        job_id=record.job_id,
        type=enum_number(job_pb2.JobType.DESCRIPTOR, record.type),
        state=enum_number(job_pb2.JobState.DESCRIPTOR, record.state),
        server_id=record.server_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        backup_id=record.backup_id,
        attempt=record.attempt,
        create_time=time(record.create_time),
        start_time=time(record.start_time),
        end_time=time(record.end_time),
        progress=None if record.progress is None else from_json(job_pb2.JobProgress, record.progress),
        failure=None if record.failure is None else failure(record.failure),
        warnings=record.warnings,
        result=None if record.result is None else from_json(job_pb2.JobResult, record.result),
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
        origin=enum_number(batch_pb2.BatchOrigin.DESCRIPTOR, record.origin),
        origin_batch_id=record.origin_batch_id,
        state=enum_number(batch_pb2.BatchState.DESCRIPTOR, record.state),
        wait=None
        if wait is None
        else batch_pb2.BatchWait(
            reason=wait["reason"], text=wait["text"], since_time=time(datetime.fromisoformat(wait["since"]))
        ),
        due_time=time(record.due_time),
        create_time=time(record.create_time),
        start_time=time(record.start_time),
        accept_time=time(record.accept_time),
        close_time=time(record.close_time),
        end_time=time(record.end_time),
        cancel_requested=record.cancel_time is not None and not record.ended,
        failure=failure_from_json(record.failure),
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


def failure(record: Failure) -> failure_pb2.Failure:
    return failure_pb2.Failure(reason=record.reason, message=record.message, metadata=record.metadata, step=record.step)


def log_entry(record: LogEntry) -> job_pb2.JobLogEntry:
    return job_pb2.JobLogEntry(
        sequence=record.position, time=time(record.time), level=record.level, message=record.message
    )


def event(record: Event) -> event_pb2.Event:
    return event_pb2.Event(
        sequence=record.sequence,
        time=time(record.time),
        kind=record.kind,
        job_id=record.job_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        schedule_id=record.schedule_id,
        batch_id=record.batch_id,
        facts=record.facts,
    )


def system_log_entry(record: SystemLogEntry) -> system_log_pb2.SystemLogEntry:
    return system_log_pb2.SystemLogEntry(
        sequence=record.sequence,
        time=time(record.time),
        level=enum_number(system_log_pb2.LogLevel.DESCRIPTOR, record.level),
        source=enum_number(system_log_pb2.LogSource.DESCRIPTOR, record.source),
        message=record.message,
        schedule_id=record.schedule_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        server_id=record.server_id,
        batch_id=record.batch_id,
        job_id=record.job_id,
    )


def audit_entry(record: AuditEntry) -> audit_pb2.AuditEntry:
    return audit_pb2.AuditEntry(
        sequence=record.sequence,
        time=time(record.time),
        access_token_id=record.access_token_id,
        caller=record.caller,
        method=record.method,
        resource=record.resource,
        made=record.made,
        outcome=record.outcome,
        peer=record.peer,
    )


def webhook(record: Webhook) -> webhook_pb2.Webhook:
    return webhook_pb2.Webhook(
        webhook_id=record.webhook_id,
        name=record.name,
        url=record.url,
        kinds=record.kinds,
        ca_certificate=record.ca_certificate,
        enabled=record.enabled,
        secret_fingerprint=record.secret_fingerprint,
        create_time=time(record.create_time),
        update_time=time(record.update_time),
        success_time=time(record.success_time),
        failure_time=time(record.failure_time),
        failure=record.failure,
        delivered_count=record.delivered_count,
        waiting_count=record.waiting_count,
        dead_count=record.dead_count,
        missed_count=record.missed_count,
        etag=record.etag,
    )


def webhook_delivery(record: Delivery) -> webhook_pb2.WebhookDelivery:
    waiting = record.state == "waiting"
    return webhook_pb2.WebhookDelivery(
        delivery_id=record.delivery_id,
        webhook_id=record.webhook_id,
        sequence=record.sequence,
        kind=record.kind,
        state=enum_number(webhook_pb2.WebhookDeliveryState.DESCRIPTOR, record.state),
        attempts=record.attempts,
        create_time=time(record.create_time),
        attempt_time=time(record.attempt_time),
        due_time=time(record.due_time) if waiting else None,
        failure=record.failure,
    )


def access_token(record: AccessToken) -> access_token_pb2.AccessToken:
    return access_token_pb2.AccessToken(
        access_token_id=record.access_token_id,
        name=record.name,
        scope=enum_number(access_token_pb2.AccessScope.DESCRIPTOR, record.scope),
        server_ids=record.server_ids,
        create_time=time(record.create_time),
        expire_time=time(record.expire_time),
        revoke_time=time(record.revoke_time),
        last_use_time=time(record.last_use_time),
    )
