"""A whole installation for tests: controller, agent, engine, libvirt and storage, all real, spoken to through the public API.

    async with World(folder, libvirtd) as world:
        server = await world.register(domain)
        storage = await world.add_sftp("vault")
        job = await world.finish(await world.back_up(server, storage))

Settings are quick (heartbeats of a second, a tick of half a second) so that what takes minutes in production takes seconds.
"""

import uuid
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf import duration_pb2

from clients.gen.backupmanager.v1 import (
    backup_pb2,
    backup_service_pb2,
    backup_service_pb2_grpc,
    disk_pb2,
    hypervisor_service_pb2,
    hypervisor_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
    storage_pb2,
    storage_service_pb2,
    storage_service_pb2_grpc,
)
from tests.servers.agent import Agent
from tests.servers.controller import Controller
from tests.servers.guest import BlankDomain, RealGuest
from tests.servers.libvirtd import Libvirtd
from tests.servers.sshd import Sshd
from tests.waiting import wait_until_async

ENDED = {
    job_pb2.JOB_STATE_COMPLETED,
    job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
}
PASSPHRASE = "correct horse battery staple"
JOB_SECONDS_MAX = 120.0
HYPERVISOR = "kvm1"


class World:
    """One controller, one hypervisor with its agent, one sshd. The pieces are attributes, to be stopped, killed and restarted."""

    def __init__(self, folder: Path, libvirtd: Libvirtd, **controller_settings: object) -> None:
        self.folder = folder
        self.libvirtd = libvirtd
        self.controller = Controller(folder / "controller", **{"heartbeat_seconds": 1, **controller_settings})
        self.agent: Agent
        self.sshd: Sshd
        self._stack = ExitStack()
        self._channels = AsyncExitStack()
        self._channel: Any = None

    async def __aenter__(self) -> Self:
        try:
            (self.folder / "ssh").mkdir(parents=True)
            self.sshd = self._stack.enter_context(Sshd(self.folder / "ssh"))
            self._stack.enter_context(self.controller)
            await self.connect()
            self.agent = await self.add_agent()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything. May be called twice."""
        await self._channels.aclose()
        self._stack.close()

    async def connect(self) -> None:
        """Open a channel to the API, anew after the controller came back on another port."""
        await self._channels.aclose()
        self._channels = AsyncExitStack()
        self._channel = await self._channels.enter_async_context(self.controller.channel())

    async def add_agent(self, **options: Any) -> Agent:
        """Enroll and start the agent; `options` as Agent takes them."""
        token, uri = await self.enrollment_token(), self.libvirtd.uri
        agent = Agent(
            self.folder / "agent", controller=self.controller.api, token=token, libvirt_uri=uri, cancel_word_seconds=2,
            **options,
        )  # fmt: skip
        return self._stack.enter_context(agent)

    # ---- the API, one line each --------------------------------------------------------------------------------------

    @property
    def hypervisors(self) -> hypervisor_service_pb2_grpc.HypervisorServiceStub:
        return hypervisor_service_pb2_grpc.HypervisorServiceStub(self._channel)

    @property
    def servers(self) -> server_service_pb2_grpc.ServerServiceStub:
        return server_service_pb2_grpc.ServerServiceStub(self._channel)

    @property
    def storages(self) -> storage_service_pb2_grpc.StorageServiceStub:
        return storage_service_pb2_grpc.StorageServiceStub(self._channel)

    @property
    def backups(self) -> backup_service_pb2_grpc.BackupServiceStub:
        return backup_service_pb2_grpc.BackupServiceStub(self._channel)

    @property
    def jobs(self) -> job_service_pb2_grpc.JobServiceStub:
        return job_service_pb2_grpc.JobServiceStub(self._channel)

    async def enrollment_token(self, name: str = HYPERVISOR, *, renew: bool = False) -> str:
        request = hypervisor_service_pb2.CreateEnrollmentTokenRequest(
            name=name, renew=renew, lifetime=duration_pb2.Duration(seconds=600)
        )
        return (await self.hypervisors.CreateEnrollmentToken(request)).token

    async def register(self, domain: BlankDomain | RealGuest) -> str:
        """Register a server for a domain once the agent has reported it; return the server's id."""
        request = hypervisor_service_pb2.ListDomainsRequest(hypervisor_id=HYPERVISOR)

        async def reported() -> bool:
            found = await self.hypervisors.ListDomains(request)
            return domain.uuid in {one.domain_uuid for one in found.domains}

        await wait_until_async(reported, 30, "the agent to report the domain")
        made = await self.servers.RegisterServer(
            server_service_pb2.RegisterServerRequest(hypervisor_id=HYPERVISOR, domain_uuid=domain.uuid)
        )
        return made.server.server_id

    async def add_sftp(
        self, name: str = "vault", *, path: Path | None = None, port: int = 0, encrypted: bool = True, **limits: Any
    ) -> str:
        """Add a storage on the world's sshd; `port` another way to it, such as a proxy's. Return its id."""
        config = self.sshd.config(path or self.folder / name)
        request = storage_service_pb2.CreateStorageRequest(
            name=name,
            sftp=storage_pb2.SftpConfig(
                host=config.host, port=port or config.port, username=config.username, path=config.path,
                host_key=config.host_key,
            ),
            secrets=storage_service_pb2.StorageSecrets(
                sftp_private_key=config.private_key, encryption_passphrase=PASSPHRASE if encrypted else ""
            ),
            encryption_enabled=encrypted,
            limits=storage_pb2.StorageLimits(**limits),
        )  # fmt: skip
        return (await self.storages.CreateStorage(request)).storage.storage_id

    async def back_up(self, server_id: str, storage_id: str, **options: Any) -> str:
        """Start a backup and return the job's id."""
        options.setdefault("request_id", str(uuid.uuid4()))
        request = backup_service_pb2.StartBackupRequest(server_id=server_id, storage_id=storage_id, **options)
        return (await self.backups.StartBackup(request)).job_id

    async def restore(self, backup_id: str, **options: Any) -> str:
        """Preview and start a restore; return the job's id."""
        preview = await self.backups.PreviewRestore(
            backup_service_pb2.PreviewRestoreRequest(backup_id=backup_id, **options)
        )
        request = backup_service_pb2.StartRestoreRequest(
            backup_id=backup_id, confirmation=preview.confirmation, request_id=str(uuid.uuid4()), **options
        )
        return (await self.backups.StartRestore(request)).job_id

    async def verify(self, backup_id: str) -> str:
        request = backup_service_pb2.StartVerifyRequest(backup_id=backup_id, request_id=str(uuid.uuid4()))
        return (await self.backups.StartVerify(request)).job_id

    async def job(self, job_id: str) -> job_pb2.Job:
        return (await self.jobs.GetJob(job_service_pb2.GetJobRequest(job_id=job_id))).job

    async def finish(self, job_id: str, seconds: float = JOB_SECONDS_MAX) -> job_pb2.Job:
        """Wait until a job has ended, and return it."""

        async def ended() -> job_pb2.Job | None:
            job = await self.job(job_id)
            return job if job.state in ENDED else None

        job = await wait_until_async(ended, seconds, f"job {job_id} to end")
        assert job is not None
        return job

    async def reach(self, job_id: str, *stages: str, seconds: float = JOB_SECONDS_MAX) -> job_pb2.Job:
        """Wait until a running job is in one of `stages`, and return it; fails if it ends before."""

        async def there() -> job_pb2.Job | None:
            job = await self.job(job_id)
            if job.progress.stage in stages:
                return job
            assert job.state not in ENDED, job
            return None

        job = await wait_until_async(there, seconds, f"job {job_id} to be in {' or '.join(stages)}")
        assert job is not None
        return job

    async def list_backups(self, server_id: str = "") -> list[backup_pb2.Backup]:
        """Return the catalog's backups, newest first."""
        request = backup_service_pb2.ListBackupsRequest(server_id=server_id)
        return list((await self.backups.ListBackups(request)).backups)

    # ---- what a good backup looks like -------------------------------------------------------------------------------

    async def good_backup(self, server_id: str, storage_id: str, **options: Any) -> job_pb2.Job:
        """Make a backup that must succeed."""
        job = await self.finish(await self.back_up(server_id, storage_id, **options))
        assert job.state in {job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS}, job
        return job


FULL = disk_pb2.BACKUP_TYPE_FULL
INCREMENTAL = disk_pb2.BACKUP_TYPE_INCREMENTAL


def assert_host_is_clean(world: World, domain: BlankDomain | RealGuest, *, running: bool = True) -> None:
    """No engine, no block job, no scratch file, no mark of a freeze, no operation's folder; a guest that runs and is thawed."""
    assert not list(world.agent.engines())
    if running:
        assert domain.handle.jobStats()["type"] == 0
        assert domain.state()[0] == 1
        nodes = domain.qmp("query-named-block-nodes")
        assert not [node for node in nodes if ".scratch" in node.get("file", "")]
    assert not list(world.agent.scratch_folder.iterdir())
    assert not list((world.agent.run_folder / "locks").glob("*.quiesced"))


def folders_on_storage(path: Path) -> list[str]:
    """Return the ids of all backups' folders on a storage, whole or not; the world's sshd keeps them on this machine."""
    return sorted(one.name for one in path.glob("servers/*/*"))
