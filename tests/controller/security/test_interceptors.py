"""The chain around all four shapes of calls: what a caller reads of an error, what is logged, what is tidied up.

A real server with methods made for the purpose; its rules demand nothing, since who may do what is tested with the real
services.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import aio

from clients.errors import CallRefused, refusal
from controller.audit import Audit
from controller.clock import SystemClock
from controller.db.database import Database
from controller.errors import JobStale, ServerNotFound
from controller.security import tokens
from controller.security.identity import Identity
from controller.security.interceptors import Chain
from controller.security.permissions import Rule
from engine.ids import is_id
from tests.waiting import wait_until_async

SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Raises = Callable[[], BaseException]


class Servicer:
    """Answers twice with what it was sent, or raises; remembers that its streams were closed."""

    def __init__(self) -> None:
        self.error: Raises | None = None
        self.closed = asyncio.Event()
        self.endless = False

    async def one(self, request: Any, context: Any) -> StringValue:
        if isinstance(request, StringValue):
            return self._answer(request.value)
        text = ""
        async for part in request:
            text += part.value
            if self.error is not None:
                break
        return self._answer(text)

    def _answer(self, text: str) -> StringValue:
        if self.error is not None:
            raise self.error()
        return StringValue(value=text)

    async def many(self, request: Any, context: Any) -> AsyncIterator[StringValue]:
        try:
            text = (await self.one(request, context)).value if self.error is None or not self.endless else ""
            yield StringValue(value=text)
            while self.endless:
                yield StringValue(value="x" * 10_000)
            yield StringValue(value=text)
        finally:
            self.closed.set()


_METADATA: list[tuple[str, str]] = []  # the token of the test's database, which every call carries


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite://{tmp_path / 'db'}")
    made = opened.call(tokens.create, "tester", "admin", None, (), "test", SystemClock().now())
    _METADATA[:] = [("authorization", f"Bearer {made.secret}")]
    yield opened
    opened.close()


@asynccontextmanager
async def serving(database: Database, servicer: Servicer, **rules: Rule) -> AsyncIterator[tuple[aio.Channel, Chain]]:
    clock = SystemClock()
    known = {f"/test.Test/{shape}": Rule("open") for shape in SHAPES} | {
        f"/test.Test/{name}": rule for name, rule in rules.items()
    }
    chain = Chain(Identity(database, clock), Audit(database, clock), clock, known)
    server = aio.server(interceptors=[chain])
    handlers = {}
    for shape in (*SHAPES, "forgotten"):
        make = getattr(grpc, f"{shape if shape in SHAPES else 'unary_unary'}_rpc_method_handler")
        behavior = servicer.many if shape.endswith("_stream") else servicer.one
        handlers[shape] = make(behavior, StringValue.FromString, StringValue.SerializeToString)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, chain
    finally:
        await server.stop(None)


def method(channel: aio.Channel, shape: str) -> Any:
    raw: Any = channel
    return getattr(raw, shape)(f"/test.Test/{shape}", None, StringValue.FromString)


def start(channel: aio.Channel, shape: str, text: str = "hello") -> Any:
    """Begin a call; a stream of requests has the text twice."""
    request = StringValue(value=text).SerializeToString()
    return method(channel, shape)(
        iter([request, request]) if shape.startswith("stream") else request, metadata=tuple(_METADATA)
    )


async def answers(channel: aio.Channel, shape: str, text: str = "hello") -> list[str]:
    """Call a method of a shape and return what it answered."""
    call = start(channel, shape, text)
    if shape.endswith("_stream"):
        return [reply.value async for reply in call]
    return [(await call).value]


async def ask(channel: aio.Channel, shape: str, data: bytes | None = b"") -> None:
    """Send one message (None: none), say no more, and read on to the end.

    A client that is still writing when it is refused reads "Internal error from Core" instead of the refusal: that is
    grpc.aio's way, and not what is tested here.
    """
    if not shape.startswith("stream"):
        call = method(channel, shape)(data or b"")
    else:
        call = method(channel, shape)()
        if data is not None:
            await call.write(data)
    if shape.endswith("_stream"):
        while await call.read() is not aio.EOF:
            pass
    else:
        await call


async def refused(call: Awaitable[Any]) -> CallRefused:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_of_every_shape_passes(database: Database, shape: str) -> None:
    async with serving(database, Servicer()) as (channel, _):
        text = "hellohello" if shape.startswith("stream") else "hello"
        assert await answers(channel, shape) == [text] * (2 if shape.endswith("_stream") else 1)


@pytest.mark.feature("N8")
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_typed_error_arrives_with_reason_and_facts(database: Database, shape: str) -> None:
    servicer = Servicer()
    servicer.error = lambda: ServerNotFound(server_id="Käse")
    async with serving(database, servicer) as (channel, _):
        told = await refused(ask(channel, shape))
    assert (told.reason, told.status, told.facts) == (
        "SERVER_NOT_FOUND",
        grpc.StatusCode.NOT_FOUND,
        {"server_id": "Käse"},
    )


@pytest.mark.feature("N8")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("error", [lambda: ZeroDivisionError("secret detail"), lambda: JobStale(hours=3)])
async def test_a_fault_of_ours_is_logged_once_and_told_by_its_number(
    database: Database, caplog: pytest.LogCaptureFixture, shape: str, error: Raises
) -> None:
    servicer = Servicer()
    servicer.error = error
    with caplog.at_level(logging.ERROR):
        async with serving(database, servicer) as (channel, _):
            told = await refused(ask(channel, shape))
    assert (told.reason, told.status) == ("INTERNAL", grpc.StatusCode.INTERNAL)
    assert is_id(told.facts["error_id"])
    assert "secret detail" not in told.message
    (record,) = caplog.records
    assert told.facts["error_id"] in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("shape", SHAPES)
async def test_bytes_that_are_no_message_are_refused(database: Database, shape: str) -> None:
    async with serving(database, Servicer()) as (channel, _):
        told = await refused(ask(channel, shape, b"\x0a\x02\xff\xfe"))
    assert (told.reason, told.facts["field"]) == ("INVALID_FIELD", "request")


@pytest.mark.feature("N4")
async def test_a_method_without_a_rule_is_refused(database: Database) -> None:
    async with serving(database, Servicer()) as (channel, _):
        call: Any = channel.unary_unary("/test.Test/forgotten")
        assert (await refused(call(b""))).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_chain_that_stops_refuses_new_calls(database: Database, shape: str) -> None:
    async with serving(database, Servicer()) as (channel, chain):
        chain.stopping = True
        told = await refused(ask(channel, shape, None))
    assert (told.reason, told.status) == ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE), told.message
    assert told.retry_after


@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
@pytest.mark.parametrize("way", ["cancel", "close"])
async def test_a_client_that_goes_away_ends_the_stream_and_is_no_fault(
    database: Database, caplog: pytest.LogCaptureFixture, shape: str, way: str
) -> None:
    servicer = Servicer()
    servicer.endless = True
    with caplog.at_level(logging.WARNING):
        async with serving(database, servicer) as (channel, _):
            call = start(channel, shape)
            await call.read()
            if way == "cancel":
                call.cancel()
            else:
                await channel.close()
            async with asyncio.timeout(10):
                await servicer.closed.wait()
    assert not caplog.records


@pytest.mark.feature("N5")
@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "OK"), (lambda: ServerNotFound(server_id="x"), "SERVER_NOT_FOUND"), (lambda: KeyError("x"), "INTERNAL")],
)
async def test_the_audit_knows_how_a_call_ended(
    database: Database, tmp_path: Path, error: Raises | None, outcome: str
) -> None:
    servicer = Servicer()
    servicer.error = error
    async with serving(database, servicer, unary_unary=Rule("admin", "value", made="value")) as (channel, _):
        call = answers(channel, "unary_unary", text="the resource\n")
        if error is None:
            await call
        else:
            await refused(call)
    assert _rows(tmp_path) == [("/test.Test/unary_unary", "the resource", outcome)]


@pytest.mark.feature("N5")
async def test_the_audit_is_written_before_the_work_and_closed_after(database: Database, tmp_path: Path) -> None:
    servicer, may_go_on = Servicer(), asyncio.Event()

    async def slow(request: Any, context: Any) -> StringValue:
        await may_go_on.wait()
        return StringValue()

    servicer.one = slow  # type: ignore[method-assign]
    async with serving(database, servicer, unary_unary=Rule("admin", "value")) as (channel, _):
        running = asyncio.ensure_future(answers(channel, "unary_unary", text="thing"))

        async def begun() -> bool:
            return bool(_rows(tmp_path))

        await wait_until_async(begun, 10, "the audit's row")
        assert _rows(tmp_path) == [("/test.Test/unary_unary", "thing", "")]
        may_go_on.set()
        await running
        assert _rows(tmp_path) == [("/test.Test/unary_unary", "thing", "OK")]


@pytest.mark.feature("N5")
async def test_a_caller_that_goes_away_is_in_the_audit_as_well(database: Database, tmp_path: Path) -> None:
    servicer, entered = Servicer(), asyncio.Event()

    async def slow(request: Any, context: Any) -> StringValue:
        entered.set()
        await asyncio.Event().wait()
        return StringValue()

    servicer.one = slow  # type: ignore[method-assign]
    async with serving(database, servicer, unary_unary=Rule("admin", "value")) as (channel, _):
        call = start(channel, "unary_unary")
        await entered.wait()
        call.cancel()

        async def ended() -> bool:
            return _rows(tmp_path) == [("/test.Test/unary_unary", "hello", "CANCELLED")]

        await wait_until_async(ended, 10, "the audit's row")


def _rows(folder: Path) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(f"file:{folder / 'db'}?mode=ro", uri=True)) as connection:
        return list(connection.execute("SELECT method, resource, outcome FROM audit ORDER BY sequence"))
