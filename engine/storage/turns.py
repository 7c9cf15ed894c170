"""Whose turn it is to read from a stream that threads share: who asks for what comes next goes first.

    workers take frames in order, and ask for them side by side     3 ─┐  1 ─┐  2 ─┐
    the stream delivers them in order                               1, 2, 3

A thread that is early by a little waits a moment for those that will ask for what lies before. Else it would have the stream skip
that, which they would then have to fetch anew. Where nobody comes (a restore leaves out what newer backups have written over),
waiting is soon given up, until somebody does come too late.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.units import MIB

WAIT_SECONDS = 0.02
AHEAD_BYTES_MAX = 32 * MIB  # as much as the threads of a restore may have asked for
_TRIES = 3  # in vain, after which nobody waits any more


class Turns:
    """Any thread may call any method."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._position = 0  # where the last turn ended
        self._tries = 0  # that are left

    @contextmanager
    def turn(self, offset: int, length: int) -> Iterator[None]:
        """Have the stream for the block, which reads `length` bytes from `offset`."""
        with self._changed:
            self._wait(offset)
            if offset < self._position:
                self._tries = _TRIES
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy, self._position = False, offset + length
                self._changed.notify_all()

    @contextmanager
    def between(self, *, wait: bool = True) -> Iterator[bool]:
        """Have the stream between two turns, and tell whether: without `wait` only if nobody has it now."""
        with self._changed:
            while self._busy and wait:
                self._changed.wait()
            free, self._busy = not self._busy, True
        try:
            yield free
        finally:
            if free:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _wait(self, offset: int) -> None:
        """Wait until nobody has the stream and, for a moment, until it stands at `offset`; with `_changed` held."""
        seen, deadline = -1, 0.0
        waited = False
        while True:
            if self._busy:
                self._changed.wait()
                continue
            ahead = offset - self._position
            if not self._tries or not 0 < ahead <= AHEAD_BYTES_MAX:
                if waited and not ahead:
                    self._tries = _TRIES
                return
            now = time.monotonic()
            if seen != self._position:
                seen, deadline = self._position, now + WAIT_SECONDS
            if now >= deadline:
                self._tries -= 1
                return
            waited = True
            self._changed.wait(deadline - now)
