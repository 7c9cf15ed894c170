"""Our records as messages, and messages as plain values. The only place of the controller's public side that knows both.

Records carry what agents reported as the JSON form of its message; enum values are the lower-case text of the proto's
value without its prefix, "" for unspecified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.v1 import (
    failure_pb2,
    retention_pb2,
)
from controller.jobs import Failure
from controller.rules import retention as retention_rules

M = TypeVar("M", bound=Message)


def time(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    made = Timestamp()
    made.FromDatetime(value)
    return made


def span(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    made = Duration()
    made.FromTimedelta(value)
    return made


def enum_number(kind: EnumDescriptor, word: str) -> Any:
    """Return the number of an enum's value by its word, such as `full` or `shut_off`; "" and unknown words are 0."""
    value = kind.values_by_name.get(f"{_enum_prefix(kind)}{word.upper()}")
    return value.number if value is not None and word else 0


def enum_word(kind: EnumDescriptor, number: int) -> str:
    """Return the word of an enum's value; 0 is ""."""
    return kind.values_by_number[number].name.removeprefix(_enum_prefix(kind)).lower() if number else ""


def _enum_prefix(kind: EnumDescriptor) -> str:
    return kind.values_by_number[0].name.removesuffix("UNSPECIFIED")


def to_json(message: Message) -> dict[str, Any]:
    """Return the JSON form in which records keep a message."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def from_json(kind: type[M], value: Mapping[str, Any] | None) -> M:
    """Return the message of a JSON form. What a newer version added to it is left out."""
    return json_format.ParseDict(dict(value or {}), kind(), ignore_unknown_fields=True)


def all_from_json(kind: type[M], values: Sequence[Mapping[str, Any]]) -> list[M]:
    return [from_json(kind, one) for one in values]


def failure_from_json(value: Mapping[str, Any] | None) -> failure_pb2.Failure | None:
    return None if value is None else from_json(failure_pb2.Failure, value)


def policy(value: Mapping[str, Any]) -> retention_pb2.RetentionPolicy | None:
    """Return a retention policy with its preset's numbers filled in; None for none."""
    numbers = retention_rules.policy_of(value)
    if numbers is None:
        return None
    return retention_pb2.RetentionPolicy(
        preset=value.get("preset", ""), trim_tails=value.get("trim_tails", False), **asdict(numbers)
    )


def policy_json(message: retention_pb2.RetentionPolicy, field: str = "retention") -> dict[str, Any]:
    """Return a retention policy's JSON form, checked. Raises InvalidField."""
    return retention_rules.checked(to_json(message), field)


def failure(record: Failure) -> failure_pb2.Failure:
    return failure_pb2.Failure(reason=record.reason, message=record.message, metadata=record.metadata, step=record.step)
