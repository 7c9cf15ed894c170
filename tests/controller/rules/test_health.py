"""What checks of a storage mean together, and whose turn it is: by examples, and by a day simulated minute by minute."""

from datetime import UTC, datetime, timedelta

import pytest

from clients.gen.backupmanager.v1 import errors_pb2
from controller.rules.health import (
    _NOT_THE_STORAGE,
    RECHECKS_MAX,
    Check,
    Intervals,
    Summary,
    due,
    summarize,
    verdict,
    whose_turn,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
INTERVALS = Intervals()
pytestmark = pytest.mark.feature("H1")


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def good(hypervisor_id: str, minutes: float) -> Check:
    return Check(hypervisor_id, "healthy", ago(minutes), ago(minutes))


def bad(hypervisor_id: str, minutes: float, since: float | None = None) -> Check:
    return Check(hypervisor_id, "unhealthy", ago(minutes), ago(minutes), ago(minutes if since is None else since))


def summary(*checks: Check, users: str = "", online: str = "abcdefgh", enabled: bool = True) -> Summary:
    return summarize(checks, enabled=enabled, users=users, online=online, intervals=INTERVALS, now=NOW)


def asked(*checks: Check, may: str) -> list[str]:
    return due({one.hypervisor_id: one for one in checks}, list(may), INTERVALS, NOW)


# ---- what it means ------------------------------------------------------------------------------------------------------


def test_nobody_to_check_from_is_unknown_whatever_was_found_before() -> None:
    assert summary(good("a", 5), users="a", online="").state == "unknown"
    assert summary(bad("a", 5), users="ab", online="c").state == "unknown"
    assert "online" in summary(bad("a", 5), users="a", online="").detail


def test_a_disabled_storage_is_unknown() -> None:
    assert summary(bad("a", 5), users="a", enabled=False).state == "unknown"


def test_a_storage_that_was_never_checked_is_unknown() -> None:
    assert summary(users="a").state == "unknown"
    assert summary(Check("a", try_time=ago(1)), users="a").state == "unknown", "a try that said nothing"


def test_all_that_looked_got_in() -> None:
    found = summary(good("a", 40), good("b", 5), users="ab")
    assert (found.state, found.healthy_count, found.unhealthy_count, found.newest) == ("healthy", 2, 0, "b")
    assert found.detail == "all 2 hypervisors that looked got in"


def test_a_failure_that_is_newer_than_every_success_is_the_storages() -> None:
    found = summary(good("a", 40), bad("b", 5), users="ab")
    assert (found.state, found.culprit) == ("unhealthy", "b")


def test_a_success_after_the_failures_began_makes_it_a_matter_of_the_way() -> None:
    found = summary(good("a", 4), bad("b", 5, since=50), users="ab")
    assert (found.state, found.healthy_count, found.unhealthy_count, found.culprit) == ("degraded", 1, 1, "b")
    assert found.detail == "1 of the 2 hypervisors that looked got in"


def test_who_is_offline_or_no_user_counts_no_more() -> None:
    assert summary(good("a", 4), bad("b", 5), users="ab", online="a").state == "healthy"
    assert summary(good("a", 4), bad("b", 5), users="a").state == "healthy"


def test_an_old_success_says_nothing_any_more_and_an_old_failure_does() -> None:
    assert summary(good("a", 61), users="a").state == "unknown"
    assert summary(good("a", 59), users="a").state == "healthy"
    assert summary(good("a", 150), users="abcdefgh").state == "healthy", "with eight of them, a turn is long"
    assert summary(bad("a", 3000), users="a").state == "unhealthy"


def test_without_any_user_the_checks_that_people_asked_for_count_for_a_day() -> None:
    assert summary(good("a", 23 * 60)).state == "healthy"
    assert summary(good("a", 25 * 60)).state == "unknown"
    assert summary(bad("a", 60)).state == "unhealthy"


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("completed", "", "healthy"),
        ("completed_with_warnings", "", "healthy"),
        ("failed", "STORAGE_UNREACHABLE", "unhealthy"),
        ("failed", "STORAGE_LOGIN_FAILED", "unhealthy"),
        ("failed", "REPOSITORY_MISSING", "unhealthy"),
        ("failed", "COMMAND_NOT_ACCEPTED", None),
        ("failed", "OPERATION_LOST", None),
        ("failed", "ENGINE_CRASHED", None),
        ("failed", "UNSUPPORTED", None),
        ("cancelled", "CANCELLED", None),
    ],
)
def test_what_the_end_of_a_check_says_of_the_storage(state: str, reason: str, expected: str | None) -> None:
    assert verdict(state, reason) == expected


def test_the_reasons_that_say_nothing_are_real_ones() -> None:
    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert known >= _NOT_THE_STORAGE


# ---- whose turn it is ---------------------------------------------------------------------------------------------------


def test_a_healthy_storage_is_checked_by_one_each_half_hour_in_turn() -> None:
    assert asked(good("a", 29), good("b", 59), may="ab") == []
    assert asked(good("a", 30), good("b", 60), may="ab") == ["b"]
    assert asked(good("a", 30), good("b", 60), may="abc") == ["c"], "who was never asked is first"
    assert asked(may="") == []
    assert asked(may="ba") == ["a"]


def test_who_failed_is_asked_again_after_a_quarter_of_an_hour() -> None:
    assert asked(bad("a", 14, since=14), may="a") == []
    assert asked(bad("a", 15), may="a") == ["a"]


def test_a_first_failure_is_looked_at_by_somebody_else_at_once() -> None:
    assert asked(bad("a", 1), good("b", 20), may="ab") == ["b"]
    assert asked(bad("a", 1), Check("b", try_time=ago(0.5)), may="ab") == [], "b is at it"
    assert asked(bad("a", 1), good("b", 0.5), may="ab") == []


def test_few_of_many_that_fail_are_asked_at_once() -> None:
    failing = [bad(one, 20 + number) for number, one in enumerate("abcdef")]
    assert asked(*failing, may="abcdef") == ["f", "e", "d"]
    assert len(asked(*failing, good("g", 25), may="abcdefg")) == RECHECKS_MAX, "no second opinion, and not g's turn yet"


def test_a_try_that_said_nothing_waits_for_its_turn_again() -> None:
    assert asked(Check("a", "healthy", ago(90), ago(1)), may="a") == []


def test_check_now_without_a_hypervisor_takes_the_one_whose_turn_it_is() -> None:
    checks = {"a": good("a", 5), "b": good("b", 50)}
    assert whose_turn(checks, ["a", "b"]) == "b"
    assert whose_turn(checks, ["a", "b", "c"]) == "c"
    assert whose_turn(checks, []) == ""


def test_a_day_of_a_storage_that_goes_down_and_comes_back() -> None:
    """Minute by minute with five users: how soon it is seen, and how many checks it costs."""
    users = "abcde"
    checks: dict[str, Check] = {}
    begin, states, count = NOW, {}, 0
    for minute in range(24 * 60):
        now = begin + timedelta(minutes=minute)
        down = 600 <= minute < 720
        for one in due(checks, users, INTERVALS, now):
            before, count = checks.get(one, Check(one)), count + 1
            fail_time = (before.fail_time or now) if down else None
            checks[one] = Check(one, "unhealthy" if down else "healthy", now, now, fail_time)
        found = summarize(list(checks.values()), enabled=True, users=users, online=users, intervals=INTERVALS, now=now)
        states[minute] = found.state
    assert all(states[minute] == "healthy" for minute in range(600))
    assert next(minute for minute in range(600, 720) if states[minute] == "unhealthy") <= 630
    assert "degraded" not in [states[minute] for minute in range(632, 720)]
    assert next(minute for minute in range(720, 800) if states[minute] == "degraded") <= 735
    assert all(states[minute] == "healthy" for minute in range(752, 24 * 60))
    assert count < 100, "48 in a day when all is well"
