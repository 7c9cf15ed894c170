"""All of the controller's public services on one channel, and the words that tests use for a refusal."""

import itertools
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc import aio

from clients import errors
from clients.gen.backupmanager.v1 import (
    access_token_service_pb2_grpc,
    audit_service_pb2_grpc,
    backup_service_pb2_grpc,
    event_service_pb2_grpc,
    hypervisor_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    package_service_pb2_grpc,
    preset_service_pb2_grpc,
    purge_service_pb2_grpc,
    retention_service_pb2_grpc,
    schedule_service_pb2_grpc,
    server_pb2,
    server_service_pb2,
    server_service_pb2_grpc,
    settings_service_pb2_grpc,
    storage_pb2,
    storage_service_pb2,
    storage_service_pb2_grpc,
    system_log_service_pb2_grpc,
    system_service_pb2_grpc,
    ticket_service_pb2_grpc,
    webhook_service_pb2_grpc,
)

_count = itertools.count(1)


class Api:
    """The stubs; each is the generated one."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)
        self.events = event_service_pb2_grpc.EventServiceStub(channel)
        self.system_log = system_log_service_pb2_grpc.SystemLogServiceStub(channel)
        self.webhooks = webhook_service_pb2_grpc.WebhookServiceStub(channel)
        self.tokens = access_token_service_pb2_grpc.AccessTokenServiceStub(channel)
        self.backups = backup_service_pb2_grpc.BackupServiceStub(channel)
        self.hypervisors = hypervisor_service_pb2_grpc.HypervisorServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.servers = server_service_pb2_grpc.ServerServiceStub(channel)
        self.packages = package_service_pb2_grpc.PackageServiceStub(channel)
        self.presets = preset_service_pb2_grpc.PresetServiceStub(channel)
        self.purges = purge_service_pb2_grpc.PurgeServiceStub(channel)
        self.retention = retention_service_pb2_grpc.RetentionServiceStub(channel)
        self.schedules = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
        self.settings = settings_service_pb2_grpc.SettingsServiceStub(channel)
        self.storages = storage_service_pb2_grpc.StorageServiceStub(channel)
        self.tickets = ticket_service_pb2_grpc.TicketServiceStub(channel)
        self.system = system_service_pb2_grpc.SystemServiceStub(channel)

    async def make_storage(self, name: str = "", **fields: Any) -> storage_pb2.Storage:
        """Make a local storage, with whatever else is given."""
        request = storage_service_pb2.CreateStorageRequest(
            name=name or fresh("storage"), local=storage_pb2.LocalConfig(path="/backups"), allow_local=True, **fields
        )
        return (await self.storages.CreateStorage(request)).storage

    async def make_server(self, hypervisor: str, **fields: Any) -> server_pb2.Server:
        request = server_service_pb2.RegisterServerRequest(
            hypervisor_id=hypervisor, **{"domain_uuid": str(uuid.uuid4()), "name": fresh("server"), **fields}
        )
        return (await self.servers.RegisterServer(request)).server

    async def job(self, job_id: str) -> job_pb2.Job:
        return (await self.jobs.GetJob(job_service_pb2.GetJobRequest(job_id=job_id))).job

    async def ended(self, job_id: str) -> job_pb2.Job:
        """Watch a job to its end and return it."""
        job = job_pb2.Job()
        async for change in self.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id)):
            job = change.job
        return job


@dataclass(frozen=True)
class Refusal:
    """What a refused call said."""

    reason: str
    status: str
    facts: dict[str, str]


async def refusal(call: Awaitable[Any]) -> Refusal:
    """Return how a call was refused; a call that is not refused fails the test."""
    with pytest.raises(errors.CallRefused) as caught, errors.translated():
        await call
    return Refusal(caught.value.reason, caught.value.status.name, caught.value.facts)


async def refused(call: Awaitable[Any]) -> str:
    """Return the reason of a refusal."""
    return (await refusal(call)).reason


async def field_refused(call: Awaitable[Any]) -> str:
    """Return the field that a refusal names; any other refusal fails the test."""
    found = await refusal(call)
    assert (found.reason, found.status) == ("INVALID_FIELD", "INVALID_ARGUMENT"), found
    return found.facts["field"]


async def all_pages(call: Callable[[str], Awaitable[Any]], field: str) -> list[Any]:
    """Return all rows of a list, read page by page; `call` takes a page token."""
    rows: list[Any] = []
    token = ""
    while True:
        page = await call(token)
        rows += getattr(page, field)
        token = page.next_page_token
        if not token:
            return rows


def fresh(word: str) -> str:
    """Return a name that nobody had before in this process."""
    return f"{word}-{next(_count)}"


def ssh_key(passphrase: str = "", key: Any = None) -> str:
    """Return a private key as OpenSSH writes it."""
    algorithm = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    made = key or ed25519.Ed25519PrivateKey.generate()
    pem: bytes = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, algorithm)
    return pem.decode()
