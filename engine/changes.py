"""Which extents of one disk a backup has to hold: all, what was recorded since its parent, or what changed since the chain's full.

full, copy      everything there is, data and zeros
incremental     recorded since the parent  +  cut off and grown back since (source/regrown.py)
differential    the same, and the extents of all points since the full (differential.py)
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from heapq import merge as merge_sorted
from typing import TYPE_CHECKING

from engine.differential import changed_since_full
from engine.extents import Extent
from engine.format.crypto import ServerKey
from engine.plan import Choice
from engine.source.regrown import DataEnd, Regrown
from engine.storage.base import Storage

if TYPE_CHECKING:
    from engine.format.manifest import DiskManifest
    from engine.source.nbd_disk import NbdDisk


class Changes:
    """What is to be stored of `disk` at its instant. Nothing is asked before it is needed."""

    def __init__(self, disk: "NbdDisk", choice: Choice, storage: Storage, key: ServerKey | None) -> None:
        self._disk = disk
        self._choice = choice
        self._storage = storage
        self._key = key
        self._seen = DataEnd()

    def everything(self) -> Iterable[Extent]:
        """Return all that the backup covers; of a full simply the disk."""
        if self._choice.parent is None:
            return (Extent(0, self._disk.size_bytes),)
        return self._since(self._choice.parent)

    def to_store(self) -> Iterator[Extent]:
        """Yield what the backup has to hold, ascending and disjoint, zeros marked."""
        parent = self._choice.parent
        return self._seen.follow(self._disk.extents() if parent is None else self._since(parent))

    def data_end(self) -> int | None:
        """Return where the disk's data ends at the instant, once all of `to_store` was taken; None if it is hard to tell."""
        kept = 0 if self._choice.parent is None else self._regrown.kept_end
        return self._disk.last_data(max(kept, self._seen.end))

    def _since(self, parent: "DiskManifest") -> Iterator[Extent]:
        recorded = merge_sorted(self._disk.extents(), self._regrown.extents, key=lambda extent: extent.start)
        if self._choice.type != "differential":
            return recorded
        return changed_since_full(recorded, self._storage, parent, self._key)

    @cached_property
    def _regrown(self) -> Regrown:
        parent = self._choice.parent
        assert parent is not None
        told = (parent.sealed or {}).get("data_end", "")
        exact = told.isascii() and told.isdigit() and int(told) <= parent.size_bytes
        return self._disk.regrown(int(told) if exact else parent.size_bytes, exact=exact)
