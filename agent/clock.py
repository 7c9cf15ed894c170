"""The two clocks an agent needs: the one on the wall, and one that nobody sets."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """`now` is for what people and the controller see, `uptime` for deadlines and rates."""

    def now(self) -> datetime:
        """Return the time of day, aware, in UTC."""

    def uptime(self) -> float:
        """Return seconds since the host booted, sleep included: the same count in every process, until the next boot."""


class SystemClock:
    """The host's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def uptime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
