"""Whose turn it is to read from a stream that threads share: who asks for what comes next goes first.

    workers take frames in order, and ask for them side by side     3 ─┐  1 ─┐  2 ─┐
    the stream delivers them in order                               1, 2, 3

A thread that is early by a little waits a moment for those that will ask for what lies before. Else it would have the stream skip
that, which they would then have to fetch anew. Where nobody comes (a restore leaves out what newer backups have written over),
waiting is soon given up, until somebody does come too late.
"""

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ObjectTruncated
from engine.storage.base import ObjectReader
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


class StreamReader(ObjectReader):
    """An object of `size_bytes` read through one stream, which threads share; one reads at a time."""

    def __init__(self, label: str, name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._label, self._name = label, name
        self._turns = Turns()

    def read_at(self, offset: int, length: int) -> bytes:
        self._check_range(offset, length)
        target = bytearray(length)
        self.read_into(offset, memoryview(target))
        return bytes(target)

    def read_into(self, offset: int, target: memoryview) -> None:
        self._check_range(offset, len(target))
        if target:
            with self._turns.turn(offset, len(target)):
                self._read_in_turn(offset, target)

    @abstractmethod
    def _read_in_turn(self, offset: int, target: memoryview) -> None:
        """Fill `target`, which is not empty, from `offset`."""

    def _check_range(self, offset: int, length: int) -> None:
        if offset + length > self.size_bytes:
            raise self._truncated(self.size_bytes, offset + length)

    def _truncated(self, end: int, wanted: int) -> ObjectTruncated:
        return ObjectTruncated(storage=self._label, step="read", name=self._name, end=end, wanted=wanted)
