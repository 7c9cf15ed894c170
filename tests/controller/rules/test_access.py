"""Access levels: the whole table, and every way to come by one."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from controller.rules.access import DEFAULT_LEVEL, INHERIT, LEVELS, Act, Level, Lock, allows, resolve

ACTS: tuple[Act, ...] = ("scheduled", "view", "restore", "backup")
NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.feature("A1")
@pytest.mark.parametrize(
    ("level", "allowed"),
    [
        ("disabled", ""),
        ("scheduled_only", "scheduled"),
        ("view_and_restore", "scheduled view restore"),
        ("full_access", "scheduled view restore backup"),
        ("manual_only", "view restore backup"),
    ],
)
def test_what_each_level_allows(level: Level, allowed: str) -> None:
    assert [act for act in ACTS if allows(level, act)] == allowed.split()


@pytest.mark.feature("A2")
def test_the_nearest_word_counts() -> None:
    words = (INHERIT, *LEVELS)
    for server, package, schedule in product(words, words, words):
        found = resolve(server, package, schedule)
        origins = [("server", server), ("package", package), ("schedule", schedule), ("default", DEFAULT_LEVEL)]
        expected = next((origin, level) for origin, level in origins if level)

        assert (found.origin, found.level) == expected


def test_a_word_that_is_no_level_is_a_fault_and_not_a_level() -> None:
    with pytest.raises(ValueError, match="fullaccess"):
        resolve("fullaccess", "", "")


@pytest.mark.feature("X15")
def test_a_lock_ends_at_its_time() -> None:
    assert Lock("rescue", NOW).holds(NOW + timedelta(days=3650))
    until = Lock("rescue", NOW, NOW + timedelta(hours=1))
    assert until.holds(NOW + timedelta(minutes=59))
    assert not until.holds(NOW + timedelta(hours=1))
