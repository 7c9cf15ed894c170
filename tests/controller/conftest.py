"""What the controller's tests share: a database of each kind, and a world on it.

Tests that take `world` or `database_url` can run on SQLite and on a real PostgreSQL. Those of ON_BOTH do so in every run: there the
databases could differ, in claims and conflicts (jobs, leases, slots, batches, turns), in order and uniqueness (events,
servers), in what a lost connection leaves. The others reach the database by the same few kinds of statement, and run on both when
BM_DATABASES is "all" (`make databases`): two minutes of a core would be much for each run. Pure rules see no database, and what lies
above (services over gRPC, bmctl, whole paths) reaches it through these functions alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.db.database import Database
from tests.controller.world import World

DATABASES = ("sqlite", "postgresql")
ON_BOTH = frozenset(
    {
        "test_backups", "test_batches", "test_bulk", "test_database", "test_happenings", "test_jobs", "test_postgres",
        "test_servers", "test_tick",
    }
)  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its databases."""
    if "database_url" not in metafunc.fixturenames:
        return
    both = os.environ.get("BM_DATABASES") == "all" or metafunc.module.__name__.rpartition(".")[2] in ON_BOTH
    metafunc.parametrize("database_url", DATABASES if both else DATABASES[:1], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without rows; for SQLite, of a file that is not there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/controller.db"
    url: str = request.getfixturevalue("postgres").emptied(migrate)
    return url


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    url = "" if database_url.startswith("sqlite") else database_url
    world = World.open(tmp_path / "controller", url=url)
    try:
        yield world
    finally:
        world.close()


def migrate(url: str) -> None:
    Database.open(url).close()
