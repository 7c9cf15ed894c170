"""A due schedule backs up a hypervisor's servers in one batch, of which one fails: controller, agent, engine and QEMU."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    batch_pb2,
    batch_service_pb2,
    batch_service_pb2_grpc,
    disk_pb2,
    job_pb2,
    job_service_pb2,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from engine.units import MIB
from tests.e2e.world import World, assert_host_is_clean
from tests.servers.guest import DiskFile
from tests.waiting import wait_until, wait_until_async

_ENDED = frozenset(
    {
        batch_pb2.BATCH_STATE_COMPLETED,
        batch_pb2.BATCH_STATE_COMPLETED_WITH_WARNINGS,
        batch_pb2.BATCH_STATE_PARTIAL,
        batch_pb2.BATCH_STATE_FAILED,
        batch_pb2.BATCH_STATE_CANCELLED,
    }
)


@pytest.mark.feature("X13", "X17", "D28", "M5", "P2")
async def test_a_due_schedule_backs_up_its_servers_in_one_batch_and_one_fails_alone(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domains = []
    for name in ("a", "b"):
        disk = DiskFile("vda", tmp_path / f"{name}.qcow2").create(16 * MIB)
        domains.append(blank_domain([disk]))
        domains[-1].write("vda", 0, 4 * MIB, 7)
    async with World(tmp_path / "world", libvirtd, tick_seconds=0.5) as world:
        servers = [await world.register(domain) for domain in domains]
        storage = await world.add_sftp()
        channel = world._channel
        batches = batch_service_pb2_grpc.BatchServiceStub(channel)
        schedules = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
        domains[1].handle.destroy()  # its server stays: the images are gone with it
        (tmp_path / "b.qcow2").unlink()

        make = schedule_service_pb2.CreateScheduleRequest(
            hypervisor_id="kvm1",
            storage_id=storage,
            overrides=schedule_pb2.ScheduleOverrides(backup_concurrency=2, consistency=disk_pb2.CONSISTENCY_MODE_NONE),
        )
        await schedules.CreateSchedule(make)

        async def ended() -> batch_pb2.Batch | None:
            found = (await batches.ListBatches(batch_service_pb2.ListBatchesRequest(schedule_id="kvm1"))).batches
            return found[0] if found and found[0].state in _ENDED else None

        batch = await wait_until_async(ended, 90, "the schedule's batch to end")
        assert batch is not None
        request = job_service_pb2.ListJobsRequest(batch_id=batch.batch_id)
        jobs = {one.server_id: one for one in (await world.jobs.ListJobs(request)).jobs}

        assert batch.state == batch_pb2.BATCH_STATE_PARTIAL, jobs
        assert batch.origin == batch_pb2.BATCH_ORIGIN_SCHEDULE
        assert (batch.counts.completed, batch.counts.failed) == (1, 1)
        assert jobs[servers[1]].state == job_pb2.JOB_STATE_FAILED
        wait_until(lambda: not list(world.agent.engines()), 20, "the batch's process to end")
        for server, domain in zip(servers[:1], domains[:1], strict=True):
            assert jobs[server].HasField("start_time")
            assert [one.backup_id for one in await world.list_backups(server)] == [jobs[server].backup_id]
            assert_host_is_clean(world, domain)
        assert world.agent.log.count("started an engine batch_id=") == 1
        log_request = job_service_pb2.ListJobLogEntriesRequest(job_id=jobs[servers[0]].job_id)
        assert (await world.jobs.ListJobLogEntries(log_request)).entries

        retry = batch_service_pb2.RetryBatchRequest(batch_id=batch.batch_id, request_id=str(uuid.uuid4()))
        again = (await batches.RetryBatch(retry)).batch
        assert again.counts.servers == 1
