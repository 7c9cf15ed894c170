"""The adjustable semaphore."""

import functools
import threading
from collections.abc import Callable

import pytest

from engine.errors import Cancelled
from engine.limit import Limit
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("P1", "P7")


class Crowd:
    """Threads that go in one after the other, and come out when they are let."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.stop = threading.Event()
        self.inside: list[int] = []
        self.errors: list[Exception] = []
        self.gates: list[threading.Event] = []
        self.threads: list[threading.Thread] = []

    def add(self, count: int = 1) -> None:
        """Let more threads queue up, each behind the one before."""
        for _ in range(count):
            number = len(self.threads)
            self.gates.append(threading.Event())
            self.threads.append(threading.Thread(target=self._visit, args=(number,)))
            queued = self._queued()
            self.threads[-1].start()
            wait_until(functools.partial(self._more_than, queued), 5, "a place in the queue")

    def _queued(self) -> int:
        with self.limit._changed:
            return len(self.limit._waiting) + len(self.limit._inside)

    def _more_than(self, queued: int) -> bool:
        return self._queued() > queued

    def _visit(self, number: int) -> None:
        try:
            with self.limit.inside(self.stop):
                self.inside.append(number)
                self.gates[number].wait(10)
                self.inside.remove(number)
        except Cancelled as error:
            self.errors.append(error)

    def until(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, 5, "the crowd")

    def end(self) -> None:
        for gate in self.gates:
            gate.set()
        for thread in self.threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self.threads)


def test_so_many_and_no_more_and_in_order_of_arrival() -> None:
    crowd = Crowd(Limit(2))
    crowd.add(5)
    crowd.until(lambda: sorted(crowd.inside) == [0, 1])
    crowd.gates[1].set()
    crowd.until(lambda: sorted(crowd.inside) == [0, 2])
    crowd.gates[0].set()
    crowd.until(lambda: sorted(crowd.inside) == [2, 3])
    crowd.end()


def test_a_larger_limit_lets_waiting_ones_in_and_a_smaller_one_sends_nobody_out() -> None:
    limit = Limit(1)
    crowd = Crowd(limit)
    crowd.add(4)
    crowd.until(lambda: crowd.inside == [0])
    limit.count = 3
    crowd.until(lambda: sorted(crowd.inside) == [0, 1, 2])
    limit.count = 1
    crowd.gates[0].set()
    crowd.gates[1].set()
    crowd.until(lambda: crowd.inside == [2])
    assert limit.count == 1
    crowd.gates[2].set()
    crowd.until(lambda: crowd.inside == [3])
    crowd.end()


def test_stop_ends_the_wait_and_the_others_keep_their_places() -> None:
    crowd = Crowd(Limit(1))
    crowd.add(2)
    crowd.stop.set()
    crowd.until(lambda: len(crowd.errors) == 1)
    crowd.stop.clear()
    crowd.add()
    crowd.gates[0].set()
    crowd.until(lambda: crowd.inside == [2])
    crowd.end()


def test_who_leaves_by_an_exception_has_left() -> None:
    limit = Limit(1)
    with pytest.raises(RuntimeError), limit.inside(threading.Event()):
        raise RuntimeError
    with limit.inside(threading.Event()):
        pass


def test_less_than_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Limit(0)
    limit = Limit(1)
    with pytest.raises(ValueError, match="at least one"):
        limit.count = 0


@pytest.mark.feature("P1")
def test_who_is_one_too_many_steps_aside_and_has_its_turn_again() -> None:
    limit, stop = Limit(2), threading.Event()
    steps: list[str] = []
    turns = {name: threading.Semaphore(0) for name in "ab"}

    def work(name: str) -> None:
        with limit.inside(stop):
            for _ in range(3):
                assert turns[name].acquire(timeout=10)
                limit.step_aside(stop)
                steps.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(limit._inside) == 2, 5, "both inside")
    turns["a"].release()
    wait_until(lambda: steps == ["a"], 5, "a step of a")
    limit.count = 1
    turns["b"].release(3)
    wait_until(lambda: len(limit._inside) == 1, 5, "one aside")
    assert steps == ["a"]
    turns["a"].release(2)
    for thread in threads:
        thread.join(10)
    assert steps == ["a", "a", "a", "b", "b", "b"]
    assert not limit._inside


@pytest.mark.feature("P1", "C8")
def test_who_is_not_inside_steps_nowhere_and_a_stop_ends_the_wait_aside() -> None:
    limit, stop = Limit(2), threading.Event()
    limit.step_aside(stop)
    crowd = Crowd(limit)
    crowd.add(2)
    limit.count = 1
    limit.step_aside(stop)
    assert len(limit._inside) == 2
    limit.count = 3
    stop.set()
    with limit.inside(threading.Event()):
        limit.count = 1
        with pytest.raises(Cancelled):
            limit.step_aside(stop)
        limit.count = 3
    crowd.end()
    assert not limit._inside
