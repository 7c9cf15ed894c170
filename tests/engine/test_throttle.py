"""The token bucket, on a clock that only its waits move."""

import functools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Cancelled
from engine.throttle import BURST_SECONDS, NAP_SECONDS_MAX, SystemClock, Throttle
from engine.units import KIB, MB, MIB
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("P8", "P9")

WINDOW_SECONDS = 10.0


@dataclass
class WaitingClock:
    """Time that passes only while somebody waits; `then` runs at each wait, before it."""

    seconds: float = 1000.0
    waits: list[float] = field(default_factory=list)
    then: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.seconds

    def wait(self, stop: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        self.then()
        if not stop.is_set():
            self.seconds += seconds


def passed(rate: int, transfers: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return (time, bytes) of every portion, when each transfer is (idle seconds before it, bytes)."""
    clock = WaitingClock()
    throttle = Throttle(rate, clock)
    stop = threading.Event()
    portions = []
    for idle, total in transfers:
        clock.seconds += idle
        portions += [(clock.seconds, count) for count in throttle.portions(total, stop)]
    return portions


@settings(max_examples=60, deadline=None)
@given(
    st.integers(100_000, 1000 * MB),
    st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.3, 3.0, 60.0]), st.integers(1, 64)), min_size=1, max_size=30),
)
def test_never_more_than_5_percent_above_the_rate_in_any_10_seconds(
    rate: int, transfers: list[tuple[float, int]]
) -> None:
    unit = rate // 8  # transfers of up to 8 seconds' worth
    window: deque[tuple[float, int]] = deque()
    inside = 0
    for at, count in passed(rate, [(idle, size * unit) for idle, size in transfers]):
        window.append((at, count))
        inside += count
        while at - window[0][0] > WINDOW_SECONDS:
            inside -= window.popleft()[1]
        assert inside <= rate * WINDOW_SECONDS * 1.05


@settings(max_examples=30, deadline=None)
@given(st.integers(100_000, 1000 * MB), st.integers(1, 4 * MIB))
def test_never_less_than_the_rate_when_more_is_wanted(rate: int, size: int) -> None:
    size = max(size, rate // 50)
    count = int(rate * 30 / size) + 1

    portions = passed(rate, [(0.0, size)] * count)

    took = portions[-1][0] - portions[0][0]
    assert sum(one for _, one in portions) == size * count
    assert took <= size * count / rate * 1.001


def test_portions_sum_up_and_are_aligned() -> None:
    sizes = [count for _, count in passed(1 * MB, [(0.0, 4 * MIB + 100)])]
    assert sum(sizes) == 4 * MIB + 100
    assert {size % (4 * KIB) for size in sizes[:-1]} == {0}
    assert max(sizes) <= 50_000


def test_no_limit_passes_whole_and_never_waits() -> None:
    clock = WaitingClock()
    assert list(Throttle(0, clock).portions(100 * MIB, threading.Event())) == [100 * MIB]
    assert clock.waits == []


def test_idle_time_is_not_saved_up() -> None:
    portions = passed(1 * MB, [(3600.0, 10 * MB)])
    at_once = sum(count for at, count in portions if at == portions[0][0])
    assert at_once <= 1 * MB * BURST_SECONDS


def test_take_larger_than_the_burst_waits_for_all_of_it() -> None:
    clock = WaitingClock()
    throttle = Throttle(1 * MB, clock)
    throttle.take(5 * MB, threading.Event())
    assert clock.seconds - 1000.0 == pytest.approx(5.0, abs=0.002)


def test_new_rate_counts_for_who_waits_already() -> None:
    clock = WaitingClock()
    throttle = Throttle(1000, clock)
    changed_at: list[float] = []

    def raise_the_rate() -> None:
        if not changed_at and clock.seconds >= 1001.0:
            throttle.rate = 1 * MB
            changed_at.append(clock.seconds)

    clock.then = raise_the_rate
    throttle.take(2 * MB, threading.Event())

    assert throttle.rate == 1 * MB
    assert clock.seconds - changed_at[0] == pytest.approx((2 * MB - 1000) / MB, abs=0.11)


def test_lifting_the_limit_lets_everybody_go() -> None:
    clock = WaitingClock()
    throttle = Throttle(1, clock)

    def lift() -> None:
        throttle.rate = 0

    clock.then = lift
    throttle.take(100 * MIB, threading.Event())
    assert len(clock.waits) == 1


def test_a_limit_set_later_begins_empty() -> None:
    clock = WaitingClock()
    throttle = Throttle(0, clock)
    throttle.take(100 * MIB, threading.Event())
    clock.seconds += 100
    throttle.rate = 1 * MB
    throttle.take(1 * MB, threading.Event())
    assert clock.seconds - 1100.0 == pytest.approx(1.0, abs=0.002)


def test_a_lower_rate_takes_back_the_saved_burst() -> None:
    clock = WaitingClock()
    throttle = Throttle(100 * MB, clock)
    clock.seconds += 10
    throttle.rate = 1 * MB
    throttle.take(1 * MB, threading.Event())
    assert clock.seconds - 1010.0 >= 0.74


def test_stop_ends_the_wait() -> None:
    clock = WaitingClock()
    stop = threading.Event()
    clock.then = stop.set
    with pytest.raises(Cancelled):
        Throttle(1, clock).take(1 * MB, stop)
    assert clock.seconds == 1000.0


def test_naps_are_short_so_that_a_new_rate_is_seen() -> None:
    clock = WaitingClock()
    Throttle(1000, clock).take(3000, threading.Event())
    assert max(clock.waits) <= NAP_SECONDS_MAX


def test_negative_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        Throttle(-1)
    with pytest.raises(ValueError, match="rate"):
        Throttle().rate = -1


def test_threads_share_one_rate_in_the_order_of_asking() -> None:
    """Each thread's place is its place in the queue, also for small takes behind large ones."""
    throttle = Throttle(1)
    counts = (1 * MB, 10, 5 * MB, 1)
    order: list[int] = []

    def take(number: int) -> None:
        throttle.take(counts[number], threading.Event())
        order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for number, thread in enumerate(threads):
        thread.start()
        queued = sum(counts[: number + 1])
        wait_until(functools.partial(_has_asked, throttle, queued), 5, "a place in the queue")
    assert order == []
    with throttle._lock:
        throttle._allowed = 1 * MB + 10.0
    wait_until(lambda: len(order) == 2, 5, "the first two")
    assert sorted(order) == [0, 1]
    throttle.rate = 0
    for thread in threads:
        thread.join(5)
    assert sorted(order) == [0, 1, 2, 3]


def _has_asked(throttle: Throttle, count: int) -> bool:
    return throttle._asked >= count


def test_the_systems_clock_wakes_up_for_stop() -> None:
    clock, stop = SystemClock(), threading.Event()
    stop.set()
    before = clock.now()
    clock.wait(stop, 60)
    assert clock.now() - before < 30
