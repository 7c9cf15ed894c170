"""The one interface to every storage, and the rules that hold on all of them.

A storage holds objects under names: relative paths of `/`-separated parts made of `[A-Za-z0-9._-]`, no part `.` or `..`.
No object is ever rewritten, and an object is under its final name either whole or not at all (on a backend that cannot
promise this by itself, the class in its file does so by a temporary name ending in `.part`, which `list` leaves out;
`check_name` refuses that ending, so a finished object never hides there).
What a backend can do beyond that is data (`Abilities`); callers adapt to the data, never to the type.
"""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from engine.errors import InvalidName, ObjectTruncated, StorageError

NAME_BYTES_MAX = 512
SMALL_BYTES_MAX = 64 << 20  # what `get` may return: manifests of disks with very many segments stay far below
PART_SUFFIX = ".part"
Buffer: TypeAlias = bytes | bytearray | memoryview
# File systems end at 255 bytes a part; the rest is room for what `part_name` adds.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_OWN_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.([0-9a-f]{12}|[0-9]+\.lock)\.part")
LOOSE_FOLDERS = ("", "keys", "test")  # no attempt owns what a killed writer leaves in them, so no sweep comes by


def is_name(name: str) -> bool:
    """Tell whether `name` is a valid name of a finished object, or of a folder of them. Source: FORMAT.md, "Names"."""
    return (
        len(name) <= NAME_BYTES_MAX
        and not name.endswith(PART_SUFFIX)
        and all(_PART.fullmatch(part) for part in name.split("/"))
    )


def check_name(name: str) -> str:
    """Return `name` if `is_name` accepts it, else raise InvalidName."""
    if not is_name(name):
        raise InvalidName(storage="", step="name", name=name)
    return name


def part_name(name: str) -> str:
    """Return a temporary name beside `name` that no other writer has: two may write the same object, one will win."""
    return f"{name}.{os.urandom(6).hex()}{PART_SUFFIX}"


def is_own_part(name: str) -> bool:
    """Tell whether a name, without its folder, is one that `part_name` or a lock of ours makes: a stranger's `.part` is none."""
    return _OWN_PART.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a backend can do beyond the common rules."""

    atomic_rename: bool
    exclusive_create: bool
    resume: bool
    usage: bool
    bind_address: bool
    range_read: bool = True
    server_side_copy: bool = False
    object_lock: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing; `modified_time` is Unix seconds on the storage's clock, 0 where unknown."""

    name: str
    size_bytes: int
    modified_time: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Room on the storage as its file system tells it."""

    total_bytes: int
    free_bytes: int


class Sink(Protocol):
    """An object being written, from `Storage.create`."""

    def write(self, data: Buffer) -> None:
        """Append all of `data`. One thread at a time. The buffer may be reused as soon as the call returns."""


class Bucket(Protocol):
    """What grants the bytes of a limited upload; `engine.throttle` has the real one. Threads may share it."""

    def portions(self, total: int, bytes_max: int) -> Iterator[int]:
        """Yield sizes that sum to `total`, each when it may be sent; raises what ends the wait on a cancel."""


class ObjectReader(ABC):
    """An object being read in ranges, from `Storage.open`. Threads may share it; calls may then wait for each other."""

    size_bytes: int

    @abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises ObjectTruncated if the object ends before."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target`, bytes that can be written to, from `offset`; what is in it after a failure means nothing.

        A thread that uses the same memory again and again needs no new pages for what it reads.
        Raises what `read_at` does.
        """
        data = self.read_at(offset, len(target))
        if len(data) != len(target):
            raise ObjectTruncated(storage="", step="read", name="", end=offset + len(data), wanted=offset + len(target))
        target[:] = data

    @abstractmethod
    def close(self) -> None: ...


class Storage(ABC):
    """An open connection to a storage. All methods may be called from any thread; calls may wait for each other."""

    abilities: Abilities
    label: str  # for messages: type and place, never a secret
    host_key: str = ""  # what an SSH server showed, `type base64`: to be pinned by who had none; "" elsewhere
    hints: tuple[str, ...] = ()  # sentences for who sets this storage up, where another way would serve better

    @abstractmethod
    def create(self, name: str, size_hint: int = 0) -> AbstractContextManager[Sink]:
        """Begin the object `name` (`with` block): whole, durable and visible when the block succeeds, no trace when it fails.

        `size_hint` is about how many bytes will come, 0 where nobody knows; it may be wrong, and then costs speed or memory
        alone. Raises ObjectExists if the name is taken, at the latest when the block ends. Without the ability
        `exclusive_create` the storage can only look, then write: of two writers that end at the same instant the later one wins.
        """

    @abstractmethod
    def open(self, name: str) -> ObjectReader:
        """Open an object for ranged reads; the caller closes it. Raises ObjectNotFound."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return an object's size in bytes as the storage tells it now. Raises ObjectNotFound."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every object whose name begins with the folder `prefix`, at any depth, in no special order.

        `prefix` is "" or a name without a trailing slash; a folder that does not exist yields nothing. Names that are not
        ours (see `check_name`) and unfinished `.part` objects are left out.
        """

    @abstractmethod
    def folders(self, prefix: str = "") -> Iterator[str]:
        """Yield the names (one part each) of the folders directly in the folder `prefix`, in no special order.

        One request where `list` asks once for every folder at any depth. Names that are not ours are left out. A folder
        may turn out to hold nothing, or nothing finished.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, and the folders that become empty. An object that is not there is no error."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """Return the room on the storage, or None where the backend cannot tell."""

    @abstractmethod
    def interrupt(self) -> None:
        """Make blocked calls of all threads end at once with StorageUnreachable, for a cancel. The storage is then dead."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        """Remove everything below the folder `prefix`, unfinished `.part` objects included, but the objects named in `keep`."""

    def remove_stale(self, age_seconds: float, *, dry_run: bool = False) -> Sequence[str]:
        """Give up unfinished uploads that nothing came to for so long, where no sweep of a backup's folder finds them; return their names.

        `dry_run` only finds them. Nothing is done that `sweep` of a folder would not do for the uploads in it.
        """
        latest = time.time() - age_seconds
        found = [one for folder in LOOSE_FOLDERS for one in self.parts(folder)]
        names = sorted(one.name for one in found if 0 < one.modified_time < latest)
        for name in names if not dry_run else ():
            self.remove_part(name)
        return names

    def parts(self, folder: str) -> Sequence[Entry]:  # noqa: ARG002  # buckets have none
        """Return what unfinished writes of ours have left directly in `folder`, with its time; see `is_own_part`."""
        return ()

    def remove_part(self, name: str) -> None:
        """Remove one of `parts`; one that is not there is no error."""
        raise NotImplementedError(name)  # who has parts removes them

    def pace(self, bucket: Bucket) -> bool:  # noqa: ARG002  # few send late
        """Take every byte of uploads from `bucket` when it leaves this host, from now on; False where `write` sends it at once."""
        return False

    def put(self, name: str, data: bytes) -> None:
        """Write a small object whole. Raises ObjectExists if the name is taken."""
        with self.create(name, len(data)) as sink:
            sink.write(data)

    def get(self, name: str, limit: int = SMALL_BYTES_MAX) -> bytes:
        """Return a small object whole. Raises ObjectNotFound, and ObjectTruncated when it is larger than `limit` or ends early."""
        reader = self.open(name)
        try:
            size = reader.size_bytes
            if size < 0:
                raise StorageError(storage=self.label, step=f"read {name}", detail=f"is said to have {size} bytes")
            if size > limit:
                raise ObjectTruncated(storage=self.label, step="read", name=name, end=limit, wanted=size)
            data = reader.read_at(0, size)
            if len(data) != size:
                raise ObjectTruncated(storage=self.label, step="read", name=name, end=len(data), wanted=size)
            return data
        finally:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
