"""A server is backed up, destroyed and restored through controller, agent and engine."""

from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import disk_pb2, job_pb2
from engine.units import MIB
from tests.e2e.world import FULL, INCREMENTAL, World, assert_host_is_clean
from tests.engine.rig import digest
from tests.servers.guest import DiskFile


@pytest.mark.feature("M14")
@pytest.mark.feature("M15")
@pytest.mark.feature("N8")
async def test_backups_through_the_product_restore_byte_by_byte(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(64 * MIB)
    domain = blank_domain([disk])
    async with World(tmp_path / "world", libvirtd) as world:
        server, storage = await world.register(domain), await world.add_sftp()
        domain.write("vda", 0, 20 * MIB, 1)
        first, first_digest = await world.good_backup(server, storage), digest(disk.path, "qcow2")
        domain.write("vda", 7 * MIB, MIB, 2)
        second, second_digest = await world.good_backup(server, storage), digest(disk.path, "qcow2")
        domain.write("vda", 0, 64 * MIB, 0xEE)

        assert [job.result.backup.disks[0].type for job in (first, second)] == [FULL, INCREMENTAL]
        assert [one.backup_id for one in await world.list_backups(server)] == [second.backup_id, first.backup_id]
        for job, expected in ((second, second_digest), (first, first_digest)):
            restored = await world.finish(await world.restore(job.backup_id))
            assert restored.state == job_pb2.JOB_STATE_COMPLETED, restored
            assert restored.result.restore.server_started
            assert digest(disk.path, "qcow2") == expected
        verified = await world.finish(await world.verify(second.backup_id))
        assert verified.state == job_pb2.JOB_STATE_COMPLETED
        assert verified.result.verify.damaged_count == 0
        assert_host_is_clean(world, domain)


@pytest.mark.feature("C12")
async def test_each_disk_has_its_own_type_point_and_target(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disks = {name: DiskFile(name, tmp_path / f"{name}.qcow2").create(8 * MIB) for name in ("vda", "vdb")}
    domain = blank_domain(list(disks.values()))
    async with World(tmp_path / "world", libvirtd) as world:
        server, storage = await world.register(domain), await world.add_sftp()
        for name in disks:
            domain.write(name, 0, 4 * MIB, 1)
        first = await world.good_backup(server, storage)
        older = digest(disks["vdb"].path, "qcow2")
        for name in disks:
            domain.write(name, MIB, MIB, 2)
        second = await world.good_backup(server, storage, disk_types={"vdb": FULL})
        newer = digest(disks["vda"].path, "qcow2")

        assert {one.disk: one.type for one in second.result.backup.disks} == {"vda": INCREMENTAL, "vdb": FULL}
        target = tmp_path / "out.qcow2"
        target.write_bytes(b"something older")
        choice: dict[str, Any] = {
            "points": {"vdb": first.backup_id},
            "targets": {"vda": str(target), "vdb": str(tmp_path / "old.qcow2")},
            "target_format": disk_pb2.IMAGE_FORMAT_QCOW2,
            "overwrite": True,
        }
        restored = await world.finish(await world.restore(second.backup_id, **choice))

        assert restored.state == job_pb2.JOB_STATE_COMPLETED, restored
        assert digest(target, "qcow2") == newer
        assert digest(tmp_path / "old.qcow2", "qcow2") == older
        assert_host_is_clean(world, domain)
