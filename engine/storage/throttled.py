"""A storage whose uploads take turns at a token bucket (P8). Reads pass freely: the limit is one on uploads, never on a restore.

A storage that collects what is written and sends it later takes from the bucket itself, when bytes leave (`Storage.pace`).
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType

from engine.storage.base import Bucket, Buffer, Entry, ObjectReader, Sink, Storage, Usage
from engine.units import KIB

# A frame is up to 4 MiB; on a slow link it would hear of a new limit only seconds later. Smaller pieces keep it attentive.
PIECE_BYTES_MAX = 256 * KIB


class ThrottledStorage(Storage):
    """Every call goes to `inner`; the bytes of every sink go through `bucket` first. Closing it closes `inner`."""

    def __init__(self, inner: Storage, bucket: Bucket) -> None:
        self.abilities, self.label = inner.abilities, inner.label
        self.host_key, self.hints = inner.host_key, inner.hints
        self._inner, self._bucket = inner, bucket
        self._debts: deque[int] = deque()
        self._paced = inner.pace(bucket)

    def create(self, name: str, size_hint: int = 0) -> AbstractContextManager[Sink]:
        if self._paced:
            return self._inner.create(name, size_hint)
        return _ThrottledUpload(self._inner.create(name, size_hint), self._bucket, self._debts)

    def open(self, name: str) -> ObjectReader:
        return self._inner.open(name)

    def size(self, name: str) -> int:
        return self._inner.size(name)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return self._inner.list(prefix)

    def folders(self, prefix: str = "") -> Iterator[str]:
        return self._inner.folders(prefix)

    def delete(self, name: str) -> None:
        self._inner.delete(name)

    def usage(self) -> Usage | None:
        return self._inner.usage()

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._inner.close()

    def remove_stale(self, age_seconds: float, *, dry_run: bool = False) -> Sequence[str]:
        return self._inner.remove_stale(age_seconds, dry_run=dry_run)

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        self._inner.sweep(prefix, keep)


class _ThrottledUpload:
    """`debts` are bytes that uploads before this one, of any thread, have sent twice at their very end."""

    def __init__(self, block: AbstractContextManager[Sink], bucket: Bucket, debts: deque[int]) -> None:
        self._block = block
        self._bucket, self._debts = bucket, debts
        self._sink: Sink | None = None
        self._paid = 0  # bytes that were sent a second time and are taken from the bucket too

    def __enter__(self) -> Sink:
        self._sink = self._block.__enter__()
        return self

    def write(self, data: Buffer) -> None:
        assert self._sink is not None, "written outside of the block"
        view = memoryview(data).cast("B")
        done = 0
        with suppress(IndexError):
            self._take(self._debts.popleft())
        for count in self._bucket.portions(len(view), PIECE_BYTES_MAX):
            self._sink.write(view[done : done + count])
            done += count
            if owed := self._owed():
                self._take(owed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self._block.__exit__(kind, error, trace)
        finally:
            # Not taken here: an object that is there must not fail because somebody ends the wait for it.
            if owed := self._owed():
                self._debts.append(owed)

    def _owed(self) -> int:
        """Return what a resumed upload has sent twice since this was asked last: it has left this host, and the rest waits."""
        resent_bytes: int = getattr(self._sink, "resent_bytes", 0)
        owed, self._paid = resent_bytes - self._paid, resent_bytes
        return owed

    def _take(self, byte_count: int) -> None:
        for _ in self._bucket.portions(byte_count, PIECE_BYTES_MAX):
            pass
