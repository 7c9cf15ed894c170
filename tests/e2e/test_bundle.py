"""The controller is lost with all it had: a bundle on a storage, the recovery key and the storages bring it back (N11)."""

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from clients.gen.backupmanager.v1 import (
    settings_service_pb2,
    settings_service_pb2_grpc,
    storage_service_pb2,
    system_service_pb2,
    system_service_pb2_grpc,
)
from engine.units import MIB
from tests.e2e.world import World
from tests.servers.controller import Controller
from tests.servers.guest import DiskFile
from tests.waiting import wait_until_async


def system(world: World) -> system_service_pb2_grpc.SystemServiceStub:
    return system_service_pb2_grpc.SystemServiceStub(world._channel)  # a service that only this test asks


async def recovery(world: World) -> system_service_pb2.GetRecoveryResponse:
    return await system(world).GetRecovery(system_service_pb2.GetRecoveryRequest())


def fetch(world: World, file: Path) -> None:
    """Fetch the bundle as a person would whose controller is gone: with the storage's credentials alone."""
    config = world.sshd.config(world.folder / "vault")
    (world.folder / "key").write_text(config.private_key)
    (world.folder / "key").chmod(0o600)
    described = {
        "type": "sftp", "host": config.host, "port": config.port, "username": config.username, "path": config.path,
        "private_key": config.private_key, "host_key": config.host_key,
    }  # fmt: skip
    (world.folder / "vault.json").write_text(json.dumps(described))
    (world.folder / "vault.json").chmod(0o600)
    program = str(Path(sys.executable).parent / "bm-engine")
    words = [program, "bundle", "--storage", str(world.folder / "vault.json"), "--to", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.feature("N11", "N10")
async def test_a_lost_controller_is_made_again_from_a_storage(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(4 * MIB)])
    async with World(tmp_path / "world", libvirtd) as world:
        server, storage = await world.register(domain), await world.add_sftp()
        made = await world.good_backup(server, storage)
        printed = world.controller.command("backup")
        (key,) = (line.removeprefix("recovery key: ") for line in printed.splitlines())
        stub = settings_service_pb2_grpc.SettingsServiceStub(world._channel)
        request = settings_service_pb2.UpdateSettingsRequest(update_mask=FieldMask(paths=["bundle_storage_id"]))
        request.settings.bundle_storage_id = "vault"
        await stub.UpdateSettings(request)

        async def written() -> bool:
            return (await recovery(world)).HasField("newest")

        await wait_until_async(written, 60, "the bundle to be written")
        first = world.controller
        first.kill()
        shutil.rmtree(first.state)
        fetch(world, tmp_path / "bundle")
        (tmp_path / "key").write_text(key)

        second = Controller(
            tmp_path / "second", listen=first.api, agent_listen=first.agents, heartbeat_seconds=1, tick_seconds=0.5
        )
        try:
            second.join(first)
            second.command("restore", str(tmp_path / "bundle"), "--key-file", str(tmp_path / "key"))
            second.start()
            world.controller = second
            await world.connect()
            told = await recovery(world)
            assert (told.epoch, [one.name for one in told.blocked_storages]) == (2, ["vault"])
            assert not await world.list_backups()

            async def ordered() -> str:
                ask = storage_service_pb2.ReconcileStorageRequest(storage_id="vault", request_id=str(uuid.uuid4()))
                try:
                    return (await world.storages.ReconcileStorage(ask)).job_id
                except aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:  # the agent is not back yet
                        raise
                    return ""

            await world.finish(await wait_until_async(ordered, 60, "the agent to come back") or "")
            assert [one.backup_id for one in await world.list_backups()] == [made.backup_id]
            assert not (await recovery(world)).blocked_storages
            again = await world.good_backup(server, storage)
            assert {one.backup_id for one in await world.list_backups()} == {made.backup_id, again.backup_id}
        finally:
            await world._channels.aclose()
            second.close()
