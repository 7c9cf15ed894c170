"""S3, FTP and rclone through controller, agent and engine: all that an administrator does with a storage, on real servers.

    made ─► Save & Test ─► full ─► incremental ─► verify ─► restore ─► looked at ─► reconciled ─► ticket ─► deleted or purged

All of it under a schedule with a source address, and every server sees whom its connections come from (D18). SFTP and local
folders are in the files beside this one. `make test` does some of the types, `make storages` all of them.
"""

import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    job_pb2,
    purge_service_pb2,
    purge_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    storage_pb2,
    storage_service_pb2,
)
from engine.units import MIB
from tests.e2e.world import FULL, HYPERVISOR, INCREMENTAL, PASSPHRASE, World, assert_host_is_clean
from tests.engine.rig import digest
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.proxy import Proxy
from tests.servers.rclone import RcloneRemotes, sftp_remote
from tests.servers.vsftpd import Vsftpd
from tests.servers.weed import Weed
from tests.waiting import wait_until_async

SOURCE = "127.0.0.77"
GOOD = {job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS}


@dataclass(frozen=True)
class Kind:
    """A type's settings for a server of its own; `peers` are the addresses that it saw, `left` the names of what lies there."""

    name: str
    config: Any
    peers: Callable[[], set[str]]
    left: Callable[[], list[str]]
    secrets: dict[str, str] = field(default_factory=dict)
    purged: bool = False  # its backups go by a purge, else by an administrator's deletion


def a_bucket(weed: Weed, stack: ExitStack) -> Kind:
    proxy = stack.enter_context(Proxy(weed.port))
    given = weed.config(weed.bucket())
    config = storage_pb2.S3Config(
        bucket=given.bucket,
        region=given.region,
        endpoint=f"http://127.0.0.1:{proxy.port}",
        access_key=given.access_key,
        prefix="hosts/backups",
        part_size_bytes=5 * MIB,
    )

    def left() -> list[str]:
        found = weed.client().list_objects_v2(Bucket=given.bucket, Prefix="hosts/backups/")
        return [one["Key"].removeprefix("hosts/backups/") for one in found.get("Contents", ())]

    return Kind("s3", config, lambda: proxy.peers, left, {"s3_secret_key": given.secret_key})


def an_ftp_server(folder: Path, stack: ExitStack) -> Kind:
    server = stack.enter_context(Vsftpd(folder))
    given = server.config(folder / "web space")
    config = storage_pb2.FtpConfig(
        host=given.host, port=given.port, username=given.username, path=given.path, ca_certificate=given.ca_certificate
    )

    def peers() -> set[str]:
        return set(re.findall(r'Client "([\d.]+)"', server.log())) - {"127.0.0.1"} | _commands_from("127.0.0.1", server)

    return Kind(
        "ftp", config, peers, lambda: files(folder / "web space"), {"ftp_password": given.password}, purged=True
    )


def _commands_from(address: str, server: Vsftpd) -> set[str]:
    """Return the address if a login came from it; that the server's start is waited for makes a connection too."""
    return {address} if re.search(rf'OK LOGIN: Client "{re.escape(address)}"', server.log()) else set()


def a_remote(world: World, remotes: RcloneRemotes, folder: Path) -> Kind:
    remotes.add(box=sftp_remote(world.sshd, folder))
    place = folder / "remote"
    place.mkdir()

    def peers() -> set[str]:
        return set(re.findall(r"Accepted publickey for \S+ from ([\d.]+)", world.sshd.log_path.read_text()))

    return Kind("rclone", storage_pb2.RcloneConfig(remote="box", path=str(place)), peers, lambda: files(place))


def files(folder: Path) -> list[str]:
    return [str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()]


def use(ticket: job_pb2.TicketResult, out: Path, secrets: Sequence[str]) -> None:
    """Run a ticket's command; its file is private, and what people and other processes see of it holds no secret."""
    assert Path(ticket.path).stat().st_mode & 0o777 == 0o600
    words = shlex.split(ticket.command.replace("/path/to/folder", shlex.quote(str(out))))
    program = [str(Path(sys.executable).parent / words[0]), *words[1:], "--json"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert not [one for one in secrets if one in f"{ticket} {words} {done.stdout} {done.stderr}"]


@dataclass
class Flow:
    """What is done with one storage, step by step."""

    world: World
    domain: BlankDomain
    disk: DiskFile
    server: str
    kind: Kind
    storage: str = ""
    schedule: str = ""
    expected: str = ""  # the digest of what the last backup holds

    @property
    def schedules(self) -> schedule_service_pb2_grpc.ScheduleServiceStub:
        return schedule_service_pb2_grpc.ScheduleServiceStub(self.world._channel)

    async def add(self) -> None:
        """Make the storage, encrypted, and the schedule that says where connections to it come from; then try it out."""
        named: dict[str, Any] = {self.kind.name: self.kind.config}
        request = storage_service_pb2.CreateStorageRequest(
            name=self.kind.name,
            encryption_enabled=True,
            secrets=storage_service_pb2.StorageSecrets(encryption_passphrase=PASSPHRASE, **self.kind.secrets),
            **named,
        )
        self.storage = (await self.world.storages.CreateStorage(request)).storage.storage_id
        overrides = schedule_pb2.ScheduleOverrides(interval_hours=0, bind_address=SOURCE)
        made = await self.schedules.CreateSchedule(
            schedule_service_pb2.CreateScheduleRequest(
                hypervisor_id=HYPERVISOR, storage_id=self.storage, overrides=overrides
            )
        )
        self.schedule = made.schedule.schedule_id
        test = storage_service_pb2.TestStorageRequest(storage_id=self.storage, hypervisor_id=HYPERVISOR)
        tried = await self.world.finish((await self.world.storages.TestStorage(test)).job_id)
        assert tried.state in GOOD, tried
        assert {"connect", "write", "read", "range_read", "delete"} <= {step.name for step in tried.result.test.steps}

    async def back_up(self) -> tuple[str, str]:
        """Make a full and an incremental, look through the incremental's frames, and restore it; return both ids."""
        self.domain.write("vda", 0, 8 * MIB, 1)
        first = await self.world.good_backup(self.server, self.storage)
        self.domain.write("vda", 3 * MIB, MIB, 2)
        second = await self.world.good_backup(self.server, self.storage)
        self.expected = digest(self.disk.path, "qcow2")
        assert [job.result.backup.disks[0].type for job in (first, second)] == [FULL, INCREMENTAL]
        verified = await self.world.finish(await self.world.verify(second.backup_id))
        assert (verified.state, verified.result.verify.damaged_count) == (job_pb2.JOB_STATE_COMPLETED, 0), verified
        self.domain.write("vda", 0, 16 * MIB, 0xEE)
        restored = await self.world.finish(await self.world.restore(second.backup_id))
        assert restored.state == job_pb2.JOB_STATE_COMPLETED, restored
        assert digest(self.disk.path, "qcow2") == self.expected
        return first.backup_id, second.backup_id

    async def look(self) -> None:
        """See how it is and what fills it, and read all that lies there."""
        check = storage_service_pb2.CheckStorageRequest(storage_id=self.storage, hypervisor_id=HYPERVISOR)
        checked = await self.world.finish((await self.world.storages.CheckStorage(check)).job_id)
        assert checked.result.health.initialized, checked
        read = storage_service_pb2.ReconcileStorageRequest(storage_id=self.storage, hypervisor_id=HYPERVISOR)
        reconciled = await self.world.finish((await self.world.storages.ReconcileStorage(read)).job_id)
        assert reconciled.result.reindex.backup_count == 2, reconciled
        shown = await self.shown()
        assert shown.health.state == storage_pb2.HEALTH_STATE_HEALTHY
        assert shown.usage.backup_bytes == shown.stored_bytes > 0, "the bytes that this product stores"
        assert bool(shown.usage.total_bytes) == (self.kind.name == "rclone"), "neither a bucket nor FTP tells its room"

    async def shown(self) -> storage_pb2.Storage:
        request = storage_service_pb2.GetStorageRequest(storage_id=self.storage)
        return (await self.world.storages.GetStorage(request)).storage

    async def use_ticket(self, backup_id: str, out: Path) -> None:
        """Have a ticket left, and restore to a file by the command that it comes with, as a person would."""
        request = backup_service_pb2.CreateRestoreTicketRequest(
            backup_id=backup_id, hypervisor_id=HYPERVISOR, request_id=str(uuid.uuid4())
        )
        job = await self.world.finish((await self.world.backups.CreateRestoreTicket(request)).job_id)
        assert job.state == job_pb2.JOB_STATE_COMPLETED, job
        out.mkdir()  # noqa: ASYNC240  # nothing else goes on in this loop
        use(job.result.ticket, out, [*self.kind.secrets.values(), PASSPHRASE])
        assert digest(out / "vda.raw", "raw") == self.expected

    async def remove(self, *backup_ids: str) -> None:
        """Delete all backups, and see that nothing of them is left."""
        if self.kind.purged:
            await self._purge()
        else:
            preview = await self.world.backups.PreviewDelete(
                backup_service_pb2.PreviewDeleteRequest(backup_ids=backup_ids)
            )
            request = backup_service_pb2.StartDeleteRequest(
                backup_ids=backup_ids, confirmation=preview.confirmation, request_id=str(uuid.uuid4())
            )
            job = await self.world.finish((await self.world.backups.StartDelete(request)).job_id)
            assert job.state == job_pb2.JOB_STATE_COMPLETED, job
            assert job.result.delete.freed_bytes > 0
        left = self.kind.left()
        assert "repository.json" in left
        assert not [one for one in left if one.startswith("servers/")]

    async def _purge(self) -> None:
        purges = purge_service_pb2_grpc.PurgeServiceStub(self.world._channel)
        target = purge_service_pb2.PurgeTarget(schedule_id=self.schedule, include_active=True)
        preview = await purges.PreviewPurge(purge_service_pb2.PreviewPurgeRequest(target=target))
        assert preview.backup_count == 2
        await purges.StartPurge(
            purge_service_pb2.StartPurgeRequest(
                target=target, confirmation=preview.confirmation, request_id=str(uuid.uuid4())
            )
        )

        async def gone() -> bool:
            return not (await self.shown()).backup_count

        await wait_until_async(gone, 60, "the purge")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.feature("S5", "S6", "S13", "S14", "S15", "S24", "H3", "H4", "N10", "M11", "D18", "D25", "C2")
@pytest.mark.share(2)
@pytest.mark.parametrize("name", ["s3", "ftp", "rclone"])
async def test_each_type_through_the_product(
    name: str,
    tmp_path: Path,
    libvirtd: Any,
    blank_domain: Any,
    request: pytest.FixtureRequest,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    remotes = RcloneRemotes(tmp_path / "rclone.conf")
    monkeypatch.setenv("BM_AGENT_RCLONE_CONFIG_FILE", str(remotes.path))
    async with World(tmp_path / "world", libvirtd) as world:
        match name:
            case "s3":
                kind = a_bucket(request.getfixturevalue("weed"), stack)
            case "ftp":
                kind = an_ftp_server(tmp_path, stack)
            case _:
                kind = a_remote(world, remotes, tmp_path)
        flow = Flow(world, domain, disk, await world.register(domain), kind)
        await flow.add()
        made = await flow.back_up()
        await flow.look()
        await flow.use_ticket(made[1], tmp_path / "out")
        await flow.remove(*made)
        assert kind.peers() == {SOURCE}, "whom the server saw"
        assert_host_is_clean(world, domain)
        if name == "s3":
            cost = (await flow.shown()).upload_memory
            assert (cost.part_size_bytes, cost.memory_bytes) == (5 * MIB, 40 * MIB)
