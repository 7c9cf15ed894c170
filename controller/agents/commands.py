"""Commands as agents get them: made from the job at the moment of sending, with secrets opened for that one message (N16).

An agent gets the credentials of the storage that the job is on and the keys of the server that it is for, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import disk_pb2
from controller import batches, bundles, installation, probes, schedules, storages
from controller import settings as chosen
from controller.agents.outbox import Pending
from controller.batches import Batch
from controller.db import secrets
from controller.db.secrets import Vault
from controller.jobs import Job
from controller.limits import CANCEL_GRACE, Limits
from controller.rules import capabilities, states, storage_types
from controller.rules.settings import Resolved, limits_json
from controller.storages import Storage
from engine.format.crypto import StorageKey

_DEADLINE_MIN = timedelta(seconds=1)


def build(pending: Pending, job: Job, vault: Vault, limits: Limits, now: datetime) -> command_pb2.Command:
    """Return the message of one command; see `Maker`."""
    return Maker(vault, limits, now).build(pending, job)


@dataclass(frozen=True, slots=True)
class _Place:
    """What all commands of one hypervisor for one storage have in common, secrets opened."""

    common: command_pb2.RunCommand = field(repr=False)
    keys: list[StorageKey] = field(repr=False)


class Maker:
    """Makes the messages of one hypervisor's commands, all in one transaction: what they have in common is read and opened once.

    It holds secrets: make it, use it, forget it.
    """

    def __init__(self, vault: Vault, limits: Limits, now: datetime) -> None:
        self._vault = vault
        self._limits = limits
        self._now = now
        self._places: dict[tuple[str, str], _Place] = {}
        self._batches: dict[str, tuple[Batch, int]] = {}

    def build(self, pending: Pending, job: Job) -> command_pb2.Command:
        """Return the message of a command. Raises StorageNotFound, BoxDamaged; holds secrets: send it and forget it."""
        command = _stamped(pending)
        if pending.kind == "cancel":
            command.cancel.grace.CopyFrom(_span(CANCEL_GRACE))
            return command
        if pending.kind == "revoke_ticket":
            command.revoke_ticket.SetInParent()
            return command
        batch, job_count = self._batch(job.batch_id) if job.batch_id else (None, 0)
        until = _begin_until(pending, job, batch, self._limits)
        command.deadline.CopyFrom(_span(max(until - self._now, _DEADLINE_MIN)))
        place = self._place(job)
        command.run.CopyFrom(place.common)
        self._go_elsewhere(command.run.storage, job)
        _WORK[job.type](command.run, job, _server_keys(place.keys, job.server_id))
        if batch is not None:
            _add_batch(command.run, job, batch, job_count)
        return command

    def _place(self, job: Job) -> _Place:
        key = job.storage_id, job.hypervisor_id
        if key not in self._places:
            self._places[key] = _place(*key, self._vault)
        return self._places[key]

    def _go_elsewhere(self, access: command_pb2.StorageAccess, job: Job) -> None:
        """Send a probe to the place that it is to look at; the repository has to be there."""
        probed = probes.place_of(job)
        if probed is not None:
            kind = storages.find(job.storage_id).type
            access.ClearField(kind)  # type: ignore[arg-type]  # the field of a config has the type's name
            _set_place(access, kind, probed, probes.secrets_for(job, self._vault))
            access.repository_expected = True

    def _batch(self, batch_id: str) -> tuple[Batch, int]:
        """Return a batch, and how many of its jobs are with the agent."""
        if batch_id not in self._batches:
            found = batches.counts([batch_id])[batch_id]
            self._batches[batch_id] = batches.get(batch_id), sum(found.get(state, 0) for state in states.SENT)
        return self._batches[batch_id]


def _stamped(pending: Pending) -> command_pb2.Command:
    return command_pb2.Command(
        command_id=pending.command_id,
        job_id=pending.stamp.job_id,
        attempt=pending.stamp.attempt,
        generation=pending.stamp.generation,
        epoch=pending.stamp.epoch,
    )


def _place(storage_id: str, hypervisor_id: str, vault: Vault) -> _Place:
    storage = storages.find(storage_id)
    settings = schedules.resolve(storage, hypervisor_id)
    run = command_pb2.RunCommand()
    run.storage.CopyFrom(_access(storage, settings))
    _set_place(run.storage, storage.type, storage.config, secrets.open_all(vault, storages.TABLE, storage_id))
    if capabilities.BY_TYPE[storage.type].bind_address:
        getattr(run.storage, storage.type).bind_address = settings.bind_address.value
    run.storage.repository_expected = storages.has_been_used(storage, hypervisor_id)
    json_format.ParseDict(limits_json(settings), run.limits)
    json_format.ParseDict(storage.compression, run.compression)
    return _Place(run, storages.open_keys(storage_id, vault))


def _begin_until(pending: Pending, job: Job, batch: Batch | None, limits: Limits) -> datetime:
    """Return when a job must have begun: a single soon, a batch's before the window closes and the batch is stale (D14, X7)."""
    if batch is None:
        patience = chosen.get().single_job_time_max if job.spec.get("during_batch") else limits.accept_time_max
        return pending.create_time + patience
    stale = (batch.start_time or batch.create_time) + timedelta(seconds=batch.spec["time_max_seconds"])
    return min(stale, batch.close_time) if batch.close_time is not None else stale


def _add_batch(run: command_pb2.RunCommand, job: Job, batch: Batch, job_count: int) -> None:
    """Say which batch the job is of, and where in it."""
    run.batch.CopyFrom(
        command_pb2.BatchMembership(
            batch_id=batch.batch_id,
            position=job.spec["position"],
            concurrency=batch.spec["concurrency"],
            job_count=job_count,
        )
    )
    run.backup.interval.CopyFrom(_span(timedelta(seconds=batch.spec["interval_seconds"])))


def _access(storage: Storage, settings: Resolved) -> command_pb2.StorageAccess:
    return command_pb2.StorageAccess(
        storage_id=storage.storage_id,
        repository_id=storage.repository_id,
        installation_id=installation.get().installation_id,
        wrapped_keys=storages.wrapped_keys(storage.storage_id),
        key_id=storage.key_id if settings.encryption.value else "",
    )


def _set_place(
    access: command_pb2.StorageAccess, kind: str, place: Mapping[str, Any], opened: Mapping[str, str]
) -> None:
    """Say where backups lie and what opens it; the access names configs and secrets as the storage does."""
    config = getattr(access, kind)
    config.SetInParent()
    json_format.ParseDict(dict(place), config, ignore_unknown_fields=True)
    for name in storage_types.BY_TYPE[kind].secrets:
        setattr(access, name, opened.get(name, ""))


def _server_keys(keys: Sequence[StorageKey], server_id: str) -> list[command_pb2.ServerKey]:
    """Return the server's key under each key of the storage: older backups may be sealed with an older one."""
    if not server_id:
        return []
    derived = (key.server_key(server_id) for key in keys)
    return [command_pb2.ServerKey(key_id=one.key_id, key=one.secret) for one in derived]


def _backup(run: command_pb2.RunCommand, job: Job, keys: list[command_pb2.ServerKey]) -> None:
    time = Timestamp()
    time.FromDatetime(job.create_time)
    work = command_pb2.BackupWork(
        server_id=job.server_id,
        domain_uuid=job.spec["domain_uuid"],
        backup_id=job.backup_id,
        create_time=time,
        disks=job.spec["disks"],
        full_interval_days=job.spec["full_interval_days"],
        server_keys=keys,
    )
    work.type = _backup_type(job.spec["type"])
    for disk, kind in job.spec.get("disk_types", {}).items():
        work.disk_types[disk] = _backup_type(kind)
    if seconds := job.spec.get("interval_seconds"):
        work.interval.CopyFrom(_span(timedelta(seconds=seconds)))
    work.consistency = disk_pb2.ConsistencyMode.Value(f"CONSISTENCY_MODE_{job.spec['consistency'].upper()}")
    run.backup.CopyFrom(work)


def _backup_type(word: str) -> "disk_pb2.BackupType.ValueType":
    return disk_pb2.BackupType.Value(f"BACKUP_TYPE_{word.upper()}")


def _restore(run: command_pb2.RunCommand, job: Job, keys: list[command_pb2.ServerKey]) -> None:
    run.restore.CopyFrom(
        command_pb2.RestoreWork(
            server_id=job.server_id,
            domain_uuid=job.spec["domain_uuid"],
            backup_id=job.backup_id,
            disks=job.spec["disks"],
            target_folder=job.spec["target_folder"],
            manifest_digest=job.spec["manifest_digest"],
            during_batch=bool(job.spec.get("during_batch")),
            server_keys=keys,
            points=job.spec.get("points"),
            targets=job.spec.get("targets"),
            target_format=disk_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{job.spec.get('target_format', 'raw').upper()}"),
            overwrite=bool(job.spec.get("overwrite")),
        )
    )


def _verify(run: command_pb2.RunCommand, job: Job, keys: list[command_pb2.ServerKey]) -> None:
    note_damage = not storages.find(job.storage_id).read_only
    work = command_pb2.VerifyWork(
        server_id=job.server_id, backup_id=job.backup_id, server_keys=keys, note_damage=note_damage
    )
    run.verify.CopyFrom(work)


def _delete(run: command_pb2.RunCommand, job: Job, _keys: list[command_pb2.ServerKey]) -> None:
    run.delete.CopyFrom(
        command_pb2.DeleteWork(
            server_id=job.server_id, backup_ids=job.spec["backup_ids"], domain_uuid=job.spec["domain_uuid"]
        )
    )


def _reindex(run: command_pb2.RunCommand, job: Job, _keys: list[command_pb2.ServerKey]) -> None:
    run.reindex.CopyFrom(command_pb2.ReindexWork(server_id=job.server_id))


def _test(run: command_pb2.RunCommand, _job: Job, _keys: list[command_pb2.ServerKey]) -> None:
    run.test.CopyFrom(command_pb2.TestWork())


def _health(run: command_pb2.RunCommand, _job: Job, _keys: list[command_pb2.ServerKey]) -> None:
    run.health.CopyFrom(command_pb2.HealthWork())


def _ticket(run: command_pb2.RunCommand, job: Job, keys: list[command_pb2.ServerKey]) -> None:
    work = command_pb2.TicketWork(
        server_id=job.server_id,
        backup_id=job.backup_id,
        disks=job.spec["disks"],
        manifest_digest=job.spec["manifest_digest"],
        server_keys=keys,
    )
    work.lifetime.CopyFrom(_span(timedelta(seconds=job.spec["lifetime_seconds"])))
    run.ticket.CopyFrom(work)


def _bundle(run: command_pb2.RunCommand, job: Job, _keys: list[command_pb2.ServerKey]) -> None:
    work = command_pb2.BundleWork(data=bundles.part(job.spec["bundle_id"], job.spec["number"]), **job.spec)
    run.bundle.CopyFrom(work)


_WORK: dict[str, Any] = {
    "backup": _backup,
    "restore": _restore,
    "verify": _verify,
    "delete": _delete,
    "prune": _delete,
    "purge": _delete,
    "reindex": _reindex,
    "test": _test,
    "health": _health,
    "ticket": _ticket,
    "bundle": _bundle,
}


def _span(value: timedelta) -> Duration:
    span = Duration()
    span.FromTimedelta(value)
    return span
