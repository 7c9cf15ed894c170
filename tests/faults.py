"""A storage that fails on demand, wrapped around a real one.

    storage = FaultyStorage(LocalStorage(path)).fail("write", after_bytes=3 * MIB)
    storage.full(after_bytes=10 * MIB)                # ENOSPC once that much has been written
    storage.flip("*/0000.data", offset=1000)          # one bit of what is read there is wrong
    storage.truncate("*/0000.data", end=500)          # the object ends there
    storage.vanish("*/manifest.json")                 # it is not there any more
    storage.lose("*/0000.data")                       # its write succeeds, and nothing appears
    storage.claim("*/0000.data", size_bytes=-1)       # it is said to have so many bytes
    storage.stretch("*.data", by=-1)                  # every read of it returns a byte less
    storage.hide("*/backup.json")                     # no listing has it, though it can be opened
    storage.also("../x", size_bytes=5)                # every listing has that name too
    storage.also_folders("..")
    gate = storage.hold("read")                       # the next reads wait until gate.open() or an interrupt

`name` patterns are those of fnmatch. Faults add up; those of one operation are looked at in the order in which they were
set. `calls` records every call as (operation, name), so that a test can say in which order things happened. Thread-safe.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Literal, Self, TypeAlias

from engine.errors import EngineError, ObjectNotFound, ObjectTruncated, StorageFull, StorageUnreachable
from engine.storage.base import Buffer, Entry, ObjectReader, Sink, Storage, Usage

Operation: TypeAlias = Literal[
    "create", "write", "commit", "open", "read", "size", "list", "delete", "sweep", "remove_stale", "usage"
]
ErrorMaker: TypeAlias = Callable[[str, str], EngineError]  # of the storage's label and the object's name
WAIT_SECONDS_MAX = 60.0


@dataclass
class _Fault:
    operation: Operation
    name: str
    after_bytes: int
    after_calls: int
    times: int | None
    error: ErrorMaker


class Gate:
    """Holds calls back. `reached` is set as soon as one waits."""

    def __init__(self, operation: Operation, name: str) -> None:
        self.reached = threading.Event()
        self.operation, self.name = operation, name
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def wait(self) -> None:
        self.reached.set()
        if not self._opened.wait(WAIT_SECONDS_MAX):
            raise TimeoutError(f"nobody opened the gate at {self.operation} of {self.name}")


def unreachable(label: str, name: str) -> EngineError:
    return StorageUnreachable(storage=label, step=f"a fault at {name}", detail="made by a test")


def full(label: str, name: str) -> EngineError:
    return StorageFull(storage=label, step="write", name=name)


class FaultyStorage(Storage):
    """Passes everything on to `inner`, but for the faults set."""

    def __init__(self, inner: Storage) -> None:
        self.abilities, self.label, self.host_key = inner.abilities, inner.label, inner.host_key
        self.calls: list[tuple[Operation, str]] = []
        self.written_bytes = 0
        self._inner = inner
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._gates: list[Gate] = []
        self._flips: list[tuple[str, int, int]] = []
        self._ends: list[tuple[str, int]] = []
        self._vanished: list[str] = []
        self._lost: list[str] = []
        self._claims: list[tuple[str, int]] = []
        self._stretches: list[tuple[str, int]] = []
        self._hidden: list[str] = []
        self._more: list[Iterable[Entry]] = []
        self._more_folders: list[str] = []
        self._interrupted = False

    # ---- faults ---------------------------------------------------------------------------------------------------------

    def fail(
        self,
        operation: Operation,
        *,
        name: str = "*",
        after_bytes: int = 0,
        after_calls: int = 0,
        times: int | None = None,
        error: ErrorMaker = unreachable,
    ) -> Self:
        """Let calls of `operation` fail, `times` times or for good, the first `after_calls` of them excepted.

        A "write" is let through up to `after_bytes`, counted over all matching objects from now on; the byte after them
        fails, so part of a write may arrive. A "commit" is the end of a `create` block.
        """
        self._faults.append(_Fault(operation, name, after_bytes, after_calls, times, error))
        return self

    def full(self, *, after_bytes: int = 0, name: str = "*") -> Self:
        """Let the disk be full after so many more bytes."""
        return self.fail("write", name=name, after_bytes=after_bytes, error=full)

    def flip(self, name: str, *, offset: int, mask: int = 1) -> Self:
        """Change the byte at `offset` by XOR with `mask`, whoever reads it; what lies on the storage stays as it is."""
        self._flips.append((name, offset, mask))
        return self

    def truncate(self, name: str, *, end: int) -> Self:
        """Let the object end at byte `end`, in `size`, `list` and for every reader."""
        self._ends.append((name, end))
        return self

    def vanish(self, name: str) -> Self:
        """Let the object be gone for whoever looks, lists or opens it; a reader that has it open goes on."""
        self._vanished.append(name)
        return self

    def lose(self, name: str) -> Self:
        """Let the object's writing seem to succeed, though nothing is kept of it."""
        self._lost.append(name)
        return self

    def claim(self, name: str, *, size_bytes: int) -> Self:
        """Say of the object that it has `size_bytes`, in `size`, `list` and `size_bytes` of readers; reads go by what is there."""
        self._claims.append((name, size_bytes))
        return self

    def stretch(self, name: str, *, by: int) -> Self:
        """Let every read of the object return `by` bytes more than were asked for, or less."""
        self._stretches.append((name, by))
        return self

    def hide(self, name: str) -> Self:
        """Leave the object out of listings; it can be opened as before."""
        self._hidden.append(name)
        return self

    def also(self, *objects: str, size_bytes: int = 1) -> Self:
        """Let every listing, whatever its prefix, have these names too, as they are."""
        return self.also_listed([Entry(name, size_bytes, 0.0) for name in objects])

    def also_listed(self, entries: Iterable[Entry]) -> Self:
        """Let every listing have these entries too; they may be without end if they can be iterated again."""
        self._more.append(entries)
        return self

    def also_folders(self, *folders: str) -> Self:
        """Let `folders` have these too, whatever its prefix, as they are."""
        self._more_folders += folders
        return self

    def hold(self, operation: Operation, *, name: str = "*") -> Gate:
        """Let calls of `operation` wait until the gate is opened; `interrupt` opens it and makes them fail."""
        gate = Gate(operation, name)
        self._gates.append(gate)
        return gate

    def heal(self) -> Self:
        """Forget every fault; gates open."""
        for faults in (self._faults, self._flips, self._ends, self._vanished, self._lost):
            faults.clear()
        for lies in (self._claims, self._stretches, self._hidden, self._more, self._more_folders):
            lies.clear()
        for gate in self._gates:
            gate.open()
        self._gates.clear()
        return self

    # ---- the storage ----------------------------------------------------------------------------------------------------

    def create(self, name: str, size_hint: int = 0) -> "_FaultyUpload":
        self.strike("create", name)
        return _FaultyUpload(self, self._inner.create(name, size_hint), name, lost=_matches(name, self._lost))

    def open(self, name: str) -> ObjectReader:
        self.strike("open", name)
        self._miss("open", name)
        return _FaultyReader(self, self._inner.open(name), name)

    def size(self, name: str) -> int:
        self.strike("size", name)
        self._miss("look at", name)
        return self.end_of(name, self._inner.size(name))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self.strike("list", prefix)
        for entry in self._inner.list(prefix):
            if not _matches(entry.name, [*self._vanished, *self._hidden]):
                yield Entry(entry.name, self.end_of(entry.name, entry.size_bytes), entry.modified_time)
        for more in self._more:
            yield from more

    def folders(self, prefix: str = "") -> Iterator[str]:
        self.strike("list", prefix)
        yield from self._inner.folders(prefix)
        yield from self._more_folders

    def delete(self, name: str) -> None:
        self.strike("delete", name)
        self._inner.delete(name)

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        self.strike("sweep", prefix)
        self._inner.sweep(prefix, keep)

    def remove_stale(self, age_seconds: float, *, dry_run: bool = False) -> Sequence[str]:
        self.strike("remove_stale", "")
        return self._inner.remove_stale(age_seconds, dry_run=dry_run)

    def usage(self) -> Usage | None:
        self.strike("usage", "")
        return self._inner.usage()

    def interrupt(self) -> None:
        self._interrupted = True
        self._inner.interrupt()
        for gate in self._gates:
            gate.open()

    def close(self) -> None:
        self._inner.close()

    # ---- used by the readers and uploads below --------------------------------------------------------------------------

    def strike(self, operation: Operation, name: str) -> None:
        """Record a call, hold it at a gate, and raise the first fault that is due."""
        with self._lock:
            self.calls.append((operation, name))
        for gate in list(self._gates):
            if gate.operation == operation and fnmatchcase(name, gate.name):
                gate.wait()
        if self._interrupted:
            raise unreachable(self.label, name)
        with self._lock:
            for fault in self._due(operation, name):
                if fault.after_calls > 0:
                    fault.after_calls -= 1
                elif fault.after_bytes == 0:  # one that counts bytes fails in the middle of a write, see `room`
                    raise self._spend(fault, name)

    def room(self, name: str, wanted: int) -> tuple[int, EngineError | None]:
        """Return how many of `wanted` bytes may be written to `name` now, and the error that comes after them."""
        with self._lock:
            allowed, failing = wanted, None
            counting = [fault for fault in self._due("write", name) if fault.after_bytes > 0]
            for fault in counting:
                if fault.after_bytes < allowed:
                    allowed, failing = fault.after_bytes, fault
            for fault in counting:
                fault.after_bytes -= allowed  # at 0 the next write fails as a whole
            self.written_bytes += allowed
            return allowed, self._spend(failing, name) if failing else None

    def flipped(self, name: str, offset: int, data: bytes) -> bytes:
        changed = bytearray(data)
        for pattern, position, mask in self._flips:
            if fnmatchcase(name, pattern) and offset <= position < offset + len(data):
                changed[position - offset] ^= mask
        return bytes(changed)

    def stretched(self, name: str, data: bytes) -> bytes:
        for pattern, by in self._stretches:
            if fnmatchcase(name, pattern):
                data = data + bytes(by) if by > 0 else data[:by]
        return data

    def end_of(self, name: str, size: int) -> int:
        """Return the size that the object is said to have; `size` is its true one."""
        size = next((claimed for pattern, claimed in self._claims if fnmatchcase(name, pattern)), size)
        return self.cut_of(name, size)

    def cut_of(self, name: str, size: int) -> int:
        """Return where the object of `size` bytes ends."""
        return min([size, *(end for pattern, end in self._ends if fnmatchcase(name, pattern))])

    def _due(self, operation: Operation, name: str) -> Iterator[_Fault]:
        for fault in self._faults:
            if fault.operation == operation and fault.times != 0 and fnmatchcase(name, fault.name):
                yield fault

    def _spend(self, fault: _Fault, name: str) -> EngineError:
        if fault.times is not None:
            fault.times -= 1
        return fault.error(self.label, name)

    def _miss(self, step: str, name: str) -> None:
        if _matches(name, self._vanished):
            raise ObjectNotFound(storage=self.label, step=step, name=name)


class _FaultyReader(ObjectReader):
    def __init__(self, storage: FaultyStorage, inner: ObjectReader, name: str) -> None:
        self._storage, self._inner, self._name = storage, inner, name
        self.size_bytes = storage.end_of(name, inner.size_bytes)

    def read_at(self, offset: int, length: int) -> bytes:
        self._storage.strike("read", self._name)
        end = self._storage.cut_of(self._name, self._inner.size_bytes)
        if offset + length > end:
            raise ObjectTruncated(
                storage=self._storage.label, step="read", name=self._name, end=end, wanted=offset + length
            )
        data = self._storage.flipped(self._name, offset, self._inner.read_at(offset, length))
        return self._storage.stretched(self._name, data)

    def close(self) -> None:
        self._inner.close()


class _FaultyUpload:
    def __init__(self, storage: FaultyStorage, block: AbstractContextManager[Sink], name: str, *, lost: bool) -> None:
        self._storage, self._name, self._lost = storage, name, lost
        self._block = block
        self._sink: Sink | None = None

    def __enter__(self) -> Self:
        self._sink = self._block.__enter__()
        return self

    def write(self, data: Buffer) -> None:
        assert self._sink is not None, "written outside of the block"
        view = memoryview(data).cast("B")
        self._storage.strike("write", self._name)
        allowed, error = self._storage.room(self._name, len(view))
        self._sink.write(view[:allowed])
        if error is not None:
            raise error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._block.__exit__(kind, error, trace)
        try:
            self._storage.strike("commit", self._name)
        except BaseException as failure:
            self._block.__exit__(type(failure), failure, failure.__traceback__)
            raise
        if self._lost:
            discarded = InterruptedError()  # a failed block leaves no trace: that is what it is for here
            self._block.__exit__(InterruptedError, discarded, None)
            return None
        return self._block.__exit__(None, None, None)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
