"""A bucket and a remote of rclone through controller, agent and engine: made by the API, tried out, backed up to, restored from."""

from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import job_pb2, storage_pb2, storage_service_pb2
from engine.units import MIB
from tests.e2e.world import FULL, HYPERVISOR, INCREMENTAL, PASSPHRASE, World, assert_host_is_clean
from tests.engine.rig import digest
from tests.servers.guest import DiskFile
from tests.servers.rclone import RcloneRemotes
from tests.servers.weed import Weed


async def add(world: World, kind: str, config: Any, **secrets: str) -> str:
    """Make an encrypted storage of a type, try it out from the hypervisor, and return its id."""
    named: dict[str, Any] = {kind: config}
    request = storage_service_pb2.CreateStorageRequest(
        name=kind,
        encryption_enabled=True,
        secrets=storage_service_pb2.StorageSecrets(encryption_passphrase=PASSPHRASE, **secrets),
        **named,
    )
    made = (await world.storages.CreateStorage(request)).storage
    test = storage_service_pb2.TestStorageRequest(storage_id=made.storage_id, hypervisor_id=HYPERVISOR)
    tried = await world.finish((await world.storages.TestStorage(test)).job_id)
    assert tried.state in {job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS}, tried
    assert {"connect", "write", "read"} <= {step.name for step in tried.result.test.steps}
    return made.storage_id


async def back_up_and_restore(world: World, domain: Any, disk: DiskFile, server: str, storage: str) -> None:
    domain.write("vda", 0, 8 * MIB, 1)
    first = await world.good_backup(server, storage)
    domain.write("vda", 3 * MIB, MIB, 2)
    second, expected = await world.good_backup(server, storage), digest(disk.path, "qcow2")
    assert [job.result.backup.disks[0].type for job in (first, second)] == [FULL, INCREMENTAL]
    domain.write("vda", 0, 16 * MIB, 0xEE)

    restored = await world.finish(await world.restore(second.backup_id))

    assert restored.state == job_pb2.JOB_STATE_COMPLETED, restored
    assert digest(disk.path, "qcow2") == expected
    check = storage_service_pb2.CheckStorageRequest(storage_id=storage, hypervisor_id=HYPERVISOR)
    checked = await world.finish((await world.storages.CheckStorage(check)).job_id)
    assert checked.result.health.initialized, checked
    read = storage_service_pb2.ReconcileStorageRequest(storage_id=storage, hypervisor_id=HYPERVISOR)
    reconciled = await world.finish((await world.storages.ReconcileStorage(read)).job_id)
    assert reconciled.result.reindex.backup_count == 2, reconciled
    assert_host_is_clean(world, domain)


@pytest.mark.feature("S5", "S6", "S24", "H4", "N10")
async def test_a_bucket_through_the_product(tmp_path: Path, libvirtd: Any, blank_domain: Any, weed: Weed) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    given = weed.config(weed.bucket())
    config = storage_pb2.S3Config(
        bucket=given.bucket,
        region=given.region,
        endpoint=given.endpoint,
        access_key=given.access_key,
        prefix="hosts/backups",
        part_size_bytes=5 * MIB,
    )
    async with World(tmp_path / "world", libvirtd) as world:
        server = await world.register(domain)
        storage = await add(world, "s3", config, s3_secret_key=given.secret_key)
        await back_up_and_restore(world, domain, disk, server, storage)
        shown = (await world.storages.GetStorage(storage_service_pb2.GetStorageRequest(storage_id=storage))).storage
        assert shown.usage.backup_bytes == shown.stored_bytes > 0, "the bytes that this product stores"
        assert shown.usage.total_bytes == 0, "a bucket does not tell its room"
        assert (shown.upload_memory.part_size_bytes, shown.upload_memory.memory_bytes) == (5 * MIB, 40 * MIB)


@pytest.mark.feature("S14", "S15", "S24")
async def test_a_remote_of_rclone_through_the_product(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    place = tmp_path / "remote"
    place.mkdir()
    remotes = RcloneRemotes(tmp_path / "rclone.conf", disk={"type": "local"})
    monkeypatch.setenv("BM_AGENT_RCLONE_CONFIG_FILE", str(remotes.path))
    async with World(tmp_path / "world", libvirtd) as world:
        server = await world.register(domain)
        storage = await add(world, "rclone", storage_pb2.RcloneConfig(remote="disk", path=str(place)))
        await back_up_and_restore(world, domain, disk, server, storage)
        assert (place / "repository.json").is_file()
