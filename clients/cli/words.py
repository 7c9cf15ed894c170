"""How values read: times, spans, sizes and states for people, and what people type back. Pure: `now` is a parameter."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.units import human_bytes

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_SPAN = re.compile(r"(?:\d+[dhms])+")
_RATE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(count: int) -> str:
    """Return bytes for people, `-` for none known."""
    return human_bytes(count) if count > 0 else "-"


def rate(bytes_per_second: int) -> str:
    return f"{human_bytes(bytes_per_second)}/s" if bytes_per_second > 0 else "-"


def span(seconds: float) -> str:
    """Return a span in its two largest units: `850 ms`, `12.3 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 20 else f"{seconds:.0f} s"
    whole = round(seconds)
    for unit, smaller, name, smaller_name in ((86_400, 3_600, "d", "h"), (3_600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name} {rest} {smaller_name}" if rest else f"{whole // unit} {name}"
    raise AssertionError("unreachable")


def age(time: datetime, now: datetime) -> str:
    """Return how long ago (or in how long) an instant is: `3 minutes ago`, `in 2 hours`, `just now`."""
    seconds = (now - time).total_seconds()
    distance = abs(seconds)
    if distance < 5:
        return "just now"
    for length, name in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if distance >= length:
            count = int(distance // length)
            words = f"{count} {name}{'' if count == 1 else 's'}"
            return f"{words} ago" if seconds > 0 else f"in {words}"
    raise AssertionError("unreachable")


def short_time(stamp: Timestamp | None, now: datetime) -> str:
    """Return an instant for a table: its age within a week of `now`, else its local date; `-` where it is unset."""
    if stamp is None:
        return "-"
    time = _instant(stamp)
    near = abs(now - time) < timedelta(days=7)
    return age(time, now) if near else f"{time.astimezone():%Y-%m-%d %H:%M}"


def long_time(stamp: Timestamp | None, now: datetime) -> str:
    """Return an instant with its local date and its age; `-` where it is unset."""
    if stamp is None:
        return "-"
    time = _instant(stamp)
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S} ({age(time, now)})"


def set_time(message: Any, field: str) -> Timestamp | None:
    """Return a message's Timestamp field, None where it is unset: an unset one reads as 1970 otherwise."""
    stamp: Timestamp | None = getattr(message, field) if message.HasField(field) else None
    return stamp


def seconds_of(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def enum_label(message: Any, field: str) -> str:
    """Return an enum field's value in words: JOB_STATE_COMPLETED_WITH_WARNINGS is `completed with warnings`.

    A value that this version does not know comes back as its number.
    """
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = descriptor.values_by_number.get(getattr(message, field))
    if value is None:
        return f"unknown ({getattr(message, field)})"
    if value.number == 0:
        return "-"
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name.removeprefix(prefix)).replace("_", " ").lower()


def enum_value(enum: Any, prefix: str, word: str) -> Any:
    """Return an enum's value from the word that stands for it on the command line: `freeze-or-pause`, `full`."""
    return enum.Value(prefix + word.replace("-", "_").upper())


def parse_span(text: str) -> timedelta:
    """Return a span from `90d`, `12h`, `1h30m`. Raises ValueError."""
    if not _SPAN.fullmatch(text):
        raise ValueError("a span is a number and d, h, m or s, such as 90d or 1h30m")
    seconds = sum(int(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"\d+[dhms]", text))
    if not 0 < seconds <= 100 * 365 * 86_400:
        raise ValueError("a span is between one second and a hundred years")
    return timedelta(seconds=seconds)


def parse_moment(text: str, now: datetime) -> datetime:
    """Return an instant from a span before `now` (`2d`) or an ISO date or time (local where it names no zone).

    Raises ValueError.
    """
    if _SPAN.fullmatch(text):
        return now - parse_span(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise ValueError("a time is a span before now (2d, 12h) or a date (2026-11-23, 2026-11-23T14:00)") from None


def parse_rate(text: str) -> int:
    """Return bytes per second from `0` (no limit), `500k`, `20M`, `1G` (powers of two). Raises ValueError."""
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower().removesuffix("/s"))
    if match is None:
        raise ValueError("a rate is bytes a second with k, M or G, such as 20M; 0 is no limit")
    return int(match[1]) * _RATE_UNITS[match[2]]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _instant(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
