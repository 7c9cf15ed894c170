"""The scheduling core: every item once, in order, whatever the threads do; and no thread left behind."""

import contextvars
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Cancelled
from engine.limit import Limit
from engine.ordered import WINDOW_PER_WORKER, run_ordered
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("P1", "P7", "P11")

SECONDS = 20.0  # a deadline that only a hang reaches


class Director:
    """Lets blocked `process` calls go one by one in a drawn order: an interleaving of the workers, without any sleep.

    Whenever no more calls arrive for want of a finished one, it frees one of those that wait, chosen by `choices`.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = itertools.cycle(choices)
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._freed: set[int] = set()
        self._over = False
        self.most_waiting = 0
        self._thread = threading.Thread(target=self._direct, name="director")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()

    def pass_by(self, item: int) -> None:
        """Block the calling worker until its turn in the drawn order comes."""
        with self._changed:
            self._waiting.append(item)
            self.most_waiting = max(self.most_waiting, len(self._waiting))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: item in self._freed or self._over, SECONDS)

    def _direct(self) -> None:
        with self._changed:
            while not self._over:
                arrived = len(self._waiting)
                self._changed.wait(0.002)
                if len(self._waiting) == arrived and self._waiting:  # it is quiet: nobody comes until one goes
                    self._freed.add(self._waiting.pop(next(self._choices) % len(self._waiting)))
                    self._changed.notify_all()


class Doubling:
    """A worker whose result is twice the item; it says when it is used by two threads, or after its end."""

    def __init__(self, log: list["Doubling"], step: Callable[[int], None] = lambda _: None) -> None:
        self._step = step
        self._thread = threading.get_ident()
        self.closed = False
        log.append(self)

    def process(self, item: int) -> int:
        assert not self.closed
        assert threading.get_ident() == self._thread
        self._step(item)
        return 2 * item

    def close(self) -> None:
        assert threading.get_ident() == self._thread
        self.closed = True


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 25),
    workers=st.integers(1, 5),
    choices=st.lists(st.integers(0, 7), min_size=1, max_size=25),
    weight=st.integers(0, 5),
    room=st.integers(0, 10),
)
def test_any_interleaving_delivers_every_item_once_and_in_order(
    count: int, workers: int, choices: list[int], weight: int, room: int
) -> None:
    made: list[Doubling] = []
    consumed: list[int] = []
    with Director(choices) as director:
        run_ordered(
            iter(range(count)),
            lambda: Doubling(made, director.pass_by),
            consumed.append,
            workers=Limit(workers),
            stop=threading.Event(),
            weigh=lambda _: weight,
            held_bytes_max=room,
        )
    assert consumed == [2 * item for item in range(count)]
    assert director.most_waiting <= workers
    assert all(worker.closed for worker in made)
    assert not any(thread.name.startswith("worker-") for thread in threading.enumerate())


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 20),
    workers=st.integers(1, 5),
    choices=st.lists(st.integers(0, 7), min_size=1, max_size=25),
    place=st.sampled_from(["items", "process", "consume", "make_worker", "close"]),
    at=st.integers(0, 19),
)
def test_the_first_error_ends_the_run_and_is_raised(
    count: int, workers: int, choices: list[int], place: str, at: int
) -> None:
    at %= count
    made: list[Doubling] = []
    consumed: list[int] = []
    stop = threading.Event()
    interrupts: list[int] = []

    def fail(where: str, item: int) -> None:
        if where == place and item == at:
            raise OSError(f"{where} {item}")

    def items() -> Iterator[int]:
        for item in range(count):
            fail("items", item)
            yield item

    class Worker(Doubling):
        def close(self) -> None:
            super().close()
            if place == "close":
                raise OSError("close")

    def make_worker() -> Doubling:
        if place == "make_worker" and len(made) == at % workers:
            raise OSError("make_worker")
        return Worker(made, step)

    def step(item: int) -> None:
        director.pass_by(item)
        fail("process", item)

    def consume(result: int) -> None:
        fail("consume", result // 2)
        consumed.append(result)

    with Director(choices) as director, pytest.raises(OSError, match=place):
        run_ordered(
            items(),
            make_worker,
            consume,
            workers=Limit(workers),
            stop=stop,
            interrupts=[lambda: interrupts.append(1)],
        )
    assert consumed == [2 * item for item in range(len(consumed))]
    if place in {"items", "process", "consume"}:
        assert len(consumed) <= at
    assert stop.is_set()
    assert interrupts == [1]
    assert all(worker.closed for worker in made)
    assert not any(thread.name.startswith("worker-") for thread in threading.enumerate())


class Gates:
    """Work that blocks until it is let go, or interrupted."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.open = threading.Event()
        self.interrupted = threading.Event()

    def block(self, item: int) -> None:
        self.begun.append(item)
        wait_until(lambda: self.open.is_set() or self.interrupted.is_set(), SECONDS, "a gate")
        if self.interrupted.is_set():
            raise ConnectionError("interrupted")


def in_thread(call: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """Run `call` in a thread; what it raises is put into the list."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def never(condition: Callable[[], bool]) -> None:
    """See that `condition` stays false for a while; what is wrong happens within milliseconds."""
    with pytest.raises(TimeoutError):
        wait_until(condition, 0.2, "what must not happen")


def test_an_error_interrupts_the_others_that_are_blocked() -> None:
    gates, made = Gates(), []  # type: Gates, list[Doubling]

    def step(item: int) -> None:
        if item == 0:
            wait_until(lambda: len(gates.begun) == 2, SECONDS, "two others at work")
            raise ValueError("the cause")
        gates.block(item)

    with pytest.raises(ValueError, match="the cause"):
        run_ordered(
            iter(range(10)),
            lambda: Doubling(made, step),
            lambda _: None,
            workers=Limit(3),
            stop=threading.Event(),
            interrupts=[_fail, gates.interrupted.set],  # one that fails does not keep the next from its call
        )
    assert sorted(gates.begun) == [1, 2]


def _fail() -> None:
    raise OSError("an interrupt that fails")


@pytest.mark.feature("C8")
def test_stop_from_outside_is_a_cancel_whatever_fails_because_of_it() -> None:
    gates, stop, made = Gates(), threading.Event(), []  # type: Gates, threading.Event, list[Doubling]
    run = functools.partial(
        run_ordered,
        iter(range(10)),
        lambda: Doubling(made, gates.block),
        lambda _: None,
        workers=Limit(2),
        stop=stop,
        interrupts=[gates.interrupted.set],
    )
    thread, errors = in_thread(run)
    wait_until(lambda: len(gates.begun) == 2, SECONDS, "two at work")
    stop.set()
    thread.join(SECONDS)
    assert [type(error) for error in errors] == [Cancelled]
    assert all(worker.closed for worker in made)


@pytest.mark.feature("C8")
def test_a_read_that_fails_after_stop_is_no_error_of_its_own() -> None:
    stop, made = threading.Event(), []  # type: threading.Event, list[Doubling]

    def step(item: int) -> None:
        stop.set()  # the signal handler sets it, and interrupts the disk by itself
        raise ConnectionError("the disk is gone")

    with pytest.raises(Cancelled) as caught:
        run_ordered(iter([1]), lambda: Doubling(made, step), lambda _: None, workers=Limit(1), stop=stop)
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_stop_before_the_beginning_does_nothing() -> None:
    stop, consumed, made = threading.Event(), [], []  # type: threading.Event, list[int], list[Doubling]
    stop.set()
    with pytest.raises(Cancelled):
        run_ordered(iter([1]), lambda: Doubling(made), consumed.append, workers=Limit(1), stop=stop)
    assert consumed == []
    assert made == []


def test_the_window_bounds_what_is_taken_before_the_oldest_is_delivered() -> None:
    gates, taken, made = Gates(), [], []  # type: Gates, list[int], list[Doubling]
    consumed: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    def step(item: int) -> None:
        if item == 0:
            gates.block(item)

    run = functools.partial(
        run_ordered,
        items(),
        lambda: Doubling(made, step),
        consumed.append,
        workers=Limit(3),
        stop=threading.Event(),
    )
    thread, errors = in_thread(run)
    wait_until(lambda: len(taken) == 3 * WINDOW_PER_WORKER, SECONDS, "a full window")
    never(lambda: len(taken) > 3 * WINDOW_PER_WORKER)
    assert consumed == []
    gates.open.set()
    thread.join(SECONDS)
    assert errors == []
    assert consumed == [2 * item for item in range(100)]


def test_the_bytes_held_are_bounded_from_taking_to_delivery() -> None:
    """Items of 4 with room for 11: two are taken, and while the first is not delivered the second holds its bytes, finished or not."""
    gates, made = Gates(), []  # type: Gates, list[Doubling]
    begun: list[int] = []
    finished: list[int] = []

    def step(item: int) -> None:
        begun.append(item)
        if item == 0:
            gates.block(item)
        finished.append(item)

    run = functools.partial(
        run_ordered,
        iter(range(50)),
        lambda: Doubling(made, step),
        lambda _: None,
        workers=Limit(4),
        stop=threading.Event(),
        weigh=lambda _: 4,
        held_bytes_max=11,
    )
    thread, errors = in_thread(run)
    wait_until(lambda: finished == [1], SECONDS, "one parked")
    never(lambda: len(begun) > 2)  # the window has room for eight
    gates.open.set()
    thread.join(SECONDS)
    assert errors == []
    assert len(finished) == 50


def test_an_item_heavier_than_everything_goes_alone() -> None:
    weights = [1, 1, 99, 1, 99, 99, 1]
    at_work: list[int] = []
    most: list[int] = []
    made: list[Doubling] = []
    consumed: list[int] = []

    def step(item: int) -> None:
        at_work.append(item)
        most.append(sum(weights[one] for one in at_work))

    def consume(result: int) -> None:
        at_work.remove(result // 2)
        consumed.append(result)

    run_ordered(
        iter(range(len(weights))),
        lambda: Doubling(made, step),
        consume,
        workers=Limit(3),
        stop=threading.Event(),
        weigh=weights.__getitem__,
        held_bytes_max=2,
    )
    assert consumed == [2 * item for item in range(len(weights))]
    assert max(most) == 99


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 6), max_size=25),
    grants=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    runs=st.integers(1, 3),
    choices=st.lists(st.integers(0, 7), min_size=1, max_size=25),
    room=st.integers(1, 12),
)
def test_runs_that_share_a_changing_limit_all_end_in_order_within_their_bytes(
    weights: list[int], grants: list[int], runs: int, choices: list[int], room: int
) -> None:
    """Any grants at any time, any interleaving, several runs: nobody waits for ever, and no run holds more than it may."""
    limit, changes = Limit(grants[0]), itertools.cycle(grants)
    held, most, consumed = [0] * runs, [0] * runs, [[] for _ in range(runs)]  # type: list[int], list[int], list[list[int]]
    lock = threading.Lock()

    def step(item: int) -> None:
        run, number = divmod(item, 1000)
        with lock:
            held[run] += weights[number]
            most[run] = max(most[run], held[run])
            limit.count = next(changes)
        director.pass_by(item)

    def consume(result: int) -> None:
        run, number = divmod(result // 2, 1000)
        with lock:
            held[run] -= weights[number]
            consumed[run].append(number)

    with Director(choices) as director:
        ends = [
            in_thread(
                functools.partial(
                    run_ordered,
                    iter(range(1000 * run, 1000 * run + len(weights))),
                    functools.partial(Doubling, [], step),
                    consume,
                    workers=limit,
                    stop=threading.Event(),
                    weigh=lambda item: weights[item % 1000],
                    held_bytes_max=room,
                )
            )
            for run in range(runs)
        ]
        for thread, errors in ends:
            thread.join(SECONDS)
            assert errors == []
            assert not thread.is_alive()
    assert consumed == [list(range(len(weights)))] * runs
    assert all(one <= max(room, *weights, 0) for one in most)


def test_a_thread_too_many_retires_while_the_taker_waits_for_room() -> None:
    gates, limit, made = Gates(), Limit(4), []  # type: Gates, Limit, list[Doubling]

    def step(item: int) -> None:
        if item == 0:
            gates.block(item)

    run = functools.partial(
        run_ordered,
        iter(range(10)),
        lambda: Doubling(made, step),
        lambda _: None,
        workers=limit,
        stop=threading.Event(),
        weigh=lambda _: 1,
        held_bytes_max=1,
    )
    thread, errors = in_thread(run)
    wait_until(lambda: len(gates.begun) == 1 and len(made) == 4, SECONDS, "one at work, and the others waiting")
    limit.count = 2
    wait_until(lambda: sum(not worker.closed for worker in made) == 2, SECONDS, "two retired")
    gates.open.set()
    thread.join(SECONDS)
    assert errors == []


def test_consume_is_called_by_one_thread_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []
    made: list[Doubling] = []

    def consume(result: int) -> None:
        inside.append(result)
        most.append(len(inside))
        inside.remove(result)

    run_ordered(iter(range(500)), lambda: Doubling(made), consume, workers=Limit(5), stop=threading.Event())
    assert max(most) == 1
    assert len(most) == 500


def test_a_grant_adds_workers_and_takes_them_away() -> None:
    limit, made, at_work = Limit(1), [], []  # type: Limit, list[Doubling], list[int]
    step_on = threading.Semaphore(0)

    def step(item: int) -> None:
        at_work.append(item)
        assert step_on.acquire(timeout=SECONDS)
        at_work.remove(item)

    run = functools.partial(
        run_ordered,
        iter(range(60)),
        lambda: Doubling(made, step),
        lambda _: None,
        workers=limit,
        stop=threading.Event(),
    )
    thread, errors = in_thread(run)
    wait_until(lambda: len(at_work) == 1, SECONDS, "one at work")
    limit.count = 4
    wait_until(lambda: len(at_work) == 4, SECONDS, "four at work")
    limit.count = 2
    step_on.release(2)
    wait_until(lambda: sum(not worker.closed for worker in made) == 2, SECONDS, "two retired")
    wait_until(lambda: len(at_work) == 2, SECONDS, "two at work")
    step_on.release(100)
    thread.join(SECONDS)
    assert errors == []
    assert all(worker.closed for worker in made)


def test_runs_side_by_side_share_one_limit() -> None:
    limit, gates = Limit(3), Gates()
    results: list[list[int]] = [[], [], []]
    runs = [
        in_thread(
            functools.partial(
                run_ordered,
                iter(range(20)),
                functools.partial(Doubling, [], gates.block),
                consumed.append,
                workers=limit,
                stop=threading.Event(),
            )
        )
        for consumed in results
    ]
    wait_until(lambda: len(gates.begun) == 3, SECONDS, "three at work")
    never(lambda: len(gates.begun) > 3)
    gates.open.set()
    for thread, errors in runs:
        thread.join(SECONDS)
        assert errors == []
    assert results == [[2 * item for item in range(20)]] * 3


def test_workers_see_the_callers_context() -> None:
    job: contextvars.ContextVar[str] = contextvars.ContextVar("job")
    job.set("job-7")
    seen: list[str] = []
    made: list[Doubling] = []
    run_ordered(
        iter([1]),
        lambda: Doubling(made, lambda _: seen.append(job.get())),
        lambda _: None,
        workers=Limit(1),
        stop=threading.Event(),
    )
    assert seen == ["job-7"]


def test_signal_handlers_run_while_the_main_thread_waits() -> None:
    """In a process of its own: SIGTERM sets stop, the blocked workers are interrupted, and the run ends as cancelled."""
    program = """
import os, signal, socket, threading
from engine.errors import Cancelled
from engine.limit import Limit
from engine.ordered import run_ordered
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
ours, theirs = socket.socketpair()
class Worker:
    def process(self, item):
        os.write(1, b"at work\\n")  # print is two writes, and there are two threads
        return ours.recv(1)
    def close(self): pass
try:
    run_ordered(iter(range(2)), Worker, print, workers=Limit(2), stop=stop, interrupts=[lambda: ours.shutdown(2)])
except Cancelled:
    print("cancelled", threading.active_count())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
            os.kill(process.pid, signal.SIGTERM)
            rest, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert rest == "cancelled 1\n"


def test_an_exception_of_a_signal_handler_ends_the_run_too() -> None:
    program = """
import os, signal, threading
from engine.limit import Limit
from engine.ordered import run_ordered
stop = threading.Event()
class Worker:
    def process(self, item):
        os.write(1, b"at work\\n")  # print is two writes, and there are two threads
        stop.wait(20)
    def close(self): pass
try:
    run_ordered(iter(range(2)), Worker, print, workers=Limit(1), stop=stop)
except KeyboardInterrupt:
    print("interrupted", threading.active_count())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "at work\n"
            os.kill(process.pid, signal.SIGINT)
            rest, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert rest == "interrupted 1\n"
