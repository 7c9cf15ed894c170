"""When a schedule runs: interval, time window and allowed days in a time zone (D14-D17, D28). Pure.

    due ──► outside the window ──waits──► opening ──► start ──► next due = start + interval        it had to wait
    due ──► inside ─────────────────────────────────► start ──► next due = due + interval          it had not

    local wall clock   │····22:00#########24:00#########06:00····│      a window over midnight belongs to the day it opens on
    DST gap            │·····01:59│03:00#####│                           skipped minutes never open
    DST repetition     │##02:00##02:59│02:00##02:59##│                   repeated minutes count twice

The preview and the dispatcher both ask `next_run`. Instants are aware, in UTC; the interval is elapsed time, so a daily run
without a window moves by an hour on the wall clock when the clocks change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

# A start this much after the due time is that of the tick which noticed it, or of one that took long. More is a wait.
PUNCTUAL = timedelta(minutes=5)
# How far an opening is looked for. A window that one weekend's clock change skips opens a week later.
_HORIZON_DAYS = 22
_STEP = timedelta(hours=6)  # no zone changes its clocks twice within it
_MIDNIGHT = time(0)


@dataclass(frozen=True, slots=True)
class Hours:
    """When runs may start. `start` and `end` are wall-clock times to the minute, equal for no window; `days` are ISO weekdays.

    No days are all days.
    """

    zone: ZoneInfo
    start: time = _MIDNIGHT
    end: time = _MIDNIGHT
    days: frozenset[int] = frozenset()

    @property
    def always(self) -> bool:
        """True if every instant is allowed."""
        return self.start == self.end and (not self.days or len(self.days) == 7)


@dataclass(frozen=True, slots=True)
class Run:
    """One firing: when it is due, when it starts, and until when servers may begin (None: the hours never end)."""

    due_time: datetime
    start_time: datetime
    close_time: datetime | None


def is_open(hours: Hours, instant: datetime) -> bool:
    """Tell whether a run may start at an instant."""
    local = instant.astimezone(hours.zone)
    today, wall = local.isoweekday(), local.time()
    days = hours.days or frozenset(range(1, 8))
    if hours.start == hours.end:
        return today in days
    if hours.start < hours.end:
        return today in days and hours.start <= wall < hours.end
    yesterday = (local.date() - timedelta(days=1)).isoweekday()
    return (today in days and wall >= hours.start) or (yesterday in days and wall < hours.end)


def next_opening(hours: Hours, instant: datetime) -> datetime | None:
    """Return the first instant, not before the given one, at which a run may start; None if there is none in three weeks."""
    return _next(hours, instant, wanted=True)


def next_closing(hours: Hours, instant: datetime) -> datetime | None:
    """Return the first instant, not before the given one, at which no run may start; None if there is none in three weeks."""
    return None if hours.always else _next(hours, instant, wanted=False)


def next_run(hours: Hours, due: datetime, now: datetime) -> Run | None:
    """Return the run that `due` stands for, as seen at `now`: what was missed is not made up, it becomes this one."""
    start = next_opening(hours, max(due, now))
    return None if start is None else Run(due, start, next_closing(hours, start))


def next_due(due: datetime, start: datetime, interval: timedelta) -> datetime:
    """Return when a schedule is due again after the run that was due at `due` has started at `start` (D28)."""
    return (start if start - due > PUNCTUAL else due) + interval


def next_runs(hours: Hours, due: datetime, now: datetime, interval: timedelta) -> Iterator[Run]:
    """Yield the runs to come, without end unless the hours never open; none for interval 0, which is by hand only (D21)."""
    if interval <= timedelta(0):
        return
    while (run := next_run(hours, due, now)) is not None:
        yield run
        now = run.start_time
        due = next_due(run.due_time, run.start_time, interval)


# ---- the borders ---------------------------------------------------------------------------------------------------------


def _next(hours: Hours, instant: datetime, *, wanted: bool) -> datetime | None:
    """Return the first instant from the given one on at which being open is `wanted`.

    It can only change where the wall clock passes a border, or is changed itself.
    """
    instant = instant.astimezone(UTC)
    if is_open(hours, instant) is wanted:
        return instant
    first = instant.astimezone(hours.zone).date() - timedelta(days=1)
    dates = [first + timedelta(days=number) for number in range(_HORIZON_DAYS)]
    borders = {border for day in dates for border in _borders(hours, day)} | set(_clock_changes(hours.zone, instant))
    return next((border for border in sorted(borders) if border > instant and is_open(hours, border) is wanted), None)


def _borders(hours: Hours, day: date) -> Iterator[datetime]:
    for wall in {_MIDNIGHT, hours.start, hours.end}:
        for fold in (0, 1):  # a repeated time has two instants; of a skipped one both are harmless, and mean nothing
            yield datetime.combine(day, wall, hours.zone).replace(fold=fold).astimezone(UTC)


def _clock_changes(zone: ZoneInfo, begin: datetime) -> Iterator[datetime]:
    """Yield the instants within the horizon at which the zone's offset changes."""
    steps = [begin + number * _STEP for number in range(timedelta(days=_HORIZON_DAYS) // _STEP)]
    for early, late in pairwise(steps):
        if early.astimezone(zone).utcoffset() != late.astimezone(zone).utcoffset():
            yield _change_between(zone, early, late)


def _change_between(zone: ZoneInfo, early: datetime, late: datetime) -> datetime:
    offset = early.astimezone(zone).utcoffset()
    low, high = int(early.timestamp()), int(late.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)
