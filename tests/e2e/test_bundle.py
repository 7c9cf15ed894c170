"""The controller's memory is lost, or set back by a day: what brings it back, all of it, and that nothing is deleted meanwhile (N11).

lost       made ─► bundle on the storage ─► made more ─► killed, its folder gone ─► bundle fetched ─► restored ─► storages read ─► all there
set back   made ─► database copied, a purge ordered in it ─► purge cancelled, made more ─► copy put back ─► deletes nothing ─► storages read

On SFTP and in a bucket; `make storages` does both, `make test` one.
"""

import hashlib
import hmac
import json
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    backup_pb2,
    backup_service_pb2,
    disk_pb2,
    hypervisor_pb2,
    hypervisor_service_pb2,
    job_pb2,
    portal_service_pb2,
    portal_service_pb2_grpc,
    purge_pb2,
    purge_service_pb2,
    storage_pb2,
    storage_service_pb2,
    system_service_pb2,
    webhook_service_pb2,
)
from controller.db.secrets import Vault
from engine.units import MIB
from tests.controller.services.api import Api, refused
from tests.e2e import promises
from tests.e2e.world import HYPERVISOR, INCREMENTAL, PASSPHRASE, World
from tests.engine.rig import digest
from tests.servers.controller import Controller
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.receiver import Receiver
from tests.waiting import wait_until_async


@dataclass
class House:
    """A world with a server on a storage named "vault"; `described` is that storage for bm-engine, `names` what lies there."""

    world: World
    domain: BlankDomain
    disk: DiskFile
    server: str
    storage: str
    described: dict[str, Any] = field(repr=False)
    names: Callable[[], set[str]]

    @property
    def api(self) -> Api:
        return Api(self.world._channel)

    async def back_up(self, pattern: int, **options: Any) -> job_pb2.Job:
        """Change the disk, and make a backup that must succeed."""
        self.domain.write("vda", pattern * MIB, MIB, pattern)
        return await self.world.good_backup(self.server, self.storage, **options)

    async def recovery(self) -> system_service_pb2.GetRecoveryResponse:
        return await self.api.system.GetRecovery(system_service_pb2.GetRecoveryRequest())

    async def delete(self, backup_id: str) -> str:
        """Order a deletion by hand; return its job."""
        preview = await self.world.backups.PreviewDelete(
            backup_service_pb2.PreviewDeleteRequest(backup_ids=[backup_id])
        )
        request = backup_service_pb2.StartDeleteRequest(
            backup_ids=[backup_id], confirmation=preview.confirmation, request_id=str(uuid.uuid4())
        )
        return (await self.world.backups.StartDelete(request)).job_id

    async def reconciled(self) -> None:
        """Wait until the storages were read by themselves, as they are in a new epoch once the agent is back."""

        async def read() -> bool:
            return not [one for one in (await self.recovery()).blocked_storages if one.name == "vault"]

        await wait_until_async(read, 60, "the storage to be reconciled")

    async def prove_restorable(self, backup_id: str, folder: Path) -> None:
        """Restore a backup to a file; it is the disk as it is now."""
        folder.mkdir()  # noqa: ASYNC240  # nothing else goes on in this loop
        job = await self.world.finish(await self.world.restore(backup_id, target_folder=str(folder)))
        assert job.state == job_pb2.JOB_STATE_COMPLETED, job
        assert digest(folder / "vda.raw") == digest(self.disk.path, "qcow2")


@asynccontextmanager
async def house(
    kind: str, folder: Path, libvirtd: Any, blank_domain: Any, request: pytest.FixtureRequest, **settings: Any
) -> AsyncIterator[House]:
    disk = DiskFile("vda", folder / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    async with World(folder / "world", libvirtd, **settings) as world:
        server = await world.register(domain)
        if kind == "sftp":
            given = world.sshd.config(world.folder / "vault")
            described = {
                "type": "sftp", "host": given.host, "port": given.port, "username": given.username, "path": given.path,
                "private_key": given.private_key, "host_key": given.host_key,
            }  # fmt: skip
            storage = await world.add_sftp()
            yield House(world, domain, disk, server, storage, described, lambda: _files(world.folder / "vault"))
            return
        weed = request.getfixturevalue("weed")
        bucket = weed.config(weed.bucket())
        fields = {name: getattr(bucket, name) for name in ("bucket", "region", "endpoint", "access_key", "prefix")}
        made = await world.storages.CreateStorage(
            storage_service_pb2.CreateStorageRequest(
                name="vault", s3=storage_pb2.S3Config(**fields), encryption_enabled=True,
                secrets=storage_service_pb2.StorageSecrets(
                    s3_secret_key=bucket.secret_key, encryption_passphrase=PASSPHRASE
                ),
            )
        )  # fmt: skip

        def keys() -> set[str]:
            found = weed.client().list_objects_v2(Bucket=bucket.bucket)
            return {one["Key"] for one in found.get("Contents", ())}

        described = {"type": "s3", **fields, "secret_key": bucket.secret_key}
        yield House(world, domain, disk, server, made.storage.storage_id, described, keys)


def _files(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}


def fetch(described: dict[str, Any], file: Path) -> None:
    """Fetch the bundle as a person would whose controller is gone: with the storage's credentials alone."""
    spec = file.with_suffix(".json")
    spec.touch(0o600)
    spec.write_text(json.dumps(described))
    program = str(Path(sys.executable).parent / "bm-engine")
    words = [program, "bundle", "--storage", str(spec), "--to", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- lost ---------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N11", "N10", "S28", "A2", "X15", "N1", "N4", "N6")
@pytest.mark.share(2)
@pytest.mark.parametrize("kind", ["sftp", "s3"])
async def test_a_lost_controller_is_made_again_from_a_storage(
    kind: str, tmp_path: Path, libvirtd: Any, blank_domain: Any, request: pytest.FixtureRequest
) -> None:
    local = {"webhook_networks": ["127.0.0.0/8"]}
    with Receiver() as receiver:
        async with house(kind, tmp_path, libvirtd, blank_domain, request, **local) as home:
            world, first = home.world, home.world.controller
            made = [await home.back_up(1)]
            (key,) = _lines(first.command("backup"), "recovery key: ")
            tokens = await promises.fill(world, home.server, home.storage, receiver.url)
            await promises.choose(home.api, bundle_storage_id="vault")
            await wait_until_async(lambda: _written(home), 60, "the bundle to be written")
            promised = promises.rows(first.state)
            assert not [table for table, rows in promised.items() if not rows], "something of everything"
            made.append(await home.back_up(2))  # the bundle has never heard of it
            shown = await promises.shown(world)
            opened = _opened(first, home.storage)
            first.kill()
            world.agent.stop()
            shutil.rmtree(first.state)
            fetch(home.described, tmp_path / "bundle")
            (tmp_path / "key").write_text(key)

            second = Controller(
                tmp_path / "second", listen=first.api, agent_listen=first.agents, heartbeat_seconds=1, **local
            )
            try:
                second.join(first)
                second.command("restore", str(tmp_path / "bundle"), "--key-file", str(tmp_path / "key"))
                assert promises.rows(second.state) == promised
                assert _opened(second, home.storage) == opened
                second.start()
                world.controller = second
                await world.connect()
                await _prove_rebuilt(home, [one.backup_id for one in made], shown)
                await _prove_known(home, tokens, receiver)
                again = await home.back_up(3)
                assert again.result.backup.disks[0].type == INCREMENTAL, "the chain goes on"
                await home.prove_restorable(again.backup_id, tmp_path / "out")
            finally:
                await world._channels.aclose()
                second.close()


async def _written(home: House) -> bool:
    return (await home.recovery()).HasField("newest")


async def _prove_rebuilt(home: House, made: list[str], shown: dict[str, Any]) -> None:
    """Nothing is deleted before the storages were read; then every resource is what it was, and every backup."""
    told = await home.recovery()
    assert (told.epoch, "vault" in {one.name for one in told.blocked_storages}) == (2, True)
    assert not await home.world.list_backups()
    lying = home.names()
    home.world.agent.start()
    await home.reconciled()
    assert [one.backup_id for one in await home.world.list_backups()] == list(reversed(made))

    async def same() -> bool:
        return bool(await promises.shown(home.world) == shown)

    try:
        await wait_until_async(same, 20, "all to be as it was")
    except TimeoutError:
        assert await promises.shown(home.world) == shown
    assert home.names() >= lying


async def _prove_known(home: House, tokens: promises.Tokens, receiver: Receiver) -> None:
    """Those who could come in still can, as far as they could; and who listens is told, under the same secret."""
    controller = home.world.controller
    async with controller.channel(tokens.viewer) as channel:
        ask = storage_service_pb2.GetStorageRequest(storage_id="vault")
        assert (await Api(channel).storages.GetStorage(ask)).storage.storage_id == home.storage
        no = storage_service_pb2.DeleteStorageRequest(storage_id="vault")
        assert await refused(Api(channel).storages.DeleteStorage(no)) == "PERMISSION_DENIED"
    async with controller.channel(tokens.portal) as channel:
        stub = portal_service_pb2_grpc.PortalServiceStub(channel)
        (seen,) = (await stub.ListPortalServers(portal_service_pb2.ListPortalServersRequest())).servers
        assert (seen.server_id, seen.name) == (home.server, "shop")
        points = await stub.ListPortalBackups(portal_service_pb2.ListPortalBackupsRequest(server_id=home.server))
        assert len(points.backups) == 1, "what was made before the owner came is hidden still"
    told = await home.api.webhooks.TestWebhook(webhook_service_pb2.TestWebhookRequest(webhook_id="panel"))
    assert told.delivered, told.failure
    headers, body = receiver.requests[-1]
    moment = headers["backup-manager-timestamp"].encode()
    wanted = hmac.new(promises.SECRET.encode(), moment + b"." + body, hashlib.sha256).hexdigest()
    assert headers["backup-manager-signature"] == f"v1={wanted}"


def _opened(controller: Controller, storage_id: str) -> dict[str, str]:
    """Return a storage's secrets as a controller's master key opens them."""
    vault = Vault.load(controller.state / "master.key")
    boxes = [one for one in promises.rows(controller.state)["secret"] if one["row_id"] == storage_id]
    assert boxes
    return {one["name"]: vault.open(one["table_name"], one["name"], storage_id, one["box"]).decode() for one in boxes}


def _lines(text: str, begin: str) -> list[str]:
    return [line.removeprefix(begin) for line in text.splitlines() if line.startswith(begin)]


# ---- set back -----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N11", "N10", "K1", "D25")
@pytest.mark.share(2)
@pytest.mark.parametrize("kind", ["sftp", "s3"])
async def test_yesterday_s_database_put_back_deletes_nothing(
    kind: str, tmp_path: Path, libvirtd: Any, blank_domain: Any, request: pytest.FixtureRequest
) -> None:
    slow = {"tick_seconds": 3600}  # the clock must not do before the copy is made what is ordered in it
    async with house(kind, tmp_path, libvirtd, blank_domain, request, **slow) as home:
        world, controller = home.world, home.world.controller
        made = [await home.back_up(1)]
        purge_id = await _order_purge(home)
        controller.change(listen=controller.api, agent_listen=controller.agents)  # where the agent finds it again
        _copy(controller.state / "controller.db", tmp_path / "yesterday.db")
        cancelled = await home.api.purges.CancelPurge(purge_service_pb2.CancelPurgeRequest(purge_id=purge_id))
        assert cancelled.purge.state == purge_pb2.PURGE_STATE_CANCELLED
        await world._channels.aclose()
        assert controller.stop() == 0
        controller.start()  # each start counts the mark up, as every minute does
        await world.connect()
        await wait_until_async(lambda: _online(home), 60, "the agent to be back")
        made.append(await home.back_up(2))
        expected = await world.list_backups()
        world.agent.stop()
        await world._channels.aclose()
        assert controller.stop() == 0
        lying = home.names()

        for old in controller.state.glob("controller.db*"):
            old.unlink()
        shutil.copy2(tmp_path / "yesterday.db", controller.state / "controller.db")
        controller.start()
        await world.connect()
        world.agent.start()
        await wait_until_async(lambda: _online(home), 60, "the agent to be back")
        told = await home.recovery()
        assert (told.epoch, [one.name for one in told.blocked_storages]) == (2, ["vault"])
        assert await refused(home.delete(made[0].backup_id)) == "STORAGE_UNRECONCILED"
        await world._channels.aclose()
        assert controller.stop() == 0
        controller.change(tick_seconds=0.2)  # now the clock does all that it finds to do
        controller.start()
        await world.connect()
        await wait_until_async(lambda: _online(home), 60, "the agent to be back again")
        await home.reconciled()

        assert not (await home.recovery()).blocked_storages
        assert [_without_job(one) for one in await world.list_backups()] == [_without_job(one) for one in expected]
        assert home.names() >= lying, "nothing was deleted by what the old database remembers"
        purges = await home.api.purges.ListPurges(purge_service_pb2.ListPurgesRequest())
        assert not purges.purges, "what somebody agreed to before is to be agreed to again"
        again = await home.back_up(3)
        assert again.result.backup.disks[0].type == INCREMENTAL
        await home.prove_restorable(again.backup_id, tmp_path / "out")
        copy = await home.back_up(4, type=disk_pb2.BACKUP_TYPE_COPY)
        gone = await world.finish(await home.delete(copy.backup_id))
        assert gone.state == job_pb2.JOB_STATE_COMPLETED, "what a person asks for now is done"


def _copy(database: Path, target: Path) -> None:
    """Copy a database that is being served, as it stands at one instant."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


async def _order_purge(home: House) -> str:
    """Agree to a purge of the server as it stands; return the purge, which waits for the clock."""
    target = purge_service_pb2.PurgeTarget(server_id=home.server)
    preview = await home.api.purges.PreviewPurge(purge_service_pb2.PreviewPurgeRequest(target=target))
    assert preview.backup_count == 1
    request = purge_service_pb2.StartPurgeRequest(
        target=target, confirmation=preview.confirmation, request_id=str(uuid.uuid4())
    )
    (purge,) = (await home.api.purges.StartPurge(request)).purges
    return purge.purge_id


async def _online(home: House) -> bool:
    request = hypervisor_service_pb2.GetHypervisorRequest(hypervisor_id=HYPERVISOR)
    found = await home.api.hypervisors.GetHypervisor(request)
    return found.hypervisor.state == hypervisor_pb2.HYPERVISOR_STATE_ONLINE


def _without_job(one: backup_pb2.Backup) -> backup_pb2.Backup:
    kept = backup_pb2.Backup()
    kept.CopyFrom(one)
    kept.job_id = ""
    return kept
