"""Jobs: watching and ending work.

A watch is a loop of read, send, wait: it holds a waiter before it reads, so no change is missed, and reads what is true
now, so a slow client skips versions and never falls behind. Each read looks at the caller's token too, since a stream
outlives the look at its beginning.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta

from clients.gen.backupmanager.v1 import job_pb2, job_service_pb2_grpc
from clients.gen.backupmanager.v1 import job_service_pb2 as messages
from controller import hypervisors, jobs, orders, schedules, servers, storages
from controller.errors import ShuttingDown
from controller.jobs import Job, JobFilter
from controller.security import tokens
from controller.security.caller import current_caller
from controller.services import check, convert, convert_jobs, paging
from controller.services.parts import Context, Parts

_POLL_MAX = timedelta(seconds=30)
_LOOK_SECONDS = 15.0  # how late a watch that has nothing to say notices that its token was revoked


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListJobs(self, request: messages.ListJobsRequest, context: Context) -> messages.ListJobsResponse:
        wanted = JobFilter(
            server_id=check.reference("server_id", request.server_id, optional=True),
            storage_id=check.reference("storage_id", request.storage_id, optional=True),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            job_id=check.id_start("job_id", request.job_id),
            batch_id=check.identifier("batch_id", request.batch_id) if request.batch_id else "",
            schedule_id=check.reference("schedule_id", request.schedule_id, optional=True),
            states=tuple(
                sorted({convert.enum_word(job_pb2.JobState.DESCRIPTOR, one) for one in request.states} - {""})
            ),
            types=tuple(sorted({convert.enum_word(job_pb2.JobType.DESCRIPTOR, one) for one in request.types} - {""})),
            start_time=check.instant(request, "start_time"),
            end_time=check.instant(request, "end_time"),
        )
        page = paging.page("jobs", (wanted,), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, wanted, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_jobs.job, lambda row: (row.job_id,))
        return messages.ListJobsResponse(jobs=filled.messages, next_page_token=filled.next_page_token)

    async def GetJob(self, request: messages.GetJobRequest, context: Context) -> messages.GetJobResponse:
        record = await self._parts.database.run(jobs.get, check.identifier("job_id", request.job_id))
        return messages.GetJobResponse(job=convert_jobs.job(record))

    async def WatchJob(
        self, request: messages.WatchJobRequest, context: Context
    ) -> AsyncIterator[messages.WatchJobResponse]:
        job_id = check.identifier("job_id", request.job_id)
        seen = check.number("cursor", request.cursor, 0, (1 << 63) - 1)
        with self._parts.changes.watch(job_id) as watch:
            while True:
                record = await self._read(job_id)
                if record.version > seen:
                    seen = record.version
                    yield messages.WatchJobResponse(job=convert_jobs.job(record))
                if record.ended:
                    return
                await watch.wait(record.version, _LOOK_SECONDS)
                self._refuse_when_stopping()

    async def PollJob(self, request: messages.PollJobRequest, context: Context) -> messages.PollJobResponse:
        job_id = check.identifier("job_id", request.job_id)
        cursor = check.number("cursor", request.cursor, 0, (1 << 63) - 1)
        wait = check.span(request, "wait", _POLL_MAX, timedelta(0), _POLL_MAX) or timedelta(0)
        with self._parts.changes.watch(job_id) as watch:
            record = await self._read(job_id)
            if record.version <= cursor and not record.ended and wait:
                await watch.wait(cursor, wait.total_seconds())
                self._refuse_when_stopping()
                record = await self._read(job_id)
        return messages.PollJobResponse(job=convert_jobs.job(record))

    async def CancelJob(self, request: messages.CancelJobRequest, context: Context) -> messages.CancelJobResponse:
        job_id = check.identifier("job_id", request.job_id)
        record = await self._parts.database.run(orders.cancel, job_id, self._parts.limits, self._parts.now())
        return messages.CancelJobResponse(job=convert_jobs.job(record))

    async def ListJobLogEntries(
        self, request: messages.ListJobLogEntriesRequest, context: Context
    ) -> messages.ListJobLogEntriesResponse:
        job_id = check.identifier("job_id", request.job_id)
        page = paging.page("job log", (job_id,), request.page_size, request.page_token, (int, int))
        job, rows = await self._parts.database.run(_log, job_id, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_jobs.log_entry, lambda row: (row.attempt, row.sequence))
        return messages.ListJobLogEntriesResponse(
            entries=filled.messages, next_page_token=filled.next_page_token or _later(page, rows, job)
        )

    async def _read(self, job_id: str) -> Job:
        token_id = current_caller().access_token_id
        return await self._parts.database.run(_read, token_id, job_id, self._parts.now())

    def _refuse_when_stopping(self) -> None:
        if self._parts.changes.closed:
            raise ShuttingDown


def _list(wanted: JobFilter, after: tuple[str] | None, limit: int) -> list[Job]:
    """List what is wanted; server, storage and hypervisor in it are named by the caller's words."""
    named = replace(
        wanted,
        server_id=servers.find(wanted.server_id).server_id if wanted.server_id else "",
        storage_id=storages.find(wanted.storage_id).storage_id if wanted.storage_id else "",
        hypervisor_id=hypervisors.id_of(wanted.hypervisor_id) if wanted.hypervisor_id else "",
        schedule_id=schedules.find(wanted.schedule_id).schedule_id if wanted.schedule_id else "",
    )
    return jobs.list_jobs(named, after=after, limit=limit)


def _read(token_id: str, job_id: str, now: datetime) -> Job:
    tokens.check_works(token_id, now)
    return jobs.get(job_id)


def _log(job_id: str, after: tuple[int, int] | None, limit: int) -> tuple[Job, list[jobs.LogEntry]]:
    return jobs.get(job_id), jobs.list_log(job_id, after=after, limit=limit)


def _later(page: paging.Page, rows: list[jobs.LogEntry], job: Job) -> str:
    """Return the token with which a log that is still being written is read on; "" when nothing can follow."""
    if job.ended:
        return ""
    last = (rows[-1].attempt, rows[-1].sequence) if rows else page.after or (0, 0)
    return page.token(last)
