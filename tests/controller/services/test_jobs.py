"""Jobs over the wire: starting them once, watching, polling, cancelling, reading their logs and their lists."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2
from clients.gen.backupmanager.v1 import failure_pb2, job_pb2, job_service_pb2, storage_pb2, storage_service_pb2
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Session, Station, now
from tests.waiting import wait_until_async

WATCH, POLL = job_service_pb2.WatchJobRequest, job_service_pb2.PollJobRequest
NOBODY = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


@dataclass
class Work:
    """A storage, a hypervisor that is connected, and how to start a job there."""

    api: Api
    storage: storage_pb2.Storage
    station: Station
    session: Session

    async def start(self, request_id: str = "") -> str:
        request = storage_service_pb2.TestStorageRequest(
            storage_id=self.storage.name, hypervisor_id=self.station.name, request_id=request_id
        )
        return (await self.api.storages.TestStorage(request)).job_id

    async def begin(self) -> tuple[str, command_pb2.Command]:
        """Start a job and have the hypervisor accept it."""
        job_id = await self.start()
        command = await self.session.command()
        assert command.job_id == job_id
        await self.session.accept(command)
        return job_id, command


@pytest.fixture
async def work(api: Api, controller: Controller) -> AsyncIterator[Work]:
    async with _work(api, controller) as ready:
        yield ready


@asynccontextmanager
async def _work(api: Api, controller: Controller) -> AsyncIterator[Work]:
    station = await Station.enroll(controller, fresh("hv"))
    async with station.session() as session:
        yield Work(api, await api.make_storage(), station, session)


async def poll(api: Api, job_id: str, cursor: int, seconds: float | None = None) -> job_pb2.Job:
    request = POLL(job_id=job_id, cursor=cursor)
    if seconds is not None:
        request.wait.FromNanoseconds(int(seconds * 1e9))
    return (await api.jobs.PollJob(request)).job


async def cancel(api: Api, job_id: str) -> job_pb2.Job:
    return (await api.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id))).job


@pytest.mark.feature("S24", "M6")
async def test_a_job_goes_from_asked_for_to_its_result(work: Work) -> None:
    job_id = await work.start()
    watch: Any = work.api.jobs.WatchJob(WATCH(job_id=job_id))
    states = [(await watch.read()).job.state]
    command = await work.session.command()
    assert command.run.WhichOneof("verb") == "test"
    assert command.run.storage.local.path == "/backups"
    await work.session.accept(command)
    states.append((await watch.read()).job.state)
    found = job_pb2.StorageTestResult(steps=[job_pb2.StorageTestStep(name="write", bytes_per_second=7)])
    await work.session.finish(command, job_pb2.JOB_STATE_COMPLETED, result=job_pb2.JobResult(test=found))
    jobs = [change.job async for change in _rest(watch)]
    assert states == [job_pb2.JOB_STATE_DISPATCHED, job_pb2.JOB_STATE_RUNNING]
    end = jobs[-1]
    assert (end.state, end.result.test, end.requester) == (job_pb2.JOB_STATE_COMPLETED, found, "admin")
    assert end.create_time.ToDatetime() <= end.start_time.ToDatetime() <= end.end_time.ToDatetime()
    assert end == await work.api.job(job_id)


async def test_a_failure_is_told_with_reason_and_facts(work: Work) -> None:
    job_id, command = await work.begin()
    failure = failure_pb2.Failure(reason="STORAGE_FULL", message="it is full", metadata={"storage": "s"}, step="write")
    await work.session.finish(command, job_pb2.JOB_STATE_FAILED, failure=failure, warnings=["a warning"])
    end = await work.api.ended(job_id)
    assert (end.state, end.failure, list(end.warnings)) == (job_pb2.JOB_STATE_FAILED, failure, ["a warning"])


@pytest.mark.feature("N7")
async def test_the_same_request_id_is_one_job(work: Work) -> None:
    request_id = str(uuid.uuid4())
    answers = await asyncio.gather(*(work.start(request_id) for _ in range(5)))
    assert len(set(answers)) == 1
    assert await work.start(request_id.upper()) == answers[0]
    command = await work.session.command()
    await work.session.finish(command, job_pb2.JOB_STATE_COMPLETED)
    assert await work.start(request_id) == answers[0], "also when it has ended"
    other = await work.api.make_storage()
    request = storage_service_pb2.TestStorageRequest(
        storage_id=other.name, hypervisor_id=work.station.name, request_id=request_id
    )
    found = await refusal(work.api.storages.TestStorage(request))
    assert (found.reason, found.status) == ("REQUEST_ID_REUSED", "FAILED_PRECONDITION")
    assert found.facts == {"request_id": request_id, "job_id": answers[0]}
    assert await field_refused(work.start("not-a-uuid")) == "request_id"


async def test_a_watch_gives_every_state_and_ends_with_the_job(work: Work) -> None:
    job_id, command = await work.begin()
    watching = asyncio.create_task(work.api.ended(job_id))
    await work.session.progress(command, 512, 1024)
    await work.session.finish(command, job_pb2.JOB_STATE_COMPLETED)
    end = await watching
    assert end.state == job_pb2.JOB_STATE_COMPLETED
    again = [change async for change in work.api.jobs.WatchJob(WATCH(job_id=job_id, cursor=end.version))]
    assert again == [], "nothing changed after that version, and nothing will"
    assert [change.job async for change in work.api.jobs.WatchJob(WATCH(job_id=job_id))] == [end]


async def test_progress_is_seen_by_who_watches(work: Work) -> None:
    job_id, command = await work.begin()
    watch: Any = work.api.jobs.WatchJob(WATCH(job_id=job_id))
    await work.session.progress(command, 512, 1024)
    async for change in watch:
        if change.job.progress.bytes_done == 512:
            break
    assert (change.job.progress.stage, change.job.progress.bytes_total) == ("read", 1024)
    watch.cancel()


@pytest.mark.feature("N6")
async def test_a_poll_is_answered_at_the_change(work: Work) -> None:
    job_id, command = await work.begin()
    job = await poll(work.api, job_id, 0)
    started = time.monotonic()
    assert (await poll(work.api, job_id, job.version, 0.2)).version == job.version
    assert time.monotonic() - started >= 0.2
    waiting = asyncio.create_task(poll(work.api, job_id, job.version, 20))
    started = time.monotonic()
    await work.session.finish(command, job_pb2.JOB_STATE_COMPLETED)
    end = await waiting
    assert time.monotonic() - started < 5
    assert end.version > job.version
    assert await poll(work.api, job_id, end.version, 20) == end, "an ended job is not waited for"


async def test_a_watch_or_poll_that_makes_no_sense_is_refused(work: Work) -> None:
    job_id = await work.start()
    assert await field_refused(poll(work.api, job_id, -1)) == "cursor"
    assert await field_refused(_all(work.api.jobs.WatchJob(WATCH(job_id=job_id, cursor=-1)))) == "cursor"
    for seconds in (-1, 31):
        request = POLL(job_id=job_id, wait=Duration(seconds=seconds))
        assert await field_refused(work.api.jobs.PollJob(request)) == "wait"


@pytest.mark.feature("M7")
async def test_a_running_job_is_cancelled_by_its_hypervisor(work: Work) -> None:
    job_id, command = await work.begin()
    assert (await cancel(work.api, job_id)).cancel_requested
    order = await work.session.command()
    assert (order.WhichOneof("body"), order.job_id) == ("cancel", job_id)
    await work.session.finish(command, job_pb2.JOB_STATE_CANCELLED)
    end = await work.api.ended(job_id)
    assert end.state == job_pb2.JOB_STATE_CANCELLED
    found = await refusal(cancel(work.api, job_id))
    assert (found.reason, found.status) == ("JOB_ENDED", "FAILED_PRECONDITION")
    assert found.facts["job_id"] == job_id


async def test_a_job_that_is_not_there_is_named(api: Api) -> None:
    found = await refusal(api.job(NOBODY))
    assert (found.reason, found.status, found.facts) == ("JOB_NOT_FOUND", "NOT_FOUND", {"job_id": NOBODY})
    assert await refused(poll(api, NOBODY, 0)) == "JOB_NOT_FOUND"
    assert await refused(cancel(api, NOBODY)) == "JOB_NOT_FOUND"
    assert await refused(_all(api.jobs.WatchJob(WATCH(job_id=NOBODY)))) == "JOB_NOT_FOUND"
    log = job_service_pb2.ListJobLogEntriesRequest(job_id=NOBODY)
    assert await refused(api.jobs.ListJobLogEntries(log)) == "JOB_NOT_FOUND"
    assert await field_refused(api.job("x")) == "job_id"


@pytest.mark.feature("E2")
async def test_work_on_a_hypervisor_that_is_away_is_refused_with_a_time_to_retry(
    api: Api, controller: Controller
) -> None:
    station = await Station.enroll(controller, fresh("hv"))
    storage = await api.make_storage()
    request = storage_service_pb2.TestStorageRequest(storage_id=storage.name, hypervisor_id=station.name)
    found = await refusal(api.storages.TestStorage(request))
    assert (found.reason, found.status) == ("HYPERVISOR_UNREACHABLE", "UNAVAILABLE")
    assert set(found.facts) == {"hypervisor_id", "last_contact_time"}
    request.hypervisor_id = "nowhere"
    assert await refused(api.storages.TestStorage(request)) == "HYPERVISOR_NOT_FOUND"
    request.storage_id = "nowhere"
    assert await refused(api.storages.TestStorage(request)) == "STORAGE_NOT_FOUND"


@pytest.mark.feature("S21")
async def test_a_disabled_storage_refuses_work(work: Work) -> None:
    update = storage_service_pb2.UpdateStorageRequest(storage=work.storage)
    update.storage.enabled = False
    update.update_mask.paths.append("enabled")
    await work.api.storages.UpdateStorage(update)
    found = await refusal(work.start())
    assert (found.reason, found.status) == ("STORAGE_DISABLED", "FAILED_PRECONDITION")
    request = storage_service_pb2.ReindexStorageRequest(storage_id=work.storage.name, hypervisor_id=work.station.name)
    assert await refused(work.api.storages.ReindexStorage(request)) == "STORAGE_DISABLED"


@pytest.mark.feature("N9")
async def test_a_log_is_read_page_by_page_and_on_while_it_grows(work: Work) -> None:
    job_id, command = await work.begin()

    async def say(first: int, count: int) -> None:
        lines = [
            event_pb2.JobLogLine(
                job_id=job_id,
                attempt=command.attempt,
                entry=job_pb2.JobLogEntry(sequence=number, time=now(), level="info", message=f"line {number}"),
            )
            for number in range(first, first + count)
        ]
        await work.session.say(logs=event_pb2.LogBatch(lines=lines))

    async def read(token: str) -> Any:
        request = job_service_pb2.ListJobLogEntriesRequest(job_id=job_id, page_size=10, page_token=token)
        return await work.api.jobs.ListJobLogEntries(request)

    async def read_all(token: str, wanted: int) -> tuple[list[str], str]:
        messages: list[str] = []

        async def enough() -> bool:
            nonlocal token
            page = await read(token)
            messages.extend(entry.message for entry in page.entries)
            token = page.next_page_token
            return len(messages) >= wanted

        await wait_until_async(enough, 10, "the log")
        return messages, token

    await say(1, 25)
    first, token = await read_all("", 25)
    await say(26, 3)
    second, token = await read_all(token, 3)
    assert first + second == [f"line {number}" for number in range(1, 29)]
    assert token, "the job still runs"
    await work.session.finish(command, job_pb2.JOB_STATE_COMPLETED)
    assert (await read(token)).next_page_token == ""
    stranger = job_service_pb2.ListJobLogEntriesRequest(job_id=await work.start(), page_token=token)
    assert await refused(work.api.jobs.ListJobLogEntries(stranger)) == "INVALID_PAGE_TOKEN"


@pytest.mark.feature("N9", "M6")
async def test_jobs_are_listed_newest_first_and_by_what_they_are(work: Work) -> None:
    made = []
    for state in (job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_COMPLETED):
        job_id, command = await work.begin()
        await work.session.finish(command, state, failure=failure_pb2.Failure(reason="STORAGE_FULL"))
        made.append(job_id)
    request = job_service_pb2.ListJobsRequest
    oldest = (await work.api.job(made[0])).create_time

    async def listed(**fields: Any) -> list[str]:
        rows = await all_pages(
            lambda token: work.api.jobs.ListJobs(request(page_size=2, page_token=token, start_time=oldest, **fields)),
            "jobs",
        )
        return [row.job_id for row in rows if row.storage_id == work.storage.storage_id]

    assert await listed() == made[::-1]
    assert await listed(states=[job_pb2.JOB_STATE_FAILED]) == [made[1]]
    assert await listed(types=[job_pb2.JOB_TYPE_BACKUP]) == []
    assert await listed(types=[job_pb2.JOB_TYPE_TEST, job_pb2.JOB_TYPE_BACKUP], end_time=oldest) == []
    assert await refused(work.api.jobs.ListJobs(request(server_id="nobody"))) == "SERVER_NOT_FOUND"


async def _all(call: Any) -> None:
    async for _ in call:
        pass


async def _rest(watch: Any) -> AsyncIterator[Any]:
    while (change := await watch.read()) is not aio.EOF:
        yield change
