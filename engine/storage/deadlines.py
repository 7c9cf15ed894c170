"""A storage whose calls may hang for ever, as on a network mount whose server is gone, held to deadlines.

    caller ──begin──► helper thread ── system call ──► the inner storage
       └── waits for the end, the deadline, or an interrupt; whichever comes first

Nothing ends a system call that the kernel waits in. So each runs in a thread of our own: when its time is over, the caller
goes on with StorageUnreachable, the thread is left behind, and the storage is dead: every later call fails at once. Python ends
over such a thread; the kernel lets its process go as soon as the call itself can be killed (NFS, CIFS and FUSE mounts can).

Writes are gathered and handed over without waiting, one ahead, so that a thread's hand-over costs an upload next to nothing:
memcpy of what is written, and 1 MiB of memory. A failed write is then reported by the next one, or at the end of the block.
"""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from engine.errors import StorageError, StorageUnreachable
from engine.storage.base import Buffer, Entry, ObjectReader, Sink, Storage, Usage
from engine.units import MIB

log = logging.getLogger(__name__)
T = TypeVar("T")

_GATHER_BYTES = MIB // 2
_PAGE_ENTRIES = 256  # of a listing, in one call
_GRACE_SECONDS = 2.0  # for tidying up on a storage that was interrupted or is dead


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a call may take, in seconds: opening the storage, any call, and one that flushes a disk or walks a tree.

    A long one must also let another call through every `call_seconds`: else nobody is there.
    """

    open_seconds: float = 30  # a NAS whose disks sleep
    call_seconds: float = 120
    long_seconds: float = 900


BRIEF = Deadlines(open_seconds=8, call_seconds=8, long_seconds=16)  # somebody waits for us to end


class _Call(Generic[T]):
    """One call on its way: `over` is set when it ended, or when nobody shall wait for it any more."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.over = threading.Event()
        self.ended = False
        self.late: Callable[[], object] | None = None  # what tidies up if it ends after all, when nobody waits any more
        self._work = work
        self._value: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:
            self._error = error
        self.ended = True

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value[0]


class Guard:
    """Runs calls with a deadline. Any thread may use it; `interrupt` wakes all that wait."""

    def __init__(self, label: str, deadlines: Deadlines) -> None:
        self.label, self.deadlines = label, deadlines
        self.dead = ""  # why
        self.probe: Callable[[], object] = lambda: None  # something short to ask the storage while a long call runs
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Call[Any] | None]] = []
        self._running: set[_Call[Any]] = set()
        self._closed = False

    def call(
        self, step: str, work: Callable[[], T], seconds: float = 0, late: Callable[[T], object] | None = None
    ) -> T:
        """Do `work` and return its result; one that comes too late goes to `late`."""
        call = self.begin(step, work)
        try:
            return self.finish(step, call, seconds)
        except StorageUnreachable:
            if late is not None:
                self.abandon(call, lambda: late(call.result()))
            raise

    def abandon(self, call: _Call[Any], late: Callable[[], object]) -> None:
        """Let a call that is still under way be followed by `late`, in its own thread."""
        with self._lock:
            if call in self._running:
                call.late = late

    def begin(self, step: str, work: Callable[[], T], *, although_dead: bool = False) -> _Call[T]:
        """Hand `work` to a helper; `finish` waits for it. Raises StorageUnreachable if the storage is dead."""
        call = _Call(work)
        with self._lock:
            if self.dead and not although_dead:
                raise self.unreachable(step)
            self._running.add(call)
            helper = self._idle.pop() if self._idle else None
        if helper is None:
            helper = queue.SimpleQueue()
            threading.Thread(target=self._help, args=(helper,), name="storage-call", daemon=True).start()
        helper.put(call)
        return call

    def finish(self, step: str, call: _Call[T], seconds: float = 0) -> T:
        """Return what the call returned, or raise what it raised; after `seconds`, call_seconds for 0, StorageUnreachable."""
        limit = seconds or self.deadlines.call_seconds
        begin = time.monotonic()
        while not call.over.wait(min(self.deadlines.call_seconds, begin + limit - time.monotonic())):
            spent = time.monotonic() - begin
            if spent >= limit or not self._answers():
                self.die(f"no answer for {spent:.0f} seconds")
                break
        if not call.ended:
            raise self.unreachable(step)
        return call.result()

    def die(self, why: str) -> None:
        """Let every call fail from now on, those under way included."""
        with self._lock:
            self.dead = self.dead or why
            for call in self._running:
                call.over.set()

    def unreachable(self, step: str) -> StorageUnreachable:
        return StorageUnreachable(storage=self.label, step=step, detail=self.dead)

    def close(self) -> None:
        """Let the helpers end, each when its call does."""
        with self._lock:
            self._closed = True
            helpers, self._idle = self._idle, []
        for helper in helpers:
            helper.put(None)

    def _answers(self) -> bool:
        if self.dead:
            return False
        sign = self.begin("look for a sign of life", self.probe)
        return sign.over.wait(self.deadlines.call_seconds) and sign.ended

    def _help(self, waiting: "queue.SimpleQueue[_Call[Any] | None]") -> None:
        while (call := waiting.get()) is not None:
            call.run()
            with self._lock:
                self._running.discard(call)
            if call.late is not None:
                with suppress(Exception):  # nobody is there to hear of it
                    call.late()
            with self._lock:
                if not self._closed:
                    self._idle.append(waiting)
                closed = self._closed
            call.over.set()
            del call  # not kept alive by one who waits for the next
            if closed:
                return


class DeadlineStorage(Storage):
    """Every call goes to the storage that `make` opens, in a thread of ours and with a deadline. Closing it closes that one.

    Raises what `make` raises, and StorageUnreachable when it does not end.
    """

    def __init__(self, label: str, make: Callable[[], Storage], deadlines: Deadlines | None = None) -> None:
        self._guard = Guard(label, deadlines or Deadlines())
        try:
            self._inner = inner = self._guard.call("open", make, self._guard.deadlines.open_seconds, Storage.close)
        except BaseException:
            self._guard.close()
            raise
        self._guard.probe = inner.usage
        self.abilities, self.label = inner.abilities, inner.label
        self.host_key, self.hints = inner.host_key, inner.hints

    def create(self, name: str, size_hint: int = 0) -> "_Upload":
        return _Upload(self._guard, self._inner.create(name, size_hint), name)

    def open(self, name: str) -> "_Reader":
        reader = self._guard.call(f"open {name}", lambda: self._inner.open(name), late=lambda late: late.close())
        return _Reader(self._guard, reader, name)

    def size(self, name: str) -> int:
        return self._guard.call(f"look at {name}", lambda: self._inner.size(name))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return self._pages(f"list {prefix}".rstrip(), self._inner.list(prefix))

    def folders(self, prefix: str = "") -> Iterator[str]:
        return self._pages(f"list {prefix}".rstrip(), self._inner.folders(prefix))

    def delete(self, name: str) -> None:
        self._guard.call(f"delete {name}", lambda: self._inner.delete(name), self._guard.deadlines.long_seconds)

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        self._guard.call(f"sweep {prefix}", lambda: self._inner.sweep(prefix, keep), self._guard.deadlines.long_seconds)

    def remove_stale(self, age_seconds: float, *, dry_run: bool = False) -> Sequence[str]:
        def remove() -> Sequence[str]:
            return self._inner.remove_stale(age_seconds, dry_run=dry_run)

        return self._guard.call("look for unfinished uploads", remove, self._guard.deadlines.long_seconds)

    def usage(self) -> Usage | None:
        return self._guard.call("usage", self._inner.usage)

    def interrupt(self) -> None:
        self._guard.die("interrupted")
        self._inner.interrupt()

    def close(self) -> None:
        """Close the inner storage unless calls hang in it."""
        try:
            call = self._guard.begin("close", self._inner.close, although_dead=True)
            call.over.wait(_GRACE_SECONDS)
        finally:
            self._guard.close()

    def _pages(self, step: str, items: Iterator[T]) -> Iterator[T]:
        while page := self._guard.call(step, lambda: [*itertools.islice(items, _PAGE_ENTRIES)]):
            yield from page


class _Reader(ObjectReader):
    """A reader whose reads have a deadline; as many threads as the inner one allows."""

    def __init__(self, guard: Guard, inner: ObjectReader, name: str) -> None:
        self._guard, self._inner, self._name = guard, inner, name
        self.size_bytes = inner.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        return self._guard.call(f"read {self._name}", lambda: self._inner.read_at(offset, length))

    def read_into(self, offset: int, target: memoryview) -> None:
        # A read that nobody waits for any more may still come and write: the storage is dead by then, and so is its reader's work.
        self._guard.call(f"read {self._name}", lambda: self._inner.read_into(offset, target))

    def close(self) -> None:
        self._guard.begin("close", self._inner.close, although_dead=True).over.wait(_GRACE_SECONDS)


class _Upload:
    """A block of the inner storage: written to by one helper at a time, at most one write ahead of what was asked for."""

    def __init__(self, guard: Guard, block: AbstractContextManager[Sink], name: str) -> None:
        self._guard, self._block, self._name = guard, block, name
        self._sink: Sink | None = None
        # Of _GATHER_BYTES each once they are needed.
        self._gathering: mmap | None = None
        self._other: mmap | None = None
        self._gathered_bytes = 0
        self._writing: _Call[None] | None = None
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        begun = partial(self._block.__exit__, InterruptedError, None, None)
        self._sink = self._guard.call(f"create {self._name}", self._block.__enter__, late=lambda _: begun())
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            begin = self._gathered_bytes
            if self._gathering is None:
                self._gathering = mmap(-1, _GATHER_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)
            piece = view[: _GATHER_BYTES - begin]
            self._gathering[begin : begin + len(piece)] = piece
            self._gathered_bytes += len(piece)
            view = view[len(piece) :]
            if self._gathered_bytes == _GATHER_BYTES:
                self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard(kind, error)
            return
        try:
            self._flush()
            self._settle()
            commit = self._guard.begin(f"commit {self._name}", lambda: self._block.__exit__(None, None, None))
        except BaseException as failure:
            self._discard(type(failure), failure)
            raise
        self._guard.finish(f"commit {self._name}", commit, self._guard.deadlines.long_seconds)

    def _flush(self) -> None:
        """Hand over what was gathered. Its buffer is gathered into again only after the call ended, so never when that hangs."""
        self._settle()
        sink, full, count = self._sink, self._gathering, self._gathered_bytes
        assert sink is not None, "written outside of the block"
        self._gathering, self._other, self._gathered_bytes = self._other, full, 0
        if full is not None and count:
            data = memoryview(full)[:count]
            self._writing = self._guard.begin(f"write {self._name}", lambda: sink.write(data))

    def _settle(self) -> None:
        """Wait for the write under way. Whoever swallows the error of one gets it again: it makes no object."""
        if self._failed is not None:
            raise self._failed
        if self._writing is None:
            return
        try:
            self._guard.finish(f"write {self._name}", self._writing)
        except BaseException as error:
            self._failed = error
            raise
        self._writing = None

    def _discard(self, kind: type[BaseException], error: BaseException | None) -> None:
        """End the inner block as failed, unless a call of ours still hangs in it: then it is left to whoever cleans up later."""
        detail = ""
        if not self._guard.dead:
            with suppress(Exception):  # told before, or of no interest beside `error`
                self._settle()
        if self._writing is not None:
            self._guard.abandon(self._writing, lambda: self._block.__exit__(kind, error, None))
        if self._writing is None or self._writing.late is None:
            remove = self._guard.begin("remove", lambda: self._block.__exit__(kind, error, None), although_dead=True)
            remove.over.wait(_GRACE_SECONDS if self._guard.dead else self._guard.deadlines.call_seconds)
            try:
                if remove.ended:
                    remove.result()
                    return
            except StorageError as failure:
                detail = str(failure)
        log.warning(
            "unfinished object stays storage=%s name=%s error=%s",
            self._guard.label, self._name, detail or self._guard.dead or "no answer",
        )  # fmt: skip
