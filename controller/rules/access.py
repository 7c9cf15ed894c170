"""Access levels: what is done with a server, and by whom (A1, A2). Pure.

    level             scheduled  view  restore  backup          the server's own override
    disabled              -       -       -       -               else its package's default
    scheduled_only        ✔       -       -       -               else its schedule's default
    view_and_restore      ✔       ✔       ✔       -               else DEFAULT_LEVEL
    full_access           ✔       ✔       ✔       ✔
    manual_only           -       ✔       ✔       ✔

"" inherits: it passes the question on. `scheduled` is what the schedule does; the other three are the end user's acts, and
bind nobody else.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["disabled", "scheduled_only", "view_and_restore", "full_access", "manual_only"]
Act: TypeAlias = Literal["scheduled", "view", "restore", "backup"]
Origin: TypeAlias = Literal["server", "package", "schedule", "default"]

INHERIT = ""
DEFAULT_LEVEL: Level = "scheduled_only"  # where nobody said anything: protected, and nothing for the end user
_ALLOWED: dict[Level, frozenset[Act]] = {
    "disabled": frozenset(),
    "scheduled_only": frozenset({"scheduled"}),
    "view_and_restore": frozenset({"scheduled", "view", "restore"}),
    "full_access": frozenset({"scheduled", "view", "restore", "backup"}),
    "manual_only": frozenset({"view", "restore", "backup"}),
}
LEVELS = tuple(_ALLOWED)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The level that counts, and who said it."""

    level: Level
    origin: Origin


def resolve(server_override: str, package_default: str, schedule_default: str) -> Resolved:
    """Return the level of a server; each argument is a level, or "" to pass on. Raises ValueError for another word."""
    said: tuple[tuple[str, Origin], ...] = (
        (server_override, "server"),
        (package_default, "package"),
        (schedule_default, "schedule"),
    )
    for level, origin in said:
        if level != INHERIT:
            if level not in _ALLOWED:
                raise ValueError(f"{level!r} is no access level")
            return Resolved(level, origin)
    return Resolved(DEFAULT_LEVEL, "default")


def allows(level: Level, act: Act) -> bool:
    """Tell whether a level allows an act."""
    return act in _ALLOWED[level]


@dataclass(frozen=True, slots=True)
class Lock:
    """A server that must be left alone, and why; `expire_time` None is until somebody takes the lock away (X15)."""

    reason: str
    lock_time: datetime
    expire_time: datetime | None = None

    def holds(self, now: datetime) -> bool:
        return self.expire_time is None or now < self.expire_time
