"""How much of the long tests a run does: a share of them, the same in every process, or everything with BM_KILL_POINTS=all.

A test that kills at each of many steps, or goes through many cases with real virtual servers, does every `n`th of them in `make
test`, and all of them in `make kill`. Which ones, its name decides: so many tests with one list of steps cover it together.
"""

import os
import zlib
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")


def share(cases: Sequence[T], name: str, n: int) -> Sequence[T]:
    """Return every `n`th of the cases of the test `name`, at least one of them."""
    if os.environ.get("BM_KILL_POINTS") == "all":
        return cases
    return cases[zlib.crc32(name.encode()) % min(n, len(cases)) :: n]


def kept(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return the tests that run: of the cases of one with `@pytest.mark.share(n)` every `n`th.

    Of a class with `@pytest.mark.share_class(n)`, whose tests run on another server in `make test` too, every `n`th test.
    """
    cases: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("share")
        name = item.nodeid.partition("[")[0] if mark else item.nodeid
        cases.setdefault((name, mark.args[0] if mark else 1), []).append(item)
    found = {item for (name, n), those in cases.items() for item in share(those, name, n)}
    classes: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in (one for one in items if one in found):
        if mark := item.get_closest_marker("share_class"):
            classes.setdefault((item.nodeid.rpartition("::")[0].partition("[")[0], mark.args[0]), []).append(item)
    dropped = {item for (name, n), those in classes.items() for item in set(those) - set(share(those, name, n))}
    return found - dropped
