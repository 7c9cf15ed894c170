"""How many threads may do something at once: a number that can change while they wait."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import Cancelled

POLL_SECONDS = 0.05  # a waiting thread looks at its stop event this often


class Limit:
    """A semaphore with an adjustable count, first come first served: the shares of several virtual servers stay fair.

    Any thread may call any method; a thread is inside at most once.
    """

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._inside: set[int] = set()  # threads, by their identity
        self._count = _checked(count)

    @property
    def count(self) -> int:
        """How many may be inside. A smaller number sends nobody out at once; see `step_aside`."""
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
                self._inside.discard(threading.get_ident())
                self._changed.notify_all()

    def step_aside(self, stop: threading.Event) -> None:
        """Between two steps of long work: if the calling thread is inside and more are than may, go out and wait for a turn.

        Does nothing for a thread that is not inside. Raises Cancelled if `stop` is set while waiting.
        """
        with self._changed:
            if len(self._inside) <= self._count or threading.get_ident() not in self._inside:
                return
            self._inside.discard(threading.get_ident())
            self._changed.notify_all()
        self._enter(stop)

    def _enter(self, stop: threading.Event) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or len(self._inside) >= self._count:
                    if stop.is_set():
                        raise Cancelled
                    self._changed.wait(POLL_SECONDS)
                self._inside.add(threading.get_ident())
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()


def _checked(count: int) -> int:
    if count < 1:
        raise ValueError("at least one thread has to be let in")
    return count
