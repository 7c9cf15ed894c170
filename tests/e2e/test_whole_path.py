"""A server is backed up, destroyed and restored through controller, agent and engine."""

from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import job_pb2
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
