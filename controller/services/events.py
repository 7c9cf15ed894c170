"""Events: watching the log of what happens.

A watch is a loop of read, send, wait. It reads from the database after what it has sent last, and only once that was taken by the
connection: a slow watcher falls behind in the log, where it costs nothing, and holds one reply of 64 KiB in memory.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from clients.gen.backupmanager.v1 import event_pb2, event_service_pb2_grpc
from clients.gen.backupmanager.v1 import event_service_pb2 as messages
from controller import events
from controller.errors import ShuttingDown
from controller.events import EventFilter, Reading
from controller.security import tokens
from controller.security.caller import current_caller
from controller.services import check, convert_events
from controller.services.paging import PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, fitting
from controller.services.parts import Context, Parts

_POLL_MAX = timedelta(seconds=30)
_BATCH = 100
_BATCH_BYTES_MAX = 64 << 10  # held in memory for a watcher that does not read
_LOOK_SECONDS = 15.0  # how late a watch that has nothing to say notices that its token was revoked
_SHARED_LOOK_SECONDS = 1.0  # how late it notices what another controller on the same database has written
_CURSOR_MAX = (1 << 63) - 1


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._look_seconds = _SHARED_LOOK_SECONDS if not parts.database.exclusive else _LOOK_SECONDS

    async def WatchEvents(
        self, request: messages.WatchEventsRequest, context: Context
    ) -> AsyncIterator[messages.WatchEventsResponse]:
        wanted = _filter(request.filter)
        with self._parts.changes.watch_events() as watch:
            cursor = await self._begin(request)
            told = cursor
            yield messages.WatchEventsResponse(cursor=cursor)
            while True:
                replies, cursor, more = _reply(await self._read(wanted, cursor, _BATCH), _BATCH_BYTES_MAX)
                if replies or cursor >= told + events.SCAN_MAX:
                    told = cursor
                    yield messages.WatchEventsResponse(events=replies, cursor=cursor)
                if not more:
                    await watch.wait(cursor, self._look_seconds)
                if self._parts.changes.closed:
                    raise ShuttingDown

    async def PollEvents(self, request: messages.PollEventsRequest, context: Context) -> messages.PollEventsResponse:
        wanted = _filter(request.filter)
        wait = check.span(request, "wait", timedelta(0), timedelta(0), _POLL_MAX) or timedelta(0)
        size = check.number("page_size", request.page_size, 0, PAGE_SIZE_MAX) or PAGE_SIZE_DEFAULT
        end = _clock() + wait.total_seconds()
        with self._parts.changes.watch_events() as watch:
            cursor = await self._begin(request)
            while True:
                replies, cursor, more = _reply(await self._read(wanted, cursor, size), PAGE_BYTES_MAX)
                left = end - _clock()
                if replies or (not more and left <= 0):
                    return messages.PollEventsResponse(events=replies, cursor=cursor, more=more)
                if not more:
                    await watch.wait(cursor, min(left, self._look_seconds))
                if self._parts.changes.closed:
                    raise ShuttingDown

    async def _begin(self, request: messages.WatchEventsRequest | messages.PollEventsRequest) -> int:
        """Return where to begin: the cursor given, or what is newest now."""
        if request.HasField("cursor"):
            return check.number("cursor", request.cursor, 0, _CURSOR_MAX)
        return await self._parts.database.run(events.newest)

    async def _read(self, wanted: EventFilter, cursor: int, limit: int) -> Reading:
        token_id = current_caller().access_token_id
        return await self._parts.database.run(_read, token_id, wanted, cursor, limit, self._parts.now())


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _read(token_id: str, wanted: EventFilter, cursor: int, limit: int, now: datetime) -> Reading:
    tokens.check_works(token_id, now)
    return events.read(wanted, cursor, limit)


def _reply(found: Reading, bytes_max: int) -> tuple[list[event_pb2.Event], int, bool]:
    """Return the events that fit into one message, the cursor behind the last of them, and whether there is more."""
    made = [convert_events.event(one) for one in found.events]
    kept = fitting(made, bytes_max)
    if len(kept) < len(made):
        return kept, kept[-1].sequence, True
    return kept, found.cursor, found.more


def _filter(given: event_pb2.EventFilter) -> EventFilter:
    links = {
        name: check.identifier(f"filter.{name}", text)
        for name in ("job_id", "server_id", "storage_id", "hypervisor_id", "schedule_id", "batch_id")
        if (text := getattr(given, name))
    }
    start_time = check.instant(given, "start_time")
    return EventFilter(kinds=check.kinds("filter.kinds", given.kinds), start_time=start_time, **links)
