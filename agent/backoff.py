"""How long to wait between two dials. Pure, but for luck, which is a parameter.

nobody listens            ──► up to 5 s      a dial costs nobody anything, and the controller may be back at any moment
it came to nothing else   ──► up to 30 s     the controller, or the way to it, has trouble that more dials would add to
only a person can help    ──► 15 to 300 s    a ban, an old version, an expired certificate

Many agents that lost one controller are so spread over seconds, and not over half a minute, once it is back.
"""

import random
from collections.abc import Callable

FIRST_SECONDS, LIMIT_SECONDS = 0.5, 30.0
AWAY_LIMIT_SECONDS = 5.0
REFUSED_FIRST_SECONDS, REFUSED_LIMIT_SECONDS = 30.0, 300.0
_DOUBLINGS_MAX = 16  # beyond any limit above; keeps the number small
REFUSALS = frozenset(
    {"PERMISSION_DENIED", "UNAUTHENTICATED", "UNSUPPORTED", "HYPERVISOR_BANNED", "CERTIFICATE_EXPIRED", "NOT_ENROLLED"}
)
_UNREACHABLE, _NOBODY_LISTENS = "CONTROLLER_UNREACHABLE", "Connection refused"  # the latter in the words of strerror(3)


class Backoff:
    """Exponential, with full jitter: many agents that lost one controller do not come back at one instant."""

    def __init__(self, luck: Callable[[], float] = random.random) -> None:
        """`luck` is in [0, 1)."""
        self._luck = luck
        self._failures = 0

    def reset(self) -> None:
        """The last session was a good one."""
        self._failures = 0

    def seconds(self, reason: str = "", detail: str = "") -> float:
        """Return how long to wait after one more session that ended, or did not come about, for this reason."""
        doubled = float(1 << min(self._failures, _DOUBLINGS_MAX))
        self._failures += 1
        if reason in REFUSALS:
            return min(REFUSED_FIRST_SECONDS * doubled, REFUSED_LIMIT_SECONDS) * (0.5 + self._luck() / 2)
        away = reason == _UNREACHABLE and _NOBODY_LISTENS in detail
        return min(FIRST_SECONDS * doubled, AWAY_LIMIT_SECONDS if away else LIMIT_SECONDS) * self._luck()
