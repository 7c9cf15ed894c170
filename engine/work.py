"""What ties a job to the process it runs in: where it reports, how it is stopped, how much it may use.

The verbs (backup.py, restore.py, …) get a `Work` and know nothing of files, signals or terminals; `worker.py` gives them
one that speaks to an agent, `cli.py` one that speaks to a person.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from engine.errors import Cancelled, EngineError
from engine.limit import Limit
from engine.spec import Settings
from engine.throttle import Throttle

T = TypeVar("T")


class Report(Protocol):
    """Where a job's words go. Any thread may call; calls are quick."""

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        """A stage begins (see spec.STAGES); its progress counts from zero up to `bytes_total`, 0 for unknown."""

    def expect(self, bytes_total: int) -> None:
        """The stage's total became known, or grew."""

    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None:
        """So many more bytes are done, and so many more went to the storage."""

    def info(self, message: str) -> None: ...

    def warn(self, message: str) -> None:
        """We go on with less than was asked. The sentence reaches the owner of the server with the result."""

    def record(self, record: dict[str, Any]) -> None:
        """A backup was found (see results.BackupRecord)."""

    def may_commit(self) -> bool:
        """Ask whether the job still holds its lease; waits for the answer."""


class Stop:
    """A request to stop, which also wakes whoever is blocked in a socket. Any thread may use it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    def set(self) -> None:
        """Ask for the end: `check` raises from now on, and everything under `waking` is woken."""
        self.event.set()
        with self._lock:
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def check(self) -> None:
        """Raise Cancelled if the end was asked for."""
        if self.event.is_set():
            raise Cancelled

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` if the end is asked for while the block runs; errors that this causes leave as Cancelled."""
        with self._lock:
            self._wakers.append(wake)
        try:
            self.check()
            yield
        except EngineError as error:
            if self.event.is_set() and not isinstance(error, Cancelled):
                raise Cancelled from error
            raise
        finally:
            with self._lock:
                self._wakers.remove(wake)

    def obtain(self, make: Callable[[], T], give_up: Callable[[T], None]) -> T:
        """Return what `make` returns. It runs in a thread of its own, since it may block and cannot be woken.

        Raises Cancelled as soon as the end is asked for; what is made after that goes to `give_up`.
        """
        arrived = threading.Event()
        with self.waking(arrived.set):
            made = in_background(make, "obtain")
            made.add_done_callback(lambda _: arrived.set())
            arrived.wait()
            if self.event.is_set():
                made.add_done_callback(partial(_give_up, give_up))
                raise Cancelled
            return made.result()


def in_background(make: Callable[[], T], name: str) -> "Future[T]":
    """Run `make` in a daemon thread of its own, called `name`, and return what it will return or raise."""
    made: Future[T] = Future()
    threading.Thread(target=_make, args=(made, make), name=name, daemon=True).start()
    return made


def _make(made: "Future[T]", make: Callable[[], T]) -> None:
    try:
        made.set_result(make())
    except BaseException as error:
        made.set_exception(error)


def _give_up(give_up: Callable[[T], None], late: "Future[T]") -> None:
    if late.exception() is None:
        give_up(late.result())


class Pool:
    """What the jobs of a process use together: worker threads, and two token buckets. Any thread may call `grant`."""

    def __init__(self, settings: Settings) -> None:
        self.workers = Limit(settings.workers)
        self.read = Throttle(settings.read_limit)
        self.upload = Throttle(settings.upload_limit)

    def grant(self, workers: int, read_limit: int, upload_limit: int) -> None:
        """Obey a new share of the hypervisor's budget, at once; who sleeps for bytes wakes up within 0.1 s.

        Rates are bytes a second, 0 for no limit. Raises ValueError for a negative one.
        """
        self.workers.count = max(1, workers)
        self.read.rate = read_limit
        self.upload.rate = upload_limit


class Work:
    """One job's surroundings. `pool` is shared with the jobs beside it; `compressing` is the job's own (P7)."""

    def __init__(self, report: Report, settings: Settings, stop: Stop | None = None, pool: Pool | None = None) -> None:
        self.report = report
        self.settings = settings
        self.stop = stop or Stop()
        pool = pool or Pool(settings)
        self.workers = pool.workers
        self.read = pool.read
        self.upload = pool.upload
        self.compressing = Limit(settings.compression_threads)
