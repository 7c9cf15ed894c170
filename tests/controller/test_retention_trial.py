"""Policies tried over imagined backups: the worked examples of docs/retention.md."""

from datetime import UTC, datetime, timedelta

import pytest

from controller.errors import InvalidField
from controller.retention_trial import Trial, Wish, kept_chains, of_imagined, verdicts
from controller.rules import retention as policies
from engine.retention import Verdict

NOW = datetime(2026, 11, 23, 3, tzinfo=UTC)
DAY = timedelta(days=1)


def tried(
    days: int, full_days: int, policy: str, interval: timedelta = DAY, now: datetime = NOW, *, trim: bool = False
) -> tuple[Trial, list[Verdict]]:
    value = {"preset": policy, **({"trim_tails": True} if trim else {})}
    trial = of_imagined(interval, full_days, days, Wish(value), now)
    return trial, verdicts(trial, now)


def kept(found: list[Verdict]) -> int:
    return sum(one.kept for one in found)


@pytest.mark.feature("R22")
@pytest.mark.feature("R18")
def test_daily_fulls_under_gfs_three_months_leave_ten_to_twelve_chains() -> None:
    found = {kept_chains(*tried(130, 1, "gfs-3m", now=NOW + DAY * shift)) for shift in range(0, 365, 30)}
    assert found <= {10, 11, 12}


@pytest.mark.feature("R22")
def test_what_seven_four_twelve_really_keeps() -> None:
    trial, found = tried(420, 7, "gfs-1y")
    assert 14 <= kept_chains(trial, found) <= 16
    assert 90 <= kept(found) <= 112
    trimmed = tried(420, 7, "gfs-1y", trim=True)
    assert kept_chains(*trimmed) == kept_chains(trial, found)
    assert kept(trimmed[1]) < kept(found)


@pytest.mark.feature("R22")
def test_by_age_or_by_calendar() -> None:
    trial, found = tried(420, 7, "age-3m")
    assert (kept(found), kept_chains(trial, found)) == (92, 14)
    assert found[-1].create_time - min(one.create_time for one in found if one.kept) < 100 * DAY
    calendar = tried(420, 7, "gfs-1y")[1]
    assert found[-1].create_time - min(one.create_time for one in calendar if one.kept) > 320 * DAY


@pytest.mark.feature("R22")
@pytest.mark.feature("R5")
def test_seven_daily_over_weekly_backups_keep_seven_weeks() -> None:
    trial = of_imagined(7 * DAY, 7, 200, Wish({"daily": 7}), NOW)
    assert kept(verdicts(trial, NOW)) == 7


@pytest.mark.feature("R22")
@pytest.mark.feature("R8")
def test_keep_last_alone_keeps_the_current_chain_and_two_beside_it() -> None:
    for days in range(60, 67):
        trial, found = tried(days, 7, "keep-last")
        assert kept_chains(trial, found) == 3
        assert 15 <= kept(found) <= 21


def test_too_many_imagined_backups_are_refused() -> None:
    with pytest.raises(InvalidField):
        of_imagined(timedelta(hours=1), 7, 3650, Wish({}), NOW)


@pytest.mark.feature("R2")
@pytest.mark.feature("R1")
def test_a_policy_has_one_form_and_reads_as_a_sentence() -> None:
    assert policies.checked({"preset": "age-2m", "days": 60, "daily": 0}) == {"preset": "age-2m"}
    assert policies.checked({"daily": 7, "yearly": 0, "preset": "", "trim_tails": False}) == {"daily": 7}
    assert policies.policy_of({}) is None
    assert policies.words({}) == "All backups are kept."
    assert policies.words({"days": 1, "weekly": 4, "monthly": 1}) == (
        "Kept: those of the last 1 day, the newest of each of 4 weeks and 1 month that have a backup"
        " and the most recent ones."
    )
    for wrong in (
        {"preset": "age-2m", "days": 61},
        {"days": -1},
        {"hourly": 3},
        {"preset": "no"},
        {"trim_tails": True},
    ):
        with pytest.raises(InvalidField):
            policies.checked(wrong)
