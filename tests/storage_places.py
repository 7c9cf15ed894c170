"""Where a storage under test keeps its things, looked at past the interface.

    TestLocal, TestSftp …  ──►  FolderPlace   files below a folder of this machine, whoever serves them
    TestS3                 ──►  its own Place   a bucket

The contract (`storage_contract.py`) opens a Place, and looks below the interface only where the interface must not tell:
at unfinished uploads, and to plant what a hostile neighbor could leave there. Beyond `spec` and `where` a Place supplies
`files`, `plant`, `plant_unfinished` and `truncate`; what else it has is told by methods with a harmless default.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.spec import StorageSpec
from engine.storage.base import Storage
from engine.storage.open import open_storage

OUTSIDE = "outside"  # a folder beside the storage's, which nothing may touch


class Place(ABC):
    """A storage to test: `spec` opens it, and `where` is what its label must say of where it is."""

    spec: StorageSpec
    where: str
    cut: Callable[[], object] | None = None
    """Ends every connection to the storage, which takes new ones at once; None where there are no connections."""

    def open(self) -> Storage:
        return open_storage(self.spec)

    @abstractmethod
    def files(self) -> Sequence[str]:
        """Return the name of every object below the storage's root, sorted; unfinished uploads too, under any other name."""

    @abstractmethod
    def plant(self, name: bytes, data: bytes = b"?") -> None:
        """Write an object past the interface, under any name that the place itself can hold (others: do nothing)."""

    @abstractmethod
    def plant_unfinished(self, name: str) -> None:
        """Leave what a killed writer of the object `name` leaves."""

    @abstractmethod
    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut an object past the interface."""

    def traces(self) -> Sequence[str]:
        """Return `files`, and empty folders where there can be such."""
        return self.files()

    def plant_odd(self, folder: str) -> Sequence[str]:
        """Leave in `folder` ("" for the root) what is no object, and return the names: links, pipes, where there can be such."""
        return ()

    def outside_is_whole(self) -> bool:
        """Tell whether what `plant_odd` led to is untouched."""
        return True

    def total_bytes(self) -> int:
        """Return the size of what `usage` tells of, for a storage with that ability."""
        raise NotImplementedError


@dataclass(frozen=True)
class FolderPlace(Place):
    """A storage whose objects are files below `folder` of this machine."""

    spec: StorageSpec
    folder: Path
    cut: Callable[[], object] | None = None

    @property
    def where(self) -> str:  # type: ignore[override]  # a property is as good as a field to who reads it
        return str(self.folder)

    def files(self) -> list[str]:
        return sorted(self._name(path) for path in self.folder.rglob("*") if not path.is_dir())

    def traces(self) -> list[str]:
        assert self.folder.is_dir(), "the root stays"
        return sorted(self._name(path) for path in self.folder.rglob("*"))

    def plant(self, name: bytes, data: bytes = b"?") -> None:
        if b"\0" in name or {b"", b".", b".."} & set(name.split(b"/")):
            return
        path = self.folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def plant_unfinished(self, name: str) -> None:
        self.plant(f"{name}.abc.part".encode(), b"half")

    def truncate(self, name: str, size_bytes: int) -> None:
        os.truncate(self.folder / name, size_bytes)

    def plant_odd(self, folder: str) -> list[str]:
        outside = self.folder.parent / OUTSIDE
        outside.mkdir(exist_ok=True)
        (outside / "kept").write_bytes(b"kept")
        beside = self.folder / folder
        (beside / "link").symlink_to(outside / "kept")
        (beside / "door").symlink_to(outside)
        (beside / "loop").symlink_to(self.folder)
        os.mkfifo(beside / "pipe")
        return [f"{folder}/{name}".lstrip("/") for name in ("link", "door", "loop", "pipe")]

    def outside_is_whole(self) -> bool:
        outside = self.folder.parent / OUTSIDE
        return [path.name for path in outside.iterdir()] == ["kept"] and (outside / "kept").read_bytes() == b"kept"

    def total_bytes(self) -> int:
        status = os.statvfs(self.folder)
        return status.f_blocks * status.f_frsize

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))
