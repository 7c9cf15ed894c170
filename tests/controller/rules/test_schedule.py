"""When schedules run, against an oracle that walks minute by minute."""

from datetime import UTC, datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.rules.schedule import Hours, Run, is_open, next_closing, next_due, next_opening, next_run, next_runs

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
# Ordinary ones, half hours, a change at midnight, a change of half an hour, a day that was skipped, no change at all.
ZONES = [
    "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia",
    "Africa/Casablanca", "UTC",
]  # fmt: skip
# Around clock changes of these zones, and a leap day.
ANCHORS = [
    datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 3, 7, 12, tzinfo=UTC),
    datetime(2026, 4, 4, 0, tzinfo=UTC), datetime(2011, 12, 29, 12, tzinfo=UTC), datetime(2028, 2, 28, 12, tzinfo=UTC),
    datetime(2026, 2, 14, 12, tzinfo=UTC),
]  # fmt: skip

walls = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 59]))
many_hours = st.builds(
    Hours, st.sampled_from(ZONES).map(ZoneInfo), walls, walls, st.frozensets(st.integers(1, 7), max_size=7)
)
instants = st.builds(
    lambda anchor, minutes: anchor + minutes * MINUTE, st.sampled_from(ANCHORS), st.integers(0, 3 * 24 * 60)
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def walk(hours: Hours, instant: datetime, *, wanted: bool, minutes: int) -> datetime | None:
    """Look at each minute in turn, with an idea of a window of its own: the minutes of the day it opens on, counted up."""
    for number in range(minutes):
        one = instant + number * MINUTE
        if open_by_hand(hours, one) is wanted:
            return one
    return None


def open_by_hand(hours: Hours, instant: datetime) -> bool:
    local = instant.astimezone(hours.zone)
    minute = local.hour * 60 + local.minute
    begin, end = (one.hour * 60 + one.minute for one in (hours.start, hours.end))
    if begin == end:
        begin, end = 0, 1440
    elif end < begin:
        end += 1440
    for days_ago in (0, 1):
        weekday = (local.date() - days_ago * DAY).isoweekday()
        if begin <= minute + 1440 * days_ago < end and (not hours.days or weekday in hours.days):
            return True
    return False


@pytest.mark.feature("D14", "D15", "D16")
@settings(deadline=None, max_examples=150)
@given(many_hours, instants, st.booleans())
@example(Hours(BERLIN, time(2, 0), time(3, 0)), utc("2026-03-28T20:00+00:00"), True)
@example(Hours(BERLIN, time(2, 30), time(2, 31)), utc("2026-10-24T20:00+00:00"), False)
def test_openings_and_closings_are_those_of_a_walk(hours: Hours, instant: datetime, wanted: bool) -> None:
    found = next_opening(hours, instant) if wanted else next_closing(hours, instant)
    expected = walk(hours, instant, wanted=wanted, minutes=9 * 24 * 60)
    if expected is None:
        assert found is None or found >= instant + 9 * DAY
    else:
        assert found == expected


@pytest.mark.feature("D14", "D15", "D16", "D28")
@settings(deadline=None, max_examples=60)
@given(many_hours, instants, st.integers(-3000, 3000), st.integers(1, 60))
def test_every_run_starts_in_its_hours_and_no_sooner_than_it_may(
    hours: Hours, now: datetime, offset: int, interval_hours: int
) -> None:
    interval = timedelta(hours=interval_hours)
    due = now + offset * MINUTE
    runs = list(islice(next_runs(hours, due, now, interval), 6))
    previous: Run | None = None
    for run in runs:
        assert is_open(hours, run.start_time)
        assert run.start_time >= max(run.due_time, now)
        assert walk(hours, max(run.due_time, now), wanted=True, minutes=9 * 24 * 60) in {run.start_time, None}
        if run.close_time is not None:
            assert run.close_time > run.start_time
            assert not is_open(hours, run.close_time)
        if previous is not None:
            assert run.due_time - previous.due_time >= interval
            assert run.start_time - previous.start_time >= interval - timedelta(minutes=5)
        previous, now = run, run.start_time


@pytest.mark.feature("D14")
def test_skipped_minutes_never_open_and_repeated_ones_count_twice() -> None:
    night = Hours(BERLIN, time(2, 0), time(2, 30))
    assert next_opening(night, utc("2026-03-28T12:00+01:00")) == utc("2026-03-30T02:00+02:00")  # the 29th has no 02:00
    assert next_opening(night, utc("2026-10-24T12:00+02:00")) == utc("2026-10-25T02:00+02:00")
    assert next_closing(night, utc("2026-10-25T02:00+02:00")) == utc("2026-10-25T02:30+02:00")
    assert next_opening(night, utc("2026-10-25T02:30+02:00")) == utc("2026-10-25T02:00+01:00")
    half_skipped = Hours(BERLIN, time(2, 30), time(4, 0))
    assert next_opening(half_skipped, utc("2026-03-29T00:00+01:00")) == utc("2026-03-29T03:00+02:00")


@pytest.mark.feature("D15")
def test_a_window_over_midnight_belongs_to_the_day_it_opens_on() -> None:
    friday_night = Hours(BERLIN, time(22, 0), time(6, 0), frozenset({5}))
    opening = next_opening(friday_night, utc("2026-11-23T12:00+01:00"))
    assert opening == utc("2026-11-27T22:00+01:00")
    assert opening is not None
    assert next_closing(friday_night, opening) == utc("2026-11-28T06:00+01:00")
    assert not is_open(friday_night, utc("2026-11-27T05:00+01:00"))  # that would be Thursday's
    assert is_open(friday_night, utc("2026-11-28T05:59+01:00"))


@pytest.mark.feature("D14", "D15")
def test_no_window_and_all_days_is_always() -> None:
    for days in (frozenset[int](), frozenset(range(1, 8))):
        hours = Hours(BERLIN, time(3, 0), time(3, 0), days)
        now = utc("2026-11-23T12:34:56+00:00")
        assert next_run(hours, now, now) == Run(now, now, None)


@pytest.mark.feature("D28")
def test_the_anchor_is_the_due_time_or_the_start_of_a_run_that_waited() -> None:
    due, day = utc("2026-11-23T01:00+00:00"), timedelta(hours=24)
    assert next_due(due, due + timedelta(seconds=59), day) == due + day
    assert next_due(due, due + timedelta(hours=3), day) == due + timedelta(hours=27)


@pytest.mark.feature("D17", "D28")
def test_missed_firings_are_not_made_up() -> None:
    hours = Hours(BERLIN)
    now = utc("2026-11-23T12:00+00:00")
    runs = list(islice(next_runs(hours, now - 10 * DAY, now, DAY), 3))
    assert [run.start_time for run in runs] == [now, now + DAY, now + 2 * DAY]


@pytest.mark.feature("D17", "D21")
def test_by_hand_only_has_no_runs() -> None:
    now = utc("2026-11-23T12:00+00:00")
    assert list(next_runs(Hours(BERLIN), now, now, timedelta(0))) == []


@pytest.mark.feature("D17")
def test_a_daily_run_at_night_through_a_whole_year() -> None:
    hours = Hours(BERLIN, time(1, 0), time(6, 0))
    now = utc("2026-01-01T12:00+01:00")
    runs = list(islice(next_runs(hours, now, now, DAY), 365))
    local_days = [run.start_time.astimezone(BERLIN).date() for run in runs]
    assert local_days == [local_days[0] + number * DAY for number in range(365)]


@pytest.mark.feature("D15")
def test_a_leap_day_is_a_day() -> None:
    tuesday = Hours(ZoneInfo("UTC"), days=frozenset({2}))
    assert next_opening(tuesday, utc("2028-02-28T12:00+00:00")) == utc("2028-02-29T00:00+00:00")
