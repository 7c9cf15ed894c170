"""One thread, group commit, one controller: what a caller was told is on disk, and a failure is its own."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import peewee
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playhouse.migrations import Runner

from controller import installation
from controller.db import database as database_module
from controller.db import models
from controller.db.database import Database
from controller.db.fields import from_microseconds, to_microseconds
from controller.db.notes import Note, note
from controller.db.postgres import connect
from controller.errors import CannotStart
from tests.clock import START
from tests.servers.postgres import Postgres

MIGRATIONS = sorted(database_module.MIGRATIONS.glob("[0-9]*.py"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/controller.db"


def add(name: str) -> str:
    models.Storage.insert(
        storage_id=name, name=name, type="local", config={}, compression={}, limits={}, repository_id="r",
        create_time=START, update_time=START,
    ).execute()  # fmt: skip
    return name


def names() -> list[str]:
    return sorted(row.name for row in models.Storage.select())


async def test_many_callers_share_commits_and_a_failure_is_rolled_back_alone(database_url: str) -> None:
    database = Database.open(database_url)
    threads = set()
    told: list[int] = []
    database.subscribe(lambda notes: told.append(len(notes)))

    def act(number: int) -> int:
        threads.add(threading.get_ident())
        add(f"s{number:03}")
        note("job", f"s{number:03}", number)
        if number % 10 == 7:
            raise ValueError(number)
        return number

    try:
        gate = threading.Event()
        held = asyncio.create_task(database.run(gate.wait))
        waiting = [asyncio.create_task(database.run(act, number)) for number in range(100)]
        await asyncio.sleep(0)
        gate.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        await held
        found = await database.run(names)
    finally:
        database.close()

    assert [one for one in outcomes if isinstance(one, int)] == [n for n in range(100) if n % 10 != 7]
    assert sum(isinstance(one, ValueError) for one in outcomes) == 10
    assert found == [f"s{n:03}" for n in range(100) if n % 10 != 7]
    assert len(threads) == 1
    assert sum(told) == 90  # what failed is not told
    assert len(told) < 20  # and the others shared commits


def test_what_was_told_is_on_disk_when_the_process_is_killed_and_half_a_function_is_not(tmp_path: Path) -> None:
    program = f"""
import os
from controller.db.database import Database
from tests.controller.db.test_database import add
database = Database.open("sqlite:///{tmp_path}/controller.db")
print(database.call(add, "told"), flush=True)
def half():
    add("half")
    os._exit(9)
database.call(half)
"""
    root = Path(__file__).parents[3]
    outcome = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (outcome.returncode, outcome.stdout) == (9, "told\n"), outcome.stderr

    database = Database.open(f"sqlite:///{tmp_path}/controller.db")
    try:
        assert database.call(names) == ["told"]
    finally:
        database.close()


def test_a_commit_that_fails_fails_everybody_in_it_and_the_next_goes_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database.open(url)
    told: list[object] = []
    database.subscribe(told.extend)

    def act() -> None:
        add("lost")
        note("job", "lost", 1)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(peewee.SqliteDatabase, "commit", _fail)
            with pytest.raises(peewee.OperationalError):
                database.call(act)
        database.call(add, "kept")
        assert database.call(names) == ["kept"]
        assert told == []
    finally:
        database.close()


def _fail(_self: object) -> None:
    raise peewee.OperationalError("disk I/O error")


async def test_a_transaction_that_sqlite_rolled_back_fails_everybody_in_it(url: str) -> None:
    database = Database.open(url)
    began, held = threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        held.wait()

    def break_down() -> None:
        add("broken")
        models.proxy.connection().execute("ROLLBACK")  # what SQLite does of itself when the disk is full
        raise peewee.OperationalError("database or disk is full")

    try:
        blocker = asyncio.create_task(database.run(block))
        await asyncio.to_thread(began.wait)
        group = [asyncio.create_task(database.run(one)) for one in (lambda: add("a"), break_down, lambda: add("b"))]
        await asyncio.sleep(0)
        held.set()
        await blocker
        results = await asyncio.gather(*group, return_exceptions=True)

        assert [type(one) for one in results] == [peewee.OperationalError] * 3
        assert await database.run(names) == [], "what was said to have failed was kept"
    finally:
        held.set()
        database.close()


def test_a_database_of_a_newer_version_is_refused(url: str, tmp_path: Path) -> None:
    Database.open(url).close()
    with closing(sqlite3.connect(tmp_path / "controller.db")) as connection, connection:
        connection.execute("INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2030-01-01')")

    with pytest.raises(CannotStart, match=r"newer version.*9999_later"):
        Database.open(url)


def test_sqlite_takes_one_controller(url: str) -> None:
    first = Database.open(url)
    try:
        with pytest.raises(CannotStart, match="another controller"):
            Database.open(url)
    finally:
        first.close()

    Database.open(url).close()


def test_what_cannot_be_opened_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="No such file"):
        Database.open(f"sqlite:///{tmp_path}/nowhere/controller.db")
    (tmp_path / "text.db").write_text("this is no database, and long enough to be seen as none" * 100)
    with pytest.raises(CannotStart, match="DatabaseError"):
        Database.open(f"sqlite:///{tmp_path}/text.db")


def test_a_closed_database_takes_nothing(database_url: str) -> None:
    database = Database.open(database_url)
    late = database.call(names)
    database.close()
    database.close()

    assert late == []
    with pytest.raises(RuntimeError):
        database.call(names)


def test_the_file_is_closed_to_others_and_durable(url: str, tmp_path: Path) -> None:
    database = Database.open(url)
    try:
        assert (tmp_path / "controller.db").stat().st_mode & 0o077 == 0

        def pragmas() -> list[object]:
            return [
                models.proxy.execute_sql(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]

        assert database.call(pragmas) == ["wal", 2, 1]
    finally:
        database.close()


def test_an_empty_database_is_no_installation(database_url: str) -> None:
    database = Database.open(database_url)
    try:
        with pytest.raises(CannotStart, match="init"):
            database.call(installation.get)
        made = database.call(installation.create, START)
        assert database.call(installation.create, START + timedelta(days=1)) == made
        assert database.call(installation.get) == made
    finally:
        database.close()


def test_the_migrations_make_what_the_models_say(tmp_path: Path) -> None:
    Database.open(f"sqlite:///{tmp_path}/controller.db").close()
    wanted = peewee.SqliteDatabase(str(tmp_path / "wanted.db"))
    models.proxy.initialize(wanted)
    wanted.create_tables(models.ALL)
    wanted.close()

    assert _schema(tmp_path / "controller.db") == _schema(tmp_path / "wanted.db")


def test_the_migrations_lead_to_the_same_tables_from_every_number(tmp_path: Path) -> None:
    Database.open(f"sqlite:///{tmp_path}/wanted.db").close()
    for count in range(1, len(MIGRATIONS)):
        file = tmp_path / f"{count}.db"
        _migrate(peewee.SqliteDatabase(str(file)), count, tmp_path)
        Database.open(f"sqlite:///{file}").close()

        assert _schema(file) == _schema(tmp_path / "wanted.db"), f"from {MIGRATIONS[count - 1].name}"


def test_on_postgresql_too(postgres: Postgres, tmp_path: Path) -> None:
    whole = postgres.database()
    Database.open(whole).close()
    wanted = _postgres_schema(whole)
    assert ("lease", "resource", "text", "NO") in wanted
    for count in range(1, len(MIGRATIONS)):
        url = postgres.database()
        _migrate(connect(url), count, tmp_path)
        Database.open(url).close()

        assert _postgres_schema(url) == wanted, f"from {MIGRATIONS[count - 1].name}"
    empty = postgres.database()
    made = connect(empty)
    with made.bind_ctx(models.ALL):
        made.create_tables(models.ALL)
    made.close()
    assert {
        row for row in wanted if row[0] != "schema_migration" and "schema_migration" not in row[1]
    } == _postgres_schema(empty)


def _schema(path: Path) -> dict[str, Any]:
    """Return each table's columns (in whatever order: a column that came later stands last) and each index's text."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        columns = 'SELECT name, type, "notnull", pk FROM pragma_table_info(?)'
        return {
            name: set(connection.execute(columns, (name,))) if kind == "table" else sql
            for kind, name, sql in rows
            if "migration" not in name
        }


def _migrate(database: Any, count: int, folder: Path) -> None:
    """Bring an empty database to where the first `count` migrations lead."""
    some = folder / f"migrations-{database.__class__.__name__}-{count}"
    some.mkdir()
    for file in MIGRATIONS[:count]:
        shutil.copy(file, some)
    untyped: Any = Runner
    untyped(database, str(some)).up()
    database.close()


def _postgres_schema(url: str) -> set[tuple[str, ...]]:
    """Return columns as (table, column, type, nullable), and indexes as (table, name and columns)."""
    columns = "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns WHERE table_schema = 'public'"
    indexes = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    with psycopg.connect(url) as connection:
        return {tuple(row) for query in (columns, indexes) for row in connection.execute(query).fetchall()}


def test_a_note_outside_of_a_transaction_is_a_fault() -> None:
    with pytest.raises(RuntimeError):
        note("job", "id", 1)


def test_a_listener_that_fails_harms_nobody(database_url: str) -> None:
    database = Database.open(database_url)
    heard: list[Note] = []

    def broken(_: object) -> None:
        raise OSError

    database.subscribe(broken)
    database.subscribe(heard.extend)
    try:
        database.call(note, "job", "id", 7)
    finally:
        database.close()
    assert heard == [Note("job", "id", 7)]


@given(
    st.datetimes(
        min_value=datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis wants bounds without a zone
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001 - likewise
    ),
    st.integers(-12, 12),
)
def test_times_come_back_as_the_same_instant(naive: datetime, hours: int) -> None:
    time = naive.replace(tzinfo=timezone(timedelta(hours=hours)))

    back = from_microseconds(to_microseconds(time))

    assert back == time
    assert back.tzinfo is UTC


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        to_microseconds(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


def test_a_group_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "GROUP_MAX", 3)
    database = Database.open(database_url)
    sizes: list[int] = []
    database.subscribe(lambda notes: sizes.append(len(notes)))
    gate = threading.Event()
    try:
        blocker = threading.Thread(target=database.call, args=(gate.wait,))
        blocker.start()
        callers = [threading.Thread(target=database.call, args=(note, "job", str(n))) for n in range(8)]
        for one in callers:
            one.start()
        gate.set()
        for one in (blocker, *callers):
            one.join()
    finally:
        database.close()

    assert sum(sizes) == 8
    assert max(sizes) <= 3
