"""The fleet simulator itself, small; and two controllers with one PostgreSQL, one of which is killed in the middle of much work."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from grpc import aio

from clients.errors import refusal
from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    backup_service_pb2_grpc,
    batch_pb2,
    batch_service_pb2,
    batch_service_pb2_grpc,
    hypervisor_service_pb2,
    hypervisor_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
)
from tests.fleet.fleet import Fleet
from tests.fleet.seed import Seeded, Size, seed
from tests.servers.agent import Agent
from tests.servers.controller import Controller
from tests.servers.postgres import Postgres
from tests.servers.sshd import free_port
from tests.waiting import wait_until_async

AGENTS = 20
SERVERS_EACH = 2
SIZE = Size(AGENTS, SERVERS_EACH, backups_each=5)
QUICK = {"heartbeat_seconds": 1, "log_level": "info"}


async def order(channel: aio.Channel, seeded: Seeded) -> list[str]:
    """Start a backup of every server; return the jobs."""
    stub = backup_service_pb2_grpc.BackupServiceStub(channel)
    wanted = [server for host in seeded.hosts for server in host.server_ids]
    requests = (
        backup_service_pb2.StartBackupRequest(
            server_id=one, storage_id=seeded.storage_id, request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, one))
        )
        for one in wanted
    )
    return [(await stub.StartBackup(request)).job_id for request in requests]


async def states(channel: aio.Channel, job_ids: list[str]) -> list["job_pb2.JobState.ValueType"]:
    stub = job_service_pb2_grpc.JobServiceStub(channel)
    return [(await stub.GetJob(job_service_pb2.GetJobRequest(job_id=one))).job.state for one in job_ids]


async def all_completed(channel: aio.Channel, job_ids: list[str]) -> None:
    stub = job_service_pb2_grpc.JobServiceStub(channel)
    live = [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_DISPATCHED, job_pb2.JOB_STATE_RUNNING]
    request = job_service_pb2.ListJobsRequest(states=live, types=[job_pb2.JOB_TYPE_BACKUP], page_size=1)

    async def none_lives() -> bool:
        return not (await stub.ListJobs(request)).jobs

    await wait_until_async(none_lives, 60, "all jobs to end")
    assert set(await states(channel, job_ids)) == {job_pb2.JOB_STATE_COMPLETED}


@pytest.mark.feature("X16", "N3")
async def test_a_fleet_works_through_a_kill_of_its_controller_and_does_nothing_twice(tmp_path: Path) -> None:
    ports = {"listen": f"127.0.0.1:{free_port()}", "agent_listen": f"127.0.0.1:{free_port()}"}
    with Controller(tmp_path / "controller", **QUICK, **ports) as controller:
        controller.stop()
        seeded = seed(controller.state, f"sqlite:///{controller.state}/controller.db", SIZE)
        controller.start()
        async with Fleet(seeded.hosts, [controller.agents], controller.authority_pem, job_seconds=0.2) as fleet:
            await fleet.connected()
            async with controller.channel() as channel:
                jobs = await order(channel, seeded)
            controller.kill()
            controller.start()
            async with controller.channel() as channel:
                await all_completed(channel, jobs)
                listed = backup_service_pb2.ListBackupsRequest(server_id=seeded.hosts[0].server_ids[0])
                backups = await backup_service_pb2_grpc.BackupServiceStub(channel).ListBackups(listed)

        assert len(backups.backups) == 5 + 1
        assert [fleet.plan.began[job_id, 1] for job_id in jobs] == [1] * len(jobs)
        assert set(fleet.plan.began.values()) == {1}, "also what the clock demanded meanwhile began once"
        assert {job_id for job_id, _ in fleet.plan.finished} >= set(jobs)


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres) -> Iterator[tuple[Controller, Controller, Seeded]]:
    """Two controllers of one installation, the second made from the first one's authority and master key."""
    url = postgres.database()
    with Controller(tmp_path / "one", database=url, **QUICK) as one:
        one.stop()
        seeded = seed(one.state, url, SIZE)
        one.start()
        other = Controller(tmp_path / "other", database=url, **QUICK)
        other.state.mkdir(mode=0o700, parents=True)
        shutil.copytree(one.state / "authority", other.state / "authority")
        shutil.copy2(one.state / "master.key", other.state / "master.key")
        other.join(one)
        try:
            other.start()
            yield one, other, seeded
        finally:
            other.close()


@pytest.fixture
async def fleet(pair: tuple[Controller, Controller, Seeded]) -> AsyncIterator[Fleet]:
    one, other, seeded = pair
    async with Fleet(seeded.hosts, [one.agents, other.agents], one.authority_pem, job_seconds=0.2) as fleet:
        await fleet.connected()
        yield fleet


@pytest.mark.feature("X1", "X12", "N3", "N7")
async def test_two_controllers_that_start_batches_at_once_start_each_one_once(
    pair: tuple[Controller, Controller, Seeded], fleet: Fleet
) -> None:
    one, other, seeded = pair
    schedules = [host.hypervisor_id for host in seeded.hosts]
    async with one.channel() as first, other.channel() as second:
        both = [batch_service_pb2_grpc.BatchServiceStub(channel) for channel in (first, second)]
        answers = await asyncio.gather(
            *(start_batch(stub, which, f"{number}") for which in schedules for number, stub in enumerate(both))
        )
        assert set(answers) <= {"", "BATCH_WAITING"}, answers

        async def none_lives() -> bool:
            found = (await both[1].ListBatches(batch_service_pb2.ListBatchesRequest(page_size=1000))).batches
            live = {batch_pb2.BATCH_STATE_DISPATCHED, batch_pb2.BATCH_STATE_RUNNING, batch_pb2.BATCH_STATE_DEFERRED}
            at_work = [one.hypervisor_id for one in found if one.state in live - {batch_pb2.BATCH_STATE_DEFERRED}]
            assert len(at_work) == len(set(at_work)), "two batches work on one hypervisor"
            return bool(found) and not any(one.state in live for one in found)

        await wait_until_async(none_lives, 120, "all batches to end")
        found = (await both[0].ListBatches(batch_service_pb2.ListBatchesRequest(page_size=1000))).batches
    assert {one.hypervisor_id for one in found} == set(schedules)
    assert {one.state for one in found} == {batch_pb2.BATCH_STATE_COMPLETED}
    assert sum(one.counts.completed for one in found) == len(found) * SERVERS_EACH
    assert len(fleet.plan.began) >= len(found) * SERVERS_EACH
    assert set(fleet.plan.began.values()) == {1}, "also what the clock demanded meanwhile began once"
    assert fleet.plan.batches_max == 1, (
        "jobs of two batches lay on one hypervisor, whether they ran side by side or not"
    )
    assert fleet.plan.at_work_max == 1, "two batches on one hypervisor, or more servers at once than Backup Concurrency"


async def start_batch(stub: batch_service_pb2_grpc.BatchServiceStub, schedule: str, request: str) -> str:
    """Ask for a batch; return "" or why it was refused."""
    wanted = batch_service_pb2.StartBatchRequest(
        schedule_id=schedule, request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, schedule + request))
    )
    try:
        await stub.StartBatch(wanted)
    except aio.AioRpcError as error:
        return refusal(error).reason
    return ""


async def _has_session(controller: Controller, name: str) -> bool:
    """Tell whether a controller has begun a session of the hypervisor with this name."""
    async with controller.channel() as channel:
        stub = hypervisor_service_pb2_grpc.HypervisorServiceStub(channel)
        found = await stub.ListHypervisors(hypervisor_service_pb2.ListHypervisorsRequest())
    hypervisor_id = next(one.hypervisor_id for one in found.hypervisors if one.name == name)
    return f"session began hypervisor_id={hypervisor_id}" in controller.log.read_text()


@pytest.mark.feature("X16", "N3", "N7")
async def test_two_controllers_lose_nothing_and_do_nothing_twice_when_one_is_killed(
    pair: tuple[Controller, Controller, Seeded], fleet: Fleet, tmp_path: Path
) -> None:
    one, other, seeded = pair
    async with one.channel() as first, other.channel() as second:
        stub = hypervisor_service_pb2_grpc.HypervisorServiceStub(first)
        token = await stub.CreateEnrollmentToken(hypervisor_service_pb2.CreateEnrollmentTokenRequest(name="real"))
        real = Agent(
            tmp_path / "agent", controller=one.api, token=token.token, libvirt_uri="test:///default",
            controllers=[other.agents],
        )  # fmt: skip
        with real:
            await wait_until_async(partial(_has_session, one, "real"), 30, "the real agent's session")
            jobs, same = await asyncio.gather(order(first, seeded), order(second, seeded))
            assert jobs == same, "the same request asked of both is one job"
            assert max(await states(second, jobs)) <= job_pb2.JOB_STATE_COMPLETED
            one.kill()

            await all_completed(second, jobs)
            await fleet.connected()
            await wait_until_async(partial(_has_session, other, "real"), 30, "the real agent at the other controller")
        listed = await hypervisor_service_pb2_grpc.HypervisorServiceStub(second).ListHypervisors(
            hypervisor_service_pb2.ListHypervisorsRequest()
        )
    assert len(listed.hypervisors) == AGENTS + 1
    assert len(jobs) == AGENTS * SERVERS_EACH
    assert [fleet.plan.began[job_id, 1] for job_id in jobs] == [1] * len(jobs)
    assert set(fleet.plan.began.values()) == {1}, "also what the clock demanded meanwhile began once"
    assert {job_id for job_id, _ in fleet.plan.finished} >= set(jobs)
