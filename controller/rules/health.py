"""What checks of a storage mean together, and who checks next (H1). Pure.

    a storage ──30 min──► the hypervisor whose turn it is ──► healthy ──► 30 min …
                                                          └─► unhealthy ──► somebody else looks at once: the storage, or the way?
                                                                         └─► the same one again after 15 min, until it is healthy

Each hypervisor whose schedule uses the storage takes its turn, so that a thousand of them are not a thousand checks. Who fails
stays a case of its own, and is asked again sooner than the others. Nobody to ask means unknown, and never unhealthy.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

State: TypeAlias = Literal["unknown", "healthy", "degraded", "unhealthy"]
Verdict: TypeAlias = Literal["healthy", "unhealthy"]

RECHECKS_MAX = 3  # hypervisors that look at one failing storage at once; more would only hammer it
SECOND_OPINIONS_MAX = 3  # failing hypervisors after which nobody else is asked out of turn
STALE_MAX = timedelta(hours=24)  # an older "healthy" says nothing any more
# What a check can fail of that says nothing of the storage: the hypervisor, the agent, the way to it, a person, ourselves.
_NOT_THE_STORAGE = frozenset(
    {
        "CANCELLED", "COMMAND_NOT_ACCEPTED", "ENGINE_CRASHED", "HYPERVISOR_BANNED",
        "HYPERVISOR_UNREACHABLE", "INTERNAL", "INVALID_FIELD", "LEASE_LOST", "OPERATION_LOST", "STALE_GENERATION",
        "STORAGE_DISABLED", "UNSUPPORTED",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Intervals:
    """How long between two checks (G7)."""

    healthy: timedelta = timedelta(minutes=30)
    unhealthy: timedelta = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Check:
    """What one hypervisor found last. `state` is "" before any check said something; `try_time` is the last one's start.

    `fail_time` is that of the first failure of those in a row.
    """

    hypervisor_id: str
    state: str = ""
    check_time: datetime | None = None
    try_time: datetime | None = None
    fail_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What all of them say together. `newest` is the hypervisor that said something last, `culprit` the one that failed last."""

    state: State
    detail: str
    newest: str = ""
    culprit: str = ""
    healthy_count: int = 0
    unhealthy_count: int = 0


def verdict(state: str, reason: str) -> Verdict | None:
    """Return what the end of a check says of the storage, None for nothing. `reason` is that of a failed one."""
    if state.startswith("completed"):
        return "healthy"
    return "unhealthy" if state == "failed" and reason not in _NOT_THE_STORAGE else None


def summarize(
    checks: Sequence[Check],
    *,
    enabled: bool,
    users: Collection[str],
    online: Collection[str],
    intervals: Intervals,
    now: datetime,
) -> Summary:
    """Return how a storage is. `users` are the hypervisors whose schedule uses it; with none, whoever checked it lately counts."""
    if not enabled:
        return Summary("unknown", "the storage is disabled, and a disabled storage is not checked")
    asked = [one for one in users if one in online]
    if users and not asked:
        return Summary("unknown", "none of the hypervisors that use it is online, so that nobody can look")
    window = min(STALE_MAX, max(2, len(asked) + 1) * intervals.healthy)
    wanted = frozenset(asked) if users else None
    counted = [one for one in checks if one.state and (wanted is None or one.hypervisor_id in wanted)]
    counted = [one for one in counted if _counts(one, window if users else STALE_MAX, now)]
    if not counted:
        return Summary(
            "unknown", "it was not checked yet" if users else "no schedule uses it, and nobody checked it lately"
        )
    return _judge(counted)


def due(checks: Mapping[str, Check], asked: Sequence[str], intervals: Intervals, now: datetime) -> list[str]:
    """Return the hypervisors that check a storage now, of those that may (`asked`: online, and users of it)."""
    known = {one: checks.get(one, Check(one)) for one in sorted(asked)}
    failing = [one for one in known.values() if one.state == "unhealthy"]
    others = [one for one in known.values() if one.state != "unhealthy"]
    again = [one for one in failing if _passed(one.try_time, intervals.unhealthy, now)]
    chosen = sorted(again, key=_turn)[:RECHECKS_MAX]
    newest = max((one.try_time for one in others if one.try_time), default=None)
    if others and (_passed(newest, intervals.healthy, now) or _second_opinion(failing, newest)):
        chosen.append(min(others, key=_turn))
    return [one.hypervisor_id for one in chosen]


def whose_turn(checks: Mapping[str, Check], asked: Sequence[str]) -> str:
    """Return who of `asked` was not asked for longest; "" for nobody."""
    known = [checks.get(one, Check(one)) for one in asked]
    return min(known, key=_turn).hypervisor_id if known else ""


def _second_opinion(failing: Sequence[Check], newest: datetime | None) -> bool:
    """Tell whether somebody else should look at once: the first failures are newer than all that the others did."""
    began = min((one.fail_time for one in failing if one.fail_time), default=None)
    return 0 < len(failing) < SECOND_OPINIONS_MAX and began is not None and (newest is None or newest < began)


def _judge(counted: Sequence[Check]) -> Summary:
    failing = [one for one in counted if one.state == "unhealthy"]
    newest = max(counted, key=_said).hypervisor_id
    if not failing:
        return Summary("healthy", _reached(len(counted), len(counted)), newest, healthy_count=len(counted))
    began = min(one.fail_time or _said(one) for one in failing)
    good = [one for one in counted if one.state == "healthy" and _said(one) >= began]
    culprit = max(failing, key=_said).hypervisor_id
    state: State = "degraded" if good else "unhealthy"
    return Summary(state, _reached(len(good), len(good) + len(failing)), newest, culprit, len(good), len(failing))


def _reached(good: int, tried: int) -> str:
    whom = "the hypervisor" if tried == 1 else f"{tried} hypervisors"
    if good == tried:
        return f"{whom} that looked got in" if tried == 1 else f"all {whom} that looked got in"
    if not good:
        return f"{whom} that looked did not get in" if tried == 1 else f"none of the {whom} that looked got in"
    return f"{good} of the {whom} that looked got in"


def _counts(check: Check, window: timedelta, now: datetime) -> bool:
    return check.state == "unhealthy" or now - _said(check) <= window


def _said(check: Check) -> datetime:
    assert check.check_time is not None, "a check with a state has a time"
    return check.check_time


def _turn(check: Check) -> tuple[bool, datetime | str, str]:
    """Sort those first that were never asked, then those that were not asked for longest."""
    return check.try_time is not None, check.try_time or "", check.hypervisor_id


def _passed(time: datetime | None, interval: timedelta, now: datetime) -> bool:
    return time is None or now - time >= interval
