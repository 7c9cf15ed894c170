"""The real agent with the real controller and the real engine: enrolled, online, asked to work, killed, and still right."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from clients.gen.backupmanager.v1 import (
    hypervisor_pb2,
    hypervisor_service_pb2,
    hypervisor_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    storage_service_pb2,
    storage_service_pb2_grpc,
)
from tests.servers.agent import Agent
from tests.servers.controller import Controller

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]], fits: Callable[[T], bool], seconds: float = 30) -> T:
    async with asyncio.timeout(seconds):
        while True:
            answer = await ask()
            if fits(answer):
                return answer
            await asyncio.sleep(0.05)


@pytest.mark.feature("N3", "S24", "X16")
async def test_a_job_of_the_real_controller_survives_the_agent(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    with Controller(tmp_path / "controller") as controller:
        async with controller.channel() as channel:
            hypervisors = hypervisor_service_pb2_grpc.HypervisorServiceStub(channel)
            storages = storage_service_pb2_grpc.StorageServiceStub(channel)
            jobs = job_service_pb2_grpc.JobServiceStub(channel)
            token = (
                await hypervisors.CreateEnrollmentToken(
                    hypervisor_service_pb2.CreateEnrollmentTokenRequest(name="node1")
                )
            ).token
            with Agent(
                tmp_path / "agent", controller=controller.api, token=token, libvirt_uri="test:///default"
            ) as agent:

                async def hypervisor() -> hypervisor_pb2.Hypervisor:
                    listed = await hypervisors.ListHypervisors(hypervisor_service_pb2.ListHypervisorsRequest())
                    return listed.hypervisors[0]

                async def job() -> job_pb2.Job:
                    return (await jobs.GetJob(job_service_pb2.GetJobRequest(job_id=job_id))).job

                online = hypervisor_pb2.HYPERVISOR_STATE_ONLINE
                await until(hypervisor, lambda one: one.state == online)
                request = storage_service_pb2.CreateStorageRequest(name="folder", allow_local=True)
                request.local.path = str(tmp_path / "storage")
                storage = (await storages.CreateStorage(request)).storage
                job_id = (
                    await storages.TestStorage(
                        storage_service_pb2.TestStorageRequest(storage_id=storage.storage_id, hypervisor_id="node1")
                    )
                ).job_id
                agent.kill()
                agent.start()

                ended = await until(job, lambda one: one.state >= job_pb2.JOB_STATE_COMPLETED, 60)

                assert ended.state == job_pb2.JOB_STATE_COMPLETED, agent.log
                assert {step.name for step in ended.result.test.steps} >= {"write", "read"}
                domains = await until(
                    lambda: hypervisors.ListDomains(hypervisor_service_pb2.ListDomainsRequest(hypervisor_id="node1")),
                    lambda listed: bool(listed.domains),
                )
                assert [one.name for one in domains.domains] == ["test"]
