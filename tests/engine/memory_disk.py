"""A disk in memory, for tests of what happens between a disk and the storage."""

import threading
from collections.abc import Callable, Iterator

from engine.errors import NbdDisconnected
from engine.extents import Extent
from engine.units import MIB


class MemoryDisk:
    """A `Disk` (engine/source/disk.py) of `content`, all of it data; `before_read` is called with each read's first byte."""

    def __init__(self, content: bytes, before_read: Callable[[int], None] = lambda _: None) -> None:
        self.content = content
        self.size_bytes = len(content)
        self.before_read = before_read
        self.interrupted = threading.Event()
        self.readers = 0

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size_bytes)

    def connect(self) -> "_Reader":
        self.readers += 1
        return _Reader(self)

    def interrupt(self) -> None:
        self.interrupted.set()


class _Reader:
    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk

    def read_into(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        self._disk.before_read(extents[0].start)
        if self._disk.interrupted.is_set():
            raise NbdDisconnected(operation="read", detail="interrupted")
        done = 0
        for extent in extents:
            buffer[done : done + extent.length] = self._disk.content[extent.start : extent.end]
            done += extent.length

    def close(self) -> None:
        self._disk.readers -= 1


def frame_content(number: int, *, compressible: bool = True) -> bytes:
    """Return 4 MiB that no other frame has, which compress to next to nothing, or not at all."""
    if not compressible:
        import random

        return random.Random(number).randbytes(4 * MIB)
    return number.to_bytes(8, "little") * (MIB // 2)
