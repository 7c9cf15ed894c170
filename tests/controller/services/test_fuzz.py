"""Garbage into every method: a typed refusal or an answer, never a fault of ours.

Requests are made from the descriptors, so that a new field is fuzzed from the day it is there: each field gets NULs, huge
text, other ids, negative and largest numbers, values that an enum does not have, instants that no calendar knows.
"""

import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from clients.errors import CallRefused, refusal
from clients.gen.backupmanager.agent.v1 import session_service_pb2
from clients.gen.backupmanager.v1 import errors_pb2
from tests.controller.services.rpc import METHODS, Outcome, call
from tests.servers.controller import Controller
from tests.servers.station import Station

KNOWN = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {"INTERNAL"}
STATUSES_WITHOUT_A_REASON = {"RESOURCE_EXHAUSTED"}  # gRPC itself: the message is too large
CLIENTS_OWN = "the client's own"
TEXTS = (
    "", "a\0b", "x" * 70_000, "ä" * 3000, "../../etc/passwd", "'; DROP TABLE job; --", "\u202e\ud7ff", "a\nb", "%s%n", " ",
    "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee", "-1", "\x7f",
)  # fmt: skip
NUMBERS = (0, 1, -1, 1001, 2**31 - 1, -(2**31))
BIG_NUMBERS = (*NUMBERS, 2**63 - 1, -(2**63))
ROUNDS = 25
UNARY = sorted(name for name, method in METHODS.items() if not method.client_streaming)


def value(field: FieldDescriptor, luck: random.Random, depth: int) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return luck.choice(TEXTS)
    if kind == FieldDescriptor.TYPE_BYTES:
        return luck.randbytes(luck.choice((0, 3, 5000)))
    if kind == FieldDescriptor.TYPE_BOOL:
        return luck.random() < 0.5
    if kind == FieldDescriptor.TYPE_ENUM:
        return luck.choice((0, 1, 2, 99, -1, 2**31 - 1))
    if kind in {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32}:
        return luck.choice(NUMBERS)
    if kind in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        return luck.choice((0.0, -1.0, float("nan"), float("inf")))
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return message(field.message_type, luck, depth + 1)
    return luck.choice(BIG_NUMBERS)


def message(kind: Descriptor | None, luck: random.Random, depth: int = 0) -> Message:
    """Return a message with about half of its fields set, to anything but what makes sense."""
    assert kind is not None
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if luck.random() < 0.4 or depth > 4:
            continue
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                continue
            values = [value(field, luck, depth) for _ in range(luck.choice((1, 3)))]
            getattr(made, field.name).extend(values)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(value(field, luck, depth))
        else:
            setattr(made, field.name, value(field, luck, depth))
    return made


def requests(path: str) -> Iterator[bytes]:
    """Yield messages of the method's type with wild values, and bytes that are no message."""
    luck = random.Random(path)  # the same in each run: what fails can be looked at again
    for _ in range(ROUNDS):
        yield message(METHODS[path].input_type, luck).SerializeToString(deterministic=True)
    yield from (b"", b"\xff\xff", b"\x0a\x02\xff\xfe", luck.randbytes(50), luck.randbytes(2000))


def is_typed(outcome: Outcome) -> bool:
    return outcome.status == "OK" or outcome.reason in KNOWN or outcome.status in STATUSES_WITHOUT_A_REASON


@pytest.mark.feature("N8")
@pytest.mark.parametrize("path", [name for name in UNARY if "agent.v1.SessionService" not in name])
async def test_garbage_is_refused_with_a_reason(controller: Controller, path: str) -> None:
    async with controller.channel() as channel:
        for data in requests(path):
            outcome = await call(channel, path, data)
            assert is_typed(outcome), (outcome, data[:500])


@pytest.mark.feature("N8")
async def test_garbage_of_an_agent_is_refused_with_a_reason(controller: Controller) -> None:
    station = await Station.enroll(controller, "fuzzed")
    for path in sorted(set(METHODS)):
        if "agent.v1.SessionService" in path:
            async with controller.agents_channel(station.key, station.chain) as channel:
                for data in requests(path):
                    outcome = await call(channel, path, data)
                    assert is_typed(outcome), (path, outcome, data[:500])


def _reason(told: CallRefused) -> str:
    """Return the reason of a refusal. grpc.aio makes an INTERNAL of its own for who is still writing when it is refused."""
    return CLIENTS_OWN if told.reason == "INTERNAL" and "error_id" not in told.facts else told.reason


@pytest.mark.feature("N8", "N16")
async def test_garbage_in_the_middle_of_a_session_is_refused_or_passed_over(controller: Controller) -> None:
    """An agent that has said hello and then goes mad ends its own session at worst, and never the controller's peace."""
    station = await Station.enroll(controller, "mad")
    luck = random.Random("session")
    ends = set()
    for _ in range(40):
        async with station.session() as session:
            for _ in range(5):
                said = message(session_service_pb2.SessionRequest.DESCRIPTOR, luck)
                if not await session.dare(cast("Any", said)):
                    break
            await session.half_close()
            end = await session.ended()
        ends.add("OK" if end is None else _reason(refusal(cast("Any", end))))
    assert ends <= KNOWN | {"OK", CLIENTS_OWN}, ends
    assert ends & KNOWN
    async with station.session() as session:
        await session.heartbeat()


async def test_the_garbage_is_really_garbage(controller: Controller) -> None:
    """Were most of it accepted, or all refused for one and the same reason, the tests above would prove little."""
    outcomes = []
    async with controller.channel() as channel:
        for path in UNARY:
            if "agent.v1.SessionService" not in path:
                outcomes += [await call(channel, path, data) for data in list(requests(path))[:8]]
    reasons = {outcome.reason for outcome in outcomes}
    assert {"INVALID_FIELD"} < reasons
    assert sum(outcome.status == "OK" for outcome in outcomes) < len(outcomes) / 2
