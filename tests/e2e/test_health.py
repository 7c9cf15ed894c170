"""A storage's health through controller, agent and engine over a real sshd: it is looked at, goes away, and comes back."""

from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    job_pb2,
    overview_service_pb2,
    overview_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    storage_pb2,
    storage_service_pb2,
)
from tests.e2e.world import HYPERVISOR, World
from tests.waiting import wait_until_async

STORAGE = "vault"


async def health(world: World) -> storage_pb2.Storage:
    request = storage_service_pb2.GetStorageRequest(storage_id=STORAGE)
    return (await world.storages.GetStorage(request)).storage


async def look(world: World) -> job_pb2.Job:
    """Check now and wait for the end."""
    request = storage_service_pb2.CheckStorageRequest(storage_id=STORAGE, hypervisor_id=HYPERVISOR)
    return await world.finish((await world.storages.CheckStorage(request)).job_id)


@pytest.mark.feature("H1", "H2", "H3", "H4")
async def test_a_storage_is_looked_at_goes_away_and_comes_back(tmp_path: Path, libvirtd: Any) -> None:
    async with World(tmp_path / "world", libvirtd) as world:
        await world.add_sftp(STORAGE, encrypted=False)
        assert (await health(world)).health.state == storage_pb2.HEALTH_STATE_UNKNOWN
        schedules = schedule_service_pb2_grpc.ScheduleServiceStub(world._channel)
        await schedules.CreateSchedule(
            schedule_service_pb2.CreateScheduleRequest(
                hypervisor_id=HYPERVISOR, storage_id=STORAGE, overrides=schedule_pb2.ScheduleOverrides(interval_hours=0)
            )
        )

        async def looked_at() -> bool:
            return (await health(world)).health.state == storage_pb2.HEALTH_STATE_HEALTHY

        await wait_until_async(looked_at, 60, "the clock to look at the storage by itself")
        assert not (tmp_path / "world" / STORAGE).exists(), "to look at a storage makes nothing there"

        tested = storage_service_pb2.TestStorageRequest(storage_id=STORAGE, hypervisor_id=HYPERVISOR)
        await world.finish((await world.storages.TestStorage(tested)).job_id)
        job = await look(world)
        assert job.state == job_pb2.JOB_STATE_COMPLETED, job
        assert job.result.health.initialized
        found = await health(world)
        assert 0 < found.usage.free_bytes < found.usage.total_bytes
        assert found.usage.measure_time.seconds

        world.sshd.stop()
        job = await look(world)
        assert (job.state, job.failure.reason) == (job_pb2.JOB_STATE_FAILED, "STORAGE_UNREACHABLE"), job
        found = await health(world)
        assert found.health.state == storage_pb2.HEALTH_STATE_UNHEALTHY
        assert found.health.failure.reason == "STORAGE_UNREACHABLE"
        overview = overview_service_pb2_grpc.OverviewServiceStub(world._channel)
        seen = (await overview.GetOverview(overview_service_pb2.GetOverviewRequest())).overview
        assert seen.counts.unhealthy_storage_count == 1
        assert seen.recent_errors[0].job_id == job.job_id
        assert seen.storages[0].usage.total_bytes, "what it told last is still shown"

        world.sshd.start()
        assert (await look(world)).state == job_pb2.JOB_STATE_COMPLETED
        found = await health(world)
        assert found.health.state == storage_pb2.HEALTH_STATE_HEALTHY
        assert not found.health.HasField("failure")
        checks = await world.storages.ListStorageChecks(
            storage_service_pb2.ListStorageChecksRequest(storage_id=STORAGE)
        )
        assert [(one.hypervisor_name, one.failure_count) for one in checks.checks] == [(HYPERVISOR, 0)]
        assert checks.checks[0].latency.ToTimedelta().total_seconds() > 0
