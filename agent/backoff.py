"""How long to wait between two dials. Pure, but for luck, which is a parameter."""

import random
from collections.abc import Callable

FIRST_SECONDS, LIMIT_SECONDS = 0.5, 30.0
REFUSED_FIRST_SECONDS, REFUSED_LIMIT_SECONDS = 30.0, 300.0
_DOUBLINGS_MAX = 16  # beyond any limit above; keeps the number small


class Backoff:
    """Exponential, with full jitter: many agents that lost one controller do not come back at one instant.

    A refusal that only a person can lift (a ban, an old version, an expired certificate) is asked about far less often, and
    at least after half of that time.
    """

    def __init__(self, luck: Callable[[], float] = random.random) -> None:
        """`luck` is in [0, 1)."""
        self._luck = luck
        self._failures = 0

    def reset(self) -> None:
        """The last session was a good one."""
        self._failures = 0

    def seconds(self, *, refused: bool = False) -> float:
        """Return how long to wait after one more failure."""
        doubled = float(1 << min(self._failures, _DOUBLINGS_MAX))
        self._failures += 1
        if refused:
            return min(REFUSED_FIRST_SECONDS * doubled, REFUSED_LIMIT_SECONDS) * (0.5 + self._luck() / 2)
        return min(FIRST_SECONDS * doubled, LIMIT_SECONDS) * self._luck()
