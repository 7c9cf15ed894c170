"""Batches: looking at what schedules did, running one by hand, ending one, and trying again what failed."""

from dataclasses import replace
from datetime import datetime

from clients.gen.backupmanager.v1 import batch_pb2, batch_service_pb2_grpc
from clients.gen.backupmanager.v1 import batch_service_pb2 as messages
from controller import batches, schedules
from controller.batches import Batch, BatchFilter
from controller.cycle import batch_dispatch, batch_work
from controller.errors import BatchEnded, JobCancelled
from controller.limits import Limits
from controller.security.caller import current_caller
from controller.services import check, convert, convert_jobs, paging
from controller.services.parts import Context, Parts

Counted = tuple[Batch, dict[str, int]]


class BatchServicer(batch_service_pb2_grpc.BatchServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListBatches(self, request: messages.ListBatchesRequest, context: Context) -> messages.ListBatchesResponse:
        wanted = BatchFilter(
            states=tuple(
                sorted({convert.enum_word(batch_pb2.BatchState.DESCRIPTOR, one) for one in request.states} - {""})
            ),
            schedule_id=check.reference("schedule_id", request.schedule_id, optional=True),
            job_id=check.identifier("job_id", request.job_id) if request.job_id else "",
            start_time=check.instant(request, "start_time"),
            end_time=check.instant(request, "end_time"),
        )
        page = paging.page("batches", (wanted,), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, wanted, page.after, page.size + 1)
        filled = paging.fill(page, rows, _message, lambda row: (row[0].batch_id,))
        return messages.ListBatchesResponse(batches=filled.messages, next_page_token=filled.next_page_token)

    async def GetBatch(self, request: messages.GetBatchRequest, context: Context) -> messages.GetBatchResponse:
        found = await self._parts.database.run(_get, check.identifier("batch_id", request.batch_id))
        return messages.GetBatchResponse(batch=_message(found))

    async def StartBatch(self, request: messages.StartBatchRequest, context: Context) -> messages.StartBatchResponse:
        reference = check.reference("schedule_id", request.schedule_id)
        request_id, who = check.request_id(request.request_id), current_caller().name
        parts = self._parts
        made = await parts.database.run(_start, reference, who, request_id, parts.limits, parts.now())
        return messages.StartBatchResponse(batch=_message(made))

    async def CancelBatch(self, request: messages.CancelBatchRequest, context: Context) -> messages.CancelBatchResponse:
        batch_id = check.identifier("batch_id", request.batch_id)
        found = await self._parts.database.run(_cancel, batch_id, self._parts.now())
        return messages.CancelBatchResponse(batch=_message(found))

    async def RetryBatch(self, request: messages.RetryBatchRequest, context: Context) -> messages.RetryBatchResponse:
        batch_id = check.identifier("batch_id", request.batch_id)
        request_id, who = check.request_id(request.request_id), current_caller().name
        parts = self._parts
        made = await parts.database.run(_retry, batch_id, who, request_id, parts.limits, parts.now())
        return messages.RetryBatchResponse(batch=_message(made))


def _list(wanted: BatchFilter, after: tuple[str] | None, limit: int) -> list[Counted]:
    schedule_id = schedules.find(wanted.schedule_id).schedule_id if wanted.schedule_id else ""
    found = batches.list_batches(replace(wanted, schedule_id=schedule_id), after=after, limit=limit)
    counts = batches.counts([one.batch_id for one in found])
    return [(one, counts[one.batch_id]) for one in found]


def _get(batch_id: str) -> Counted:
    return batches.get(batch_id), batches.counts([batch_id])[batch_id]


def _start(reference: str, who: str, request_id: str, limits: Limits, now: datetime) -> Counted:
    schedule_id = schedules.find(reference).schedule_id
    return _get(batch_dispatch.force(schedule_id, who, request_id, limits, now))


def _retry(batch_id: str, who: str, request_id: str, limits: Limits, now: datetime) -> Counted:
    return _get(batch_dispatch.retry(batch_id, who, request_id, limits, now))


def _cancel(batch_id: str, now: datetime) -> Counted:
    batch = batches.get(batch_id)
    if batch.ended or not batch_work.cancel(batch_id, JobCancelled.reason, now):
        raise BatchEnded(batch_id=batch_id, state=batch.state)
    return _get(batch_id)


def _message(counted: Counted) -> batch_pb2.Batch:
    return convert_jobs.batch(*counted)
