"""Batches over the wire: running a schedule now, looking at it, ending it, and trying again what failed."""

import uuid
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    batch_pb2,
    batch_service_pb2,
    batch_service_pb2_grpc,
    event_pb2,
    event_service_pb2,
    job_pb2,
    job_service_pb2,
    schedule_service_pb2,
)
from tests.controller.services.api import Api, all_pages, fresh, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Station

NOBODY = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


@pytest.mark.feature("D26", "X13", "M5", "M7", "N6", "N7")
async def test_a_schedule_is_run_seen_cancelled_and_not_retried(api: Api, controller: Controller) -> None:
    batches = batch_service_pb2_grpc.BatchServiceStub(api.channel)
    station = await Station.enroll(controller, fresh("hv"))
    async with station.session() as session:
        storage = await api.make_storage()
        servers = [await api.make_server(station.name) for _ in range(2)]
        make = schedule_service_pb2.CreateScheduleRequest(
            hypervisor_id=station.name, storage_id=storage.storage_id, enabled=False
        )
        schedule = (await api.schedules.CreateSchedule(make)).schedule
        ask = batch_service_pb2.StartBatchRequest(schedule_id=station.name, request_id=str(uuid.uuid4()))

        made = (await batches.StartBatch(ask)).batch
        again = (await batches.StartBatch(ask)).batch
        commands = [await session.command(), await session.command()]

        assert (made.state, made.origin) == (batch_pb2.BATCH_STATE_DISPATCHED, batch_pb2.BATCH_ORIGIN_FORCE)
        assert again.batch_id == made.batch_id
        assert made.schedule_id == schedule.schedule_id
        assert (made.counts.servers, made.counts.pending) == (2, 2)
        assert {one.run.batch.batch_id for one in commands} == {made.batch_id}
        assert sorted(one.run.batch.position for one in commands) == [0, 1]
        assert {one.run.batch.job_count for one in commands} == {2}

        def page(token: str) -> object:
            request = job_service_pb2.ListJobsRequest(batch_id=made.batch_id, page_size=1, page_token=token)
            return api.jobs.ListJobs(request)

        jobs = await all_pages(page, "jobs")  # type: ignore[arg-type]  # a call is awaitable
        assert {one.server_id for one in jobs} == {one.server_id for one in servers}
        assert {one.batch_id for one in jobs} == {made.batch_id}

        await session.accept(commands[0])
        await session.finish(commands[0], job_pb2.JOB_STATE_FAILED)
        await api.ended(commands[0].job_id)
        end = (await batches.CancelBatch(batch_service_pb2.CancelBatchRequest(batch_id=made.batch_id))).batch
        assert end.cancel_requested
        assert (await session.command()).WhichOneof("body") == "cancel"
        await session.finish(commands[1], job_pb2.JOB_STATE_CANCELLED)
        await api.ended(commands[1].job_id)
        found = (await batches.GetBatch(batch_service_pb2.GetBatchRequest(batch_id=made.batch_id))).batch
        assert found.state == batch_pb2.BATCH_STATE_CANCELLED
        assert (found.counts.failed, found.counts.cancelled) == (1, 1)
        assert (
            await refusal(batches.CancelBatch(batch_service_pb2.CancelBatchRequest(batch_id=made.batch_id)))
        ).reason == ("BATCH_ENDED")

        retry = batch_service_pb2.RetryBatchRequest(batch_id=made.batch_id, request_id=str(uuid.uuid4()))
        second = (await batches.RetryBatch(retry)).batch
        assert (second.origin_batch_id, second.counts.servers) == (made.batch_id, 1)
        wanted = batch_service_pb2.ListBatchesRequest(schedule_id=station.name)
        listed = (await batches.ListBatches(wanted)).batches
        assert [one.batch_id for one in listed] == [second.batch_id, made.batch_id]
        one_job = batch_service_pb2.ListBatchesRequest(job_id=jobs[0].job_id)
        assert [one.batch_id for one in (await batches.ListBatches(one_job)).batches] == [made.batch_id]
        await _each_filter_selects(batches, station.name, made, second)
        await _its_events_are_one_story(api, made.batch_id)


async def _each_filter_selects(
    batches: batch_service_pb2_grpc.BatchServiceStub, schedule: str, made: batch_pb2.Batch, second: batch_pb2.Batch
) -> None:
    """Of two batches, an ended and a live one: state and dates find one of them, page by page both."""

    async def found(**wanted: Any) -> list[str]:
        def page(token: str) -> Any:
            request = batch_service_pb2.ListBatchesRequest(
                schedule_id=schedule, page_size=1, page_token=token, **wanted
            )
            return batches.ListBatches(request)

        return [one.batch_id for one in await all_pages(page, "batches")]

    both = [second.batch_id, made.batch_id]
    assert await found() == both
    assert await found(states=[batch_pb2.BATCH_STATE_CANCELLED]) == [made.batch_id]
    assert await found(states=[batch_pb2.BATCH_STATE_CANCELLED, batch_pb2.BATCH_STATE_DISPATCHED]) == both
    assert await found(start_time=second.create_time) == [second.batch_id]
    assert await found(end_time=second.create_time) == [made.batch_id]
    assert await found(start_time=made.create_time, end_time=made.create_time) == []


async def _its_events_are_one_story(api: Api, batch_id: str) -> None:
    """What a watch tells of a batch, a poll tells too, from any cursor on; the batch's own states are in it in their order."""
    chosen = event_pb2.EventFilter(batch_id=batch_id)
    whole = list((await api.events.PollEvents(event_service_pb2.PollEventsRequest(filter=chosen, cursor=0))).events)
    states = [one.kind for one in whole if one.kind.startswith("batch.")]
    assert states[0] == "batch.started"
    assert states[-1] == "batch.cancelled"
    assert {one.batch_id for one in whole} == {batch_id}
    assert {"job.failed", "job.cancelled"} <= {one.kind for one in whole}
    for number in range(len(whole)):
        cursor = whole[number].sequence
        rest = event_service_pb2.PollEventsRequest(filter=chosen, cursor=cursor)
        assert list((await api.events.PollEvents(rest)).events) == whole[number + 1 :]
    watched: list[event_pb2.Event] = []
    watch: Any = api.events.WatchEvents(event_service_pb2.WatchEventsRequest(filter=chosen, cursor=whole[0].sequence))
    while len(watched) < len(whole) - 1:
        watched += (await watch.read()).events
    watch.cancel()
    assert watched == whole[1:]


@pytest.mark.feature("M5")
async def test_what_is_not_there_is_refused(api: Api) -> None:
    batches = batch_service_pb2_grpc.BatchServiceStub(api.channel)
    calls = (
        batches.GetBatch(batch_service_pb2.GetBatchRequest(batch_id=NOBODY)),
        batches.CancelBatch(batch_service_pb2.CancelBatchRequest(batch_id=NOBODY)),
        batches.RetryBatch(batch_service_pb2.RetryBatchRequest(batch_id=NOBODY)),
    )
    assert [await refused(call) for call in calls] == ["BATCH_NOT_FOUND"] * 3
    nobody = batch_service_pb2.StartBatchRequest(schedule_id=NOBODY)
    assert await refused(batches.StartBatch(nobody)) == "SCHEDULE_NOT_FOUND"
