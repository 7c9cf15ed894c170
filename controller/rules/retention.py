"""A retention policy: its one JSON form, how it reads in words, and the engine's rules that it stands for. Pure.

    {}                                      no policy: nothing is pruned (R1)
    {"preset": "gfs-3m"}                    one of R2-R4; "keep-last" selects nothing, so that Keep Last alone decides
    {"daily": 7, "weekly": 4}               numbers of one's own
    {…, "trim_tails": true}                 chains kept for one of their points lose what came after it (R13)

Storages and schedule overrides keep this form; nothing else in the controller knows what is in it.
"""

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

from controller.errors import InvalidField
from engine import retention as engine
from engine.retention import Policy, Rules

KEEP_LAST_DEFAULT = 2  # R1
KEEP_LAST_MAX = 1000
DAYS_MAX = 36_500  # a hundred years; beyond it, None says the same
COUNT_MAX = 10_000
KEEP_LAST_ONLY = "keep-last"
PRESETS: Mapping[str, Policy] = {KEEP_LAST_ONLY: Policy(), **engine.PRESETS}
_NUMBERS = {"days": DAYS_MAX, "daily": COUNT_MAX, "weekly": COUNT_MAX, "monthly": COUNT_MAX, "yearly": COUNT_MAX}


def checked(value: Mapping[str, Any], field: str = "retention") -> dict[str, Any]:
    """Return a policy's JSON form without what says nothing. Raises InvalidField.

    A preset may come with its own numbers, as it is shown; with others it is no longer that preset, and is refused.
    """
    strange = sorted(set(value) - {"preset", "trim_tails", *_NUMBERS})
    if strange:
        raise InvalidField(field=f"{field}.{strange[0]}", problem="is not known")
    preset, trim_tails = value.get("preset") or "", value.get("trim_tails") or False
    if not isinstance(preset, str) or (preset and preset not in PRESETS):
        raise InvalidField(field=f"{field}.preset", problem=f"is none of {', '.join(PRESETS)}")
    if not isinstance(trim_tails, bool):
        raise InvalidField(field=f"{field}.trim_tails", problem="must be true or false")
    numbers = {name: _number(f"{field}.{name}", value.get(name) or 0, most) for name, most in _NUMBERS.items()}
    given = {name: number for name, number in numbers.items() if number}
    if preset and given and Policy(**numbers) != PRESETS[preset]:
        raise InvalidField(field=f"{field}.preset", problem="has other numbers than the ones given")
    if trim_tails and not (preset or given):
        raise InvalidField(field=f"{field}.trim_tails", problem="needs a policy")
    kept: dict[str, Any] = {"preset": preset} if preset else given
    return {**kept, "trim_tails": True} if trim_tails else kept


def checked_keep_last(value: int, field: str = "keep_last") -> int:
    """Return a Keep Last. Raises InvalidField."""
    return _number(field, value, KEEP_LAST_MAX)


def policy_of(value: Mapping[str, Any]) -> Policy | None:
    """Return what a policy selects; None when there is none. `value` was checked when it was saved."""
    preset = value.get("preset")
    if preset:
        return PRESETS[preset]
    numbers = {name: value[name] for name in _NUMBERS if value.get(name)}
    return Policy(**numbers) if numbers else None


def rules(value: Mapping[str, Any], keep_last: int, zone: tzinfo, storage_type: str) -> Rules:
    """Return the engine's rules of a policy on a type of storage. On PBS every point stands alone."""
    return Rules(
        policy=policy_of(value),
        keep_last=keep_last,
        zone=zone,
        chained=storage_type != "pbs",
        trim_tails=bool(value.get("trim_tails")),
    )


def words(value: Mapping[str, Any]) -> str:
    """Return a policy as a sentence for people who know nothing of chains."""
    policy = policy_of(value)
    if policy is None:
        return "All backups are kept."
    parts = [f"those of the last {_plural(policy.days, 'day')}"] if policy.days else []
    buckets = ((policy.daily, "day"), (policy.weekly, "week"), (policy.monthly, "month"), (policy.yearly, "year"))
    named = [_plural(count, word) for count, word in buckets if count]
    if named:
        parts.append(f"the newest of each of {_listed(named)} that have a backup")
    return f"Kept: {_listed([*parts, 'the most recent ones'])}."


def _number(field: str, value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidField(field=field, problem=f"must be a whole number from 0 to {most}")
    return value


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]
