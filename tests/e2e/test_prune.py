"""Retention with everything real: what nothing keeps any more is gone from the storage, by itself."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import field_mask_pb2

from clients.gen.backupmanager.v1 import job_pb2, job_service_pb2, retention_pb2, storage_pb2, storage_service_pb2
from engine.units import MIB
from tests.e2e.world import ENDED, FULL, INCREMENTAL, World, assert_host_is_clean, folders_on_storage
from tests.servers.guest import DiskFile
from tests.waiting import wait_until_async


@pytest.mark.feature("R7")
@pytest.mark.feature("R8")
@pytest.mark.feature("R11")
@pytest.mark.feature("R19")
async def test_of_three_chains_the_oldest_leaves_the_storage_and_the_others_stay_whole(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    async with World(tmp_path / "world", libvirtd) as world:
        server, storage_id = await world.register(domain), await world.add_sftp(encrypted=False)
        made: list[str] = []
        for number, kind in enumerate((FULL, INCREMENTAL, FULL, FULL)):
            domain.write("vda", number * MIB, MIB, number + 1)
            made.append((await world.good_backup(server, storage_id, type=kind)).backup_id)
        place = tmp_path / "world" / "vault"
        assert folders_on_storage(place) == sorted(made)  # without a policy all stay

        policy = retention_pb2.RetentionPolicy(preset="keep-last")
        storage = storage_pb2.Storage(storage_id=storage_id, retention=policy, keep_last=1)
        mask = field_mask_pb2.FieldMask(paths=["retention", "keep_last"])
        await world.storages.UpdateStorage(storage_service_pb2.UpdateStorageRequest(storage=storage, update_mask=mask))
        domain.write("vda", 9 * MIB, MIB, 9)
        made.append((await world.good_backup(server, storage_id)).backup_id)  # whose end has the server looked at

        request = job_service_pb2.ListJobsRequest(types=[job_pb2.JOB_TYPE_PRUNE])

        async def pruned() -> job_pb2.Job | None:
            found = list((await world.jobs.ListJobs(request)).jobs)
            return found[0] if found and found[0].state in ENDED else None

        job = await wait_until_async(pruned, 90, "the prune to end")
        assert job is not None
        assert job.state == job_pb2.JOB_STATE_COMPLETED, job
        assert set(job.result.delete.backup_ids) == set(made[:2])
        assert job.result.delete.freed_bytes > 0
        assert folders_on_storage(place) == sorted(made[2:])
        assert {one.backup_id for one in await world.list_backups(server)} == set(made[2:])
        for backup_id in (made[2], made[-1]):
            verified = await world.finish(await world.verify(backup_id))
            assert verified.result.verify.damaged_count == 0, verified
        assert_host_is_clean(world, domain)
