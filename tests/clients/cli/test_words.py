"""How values read, and what people type back."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from clients.cli import words
from clients.gen.backupmanager.v1 import disk_pb2, job_pb2, storage_pb2

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0042, "4 ms"),
        (12.34, "12.3 s"),
        (42, "42 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7_800, "2 h 10 min"),
        (356_400, "4 d 3 h"),
    ],
)
def test_spans(seconds: float, expected: str) -> None:
    assert words.span(seconds) == expected


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (timedelta(seconds=2), "just now"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(minutes=185), "3 hours ago"),
        (timedelta(days=2, hours=23), "2 days ago"),
        (-timedelta(hours=2), "in 2 hours"),
    ],
)
def test_ages(before: timedelta, expected: str) -> None:
    assert words.age(NOW - before, NOW) == expected


def test_far_times_are_dates() -> None:
    job = job_pb2.Job()
    job.create_time.FromDatetime(NOW - timedelta(days=8))
    assert words.short_time(job.create_time, NOW).startswith("2026-11-15 ")
    assert words.short_time(words.set_time(job, "end_time"), NOW) == "-"
    assert words.long_time(words.set_time(job, "create_time"), NOW).endswith("(8 days ago)")


@pytest.mark.parametrize(
    ("message", "field", "expected"),
    [
        (job_pb2.Job(state=job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS), "state", "completed with warnings"),
        (disk_pb2.DiskBackup(type=disk_pb2.BACKUP_TYPE_FULL), "type", "full"),
        (storage_pb2.StorageLimits(io_priority=storage_pb2.WORK_PRIORITY_IDLE), "io_priority", "idle"),
        (job_pb2.Job(), "state", "-"),
        (job_pb2.Job(state=99), "state", "unknown (99)"),  # type: ignore[arg-type]  # of a newer controller
    ],
)
def test_enums_read_as_words(message: Any, field: str, expected: str) -> None:
    assert words.enum_label(message, field) == expected


def test_words_become_enums() -> None:
    mode = words.enum_value(disk_pb2.ConsistencyMode, "CONSISTENCY_MODE_", "freeze-or-pause")
    assert mode == disk_pb2.CONSISTENCY_MODE_FREEZE_OR_PAUSE


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90d", timedelta(days=90)), ("1h30m", timedelta(minutes=90)), ("45s", timedelta(seconds=45))],
)
def test_spans_are_read(text: str, expected: timedelta) -> None:
    assert words.parse_span(text) == expected


@pytest.mark.parametrize("text", ["", "90", "d", "0s", "1w", "-1d", "999999999999d", "1h 30m"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="span"):
        words.parse_span(text)


def test_moments_are_read() -> None:
    assert words.parse_moment("2d", NOW) == NOW - timedelta(days=2)
    assert words.parse_moment("2026-11-23T10:00:00+02:00", NOW) == datetime(2026, 11, 23, 8, tzinfo=UTC)
    assert words.parse_moment("2026-11-23", NOW).tzinfo is UTC
    with pytest.raises(ValueError, match="time"):
        words.parse_moment("yesterday", NOW)


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("500k", 512_000), ("20M", 20 << 20), ("1G/s", 1 << 30)])
def test_rates_are_read(text: str, expected: int) -> None:
    assert words.parse_rate(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "-1", "1.5M", "20MB"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        words.parse_rate(text)
