"""Retention: what each rule keeps, and what must hold of every history (R1-R9, R13, R16, R18, R20, R22)."""

import os
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import retention
from engine.retention import PRESETS, Backup, DiskPoint, Policy, Reason, Rhythm, Rules, decide, explain
from tests.engine.naive_retention import naive_kept

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
DAY = timedelta(days=1)


def full(backup_id: str, time: datetime, **more: bool) -> Backup:
    return Backup(backup_id, time, (DiskPoint("vda", backup_id),), **more)


def chain(start: datetime, length: int, *, name: str, step: timedelta = DAY) -> list[Backup]:
    """A full and `length - 1` incrementals, `step` apart: name-0, name-1, …"""
    ids = [f"{name}-{number}" for number in range(length)]
    return [
        Backup(one, start + step * number, (DiskPoint("vda", ids[0], frozenset(ids[:number])),))
        for number, one in enumerate(ids)
    ]


def kept(backups: list[Backup], rules: Rules, now: datetime = NOW) -> set[str]:
    return {backup_id for backup_id, reasons in decide(backups, rules, now).items() if reasons}


def daily_fulls(days: int, hour: int = 3) -> list[Backup]:
    newest = NOW.replace(hour=hour)
    return [full(f"d{ago:03}", newest - DAY * ago) for ago in range(days)]


# ---- the rules, one by one ---------------------------------------------------------------------------------------------


@pytest.mark.feature("R1")
def test_without_a_policy_everything_stays() -> None:
    reasons = decide(daily_fulls(50), Rules(), NOW)
    assert set(reasons.values()) == {(Reason("no_policy"),)}


@pytest.mark.feature("R2")
@pytest.mark.feature("R3")
@pytest.mark.feature("R4")
def test_the_presets_are_those_of_the_feature_list() -> None:
    assert PRESETS["age-2m"] == Policy(days=60)
    assert PRESETS["age-10y"] == Policy(days=3650)
    assert PRESETS["gfs-1m"] == Policy(daily=7, weekly=4)
    assert PRESETS["gfs-7y"] == Policy(daily=7, weekly=4, monthly=12, yearly=7)
    assert PRESETS["gfs-dense-3y"] == Policy(daily=30, weekly=12, monthly=12, yearly=3)
    assert Counter(name.rsplit("-", 1)[0] for name in PRESETS) == {"age": 14, "gfs": 11, "gfs-dense": 9}


@pytest.mark.feature("R9")
def test_age_is_strict() -> None:
    week = Rules(Policy(days=7), keep_last=0)
    backups = [full("a", NOW - 7 * DAY), full("b", NOW - 7 * DAY + timedelta(microseconds=1)), full("c", NOW)]
    assert kept(backups, week) == {"b", "c"}


@pytest.mark.feature("R5")
def test_seven_daily_over_weekly_backups_keep_seven_weeks() -> None:
    weekly = [full(f"w{ago}", NOW - 7 * DAY * ago) for ago in range(20)]
    assert kept(weekly, Rules(Policy(daily=7), keep_last=0)) == {f"w{ago}" for ago in range(7)}


@pytest.mark.feature("R5")
def test_only_the_newest_of_a_bucket_counts_and_buckets_end_where_the_zone_says() -> None:
    # 22:30 UTC of the 20th is 23:30 in Berlin; 23:30 UTC is the 21st there.
    backups = [
        full("early", datetime(2026, 11, 20, 1, tzinfo=UTC)),
        full("late", datetime(2026, 11, 20, 22, 30, tzinfo=UTC)),
        full("night", datetime(2026, 11, 20, 23, 30, tzinfo=UTC)),
    ]
    assert kept(backups, Rules(Policy(daily=5), keep_last=0, zone=BERLIN)) == {"late", "night"}
    assert kept(backups, Rules(Policy(daily=5), keep_last=0)) == {"night"}


@pytest.mark.feature("R5")
@pytest.mark.parametrize(
    ("rule", "first", "second", "same"),
    [
        ("weekly", "2026-12-31", "2027-01-01", True),  # ISO week 53 of 2026
        ("weekly", "2027-01-03", "2027-01-04", False),
        ("monthly", "2026-01-31", "2026-02-01", False),
        ("monthly", "2025-02-10", "2026-02-10", False),
        ("yearly", "2026-12-31", "2027-01-01", False),
        ("yearly", "2026-01-01", "2026-12-31", True),
    ],
)
def test_where_buckets_end(rule: str, first: str, second: str, same: bool) -> None:
    backups = [full(day, datetime.fromisoformat(day).replace(tzinfo=UTC)) for day in (first, second)]
    expected = {second} if same else {first, second}
    assert kept(backups, Rules(Policy(**{rule: 9}), keep_last=0)) == expected


@pytest.mark.feature("R7")
@pytest.mark.feature("R8")
def test_the_active_chain_and_the_newest_beside_it_stay_whole() -> None:
    chains = [chain(NOW - 70 * DAY + 7 * DAY * number, 7, name=f"c{number}") for number in range(10)]
    backups = [one for chain_ in chains for one in chain_]

    reasons = decide(backups, Rules(Policy(), keep_last=2), NOW)

    assert {one for one, found in reasons.items() if found} == {f"c{n}-{p}" for n in (7, 8, 9) for p in range(7)}
    assert reasons["c9-0"] == (Reason("active_chain"),)
    assert reasons["c8-3"] == (Reason("keep_last"),)


@pytest.mark.feature("R7")
@pytest.mark.feature("R8")
def test_a_copy_is_neither_active_nor_counted() -> None:
    backups = [full("old", NOW - 9 * DAY), full("chain", NOW - 5 * DAY)]
    backups += [Backup(f"copy{n}", NOW - n * DAY, (DiskPoint("vda", f"copy{n}", copy=True),)) for n in (1, 2)]

    reasons = decide(backups, Rules(Policy(), keep_last=1), NOW)

    assert reasons["chain"] == (Reason("active_chain"),)
    assert reasons["old"] == (Reason("keep_last"),)
    assert reasons["copy1"] == (Reason("newest"),)  # the newest of all is never lost
    assert reasons["copy2"] == ()


@pytest.mark.feature("R7")
def test_the_chain_that_will_be_extended_is_active_though_another_has_the_newest_point() -> None:
    backups = [*chain(NOW - 9 * DAY, 3, name="a"), *chain(NOW - 2 * DAY, 2, name="b")]
    reasons = decide(backups, Rules(Policy(), keep_last=0), NOW, extends={"vda": "a-0"})
    assert reasons["a-2"] == (Reason("active_chain"),)
    assert reasons["b-0"] == (Reason("needed", "b-1"),)


@pytest.mark.feature("R13")
def test_one_selected_point_keeps_its_chain_and_a_tail_may_be_trimmed() -> None:
    old, new = chain(NOW - 40 * DAY, 10, name="a"), chain(NOW - 9 * DAY, 3, name="b")
    rules = Rules(Policy(weekly=3), keep_last=0)
    reasons = decide([*old, *new], rules, NOW)
    chosen = [one for one, found in reasons.items() if Reason("weekly") in found and one.startswith("a")]
    assert chosen
    assert {one.backup_id for one in old} <= {one for one, found in reasons.items() if found}

    trimming = Rules(Policy(yearly=1, monthly=2), keep_last=0, trim_tails=True)
    october = chain(datetime(2026, 10, 28, tzinfo=UTC), 8, name="o")  # 28 October to 4 November
    left = kept([*october, *new], trimming)
    assert {"o-0", "o-3"} <= left
    assert "o-4" not in left
    tracked = [Backup(one.backup_id, one.create_time, one.disks, tracked=one.backup_id == "o-7") for one in october]
    assert {one.backup_id for one in october} <= kept([*tracked, *new], trimming)


@pytest.mark.feature("R8")
def test_where_every_point_stands_alone_the_newest_points_stay() -> None:
    snapshots = daily_fulls(10)
    assert kept(snapshots, Rules(Policy(), keep_last=3, chained=False)) == {"d000", "d001", "d002"}
    assert kept(snapshots, Rules(Policy(), keep_last=0, chained=False)) == {"d000"}


@pytest.mark.feature("R20")
def test_a_damaged_point_protects_nothing_and_stays() -> None:
    backups = [
        full("a", NOW - 5 * DAY),
        full("b", NOW - 4 * DAY, damaged=True),
        full("c", NOW - 3 * DAY),
        full("d", NOW - timedelta(hours=3)),
        full("e", NOW - timedelta(hours=2), damaged=True),
    ]
    reasons = decide(backups, Rules(Policy(daily=1), keep_last=1), NOW)

    assert reasons["b"] == reasons["e"] == (Reason("damaged"),)
    assert Reason("daily") in reasons["d"]
    assert Reason("active_chain") in reasons["d"]
    assert reasons["c"] == (Reason("keep_last"),)
    assert reasons["a"] == ()


@pytest.mark.feature("R20")
def test_what_needs_a_damaged_or_lost_backup_counts_as_damaged() -> None:
    backups = chain(NOW - 5 * DAY, 3, name="a")
    backups[1] = Backup("a-1", backups[1].create_time, backups[1].disks, damaged=True)
    assert decide(backups, Rules(Policy()), NOW)["a-2"][0] == Reason("damaged", "a-1")
    assert decide(backups[2:], Rules(Policy()), NOW)["a-2"][0].rule == "damaged"


@pytest.mark.feature("R6")
def test_reasons_add_up() -> None:
    found = decide(daily_fulls(3), Rules(Policy(days=7, daily=1, weekly=1, monthly=1, yearly=1)), NOW)["d000"]
    assert [one.rule for one in found] == ["newest", "active_chain", "age", "daily", "weekly", "monthly", "yearly"]


def test_disks_with_chains_of_their_own_keep_the_backups_that_they_share() -> None:
    backups = [
        Backup("1", NOW - 30 * DAY, (DiskPoint("vda", "1"), DiskPoint("vdb", "1"))),
        Backup("2", NOW - 20 * DAY, (DiskPoint("vda", "2"), DiskPoint("vdb", "1", frozenset({"1"})))),
        Backup("3", NOW - 10 * DAY, (DiskPoint("vda", "3"), DiskPoint("vdb", "1", frozenset({"1", "2"})))),
        Backup("4", NOW - 1 * DAY, (DiskPoint("vda", "3", frozenset({"3"})), DiskPoint("vdb", "4"))),
    ]
    assert kept(backups, Rules(Policy(), keep_last=0)) == {"1", "2", "3", "4"}  # vdb of 3 needs 1 and 2
    assert kept(backups[2:], Rules(Policy(), keep_last=0)) == {"3", "4"}


# ---- worked examples ---------------------------------------------------------------------------------------------------


@pytest.mark.feature("R22")
def test_daily_fulls_under_gfs_three_months_leave_ten_to_twelve_chains() -> None:
    """Seven days, two or three weeks more, one or two months more; Keep Last 2 lies within the seven days."""
    found = set()
    for shift in range(0, 365, 5):
        now = NOW + DAY * shift
        fulls = [full(f"{ago:03}", now - DAY * ago) for ago in range(130)]
        found.add(len(kept(fulls, Rules(PRESETS["gfs-3m"], keep_last=2), now)))
    assert min(found) >= 10
    assert max(found) <= 12


@pytest.mark.feature("R22")
def test_seven_four_twelve_over_weekly_fulls_keeps_whole_chains() -> None:
    """Four weeks of daily points come from two weekly chains and their neighbors; each older month costs a chain of 7."""
    chains = [chain(NOW - 7 * DAY * week + 6 * DAY, 7, name=f"c{week:02}") for week in range(1, 60)]
    left = kept([one for points in chains for one in points], Rules(PRESETS["gfs-1y"], keep_last=2))
    names = {one.split("-")[0] for one in left}
    assert len(left) == 7 * len(names)
    assert 14 <= len(names) <= 16


# ---- what is to be expected --------------------------------------------------------------------------------------------


@pytest.mark.feature("R18")
@pytest.mark.feature("R16")
def test_each_backup_says_when_it_is_expected_to_go() -> None:
    backups = daily_fulls(5)
    verdicts = explain(backups, Rules(Policy(days=7), keep_last=0), NOW, Rhythm(DAY, DAY))
    by_id = {one.backup_id: one for one in verdicts}
    assert [one.kept for one in verdicts] == [True] * 5
    for ago in range(5):  # the first run at which seven days have passed; runs are at 03:00
        assert by_id[f"d{ago:03}"].expire_time == NOW.replace(hour=3) + DAY * (7 - ago)


@pytest.mark.feature("R18")
def test_without_further_backups_only_age_takes_one_away() -> None:
    backups = daily_fulls(3)
    gfs = explain(backups, Rules(Policy(daily=3), keep_last=0), NOW, Rhythm(timedelta(0)))
    aged = explain(backups, Rules(Policy(days=10), keep_last=0), NOW, Rhythm(timedelta(0)))
    assert [one.expire_time for one in gfs] == [None] * 3
    assert [one.expire_time for one in aged] == [NOW + DAY * 8, NOW + DAY * 9, None]  # the newest is the active chain


# ---- what must hold of every history ------------------------------------------------------------------------------------


def history_of(luck: random.Random) -> list[Backup]:
    """A server's life: two disks, chains of their own, copies, differentials, damage, times that meet, lost parents."""
    disks = ["vda", "vdb"][: luck.randint(1, 2)]
    newest: dict[str, DiskPoint] = {}
    made: list[Backup] = []
    time = NOW - timedelta(days=luck.choice([2, 40, 400, 2000]))
    for number in range(luck.randint(0, 24)):
        time += timedelta(hours=luck.choice([0, 1, 7, 24, 24, 24, 31, 24 * 9, 24 * 40]))
        if time > NOW + 2 * DAY:
            break
        backup_id, points = f"{number:02}", []
        for disk in disks:
            kind = luck.choice(["full", "incremental", "incremental", "incremental", "differential", "copy", "absent"])
            last = newest.get(disk)
            if kind == "copy":
                points.append(DiskPoint(disk, backup_id, copy=True))
            elif kind == "full" or (kind != "absent" and last is None):
                newest[disk] = DiskPoint(disk, backup_id, frozenset({backup_id}))
                points.append(DiskPoint(disk, backup_id))
            elif kind != "absent" and last is not None:
                needs = last.needs if kind == "incremental" else frozenset({last.chain_id})
                newest[disk] = DiskPoint(disk, last.chain_id, needs | {backup_id})
                points.append(DiskPoint(disk, last.chain_id, needs))
        if points:
            tracked, damaged = luck.random() < 0.1, luck.random() < 0.06
            made.append(Backup(backup_id, time, tuple(points), damaged=damaged, tracked=tracked))
    if made and luck.random() < 0.1:
        made.pop(luck.randrange(len(made)))
    luck.shuffle(made)
    return made


def rules_of(luck: random.Random) -> Rules:
    def count() -> int:
        return luck.choice([0, 0, 1, 2, 5])

    policy = Policy(luck.choice([0, 0, 7, 60]), count(), count(), count(), count())
    return Rules(
        policy if luck.random() < 0.95 else None,
        luck.choice([0, 0, 1, 2, 3]),
        luck.choice([UTC, BERLIN, ZoneInfo("Pacific/Auckland")]),
        chained=luck.random() < 0.85,
        trim_tails=luck.random() < 0.4,
    )


@pytest.mark.feature("R6")
def test_a_second_implementation_agrees_on_thousands_of_histories() -> None:
    for seed in range(int(os.environ.get("BM_RETENTION_HISTORIES", "2000"))):  # 10,000 take half a minute
        luck = random.Random(seed)
        backups, rules = history_of(luck), rules_of(luck)
        assert kept(backups, rules) == naive_kept(backups, rules, NOW), seed


@pytest.mark.feature("R19")
@settings(max_examples=250, deadline=None)
@given(st.integers(min_value=0))
def test_invariants(seed: int) -> None:
    luck = random.Random(seed)
    backups, rules = history_of(luck), rules_of(luck)
    by_id = {one.backup_id: one for one in backups}

    left = kept(backups, rules)

    for one in left:  # nothing that is kept loses what it needs
        assert {need for point in by_id[one].disks for need in point.needs} & by_id.keys() <= left
    damaged = retention._damaged(sorted(backups, key=lambda one: one.order))
    assert damaged.keys() <= left
    sound = [one for one in backups if one.backup_id not in damaged]
    if sound:  # the newest is never lost
        assert max(sound, key=lambda one: one.order).backup_id in left
    again = kept([by_id[one] for one in left], rules)
    assert again == left, "a second pruning removes more"
    assert kept(backups, rules, NOW + timedelta(days=luck.choice([1, 30, 500]))) <= left, "time brings something back"


@pytest.mark.feature("R18")
@settings(max_examples=12, deadline=None)
@given(st.integers(min_value=0))
def test_the_expected_time_is_the_first_run_that_lets_it_go(seed: int) -> None:
    luck = random.Random(seed)
    backups, rules = history_of(luck), rules_of(luck)
    rhythm = Rhythm(luck.choice([timedelta(0), DAY, timedelta(hours=31)]), luck.choice([timedelta(0), 7 * DAY]))
    horizon = timedelta(days=30)
    runs = retention._forecast(sorted(backups, key=lambda one: one.order), NOW, rhythm, horizon)

    for verdict in explain(backups, rules, NOW, rhythm, horizon=horizon):
        first = None
        if verdict.kept:
            for step, (time, _) in enumerate(runs, 1):
                coming = [one for _, one in runs[:step] if one is not None]
                if not decide([*backups, *coming], rules, time)[verdict.backup_id]:
                    first = time
                    break
        assert verdict.expire_time == first
