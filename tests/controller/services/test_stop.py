"""The end of a controller: in order, quickly, with a last word for everybody who listens, and nothing lost."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients.gen.backupmanager.v1 import job_pb2, job_service_pb2, storage_service_pb2
from tests.controller.services.api import Api, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Station


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Controller(tmp_path / "c") as running:
        yield running


async def started(api: Api, station: Station) -> str:
    storage = await api.make_storage()
    request = storage_service_pb2.TestStorageRequest(storage_id=storage.name, hypervisor_id=station.name)
    return (await api.storages.TestStorage(request)).job_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_everybody_who_listens_is_told_and_the_process_ends_well(controller: Controller, number: int) -> None:
    station = await Station.enroll(controller, "hv")
    async with controller.channel() as channel, station.session() as session:
        api = Api(channel)
        job_id = await started(api, station)
        await session.accept(await session.command())
        job = await api.job(job_id)
        watch: Any = api.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id))
        assert (await watch.read()).job.job_id == job_id
        poll = asyncio.ensure_future(
            api.jobs.PollJob(job_service_pb2.PollJobRequest(job_id=job_id, cursor=job.version), timeout=20)
        )
        health_stub: Any = health_pb2_grpc.HealthStub(channel)
        health = health_stub.Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        await asyncio.sleep(0)  # the poll is on its way

        began = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(controller.stop, number))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        told = await refusal(_drain(watch))
        assert (told.reason, told.status) == ("SHUTTING_DOWN", "UNAVAILABLE")
        end = await refusal(_raise(await session.ended()))
        assert (end.reason, end.status) == ("SHUTTING_DOWN", "UNAVAILABLE")
        assert await stopping == 0
        assert time.monotonic() - began < 6
        assert await refused(poll) in {"SHUTTING_DOWN", "CONTROLLER_UNREACHABLE"}
    assert not (controller.state / "ports.json").exists()
    assert "Traceback" not in controller.log.read_text()


@pytest.mark.feature("X16")
async def test_what_was_acknowledged_is_there_after_a_restart(controller: Controller) -> None:
    station = await Station.enroll(controller, "hv")
    async with controller.channel() as channel, station.session() as session:
        job_id = await started(Api(channel), station)
        command = await session.command()
        await session.accept(command)
        await session.finish(command, job_pb2.JOB_STATE_COMPLETED)
    await asyncio.to_thread(controller.kill)
    await asyncio.to_thread(controller.start)
    async with controller.channel() as channel, station.session() as session:
        assert (await Api(channel).job(job_id)).state == job_pb2.JOB_STATE_COMPLETED
        assert session.welcome.stored_sequence == station.last_sequence


async def test_a_stopped_controller_starts_again_with_the_same_identity(controller: Controller) -> None:
    before = controller.authority_pem
    await asyncio.to_thread(controller.restart)
    assert controller.authority_pem == before
    ports = json.loads((controller.state / "ports.json").read_text())
    assert ports == {"api": controller.api_port, "agents": controller.agents_port, "pid": ports["pid"]}


async def test_a_second_controller_on_the_same_state_does_not_start(controller: Controller) -> None:
    message = await asyncio.to_thread(controller.command, "serve", status=1)
    assert "another controller uses" in message


async def test_a_port_that_is_taken_is_told(controller: Controller, tmp_path: Path) -> None:
    other = Controller(tmp_path / "other", listen=controller.api)
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1: .*cannot listen on 127\.0\.0\.1"), other:
        pass
    text = other.log.read_text()
    assert "Traceback" not in text
    assert "never awaited" not in text


async def _drain(watch: Any) -> None:
    while await watch.read() is not aio.EOF:
        pass


async def _raise(error: grpc.RpcError | None) -> None:
    if error is not None:
        raise error
