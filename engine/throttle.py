"""A limit on bytes a second that many threads share: the read limit and the upload limit of a hypervisor and storage.

    allowed  ──────────────────────►   grows with the clock, never more than a burst ahead of what was asked
    asked    ─────────────►            grows with each take; a thread goes on when `allowed` has reached its own mark

Both count bytes since the beginning, so threads pass in the order in which they asked, whatever the rate does meanwhile.
In any window of T seconds at most T x rate + one burst are allowed: with a burst of 0.1 s that is 1 % above the rate over 10
seconds. `portions` cuts long transfers so that bytes also flow evenly, not only on average; what is left to 5 % are portions
that were let go before a window and leave in it (0.5 % each), and what a storage gathers into one request (256 KiB).
"""

import threading
import time
from collections.abc import Iterator
from typing import Protocol

from engine.errors import Cancelled
from engine.units import KIB

BURST_SECONDS = 0.1
PORTION_SECONDS = 0.05  # four threads that each hold one portion add at most 2 % to a window of 10 s
PORTION_ALIGNMENT = 4 * KIB
NAP_SECONDS_MIN = 0.001  # less may not even move the clock's last digit; the burst makes up for sleeping too long
NAP_SECONDS_MAX = 0.1  # a new rate is noticed after this at the latest


class Clock(Protocol):
    """Time, so that tests can stand in for it."""

    def now(self) -> float:
        """Return monotonic seconds."""

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Return after `seconds`, or as soon as `stop` is set."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> None:
        stop.wait(seconds)


class Throttle:
    """A token bucket. All methods may be called from any thread."""

    def __init__(self, rate: int = 0, clock: Clock | None = None) -> None:
        """Allow `rate` bytes a second, 0 for no limit."""
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._rate = _checked(rate)
        self._allowed = 0.0
        self._asked = 0
        self._then = self._clock.now()

    @property
    def rate(self) -> int:
        """Bytes a second, 0 for no limit. Setting it takes effect for threads that wait already."""
        return self._rate

    @rate.setter
    def rate(self, rate: int) -> None:
        with self._lock:
            self._advance()
            self._rate = _checked(rate)

    def take(self, count: int, stop: threading.Event) -> None:
        """Return when `count` more bytes may pass. Raises Cancelled once `stop` is set."""
        mark = self._ask(count) + count
        while (seconds := self._missing(mark)) > 0:
            self._nap(seconds, stop)

    def _ask(self, count: int) -> int:
        """Take a place for `count` bytes behind all that was asked for before, and return where it begins."""
        with self._lock:
            self._advance()
            self._asked += count
            return self._asked - count

    def _nap(self, seconds: float, stop: threading.Event) -> None:
        """Wait for a part of `seconds`, short enough to notice a new rate. Raises Cancelled if `stop` is set."""
        if stop.is_set():
            raise Cancelled
        self._clock.wait(stop, max(NAP_SECONDS_MIN, min(seconds, NAP_SECONDS_MAX)))

    def portions(self, total: int, stop: threading.Event, bytes_max: int = 0) -> Iterator[int]:
        """Yield sizes that sum to `total`, each one when it may pass; multiples of 4 KiB but for the last.

        None is larger than `bytes_max`, if that is not 0. Without it and without a limit all of `total` passes at once.
        Raises Cancelled once `stop` is set.
        """
        while total > 0:
            portion = min(total, bytes_max or total)
            if self._rate:
                portion = min(portion, self._portion())
            total -= portion
            start = self._ask(portion)
            while portion > 0:
                # Smaller steps where the rate has become lower since: nobody saves up for a portion of the old one.
                step = min(portion, self._portion()) if self._rate else portion
                if (seconds := self._missing(start + step)) > 0:
                    self._nap(seconds, stop)
                    continue
                yield step
                start += step
                portion -= step

    def _portion(self) -> int:
        return max(PORTION_ALIGNMENT, int(self._rate * PORTION_SECONDS) // PORTION_ALIGNMENT * PORTION_ALIGNMENT)

    def _missing(self, mark: int) -> float:
        """Return the seconds until `mark` is reached at the present rate, 0 if it is."""
        with self._lock:
            self._advance()
            if not self._rate or self._allowed >= mark:
                return 0.0
            return (mark - self._allowed) / self._rate

    def _advance(self) -> None:
        """Let `allowed` grow up to now. Without a limit it keeps pace with what was asked, so a new limit begins empty."""
        now = self._clock.now()
        if self._rate:
            ahead = self._asked + max(self._rate * BURST_SECONDS, PORTION_ALIGNMENT)
            self._allowed = min(self._allowed + self._rate * (now - self._then), ahead)
        else:
            self._allowed = float(self._asked)
        self._then = now


def _checked(rate: int) -> int:
    if rate < 0:
        raise ValueError("a rate is 0 or more bytes a second")
    return rate
