"""A storage whose uploads take turns at a token bucket (P8). Reads pass freely: the limit is one on uploads, never on a restore."""

from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Protocol

from engine.storage.base import Buffer, Entry, ObjectReader, Sink, Storage, Usage
from engine.units import KIB

# A frame is up to 4 MiB; at 1 MB/s it would leave as one burst of four seconds. Smaller pieces keep the flow even.
PIECE_BYTES_MAX = 256 * KIB


class Bucket(Protocol):
    """What grants the bytes; `engine.throttle` has the real one."""

    def take(self, byte_count: int) -> None:
        """Return when `byte_count` bytes may be sent; raises what ends the wait on a cancel."""


class ThrottledStorage(Storage):
    """Every call goes to `inner`; the bytes of every sink go through `bucket` first. Closing it closes `inner`."""

    def __init__(self, inner: Storage, bucket: Bucket) -> None:
        self.abilities, self.label, self.host_key = inner.abilities, inner.label, inner.host_key
        self._inner, self._bucket = inner, bucket

    def create(self, name: str) -> "_ThrottledUpload":
        return _ThrottledUpload(self._inner, self._bucket, name)

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

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        self._inner.sweep(prefix, keep)


class _ThrottledUpload:
    def __init__(self, inner: Storage, bucket: Bucket, name: str) -> None:
        self._block = inner.create(name)
        self._bucket = bucket
        self._sink: Sink | None = None

    def __enter__(self) -> Sink:
        self._sink = self._block.__enter__()
        return self

    def write(self, data: Buffer) -> None:
        assert self._sink is not None, "written outside of the block"
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES_MAX):
            piece = view[start : start + PIECE_BYTES_MAX]
            self._bucket.take(len(piece))
            self._sink.write(piece)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, trace)
