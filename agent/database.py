"""One SQLite file and the one thread that owns it.

    event loop ── run(function, *args) ──► queue ──► thread: BEGIN, each function in its own savepoint, COMMIT (fsync)
               ◄─────────────── the results, only now ─────────────────────┘

What waits at an instant is committed together, so that many small writes cost one fsync, and the event loop never waits for
the disk. A function that fails rolls back alone.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

log = logging.getLogger(__name__)

GROUP_MAX = 200
_Work: TypeAlias = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]
P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """Open it from any thread; `run` belongs to the event loop, `close` to whoever opened it."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open or make the file. Raises sqlite3.DatabaseError when it is not a database, or a damaged one."""
        self._path = path
        self._schema = schema
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="journal", daemon=True)
        self._thread.start()
        opened.result()

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `function(connection, …)` in the thread; return its result once it is on disk.

        Raises what it raised, or sqlite3.Error when the commit failed: then nothing of it has happened.
        """
        return await asyncio.shield(asyncio.wrap_future(self._submit(function, *args, **kwargs)))

    def run_now(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, and blocks: for where no event loop turns yet."""
        return self._submit(function, *args, **kwargs).result()

    def _submit(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[T]":
        future: Future[T] = Future()
        self._queue.put((lambda connection: function(connection, *args, **kwargs), future))
        return future

    def close(self) -> None:
        """Do what is queued, then end. May be called twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    # ---- in the thread -------------------------------------------------------------------------------------------------

    def _main(self, opened: "Future[None]") -> None:
        try:
            connection = _open(self._path, self._schema)
        except Exception as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        with contextlib.closing(connection):
            going = True
            while going:
                group, going = self._take()
                _commit_together(connection, group)

    def _take(self) -> tuple[list[_Work], bool]:
        """Return the work that waits (at least one piece), and whether there will be more."""
        group: list[_Work] = []
        work = self._queue.get()
        while work is not None:
            group.append(work)
            if len(group) == GROUP_MAX:
                return group, True
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return group, True
        return group, False


def _open(path: Path, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        path.chmod(0o600)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the file is damaged")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _commit_together(connection: sqlite3.Connection, group: list[_Work]) -> None:
    if not group:
        return
    results: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for function, future in group:
            results.append((future, *_in_savepoint(connection, function)))
        connection.execute("COMMIT")
    except Exception as error:
        log.error("the journal could not be written detail=%s", error)
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        results = [(future, None, error) for _, future in group]
    for future, result, failure in results:
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)


def _in_savepoint(
    connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], Any]
) -> tuple[Any, BaseException | None]:
    connection.execute("SAVEPOINT one")
    try:
        result = function(connection)
    except Exception as error:
        if not connection.in_transaction:  # a full disk rolls everything back at once
            raise
        connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return None, error
    connection.execute("RELEASE one")
    return result, None
