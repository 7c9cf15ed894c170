"""How many threads may do something at once: a number that can change while they wait."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import Cancelled

POLL_SECONDS = 0.05  # a waiting thread looks at its stop event this often


class Limit:
    """A semaphore with an adjustable count, first come first served: the shares of several virtual servers stay fair.

    Any thread may call any method.
    """

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._inside = 0
        self._count = _checked(count)

    @property
    def count(self) -> int:
        """How many may be inside. A smaller number sends nobody out; it counts from the next entry on."""
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        with self._changed:
            self._count = _checked(count)
            self._changed.notify_all()

    @contextmanager
    def inside(self, stop: threading.Event) -> Iterator[None]:
        """Be inside for the time of a `with` block. Raises Cancelled if `stop` is set while waiting."""
        self._enter(stop)
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _enter(self, stop: threading.Event) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._inside >= self._count:
                    if stop.is_set():
                        raise Cancelled
                    self._changed.wait(POLL_SECONDS)
                self._inside += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()


def _checked(count: int) -> int:
    if count < 1:
        raise ValueError("at least one thread has to be let in")
    return count
