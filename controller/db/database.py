"""One thread that owns the database, and a queue to it.

    await run(f) ──┐                ┌── BEGIN ─ savepoint f ─ savepoint g ─ … ─ COMMIT ──► notes to listeners ──► futures
    await run(g) ──┼──► queue ──► thread
    await run(h) ──┘                └── (what came meanwhile is the next group)

Many callers share one commit, so that an fsync per commit costs little, and the event loop never waits for a disk. A function
that raises is rolled back alone; its caller gets the exception. A future is resolved only after the commit: what a caller was
told is durable. SQLite takes one controller, by a lock file; PostgreSQL takes several, one transaction at a time (`postgres.py`).
"""

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar
from urllib.parse import unquote

import peewee
from playhouse.migrations import Runner

from controller.db import models, postgres
from controller.db.notes import Listener, Note, collecting
from controller.db.numbering import number_events
from controller.errors import CannotStart

log = logging.getLogger(__name__)

GROUP_MAX = (
    200  # functions in one transaction: 5200 a second with an fsync each group, and no caller waits for more than these
)
MIGRATIONS = Path(__file__).parent / "migrations"
_PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "full",
    "foreign_keys": 1,
    "busy_timeout": 5000,
    "temp_store": "memory",  # what savepoints set aside, and each function has one, would be written to files: 2.4 of 4.0 GB
    "cache_size": -8000,  # KiB; with SQLite's 2000 a tenth more time for batches that are due at once
}

P = ParamSpec("P")
T = TypeVar("T")
_Outcome: TypeAlias = tuple[Any, BaseException | None]  # a function's value, or what it raised


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], Any]
    future: "Future[Any]"


class Database:
    """The database of one controller. `run`, `call` and `subscribe` may be used from any thread."""

    def __init__(self, connection: Any, lock: int | None, url: str = "") -> None:
        self._peewee = connection
        self._lock = lock
        self._speaker = uuid.uuid4().hex
        self._ear = postgres.Ear(url, self._speaker, self._tell) if url else None
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._listeners: list[Listener] = []
        self._closed = False
        self._committing = False  # what becomes of the transaction is the database's to say
        self._gate = threading.Lock()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)

    @classmethod
    def open(cls, url: str) -> "Database":
        """Open `sqlite:///path` or `postgresql://…`, bring it to the present schema, start the thread.

        One database at a time in a process: the tables are bound to it. Raises CannotStart.
        """
        scheme, _, rest = url.partition("://")
        if scheme == "sqlite":
            path = Path("/" + unquote(rest).lstrip("/"))
            lock = _lock_file(path)
            database = cls(peewee.SqliteDatabase(str(path), pragmas=_PRAGMAS), lock)
        else:
            database = cls(postgres.connect(url), None, url)
        database._thread.start()
        try:
            database._ready.result()
        except Exception as error:
            database._release()
            raise CannotStart(f"the database cannot be used: {type(error).__name__}: {error}") from error
        if database._ear is not None:
            database._ear.start()
        return database

    @property
    def exclusive(self) -> bool:
        """No other controller can be using it."""
        return self._ear is None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on the database thread in a transaction and return its value once that is committed.

        Raises what the function raises, after its statements were rolled back. A caller that is cancelled does not know
        whether the function ran.
        """
        return await asyncio.wrap_future(self._submit(lambda: function(*args, **kwargs)))

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The blocking twin of `run`. Never on an event loop's thread or the database's own."""
        return self._submit(lambda: function(*args, **kwargs)).result()

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called with the notes of each commit, also of other controllers'; it must be quick and not raise.

        It is called on the database's threads.
        """
        self._listeners.append(listener)

    def close(self) -> None:
        """Finish what is queued, close the database, release the lock. Twice is once."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._release()

    def _submit(self, function: Callable[[], T]) -> "Future[T]":
        call = _Call(function, Future())
        with self._gate:  # so that nothing is queued behind the end, where nobody would ever answer
            if self._closed:
                raise RuntimeError("the database is closed")
            self._queue.put(call)
        return call.future

    def _release(self) -> None:
        if self._ear is not None:
            self._ear.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- the thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._connect()
        except BaseException as error:
            self._peewee.close()
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        ended = False
        while not ended:
            calls, ended = self._take()
            self._serve(calls)
        self._peewee.close()

    def _connect(self) -> None:
        self._peewee.connect(reuse_if_open=True)
        models.proxy.initialize(self._peewee)
        if not self.exclusive:
            postgres.lock_migrations(self._peewee)
        try:
            untyped: Any = Runner  # playhouse has no types
            runner = untyped(self._peewee, str(MIGRATIONS))
            newer = [migration.name for migration in runner.status() if migration.path is None]
            if newer:
                raise RuntimeError(f"a newer version of this program has changed it ({', '.join(newer)}); use that one")
            for name in runner.up():
                log.info("migration applied name=%s", name)
        finally:
            if not self.exclusive:
                postgres.unlock_migrations(self._peewee)

    def _take(self) -> tuple[list[_Call], bool]:
        """Wait for calls; return those that are there, and whether the end was among them."""
        calls: list[_Call] = []
        one = self._queue.get()
        while one is not None:
            if one.future.set_running_or_notify_cancel():
                calls.append(one)
            if len(calls) >= GROUP_MAX:
                return calls, False
            try:
                one = self._queue.get_nowait()
            except queue.Empty:
                return calls, False
        return calls, True

    def _serve(self, calls: list[_Call]) -> None:
        outcomes: list[_Outcome]
        notes: list[Note]
        try:
            outcomes, notes = self._transact_again(calls)
        except Exception as error:
            log.exception("database transaction failed calls=%d", len(calls))
            self._peewee.close()  # a broken connection is made anew by the next group
            outcomes, notes = [(None, error)] * len(calls), []
        self._tell(notes)
        for call, (value, failure) in zip(calls, outcomes, strict=True):
            if failure is None:
                call.future.set_result(value)
            else:
                call.future.set_exception(failure)

    def _transact_again(self, calls: list[_Call]) -> tuple[list[_Outcome], list[Note]]:
        """Run a group; once more on a new connection when the old one turns out to be gone before the commit was asked for."""
        self._committing = False
        try:
            return self._transact(calls)
        except Exception as error:
            if self.exclusive or self._committing or not postgres.is_lost(self._peewee):
                raise
            log.warning("connection to the database lost, connecting anew error=%s", type(error).__name__)
        self._peewee.close()
        return self._transact(calls)

    def _transact(self, calls: list[_Call]) -> tuple[list[_Outcome], list[Note]]:
        notes: list[Note] = []
        self._peewee.connect(reuse_if_open=True)
        with self._peewee.atomic(*(["IMMEDIATE"] if self.exclusive else [])):
            if not self.exclusive:
                postgres.enter_lane(self._peewee)
            outcomes = [self._one(call, notes) for call in calls]
            notes = number_events(self._peewee, notes)
            if not self.exclusive:
                postgres.announce(self._peewee, self._speaker, notes)
            self._committing = True
        return outcomes, notes

    def _one(self, call: _Call, notes: list[Note]) -> _Outcome:
        try:
            with collecting() as noted, self._peewee.atomic():
                value = call.function()
        except Exception as error:
            if self._rolled_back():
                raise  # a full disk or a lost connection rolls back the whole transaction: what came before is gone as well
            return None, error
        notes += noted
        return value, None

    def _rolled_back(self) -> bool:
        """Tell whether the database has ended the transaction by itself."""
        if self.exclusive:
            return not _connection(self._peewee).in_transaction
        return postgres.is_lost(self._peewee)

    def _tell(self, notes: list[Note]) -> None:
        if not notes:
            return
        for listener in self._listeners:
            try:
                listener(notes)
            except Exception:
                log.exception("a listener to the database failed")


def _connection(database: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = database.connection()
    return connection


def _lock_file(path: Path) -> int:
    """Return the descriptor of `<path>.lock`, locked for us until it is closed. Raises CannotStart."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"cannot open {path}.lock: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise CannotStart(f"another controller uses {path}; SQLite takes one, use PostgreSQL for several") from error
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))  # sealed secrets or not, it is nobody else's
    return descriptor
