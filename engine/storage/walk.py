"""The folders of a listing that are still to be asked for, on storages that list one folder at a time. Pure.

A server that lies may have folders without an end, each of them with more below. A repository's folders hold an object after a few
steps down, whichever way one goes; so many in a row without one, or waiting, no repository has.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from engine.errors import StorageError

BARREN_MAX = 100_000  # folders in a row without an object
WAITING_MAX = 2_000_000
SWEPT_MAX = 100_000  # folders removed at once
DEPTH_MAX = 100
T = TypeVar("T")


class Walk(Generic[T]):
    """Iterate over it, `add` what is found on the way, and tell it of each object (`found`). One thread.

    Raises StorageError, of the storage `label`, where there is no end to it.
    """

    def __init__(self, label: str, first: T) -> None:
        self._label, self._waiting = label, [first]
        self._barren = 0

    def __iter__(self) -> Iterator[T]:
        while self._waiting:
            self._barren += 1
            if self._barren > BARREN_MAX or len(self._waiting) > WAITING_MAX:
                many = f"{BARREN_MAX} folders without an object" if self._barren > BARREN_MAX else "folders without end"
                raise StorageError(storage=self._label, step="list", detail=f"it has {many}, as no repository has")
            yield self._waiting.pop()

    def add(self, folder: T) -> None:
        self._waiting.append(folder)

    def found(self) -> None:
        self._barren = 0


class SweepBudget:
    """How many folders, and how far down, the removal of the folder `top` may go."""

    def __init__(self, top: bytes) -> None:
        self._top, self._left = top, SWEPT_MAX

    def allows(self, folder: bytes) -> bool:
        """Tell whether one more folder may be gone into, and count it."""
        self._left -= 1
        return self._left >= 0 and folder[len(self._top) :].count(b"/") <= DEPTH_MAX
