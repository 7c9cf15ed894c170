"""Work done by several threads side by side, delivered in order: the scheduling core of the pipeline.

    items ──(one taker)─► 1 2 3 4 5 6 …      taken when the window and the memory have room for it
                          │ │ │ │            each thread: process its item on its own resources (an NBD connection, …)
    workers               A B A C            and deliver the result
                          ▼ ▼ ▼ ▼
    parked                  2 3              finished before its turn
                          ▼
    consume ◄──(the turn)─1                  one call at a time, strictly in order, by whichever thread holds the turn

There is no reader thread, no writer thread and no queue between them: a thread that finishes item 1 delivers it, then 2 and
3 if they are parked, and takes the next item. That costs less memory than a queued pipeline, at the same speed.

Nobody waits for a thread that waits for it. An item's place and memory are reserved in the order of the items, before its
thread asks to be let in by the limit; from then on it needs nothing that another item holds, and its result is always
accepted. So the holder of the oldest item gets on, and whoever waits, waits for somebody older.
"""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from engine.errors import Cancelled
from engine.limit import POLL_SECONDS, Limit
from engine.units import MIB

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

HELD_BYTES_MAX = 16 * MIB
WINDOW_PER_WORKER = 2  # items taken but not yet delivered, for each worker


class Worker(Protocol[T_contra, R_co]):
    """What one thread works with. Made, used and closed in that thread."""

    def process(self, item: T_contra, /) -> R_co:
        """Return the item's result. It must stay as it is until it is consumed: do not reuse its buffers before.

        It may wait for others at work (as for a turn to compress), never for an item that is not taken yet.
        """

    def close(self) -> None:
        """Release the worker's resources."""


def run_ordered(
    items: Iterator[T],
    make_worker: Callable[[], Worker[T, R]],
    consume: Callable[[R], None],
    *,
    workers: Limit,
    stop: threading.Event,
    interrupts: Iterable[Callable[[], None]] = (),
    weigh: Callable[[T], int] = lambda _: 0,
    held_bytes_max: int = HELD_BYTES_MAX,
) -> None:
    """Process every item and consume every result, in the order of `items`; return when all is done and no thread is left.

    `workers` may be shared by several runs, which then share that many threads' worth of work; its count may change at any
    time. `weigh` tells the bytes that an item holds from when it is taken until its result is consumed: together at most
    `held_bytes_max`, or one item alone. `items` is advanced by one thread at a time, but by changing threads; so is `consume`
    called.

    The first exception of `items`, a worker or `consume` ends the run and is raised here. So does `stop`: set from outside
    it raises Cancelled (within POLL_SECONDS it is noticed), and the run sets it itself on a failure, so that whoever waits
    on it lets go. Then every one of `interrupts` is called once, from the calling thread: they have to make blocked calls
    end, as `Disk.interrupt` does.

    The calling thread only waits, in short naps: if it is the main thread, signal handlers run meanwhile.
    """
    _Run(items, make_worker, consume, workers, stop, tuple(interrupts), weigh, held_bytes_max).run()


class _Run(Generic[T, R]):
    """One call of `run_ordered`. All fields below `_changed` are guarded by it."""

    def __init__(
        self,
        items: Iterator[T],
        make_worker: Callable[[], Worker[T, R]],
        consume: Callable[[R], None],
        workers: Limit,
        stop: threading.Event,
        interrupts: tuple[Callable[[], None], ...],
        weigh: Callable[[T], int],
        held_bytes_max: int,
    ) -> None:
        self._items = items
        self._make_worker = make_worker
        self._consume = consume
        self._workers = workers
        self._stop = stop
        self._interrupts = interrupts
        self._weigh = weigh
        self._held_bytes_max = held_bytes_max
        self._threads: list[threading.Thread] = []

        self._changed = threading.Condition()
        self._live = 0  # threads that have not ended
        self._taking = False  # one thread advances `items`, which may ask a server, and then waits for room
        self._taken = 0  # items given out, and the number of the next one
        self._delivered = 0  # items consumed, and the number of the next one
        self._held_bytes = 0  # what the items weigh that are taken and not delivered
        self._parked: dict[int, tuple[R, int]] = {}  # result and weight by item number
        self._exhausted = False
        self._failure: BaseException | None = None

    # ---- the calling thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # a signal handler raised, or no thread could be started
            self._fail(error)
        finally:
            self._end_threads()
        failure, self._failure = (
            self._failure,
            None,
        )  # no cycle run → failure → its frames → run: they hold large buffers
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    def _watch(self) -> None:
        """Keep as many threads at work as are granted, until all is done, or something ends the run."""
        while True:
            with self._changed:
                if self._failure is not None or (self._exhausted and self._live == 0):
                    return
                missing = 0 if self._exhausted else self._workers.count - self._live
            if self._stop.is_set():
                raise Cancelled
            for _ in range(missing):
                self._start_thread()
            with self._changed:
                if self._failure is None and self._live:
                    self._changed.wait(POLL_SECONDS)

    def _start_thread(self) -> None:
        context = contextvars.copy_context()  # log lines of the thread carry the job's id
        thread = threading.Thread(
            target=context.run, args=(self._work,), name=f"worker-{len(self._threads) + 1}", daemon=True
        )
        with self._changed:
            self._live += 1
        # First: a signal handler may raise while the thread is starting, and it has to be waited for all the same.
        self._threads.append(thread)
        thread.start()

    def _end_threads(self) -> None:
        if self._failure is not None:
            for interrupt in self._interrupts:
                try:
                    interrupt()
                except Exception:  # the others have to be called all the same
                    log.warning("An interrupt failed", exc_info=True)
        for thread in self._threads:
            while thread.is_alive():
                try:
                    thread.join(POLL_SECONDS)
                except BaseException as error:  # a second Ctrl-C: still no thread is left behind
                    self._fail(error)

    # ---- a worker's thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._check()
            worker = self._make_worker()
            try:
                while (taken := self._take()) is not None:
                    number, item, weight = taken
                    with self._workers.inside(self._stop):
                        self._deliver(number, worker.process(item), weight)
                    del taken, item  # a frame is large, and the next one may be long in coming
            finally:
                worker.close()
        except BaseException as error:
            self._fail(error)
        finally:
            with self._changed:
                self._live -= 1
                self._changed.notify_all()

    def _take(self) -> tuple[int, T, int] | None:
        """Return the next item with its number and weight, all of which has its place; None when this thread is to end."""
        if not self._begin_taking():
            return None
        try:
            item = next(self._items)
        except StopIteration:
            with self._changed:
                self._exhausted = True
                self._end_taking()
            return None
        weight = self._weigh(item)
        with self._changed:
            while self._held_bytes and self._held_bytes + weight > self._held_bytes_max:
                self._wait()
            self._held_bytes += weight
            number = self._taken
            self._taken += 1
            self._end_taking()
        return number, item, weight

    def _begin_taking(self) -> bool:
        """Wait until it is this thread's turn to take an item; tell whether to: there are items, and it is not one too many."""
        with self._changed:
            while True:
                self._check()
                if self._exhausted or self._live > self._workers.count:
                    return False
                window = WINDOW_PER_WORKER * self._workers.count
                if not self._taking and self._taken - self._delivered < window:
                    self._taking = True
                    return True
                self._wait()

    def _end_taking(self) -> None:
        """Let the next thread take; with `_changed` held. After an exception nobody is let: the run is over."""
        self._taking = False
        self._changed.notify_all()

    def _deliver(self, number: int, result: R, weight: int) -> None:
        """Park the result, then consume whatever is next."""
        with self._changed:
            self._parked[number] = (result, weight)
        del result
        while self._consume_next():
            pass

    def _consume_next(self) -> bool:
        """Consume the next result if it is there; tell whether it was.

        Who takes it out has the turn: until it is counted as delivered there is no next one, for this or any other thread.
        After an exception there will never be.
        """
        with self._changed:
            self._check()
            if self._delivered not in self._parked:
                return False
            result, weight = self._parked.pop(self._delivered)
        self._consume(result)
        del result
        with self._changed:
            self._delivered += 1
            self._held_bytes -= weight
            self._changed.notify_all()
        return True

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for a change, with `_changed` held. Raises Cancelled when the run is ending."""
        self._changed.wait(POLL_SECONDS)
        self._check()

    def _check(self) -> None:
        if self._failure is not None or self._stop.is_set():
            raise Cancelled

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure. Whatever fails after `stop` was set from outside is the cancel's doing."""
        with self._changed:
            if self._failure is None:
                if self._stop.is_set() and isinstance(error, Exception) and not isinstance(error, Cancelled):
                    cancelled = Cancelled()
                    cancelled.__cause__ = error
                    error = cancelled
                self._failure = error
                self._stop.set()
            self._changed.notify_all()
