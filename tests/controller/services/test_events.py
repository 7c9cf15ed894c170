"""Watching and polling the log of events over real connections, across restarts, with slow and strange readers."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from clients.errors import CallRefused, refusal
from clients.gen.backupmanager.v1 import (
    access_token_pb2,
    access_token_service_pb2,
    event_pb2,
    event_service_pb2,
)
from controller import happenings
from controller.db.database import Database
from tests.clock import START
from tests.controller.services.api import Api, field_refused, fresh, refused
from tests.controller.services.api import refusal as refusal_of
from tests.servers.controller import Controller

WATCH, POLL = event_service_pb2.WatchEventsRequest, event_service_pb2.PollEventsRequest
STORAGES = event_pb2.EventFilter(kinds=["storage."])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Controller]:
    """A controller that a test may stop."""
    with Controller(tmp_path / "c") as running:
        yield running


@asynccontextmanager
async def caller(controller: Controller) -> AsyncIterator[Api]:
    async with controller.channel() as channel:
        yield Api(channel)


async def poll(api: Api, **values: Any) -> event_service_pb2.PollEventsResponse:
    return await api.events.PollEvents(POLL(**values))


@pytest.mark.feature("N6")
async def test_a_watch_begins_now_and_tells_what_happens(api: Api) -> None:
    await api.make_storage()
    watch = api.events.WatchEvents(WATCH(filter=STORAGES))
    start = await _next(watch)
    assert list(start.events) == []
    storage = await api.make_storage()
    reply = await _next(watch)
    [event] = reply.events
    assert (event.kind, event.storage_id) == ("storage.created", storage.storage_id)
    assert event.sequence == reply.cursor > start.cursor
    watch.cancel()


@pytest.mark.feature("N6")
async def test_watches_across_restarts_of_the_controller_lose_and_repeat_nothing(own: Controller) -> None:
    """One that was stopped in order and one that was killed, with changes before, between and after."""
    seen: list[event_pb2.Event] = []
    cursor, made = 0, 0
    for end in ("stop", "kill", "last"):
        async with caller(own) as api:
            watch = api.events.WatchEvents(WATCH(filter=STORAGES, cursor=cursor))
            made += len([await api.make_storage() for _ in range(7)])
            while len(seen) < made - (3 if end != "last" else 0):  # it has not read all when the connection breaks
                reply = await _next(watch)
                seen += reply.events
                cursor = reply.cursor
            if end == "stop":
                ending = asyncio.create_task(asyncio.to_thread(own.stop))
                told = await _end(watch, seen)
                assert told.reason in {"SHUTTING_DOWN", "CONTROLLER_UNREACHABLE"}
                await ending
                cursor = seen[-1].sequence
            elif end == "kill":
                await asyncio.to_thread(own.kill)
            watch.cancel()
        if end != "last":
            own.start()
    async with caller(own) as api:
        whole = await poll(api, filter=STORAGES, cursor=0)
    assert [one.sequence for one in seen] == [one.sequence for one in whole.events]
    assert len(seen) == made == 21


async def _end(watch: Any, seen: list[event_pb2.Event]) -> CallRefused:
    """Read a watch to its end, and return how it was refused."""
    try:
        while (reply := await asyncio.wait_for(watch.read(), 20)) is not aio.EOF:
            seen += reply.events
    except aio.AioRpcError as error:
        return refusal(error)
    raise AssertionError("it ended without a word")


@pytest.mark.feature("N6")
async def test_a_poll_waits_for_what_happens_and_no_longer(api: Api) -> None:
    now = await poll(api, filter=STORAGES)
    assert (list(now.events), now.more) == ([], False)
    started = time.monotonic()
    waiting = asyncio.create_task(poll(api, filter=STORAGES, cursor=now.cursor, wait=Duration(seconds=20)))
    await poll(api)  # the waiting one was sent before this
    storage = await api.make_storage()
    reply = await waiting
    assert [one.storage_id for one in reply.events] == [storage.storage_id]
    assert time.monotonic() - started < 15
    nothing = await poll(api, filter=STORAGES, cursor=reply.cursor, wait=Duration(nanos=200_000_000))
    assert (list(nothing.events), nothing.cursor) == ([], reply.cursor)


@pytest.mark.feature("N6")
async def test_polls_page_by_page_read_what_a_watch_reads(api: Api) -> None:
    for _ in range(5):
        await api.make_storage()
    whole = (await poll(api, cursor=0, page_size=1000)).events
    pages: list[event_pb2.Event] = []
    cursor = 0
    while True:
        reply = await poll(api, cursor=cursor, page_size=2)
        assert len(reply.events) <= 2
        pages += reply.events
        cursor = reply.cursor
        if not reply.more:
            break
    assert pages == list(whole)
    watched: list[event_pb2.Event] = []
    watch = api.events.WatchEvents(WATCH(cursor=0))
    while len(watched) < len(whole):
        watched += (await _next(watch)).events
    watch.cancel()
    assert watched == list(whole)


@pytest.mark.feature("N6")
async def test_a_slow_watcher_falls_behind_in_the_log_and_not_in_memory(own: Controller) -> None:
    """Twelve watchers that do not read, before a log of 4.5 MB: held in memory for each, it would be more than 50 MiB."""
    await asyncio.to_thread(own.stop)
    await asyncio.to_thread(_fill, own, 1500)
    await asyncio.to_thread(own.start)
    async with caller(own) as api:
        process = psutil.Process(own.process.pid if own.process else 0)
        before = process.memory_info().rss
        lazy = [api.events.WatchEvents(WATCH(cursor=0)) for _ in range(12)]
        for watch in lazy:
            await _next(watch)
        quick = api.events.WatchEvents(WATCH(filter=STORAGES))
        await _next(quick)
        storage = await api.make_storage()
        assert (await _next(quick)).events[0].storage_id == storage.storage_id  # nobody waits for the slow ones
        grown = process.memory_info().rss - before
        assert grown < 25 << 20, f"12 watchers cost {grown >> 20} MiB"
        found = 0
        while found < 1500:  # and a slow one still gets everything
            found += len((await _next(lazy[0])).events)
        for watch in (*lazy, quick):
            watch.cancel()


def _fill(controller: Controller, count: int) -> None:
    """Put many events into the log of a controller that is stopped."""
    database = Database.open(f"sqlite:///{controller.state}/controller.db")

    def fill() -> None:
        for _ in range(count):
            happenings.record("filler.made", START, body={"text": "x" * 3000})

    try:
        database.call(fill)
    finally:
        database.close()


async def _next(watch: Any) -> event_service_pb2.WatchEventsResponse:
    reply: event_service_pb2.WatchEventsResponse = await asyncio.wait_for(watch.read(), 20)
    return reply


@pytest.mark.feature("N6")
async def test_a_cursor_that_the_log_does_not_have_is_refused_with_its_ends(api: Api) -> None:
    told = await refusal_of(poll(api, cursor=10**9))
    assert (told.reason, told.status) == ("CURSOR_EXPIRED", "OUT_OF_RANGE")
    assert int(told.facts["newest"]) >= 1
    watch = api.events.WatchEvents(WATCH(cursor=10**9))
    assert (await _end(watch, [])).reason == "CURSOR_EXPIRED"
    again = await poll(api, cursor=int(told.facts["newest"]))
    assert list(again.events) == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (POLL(cursor=-1), "cursor"),
        (POLL(wait=Duration(seconds=31)), "wait"),
        (POLL(page_size=1001), "page_size"),
        (POLL(filter=event_pb2.EventFilter(kinds=["Job"])), "filter.kinds"),
        (POLL(filter=event_pb2.EventFilter(kinds=["a."] * 51)), "filter.kinds"),
        (POLL(filter=event_pb2.EventFilter(server_id="web1")), "filter.server_id"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_by_field(
    api: Api, request_: event_service_pb2.PollEventsRequest, field: str
) -> None:
    assert await field_refused(api.events.PollEvents(request_)) == field


@pytest.mark.feature("N4", "N6")
async def test_a_watch_of_events_ends_when_its_token_does(api: Api, controller: Controller) -> None:
    request = access_token_service_pb2.CreateAccessTokenRequest(
        name=fresh("token"), scope=access_token_pb2.ACCESS_SCOPE_VIEWER
    )
    made = await api.tokens.CreateAccessToken(request)
    async with controller.channel(made.secret) as channel:
        watch = Api(channel).events.WatchEvents(WATCH())
        await watch.read()
        end = access_token_service_pb2.RevokeAccessTokenRequest(access_token_id=made.access_token.access_token_id)
        await api.tokens.RevokeAccessToken(end)
        assert (await _end(watch, [])).reason == "UNAUTHENTICATED"
        assert await refused(Api(channel).events.PollEvents(POLL())) == "UNAUTHENTICATED"
