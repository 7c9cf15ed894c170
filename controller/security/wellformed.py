"""What is true of every request, whatever it asks: looked at once, before any servicer sees it.

Text has no NUL (a database may refuse it, a C library ends there) and no control characters but those of multi-line text;
an enum has a value of the contract; an instant lies in the years 1 to 9999 and a span within what Duration allows. What a
single field demands beyond that is its servicer's business.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from controller.errors import InvalidField

LIST_ITEMS_MAX = 1000  # of any repeated field, before its own limit: a message of 1 MiB could hold a million
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # tabs and line ends are text: a PEM has them
_INSTANT_SECONDS = (-62_135_596_800, 253_402_300_799)  # years 1 to 9999. Source: google/protobuf/timestamp.proto
_SPAN_SECONDS = (-315_576_000_000, 315_576_000_000)  # 10,000 years. Source: google/protobuf/duration.proto
_NANOSECONDS = 1_000_000_000
_TIMES = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are no message of the method's request type: stands in the request's place until it can be refused."""

    problem: str


def decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that never fails; grpc would answer a failing one with an INTERNAL of its own, without reason."""

    def decode_or_say(data: bytes) -> Any:
        try:
            return decode(data)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            return Malformed("is not a message of this method, or holds text that is not UTF-8")

    return decode_or_say


def check(request: Any) -> None:
    """Raise InvalidField, naming the field, for a request that is malformed in itself."""
    if isinstance(request, Malformed):
        raise InvalidField(field="request", problem=request.problem)
    if isinstance(request, Message):
        _check_message(request, "")


def check_times(request: Any) -> None:
    """Do the part of `check` that a stream's messages get: instants and spans that no calendar knows are refused.

    The rest of what an agent says is bounded and cleaned where it is stored: refusing a whole session for a strange
    character in a line of a job's log would have the agent dial and say it again for ever.
    """
    if isinstance(request, Malformed):
        raise InvalidField(field="request", problem=request.problem)
    if isinstance(request, Message):
        _check_times(request, "")


def _check_times(message: Message, prefix: str) -> None:
    if message.DESCRIPTOR.full_name in _TIMES:
        _check_message(message, prefix)
        return
    for field, value in message.ListFields():
        if field.message_type is None or not _holds_times(field.message_type):
            continue
        name = f"{prefix}.{field.name}" if prefix else field.name
        for one in value if field.is_repeated else (value,):
            _check_times(one, name)


@functools.cache
def _holds_times(kind: Descriptor) -> bool:
    """Tell whether messages of a kind can hold instants or spans, so that large ones without are not searched."""
    if kind.full_name in _TIMES:
        return True
    return any(_holds_times(field.message_type) for field in kind.fields if field.message_type is not None)


def _check_message(message: Message, prefix: str) -> None:
    kind = message.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        _check_time(message, prefix, _INSTANT_SECONDS, 0)
    elif kind == "google.protobuf.Duration":
        _check_time(message, prefix, _SPAN_SECONDS, 1 - _NANOSECONDS)
    else:
        for field, value in message.ListFields():
            _check_field(field, value, f"{prefix}.{field.name}" if prefix else field.name)


def _check_field(field: FieldDescriptor, value: Any, name: str) -> None:
    if field.is_repeated and len(value) > LIST_ITEMS_MAX:
        raise InvalidField(field=name, problem=f"has more than {LIST_ITEMS_MAX} entries")
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key in value:
            _check_value(field.message_type.fields_by_name["key"], key, name)
            _check_value(field.message_type.fields_by_name["value"], value[key], name)
    elif field.is_repeated:
        for position, one in enumerate(value):
            _check_value(field, one, f"{name}[{position}]")
    else:
        _check_value(field, value, name)


def _check_value(field: FieldDescriptor, value: Any, name: str) -> None:
    if isinstance(value, Message):
        _check_message(value, name)
    elif isinstance(value, str):
        if _CONTROL.search(value):
            raise InvalidField(field=name, problem="holds control characters")
    elif field.enum_type is not None and value not in field.enum_type.values_by_number:
        raise InvalidField(field=name, problem=f"has no value {value}")


def _check_time(message: Any, name: str, seconds: tuple[int, int], nanos_min: int) -> None:
    least, most = seconds
    if not least <= message.seconds <= most or not nanos_min <= message.nanos < _NANOSECONDS:
        raise InvalidField(field=name, problem="is out of range")
    if message.seconds and message.nanos and (message.seconds < 0) != (message.nanos < 0) and nanos_min:
        raise InvalidField(field=name, problem="has seconds and nanos of different signs")
