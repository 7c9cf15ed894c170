"""A real PostgreSQL as a `with` block: a cluster of its own, reachable by a unix socket in its folder alone.

    with Postgres() as postgres:
        url = postgres.database()           # a new, empty one
        url = postgres.emptied(prepare)     # tables as `prepare(url)` made them once, without rows: quick, one user at a time

PostgreSQL refuses to run as root, and another user cannot look into a test's folders: so the cluster lies in a folder of its own
below /tmp, which is gone afterwards. The server ends with this process, even by kill -9. Nothing waits for a disk (fsync off).
"""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import LiteralString, Self

import psycopg
from psycopg import sql

from tests.waiting import wait_until

START_SECONDS_MAX = 30.0
_PROGRAMS = Path("/usr/lib/postgresql")
_USER = "bm"
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "logging_collector": "off",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "shared_buffers": "64MB",
    "synchronous_commit": "off",
}


class Postgres:
    """A server. Its databases end with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bm-postgres-", dir="/tmp"))
        self._programs = _programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._prepared: dict[Callable[[str], None], str] = {}

    def __enter__(self) -> Self:
        try:
            self._make()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def database(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self._url(name)

    def emptied(self, prepare: Callable[[str], None], kept: str = "schema_migration") -> str:
        """Return the URL of a database with the tables that `prepare` made, all but `kept` without rows, numbers from 1 again.

        The same for everybody who asks: copying hundreds of files for each test takes a second on a busy machine. Whoever is
        still connected is cut off.
        """
        if prepare not in self._prepared:
            url = self._prepared[prepare] = self.database()
            prepare(url)
        url = self._prepared[prepare]
        self.cut(url)
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            connection.execute("SET session_replication_role = replica")  # foreign keys are not looked at
            for (table,) in found:
                if table != kept:
                    connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
            connection.execute("SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'")
        return url

    def connected(self, url: str) -> int:
        """Return how many connections to a database there are."""
        return self._count(url, "pid")

    def cut(self, url: str) -> int:
        """End all connections to a database, as a failover would; return how many there were."""
        return self._count(url, "pg_terminate_backend(pid)")

    def close(self) -> None:
        """End the server and remove its folder. Twice is once."""
        process, self._process = self._process, None
        try:
            if process is not None:
                process.send_signal(signal.SIGQUIT)  # at once: nothing in it is wanted any more
                try:
                    process.wait(START_SECONDS_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _count(self, url: str, of_each: LiteralString) -> int:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            query = f"SELECT count({of_each}) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, (_name(url),)).fetchone()
        return int(row[0]) if row else 0

    def _make(self) -> None:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        done = subprocess.run(
            [
                *_unprivileged(), self._programs / "initdb", "--pgdata", self.folder / "data", "--username", _USER,
                "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions",
            ],
            cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def _start(self) -> None:
        settings = {**_SETTINGS, "unix_socket_directories": str(self.folder)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*_unprivileged(), self._programs / "postgres", "-D", self.folder / "data", *options],
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(self._answers, START_SECONDS_MAX, "PostgreSQL")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {(self.folder / 'log').read_text()}")
        try:
            psycopg.connect(self._url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _url(self, name: str) -> str:
        return f"postgresql://{_USER}@/{name}?host={self.folder}"


def _name(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def _programs() -> Path:
    """Return the folder of the newest installed server's programs."""
    found = sorted(_PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("PostgreSQL is missing: apt-get install postgresql")
    return found[-1].parent


def _unprivileged() -> Sequence[str]:
    """Return what starts a program that ends with us, as a user other than root."""
    user = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig", "QUIT", *user, "--"]
