"""Rounds: what is compared runs in turn, in one session, so that whatever else the machine does falls on all of it."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def alternate(what: str, rounds: int, *runs: Callable[[], T]) -> list[tuple[T, ...]]:
    """Run each of `runs` once to warm the page cache, then `rounds` times in turn; return the rounds' results.

    Every other round goes backwards: nobody is always first. Before each run the disk's own cache of unwritten pages is
    emptied, so that nobody waits for what another one wrote.
    """
    for run in runs:
        run()
    results = []
    for number in range(rounds):
        progress(f"{what}: round {number + 1} of {rounds}")
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        found: dict[int, T] = {}
        for position in order:
            os.sync()
            found[position] = runs[position]()
        results.append(tuple(found[position] for position in range(len(runs))))
    return results


def progress(line: str) -> None:
    """Say on stderr what is going on; stdout has figures only."""
    print(line, file=sys.stderr, flush=True)
