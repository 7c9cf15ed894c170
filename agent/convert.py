"""Commands of the controller as specs for the engine. With `convert_results.py`, the only place that knows both.

Command(run: BackupWork, …) ──► engine.spec.Operation (secrets and all) + records.Operation (what the journal may keep)
"""

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agent import convert_storages
from agent.errors import CommandUnsupported
from agent.records import Operation, Verb
from agent.shares import Budget
from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import disk_pb2, storage_pb2
from engine import spec
from engine.errors import InvalidSpec
from engine.ids import is_id
from engine.ticket import LIFETIME_SECONDS_MAX, SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from agent.config import Config

T = TypeVar("T")
GRACE_SECONDS = 60.0
WORKERS_DEFAULT, WORKERS_MAX = 4, 64
LEVEL_DEFAULT = 3

_TYPES: dict[int, spec.BackupType] = {
    disk_pb2.BACKUP_TYPE_UNSPECIFIED: "incremental",
    disk_pb2.BACKUP_TYPE_FULL: "full",
    disk_pb2.BACKUP_TYPE_INCREMENTAL: "incremental",
    disk_pb2.BACKUP_TYPE_DIFFERENTIAL: "differential",
    disk_pb2.BACKUP_TYPE_COPY: "copy",
}
_CONSISTENCIES: dict[int, spec.Consistency] = {
    disk_pb2.CONSISTENCY_MODE_UNSPECIFIED: "freeze_or_pause",
    disk_pb2.CONSISTENCY_MODE_FREEZE_OR_PAUSE: "freeze_or_pause",
    disk_pb2.CONSISTENCY_MODE_FREEZE: "freeze",
    disk_pb2.CONSISTENCY_MODE_PAUSE: "pause",
    disk_pb2.CONSISTENCY_MODE_NONE: "none",
}
_FORMATS: dict[int, spec.ImageFormat] = {
    disk_pb2.IMAGE_FORMAT_UNSPECIFIED: "raw",
    disk_pb2.IMAGE_FORMAT_RAW: "raw",
    disk_pb2.IMAGE_FORMAT_QCOW2: "qcow2",
}
_PRIORITIES: dict[int, spec.Priority] = {
    storage_pb2.WORK_PRIORITY_UNSPECIFIED: "normal",
    storage_pb2.WORK_PRIORITY_NORMAL: "normal",
    storage_pb2.WORK_PRIORITY_LOW: "low",
    storage_pb2.WORK_PRIORITY_IDLE: "idle",
}


def seconds_of(duration: "Duration") -> float:
    return duration.seconds + duration.nanos / 1e9


def time_text(timestamp: "Timestamp") -> str:
    """Return a timestamp as ISO 8601 in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC).isoformat()


def time_of(text: str) -> datetime:
    """Return ISO 8601 text as an aware time in UTC. Raises ValueError."""
    return datetime.fromisoformat(text).astimezone(UTC)


def grace_of(cancel: command_pb2.CancelCommand) -> float:
    """Return the seconds from SIGTERM to SIGKILL."""
    return seconds_of(cancel.grace) if cancel.HasField("grace") else GRACE_SECONDS


def budget_of(limits: storage_pb2.StorageLimits) -> Budget:
    """Return what all processes on a storage may use together. Raises InvalidSpec."""
    _expect(0 <= limits.worker_threads <= WORKERS_MAX, "limits.worker_threads", f"must be at most {WORKERS_MAX}")
    _expect(limits.read_bytes_per_second >= 0, "limits.read_bytes_per_second", "must not be negative")
    _expect(limits.bandwidth_bytes_per_second >= 0, "limits.bandwidth_bytes_per_second", "must not be negative")
    return Budget(
        limits.worker_threads or WORKERS_DEFAULT, limits.read_bytes_per_second, limits.bandwidth_bytes_per_second
    )


def to_record(command: command_pb2.Command, *, uptime: float, boot_id: str) -> Operation:
    """Return what the journal keeps of a run command. Raises CommandUnsupported, InvalidSpec."""
    # The job's id becomes a folder's name.
    _expect(is_id(command.job_id), "job_id", "is not an id")
    _expect(command.attempt >= 1, "attempt", "must be at least 1")
    run = command.run
    work = _work(run)
    if run.HasField("batch"):
        _expect(is_id(run.batch.batch_id), "batch.batch_id", "is not an id")
        _expect(_verb(run) == "backup", "batch", "consists of backups")
    budget = budget_of(run.limits)
    return Operation(
        job_id=command.job_id,
        attempt=command.attempt,
        generation=command.generation,
        epoch=command.epoch,
        command_id=command.command_id,
        verb=_verb(run),
        storage_id=run.storage.storage_id,
        server_id=getattr(work, "server_id", ""),
        domain_uuid=getattr(work, "domain_uuid", ""),
        backup_id=getattr(work, "backup_id", ""),
        workers=budget.workers,
        read_limit=budget.read_limit,
        upload_limit=budget.upload_limit,
        receive_uptime=uptime,
        boot_id=boot_id,
        deadline_seconds=seconds_of(command.deadline),
        batch_id=run.batch.batch_id,
        position=run.batch.position,
        concurrency=max(1, run.batch.concurrency),
        job_count=run.batch.job_count,
        during_batch=run.restore.during_batch,
    )


def to_spec(command: command_pb2.Command, config: "Config", host: str, control_file: Path) -> spec.Operation:
    """Return what the engine gets of a run command. Raises CommandUnsupported, InvalidSpec."""
    run = command.run
    budget = budget_of(run.limits)
    return spec.Operation(
        operation_id=command.command_id,
        storage=convert_storages.storage_spec(run.storage, config),
        jobs=(_job(command, config),),
        settings=spec.Settings(
            workers=budget.workers,
            compression_threads=run.compression.threads or 1,
            compression_level=(run.compression.level or LEVEL_DEFAULT) if run.compression.enabled else 0,
            read_limit=budget.read_limit,
            upload_limit=budget.upload_limit,
            io_priority=_known(_PRIORITIES, run.limits.io_priority, "priority"),
            cpu_priority=_known(_PRIORITIES, run.limits.cpu_priority, "priority"),
        ),
        host=host,
        libvirt_uri=config.libvirt_uri,
        catalog_folder=str(config.catalog_folder),
        scratch_folder=str(config.scratch_folder),
        lock_folder=str(config.lock_folder),
        control_file=str(control_file),
        managed=True,
        stop_grace_seconds=int(config.stop_grace_seconds),
    )


# ---- parts --------------------------------------------------------------------------------------------------------------


def _verb(run: command_pb2.RunCommand) -> Verb:
    verb = run.WhichOneof("verb")
    if verb is None:
        raise CommandUnsupported(what="the verb of this command")
    return verb


def _work(run: command_pb2.RunCommand) -> object:
    return getattr(run, _verb(run))


def _job(command: command_pb2.Command, config: "Config") -> spec.Job:
    run, verb = command.run, _verb(command.run)
    return spec.Job(
        job_id=command.job_id,
        attempt=command.attempt,
        backup=_backup(run.backup) if verb == "backup" else None,
        restore=_restore(run.restore) if verb == "restore" else None,
        verify=_verify(run.verify) if verb == "verify" else None,
        reindex=spec.ReindexJob(run.reindex.server_id) if verb == "reindex" else None,
        delete=_delete(run.delete) if verb == "delete" else None,
        test=spec.TestJob() if verb == "test" else None,
        health=spec.HealthJob() if verb == "health" else None,
        ticket=_ticket(command, config) if verb == "ticket" else None,
        bundle=_bundle(run.bundle) if verb == "bundle" else None,
    )


def _backup(work: command_pb2.BackupWork) -> spec.BackupJob:
    return spec.BackupJob(
        server_id=work.server_id,
        domain_uuid=work.domain_uuid,
        backup_id=work.backup_id,
        create_time=time_text(work.create_time),
        type=_known(_TYPES, work.type, "type of backup"),
        consistency=_known(_CONSISTENCIES, work.consistency, "mode of consistency"),
        disks=tuple(work.disks),
        disk_types={disk: _known(_TYPES, kind, "type of backup") for disk, kind in work.disk_types.items()},
        full_interval_days=work.full_interval_days,
        interval_seconds=int(seconds_of(work.interval)),
        server_keys=_keys(work.server_keys),
    )


def _restore(work: command_pb2.RestoreWork) -> spec.RestoreJob:
    return spec.RestoreJob(
        server_id=work.server_id,
        domain_uuid=work.domain_uuid,
        backup_id=work.backup_id,
        disks=tuple(work.disks),
        target_folder=work.target_folder,
        manifest_digest=work.manifest_digest,
        server_keys=_keys(work.server_keys),
        points=dict(work.points),
        targets=dict(work.targets),
        target_format=_known(_FORMATS, work.target_format, "format of images"),
        overwrite=work.overwrite,
    )


def _verify(work: command_pb2.VerifyWork) -> spec.VerifyJob:
    return spec.VerifyJob(work.server_id, work.backup_id, _keys(work.server_keys), work.note_damage)


def _ticket(command: command_pb2.Command, config: "Config") -> spec.TicketJob:
    work = command.run.ticket
    seconds = int(seconds_of(work.lifetime))
    _expect(0 < seconds <= LIFETIME_SECONDS_MAX, "ticket.lifetime", f"must be at most {LIFETIME_SECONDS_MAX} seconds")
    return spec.TicketJob(
        server_id=work.server_id,
        backup_id=work.backup_id,
        path=str(config.tickets_folder / f"{command.job_id}{SUFFIX}"),
        lifetime_seconds=seconds,
        disks=tuple(work.disks),
        manifest_digest=work.manifest_digest,
        server_keys=_keys(work.server_keys),
    )


def _bundle(work: command_pb2.BundleWork) -> spec.BundleJob:
    data = base64.b64encode(work.data).decode()
    return spec.BundleJob(work.bundle_id, work.number, work.count, data, work.keep)


def _delete(work: command_pb2.DeleteWork) -> spec.DeleteJob:
    return spec.DeleteJob(work.server_id, tuple(work.backup_ids), work.domain_uuid)


def _keys(keys: "Iterable[command_pb2.ServerKey]") -> dict[str, str]:
    return {key.key_id: key.key.hex() for key in keys}


def _known(table: dict[int, T], number: int, what: str) -> T:
    """Return the value of an enum's number; a newer controller may send one that we do not know."""
    if number not in table:
        raise CommandUnsupported(what=f"{what} {number}")
    return table[number]


def _expect(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidSpec(field=field, problem=problem)
