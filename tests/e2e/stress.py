"""The whole product with hands on its wires, and the one question that every mishap ends with: is all well again?

controller ──── link ────► agent ─► engine ──── pipe ────► sshd         link, pipe: proxies that stall and cut on demand
(fixed ports)              │                                             kill_at: where the next engine dies by SIGKILL
                           └ journal, folders

subject = await world.admit(domain, storage)     a server with random data on its disk, and its storage
job_id = await world.hold(subject)               a backup that is in the middle of its data, and stays there
...
await world.prove_well(subject)                  host, leases, storage and catalog are right; a new backup restores
"""

import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from google.protobuf.field_mask_pb2 import FieldMask

from agent import identity
from clients.gen.backupmanager.v1 import (
    disk_pb2,
    hypervisor_pb2,
    hypervisor_service_pb2,
    job_pb2,
    job_service_pb2,
    settings_pb2,
    settings_service_pb2,
    settings_service_pb2_grpc,
)
from clients.gen.backupmanager.v1 import server_service_pb2 as server_messages
from engine.units import KIB, MIB
from tests.e2e.world import HYPERVISOR, World, assert_host_is_clean, folders_on_storage
from tests.engine.rig import digest
from tests.servers.agent import Agent
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.servers.proxy import Proxy
from tests.waiting import wait_until, wait_until_async

ONLINE, OFFLINE = hypervisor_pb2.HYPERVISOR_STATE_ONLINE, hypervisor_pb2.HYPERVISOR_STATE_OFFLINE
RUNNING, QUEUED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_QUEUED
COMPLETED, WARNED = job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS
FAILED, CANCELLED = job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED
DISK_BYTES, DATA_BYTES = 16 * MIB, 6 * MIB
HOLD_BYTES = 2 * MIB  # so much of the data goes up before a held backup stops
_EPHEMERAL_MIN = 32768  # ports from here on are given to whoever dials out, also while a controller is down


@dataclass(frozen=True, slots=True)
class Subject:
    """A server to do things to, the only one on its storage; `path` is where that storage lies on this machine."""

    domain: BlankDomain
    disk: DiskFile
    server_id: str
    storage_id: str
    path: Path


class StressWorld(World):
    """A World whose wires can be held, and whose controller comes back on its old ports."""

    def __init__(self, folder: Path, libvirtd: Libvirtd, **controller_settings: object) -> None:
        listen, agent_listen = (f"127.0.0.1:{_quiet_port()}" for _ in range(2))
        super().__init__(folder, libvirtd, listen=listen, agent_listen=agent_listen, **controller_settings)
        self.link: Proxy
        self.pipe: Proxy
        self._kill_file = folder / "kill-at"

    async def add_agent(self, **options: Any) -> Agent:
        """Enroll and start the agent, its sessions led through `link`, its engines killed at the step in a file."""
        self.pipe = self._stack.enter_context(Proxy(self.sshd.port))
        self.link = self._stack.enter_context(Proxy(self.controller.agents_port))
        script = self.folder / "engine.sh"
        script.write_text(
            f'if [ "$1" != --heal ]; then BM_KILL_AT=$(head -n 1 {self._kill_file}); sed -i 1d {self._kill_file}; fi\n'
            f'export BM_KILL_AT\nexec {sys.executable} -m engine.worker "$@"\n'
        )
        self.kill_at("")
        agent = await super().add_agent(start=False, engine_command=["/bin/sh", str(script)], **options)
        self.lead_through_link(agent)
        agent.start()
        return agent

    def lead_through_link(self, agent: Agent) -> None:
        """Let an agent that just enrolled dial `link` in place of the controller's port."""
        file = agent.state_folder / "identity.json"
        identity.save(replace(identity.load(file), address=f"127.0.0.1:{self.link.port}"), file)

    def kill_at(self, *steps: str) -> None:
        """Let the engines that start from now on die at these steps of engine/failpoint.py, one after the other; the rest live."""
        self._kill_file.write_text("".join(f"{step}\n" for step in steps))

    # ---- subjects ----------------------------------------------------------------------------------------------------

    async def admit(self, blank_domain: Callable[..., BlankDomain], folder: Path, storage_id: str = "") -> Subject:
        """Make a domain with random data on its disk, register it, and add a storage behind `pipe` unless one is given."""
        disk = random_disk(folder / "vda.qcow2")
        domain = blank_domain([disk])
        server_id = await self.register(domain)
        path = folder / "vault"
        if not storage_id:
            storage_id = await self.add_sftp(domain.name, path=path, port=self.pipe.port)
        return Subject(domain, disk, server_id, storage_id, path)

    async def back_up(self, server_id: str, storage_id: str, **options: Any) -> str:
        """Start a backup with a pause, all that a domain without a system can give; so no warning is of our making."""
        return await super().back_up(
            server_id, storage_id, **{"consistency": disk_pb2.CONSISTENCY_MODE_PAUSE, **options}
        )

    async def hold(self, subject: Subject, **options: Any) -> str:
        """Start a full backup and return its job's id once it stands still in the middle of its data."""
        self.pipe.stall_after(HOLD_BYTES)
        job_id = await self.back_up(subject.server_id, subject.storage_id, **options)
        try:
            await self.reach(job_id, "read")
        except TimeoutError:
            log = "\n".join(self.agent.log.splitlines()[-40:])
            raise AssertionError(f"{await self.job(job_id)}\n{log}") from None
        await until(lambda: self.pipe.stalled, "the data to stand still")
        return job_id

    # ---- asking ------------------------------------------------------------------------------------------------------

    async def cancel(self, job_id: str) -> job_pb2.Job:
        return (await self.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id))).job

    async def hypervisor(self) -> hypervisor_pb2.Hypervisor:
        request = hypervisor_service_pb2.GetHypervisorRequest(hypervisor_id=HYPERVISOR)
        return (await self.hypervisors.GetHypervisor(request)).hypervisor

    async def hypervisor_is(self, state: int, seconds: float = 60) -> None:
        async def there() -> bool:
            return (await self.hypervisor()).state == state

        await wait_until_async(there, seconds, f"the hypervisor to be in state {state}")

    async def busy_job_id(self, subject: Subject) -> str:
        request = server_messages.GetServerRequest(server_id=subject.server_id)
        return (await self.servers.GetServer(request)).server.busy_job_id

    async def dial_now(self) -> None:
        """End the agent's pause between two dials, as a new identity does."""
        os.utime(self.agent.state_folder / "identity.json")

    async def restart_controller(self, *, kill: bool) -> None:
        """End the controller, in order or by kill -9, and start it again on its ports."""
        if kill:
            self.controller.kill()
        else:
            assert self.controller.stop() == 0
        await asyncio.to_thread(self.controller.start)
        await self.connect()

    async def set(self, **values: float) -> None:
        """Change global settings."""
        settings = settings_pb2.Settings(**cast("Any", values))
        request = settings_service_pb2.UpdateSettingsRequest(settings=settings, update_mask=FieldMask(paths=[*values]))
        await settings_service_pb2_grpc.SettingsServiceStub(self._channel).UpdateSettings(request)

    def operation(self, job_id: str) -> Path:
        """Return the folder that the agent and the job's engine share."""
        return self.agent.state_folder / "operations" / f"{job_id}.1"

    def said(self, job_id: str, kind: str) -> bool:
        """Tell whether the job's engine has said a word of this kind."""
        return f'"type":"{kind}"' in (self.operation(job_id) / "events.jsonl").read_text()

    # ---- all is well -------------------------------------------------------------------------------------------------

    async def prove_clean(self, subject: Subject) -> None:
        """Nothing is left of what happened: on the host, of the leases, on the storage; and the catalog tells what is there."""
        await until(lambda: not list(self.agent.engines()), "the engines' end")
        assert await self.busy_job_id(subject) == ""
        assert_host_is_clean(self, subject.domain)
        catalog = [one.backup_id for one in await self.list_backups(subject.server_id)]
        assert len(set(catalog)) == len(catalog)
        assert folders_on_storage(subject.path) == sorted(catalog)
        assert len(subject.domain.handle.listAllCheckpoints()) <= 1

    async def prove_well(self, subject: Subject) -> job_pb2.Job:
        """Prove that all is clean, and that the next backup succeeds and restores byte by byte; return its job."""
        await self.prove_clean(subject)
        await wait_until_async(self._is_online, 60, "the agent to be connected")  # it may just be dialing anew
        before = len(await self.list_backups(subject.server_id))
        subject.domain.write("vda", DATA_BYTES + MIB, 64 * KIB, random.randrange(1, 255))
        job = await self.good_backup(subject.server_id, subject.storage_id)
        assert len(await self.list_backups(subject.server_id)) == before + 1
        await self.prove_restore(subject, job.backup_id)
        await self.prove_clean(subject)
        return job

    async def _is_online(self) -> bool:
        found = await self.hypervisors.GetHypervisor(
            hypervisor_service_pb2.GetHypervisorRequest(hypervisor_id=HYPERVISOR)
        )
        return found.hypervisor.state == hypervisor_pb2.HYPERVISOR_STATE_ONLINE

    async def prove_restore(self, subject: Subject, backup_id: str, expected: str = "") -> None:
        """Restore a backup to files; they must be the disk as it is now, or have the digest given."""
        folder = subject.disk.path.parent / f"out-{backup_id}"
        folder.mkdir()
        restored = await self.finish(await self.restore(backup_id, target_folder=str(folder)))
        assert restored.state == COMPLETED, restored
        assert digest(folder / "vda.raw") == (expected or digest(subject.disk.path, "qcow2"))
        (folder / "vda.raw").unlink()


async def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something on this machine while the channel to the controller lives on."""
    await asyncio.to_thread(wait_until, condition, seconds, what)


def ended_well(job: job_pb2.Job) -> bool:
    return job.state in {COMPLETED, WARNED}


def random_disk(path: Path) -> DiskFile:
    """Make a disk that begins with data that cannot be compressed."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(DATA_BYTES))
    os.truncate(raw, DISK_BYTES)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    return DiskFile("vda", path)


def _quiet_port() -> int:
    """Return a free port that no outgoing connection is given, so that it stays free while a controller is down."""
    while True:
        port = random.randrange(10_000, _EPHEMERAL_MIN)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
