"""What is kept of a server's backups on one storage, and why. Pure: a history, rules and `now` in, reasons out.

    age, calendar buckets ──► points ──► the chains they stand in ─┐
    the active chain, keep last N beside it ──► chains ────────────┼─► all that these need ──► kept, each with its reasons
    damaged points, the newest of all ──► themselves ──────────────┘

A backup is kept if any rule selects it (R6), or if one that is kept needs it. What is not kept may go; whether it can go is
asked again by whoever deletes it (delete.py). On a repository of chains the unit is the chain of a disk (R13): one selected
point keeps all of it. Where each point restores on its own (PBS), the unit is the point.
"""

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from types import MappingProxyType

Order = tuple[datetime, str]
_ChainKey = tuple[str, str]  # disk, chain id

# The reasons' words. They reach people and programs: never rename one.
AGE, DAILY, WEEKLY, MONTHLY, YEARLY = "age", "daily", "weekly", "monthly", "yearly"
KEEP_LAST, ACTIVE_CHAIN, NEWEST, DAMAGED = "keep_last", "active_chain", "newest", "damaged"
CHAIN, NEEDED, NO_POLICY = "chain", "needed", "no_policy"


# ---- values ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiskPoint:
    """One disk in one backup. `needs` are the other backups whose data it needs; a copy is a chain of its own."""

    disk: str
    chain_id: str
    needs: frozenset[str] = frozenset()
    copy: bool = False


@dataclass(frozen=True, slots=True)
class Backup:
    """A restore point. `damaged`: something of it cannot be read. `tracked`: its tracking point still exists on a host."""

    backup_id: str
    create_time: datetime
    disks: tuple[DiskPoint, ...]
    damaged: bool = False
    tracked: bool = False

    @property
    def order(self) -> Order:
        """Ids settle equal times."""
        return (self.create_time, self.backup_id)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is worth keeping: everything younger than `days`, and the newest of so many calendar buckets; 0 selects nothing."""

    days: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        for name in ("days", "daily", "weekly", "monthly", "yearly"):
            if getattr(self, name) < 0:
                raise ValueError(name)


@dataclass(frozen=True, slots=True)
class Rules:
    """All that decides. Without a `policy` nothing is pruned (R1).

    `zone` is where days begin and end. `chained` is False where every point restores on its own. With `trim_tails` a chain
    that policy alone keeps loses what came after its last selected point.
    """

    policy: Policy | None = None
    keep_last: int = 2
    zone: tzinfo = UTC
    chained: bool = True
    trim_tails: bool = False

    def __post_init__(self) -> None:
        if self.keep_last < 0:
            raise ValueError("keep_last")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a backup stays. `of` is the backup that it stays for, "" where it stays for its own sake."""

    rule: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How backups are expected to go on: one each `interval` (zero: none), a full each `full_interval` (zero: never)."""

    interval: timedelta
    full_interval: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A backup's reasons to stay, none if it may go; `expire_time` is when it is expected to go, None if not in sight."""

    backup_id: str
    create_time: datetime
    reasons: tuple[Reason, ...]
    expire_time: datetime | None = None

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


_own = functools.cache(Reason)  # for its own sake: few words, and many backups that have them
_ORDER = operator.attrgetter("create_time", "backup_id")  # as `Backup.order`


# ---- presets (R2-R4) ---------------------------------------------------------------------------------------------------

AGE_PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        name: Policy(days=days)
        for name, days in {
            "1w": 7, "2w": 14, "3w": 21, "4w": 28, "2m": 60, "3m": 90, "6m": 180, "9m": 270,
            "1y": 365, "2y": 730, "3y": 1095, "5y": 1825, "7y": 2555, "10y": 3650,
        }.items()
    }
)  # fmt: skip
GFS_PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        name: Policy(daily=7, weekly=4, monthly=monthly, yearly=yearly)
        for name, (monthly, yearly) in {
            "1m": (0, 0), "2m": (2, 0), "3m": (3, 0), "6m": (6, 0), "9m": (9, 0),
            "1y": (12, 0), "2y": (12, 2), "3y": (12, 3), "5y": (12, 5), "7y": (12, 7), "10y": (12, 10),
        }.items()
    }
)  # fmt: skip
DENSE_GFS_PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        name: Policy(daily=daily, weekly=weekly, monthly=monthly, yearly=yearly)
        for name, (daily, weekly, monthly, yearly) in {
            "1m": (14, 4, 0, 0), "2m": (14, 8, 2, 0), "3m": (14, 8, 3, 0), "6m": (14, 8, 6, 0), "9m": (14, 8, 9, 0),
            "1y": (14, 8, 12, 0), "2y": (14, 8, 12, 2), "3y": (30, 12, 12, 3), "5y": (30, 12, 12, 5),
        }.items()
    }
)  # fmt: skip
PRESETS: Mapping[str, Policy] = MappingProxyType(
    {f"age-{name}": policy for name, policy in AGE_PRESETS.items()}
    | {f"gfs-{name}": policy for name, policy in GFS_PRESETS.items()}
    | {f"gfs-dense-{name}": policy for name, policy in DENSE_GFS_PRESETS.items()}
)


# ---- the decision ------------------------------------------------------------------------------------------------------


def decide(
    backups: Iterable[Backup], rules: Rules, now: datetime, extends: Mapping[str, str] | None = None
) -> dict[str, tuple[Reason, ...]]:
    """Return each backup's reasons to stay, oldest backup first; one without any may go. `now` and all times are aware.

    `backups` is all that one storage holds of one server. `extends` has, by disk, the chain that the next incremental would
    go on with, where that is known; else the chain of the disk's newest point counts as active (R7).
    """
    history = sorted(backups, key=_ORDER)
    if rules.policy is None:
        return {one.backup_id: (_own(NO_POLICY),) for one in history}
    found: dict[str, list[Reason]] = {one.backup_id: [] for one in history}
    damaged = _damaged(history)
    for backup_id, source in damaged.items():
        found[backup_id].append(Reason(DAMAGED, "" if source == backup_id else source))
    sound = [one for one in history if one.backup_id not in damaged]
    if sound:
        found[sound[-1].backup_id].append(_own(NEWEST))
    chains = _Chains(history, sound, rules)
    for chain, rule in chains.kept_whole(extends or {}):
        for one in chains.members[chain]:
            found[one.backup_id].append(_own(rule))
    for backup, disks, rule in _selected(sound, rules.policy, rules, now):
        found[backup.backup_id].append(_own(rule))
        chains.select(backup, disks)
    for one, of in chains.drawn_in():
        found[one.backup_id].append(Reason(CHAIN, of.backup_id))
    _keep_needed(history, found)
    return {
        backup_id: tuple(dict.fromkeys(reasons) if len(reasons) > 1 else reasons)
        for backup_id, reasons in found.items()
    }


def _damaged(history: list[Backup]) -> dict[str, str]:
    """Return what cannot be restored, each with the damaged backup that is to blame: itself, one it needs, or one that is gone."""
    there = {one.backup_id for one in history}
    if not any(one.damaged or any(disk.needs - there for disk in one.disks) for one in history):
        return {}  # nearly always
    users: dict[str, list[str]] = defaultdict(list)
    to_blame: dict[str, str] = {}
    for one in history:
        for need in sorted({need for disk in one.disks for need in disk.needs}):
            users[need].append(one.backup_id)
            if need not in there:
                to_blame.setdefault(one.backup_id, need)
        if one.damaged:
            to_blame[one.backup_id] = one.backup_id
    fresh = sorted(to_blame)
    while fresh:
        broken = fresh.pop()
        for user in users[broken]:
            if user not in to_blame:
                to_blame[user] = broken
                fresh.append(user)
    return to_blame


def _selected(
    sound: list[Backup], policy: Policy, rules: Rules, now: datetime
) -> Iterator[tuple[Backup, Collection[str], str]]:
    """Yield what the policy selects: the backup, the disks that it is selected for, the rule."""
    window = timedelta(days=policy.days)
    for one in sound:
        if policy.days and now - one.create_time < window:
            yield one, [disk.disk for disk in one.disks], AGE
    buckets: tuple[tuple[str, int, Callable[[datetime], object]], ...] = (
        (DAILY, policy.daily, datetime.date),
        (WEEKLY, policy.weekly, lambda local: local.isocalendar()[:2]),
        (MONTHLY, policy.monthly, lambda local: (local.year, local.month)),
        (YEARLY, policy.yearly, lambda local: local.year),
    )
    if not any(count for _, count, _ in buckets):
        return
    for disk in sorted({disk.disk for one in sound for disk in one.disks}):
        holders = [one for one in reversed(sound) if any(point.disk == disk for point in one.disks)]
        dated = [(one, one.create_time.astimezone(rules.zone)) for one in holders]
        for rule, count, bucket in buckets:
            for one in _newest_of_buckets(dated, count, bucket):
                yield one, [disk], rule


def _newest_of_buckets(
    newest_first: Iterable[tuple[Backup, datetime]], count: int, bucket: Callable[[datetime], object]
) -> Iterator[Backup]:
    """Yield the newest backup of each of the `count` most recent buckets that hold one (R5); each comes with its local time."""
    seen: set[object] = set()
    for one, local in newest_first:
        if len(seen) == count:
            return
        key = bucket(local)
        if key not in seen:
            seen.add(key)
            yield one


class _Chains:
    """The units of a history: each disk's chains, or each disk's points by themselves."""

    def __init__(self, history: list[Backup], sound: list[Backup], rules: Rules) -> None:
        self._rules = rules
        self._selected: dict[_ChainKey, list[Backup]] = defaultdict(list)
        self._whole: set[_ChainKey] = set()
        self.members: dict[_ChainKey, list[Backup]] = defaultdict(list)  # oldest first, the damaged ones too
        self._newest: dict[_ChainKey, Order] = {}  # the newest sound point of each chain that is no copy
        for one in history:
            for point in one.disks:
                self.members[self._key(one, point)].append(one)
        for one in sound:
            for point in one.disks:
                if not (point.copy and rules.chained):
                    self._newest[self._key(one, point)] = one.order

    def _key(self, one: Backup, point: DiskPoint) -> _ChainKey:
        return (point.disk, point.chain_id if self._rules.chained else one.backup_id)

    def kept_whole(self, extends: Mapping[str, str]) -> Iterator[tuple[_ChainKey, str]]:
        """Yield the chains that are kept for their own sake: each disk's active one, and the newest beside it (R7, R8)."""
        for disk in sorted({disk for disk, _ in self._newest}):
            latest = sorted((key for key in self._newest if key[0] == disk), key=self._newest.__getitem__, reverse=True)
            if self._rules.chained:
                hinted = (disk, extends.get(disk, ""))
                active = hinted if hinted in self._newest else latest[0]
                latest.remove(active)
                self._whole.add(active)
                yield active, ACTIVE_CHAIN
            for chain in latest[: self._rules.keep_last]:
                self._whole.add(chain)
                yield chain, KEEP_LAST

    def select(self, backup: Backup, disks: Collection[str]) -> None:
        """Note that a rule selects these disks of a backup; to chains that are kept whole anyway it means nothing."""
        for point in backup.disks:
            if point.disk in disks and (chain := self._key(backup, point)) not in self._whole:
                self._selected[chain].append(backup)

    def drawn_in(self) -> Iterator[tuple[Backup, Backup]]:
        """Yield the points that no rule selects and that stand in a chain with one that is, and that one."""
        for chain, selected in self._selected.items():
            last = max(selected, key=lambda one: one.order)
            own = {one.backup_id for one in selected}
            members = self.members[chain]
            trim = self._rules.trim_tails and not any(one.tracked for one in members)
            for one in members:
                if one.backup_id not in own and not (trim and one.order > last.order):
                    yield one, last


def _keep_needed(history: list[Backup], found: dict[str, list[Reason]]) -> None:
    """Keep what a kept backup needs, whatever the reason it is kept for."""
    if all(found.values()):
        return
    by_id = {one.backup_id: one for one in history}
    fresh = [backup_id for backup_id, reasons in found.items() if reasons]
    while fresh:
        user = fresh.pop()
        for need in sorted({need for point in by_id[user].disks for need in point.needs}):
            if need in found and not found[need]:
                found[need].append(Reason(NEEDED, user))
                fresh.append(need)


# ---- what is to be expected (R16, R18) ---------------------------------------------------------------------------------

HORIZON = timedelta(days=400)
STEPS_MAX = 5000  # runs that are looked ahead: 400 days of two an hour would take minutes


def explain(
    backups: Iterable[Backup],
    rules: Rules,
    now: datetime,
    rhythm: Rhythm,
    extends: Mapping[str, str] | None = None,
    horizon: timedelta = HORIZON,
) -> list[Verdict]:
    """Return a verdict for each backup, oldest first: why it stays, and when it is expected to go if backups go on as before."""
    history = sorted(backups, key=lambda one: one.order)
    reasons = decide(history, rules, now, extends)
    times = _expire_times(history, rules, now, rhythm, horizon)
    return [
        Verdict(one.backup_id, one.create_time, reasons[one.backup_id], times.get(one.backup_id)) for one in history
    ]


def _expire_times(
    history: list[Backup], rules: Rules, now: datetime, rhythm: Rhythm, horizon: timedelta
) -> dict[str, datetime]:
    """Return when each backup that is kept now is first kept no more, for those where that comes within the horizon.

    What is not kept at one run is not kept at a later one: newer backups take buckets and places in the count away, and
    never give one back. So the time is found by halving.
    """
    runs = _forecast(history, now, rhythm, horizon)
    found: dict[str, datetime] = {}

    def kept(step: int) -> set[str]:
        coming = [one for _, one in runs[:step] if one is not None]
        reasons = decide([*history, *coming], rules, runs[step - 1][0] if step else now)
        return {one.backup_id for one in history if reasons[one.backup_id]}

    def search(wanted: set[str], low: int, high: int) -> None:  # all of them kept at `low`, none at `high`
        if not wanted or high - low == 1:
            found.update(dict.fromkeys(wanted, runs[high - 1][0]))
            return
        middle = (low + high) // 2
        still = kept(middle) & wanted
        search(still, middle, high)
        search(wanted - still, low, middle)

    if runs:
        search(kept(0) - kept(len(runs)), 0, len(runs))
    return found


def _forecast(
    history: list[Backup], now: datetime, rhythm: Rhythm, horizon: timedelta
) -> list[tuple[datetime, Backup | None]]:
    """Return the times at which retention will look, each with the backup made then, None where none are made."""
    damaged = _damaged(history)
    chained = (one for one in reversed(history) if any(not point.copy for point in one.disks))
    latest = next((one for one in chained if one.backup_id not in damaged), None)
    if latest is None or not rhythm.interval:
        return [(now + timedelta(days=day), None) for day in range(1, min(horizon.days, STEPS_MAX) + 1)]
    disks = [point for point in latest.disks if not point.copy]
    begun = {point.chain_id: next(one.create_time for one in history if _in_chain(one, point)) for point in disks}
    runs: list[tuple[datetime, Backup | None]] = []
    time, previous = max(now, latest.create_time + rhythm.interval), latest.backup_id
    while time <= now + horizon and len(runs) < STEPS_MAX:
        backup_id = f"~{len(runs):06}"
        points = []
        for point in disks:
            due = bool(rhythm.full_interval) and time + rhythm.interval / 2 >= (
                begun[point.chain_id] + rhythm.full_interval
            )
            if due:
                begun[backup_id] = time
                points.append(DiskPoint(point.disk, backup_id))
            else:
                points.append(DiskPoint(point.disk, point.chain_id, frozenset({previous})))
        disks = points
        runs.append((time, Backup(backup_id, time, tuple(points))))
        time, previous = time + rhythm.interval, backup_id
    return runs


def _in_chain(one: Backup, point: DiskPoint) -> bool:
    return any((own.disk, own.chain_id) == (point.disk, point.chain_id) for own in one.disks)
