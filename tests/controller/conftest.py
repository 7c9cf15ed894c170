"""What the controller's tests share: a database of each kind, and a world on it.

Tests that take `world` or `database_url` run twice, on SQLite and on a real PostgreSQL. Which do: all that try what is kept and
who gets what (jobs, leases, sessions, catalog, stale work, enrollment, secrets) and all of `db/`. Not twice: the pure rules, which see no
database, and what lies above these functions (services over gRPC, bmctl, whole paths), which reaches the database through them alone.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.db.database import Database
from tests.controller.world import World

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=DATABASES)
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
