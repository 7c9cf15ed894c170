"""Where a disk is restored to: a new raw file, a block device, or an image behind a writable NBD export.

A target is written by several threads, each through a writer of its own, in pieces that do not overlap.
"""

import os
import stat
import threading
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from engine.errors import NbdDisconnected, TargetError
from engine.extents import Extent
from engine.image_file import ImageFile, failure
from engine.nbd.client import Client
from engine.nbd.connection import Connection

ZERO_PIECE = bytes(1 << 20)


class Writer(Protocol):
    """One thread's way to write a target."""

    def write_from(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        """Write `buffer` to `extents`, one after the other; their lengths sum to `len(buffer)` exactly."""

    def write_zeroes(self, start: int, length: int) -> None:
        """Make `length` bytes from `start` read as zeros, sparse where the target can be."""

    def flush(self) -> None:
        """Return when everything that any writer of this target wrote is on stable storage."""

    def close(self) -> None: ...


class Target(Protocol):
    """`size_bytes` to be written; `blank` says that all of it reads as zeros now, so that zeros need not be written."""

    size_bytes: int
    blank: bool

    def connect(self) -> Writer: ...

    def interrupt(self) -> None:
        """Make every blocked call of every writer end at once, and every later `connect`. Any thread may call this."""


class NbdTarget:
    """An image behind a writable export (see source/export.py). `touched`: something may have been written to it."""

    def __init__(self, address: str, export: str, size_bytes: int, *, blank: bool = False) -> None:
        self._address = address
        self._export = export
        self.size_bytes = size_bytes
        self.blank = blank
        self.touched = False
        self._lock = threading.Lock()
        self._live: WeakSet[Connection] = WeakSet()  # closed ones may linger; interrupting them does nothing
        self._interrupted = False

    def connect(self) -> "_NbdWriter":
        connection = Connection.open(self._address)
        with self._lock:
            self._live.add(connection)
            interrupted = self._interrupted
        if interrupted:
            connection.close()
            raise NbdDisconnected(operation="connect", detail="interrupted")
        return _NbdWriter(self, Client(connection, self._export))

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            live = list(self._live)
        for connection in live:
            connection.interrupt()


class _NbdWriter:
    def __init__(self, target: NbdTarget, client: Client) -> None:
        self._target = target
        self._client = client

    def write_from(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        self._target.touched = True
        self._client.write_from(extents, buffer)

    def write_zeroes(self, start: int, length: int) -> None:
        self._target.touched = True
        self._client.write_zeroes(start, length)

    def flush(self) -> None:
        self._client.flush()

    def close(self) -> None:
        self._client.close()


class RawTarget:
    """A raw file, or a block device. One for all writers, closed by `finish`."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int, *, blank: bool) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.blank = blank
        self._file = ImageFile(path, descriptor)

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> "RawTarget":
        """Make a new sparse file. Raises TargetError if something is there already or it cannot be made."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.ftruncate(descriptor, size_bytes)
        except OSError as error:
            raise failure(path, error) from error
        return cls(path, descriptor, size_bytes, blank=True)

    @classmethod
    def device(cls, path: Path, size_bytes: int) -> "RawTarget":
        """Open a block device of at least `size_bytes`. Raises TargetError if it is none, in use, or too small."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
            room = os.lseek(descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise failure(path, error) from error
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode) or room < size_bytes:
            os.close(descriptor)
            raise TargetError(target=path, detail=f"is not a block device of {size_bytes} bytes or more")
        return cls(path, descriptor, room, blank=False)

    def connect(self) -> "RawTarget":
        return self

    def write_from(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        self._file.write_all(extents, buffer)

    def write_zeroes(self, start: int, length: int) -> None:
        if self.blank or self._file.punch(start, length):
            return
        while length > 0:
            piece = min(length, len(ZERO_PIECE))
            self._file.write(start, memoryview(ZERO_PIECE)[:piece])
            start += piece
            length -= piece

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Writers share the file: it is closed by `finish`."""

    def interrupt(self) -> None:
        """Nothing ends a write to a file of this host."""

    def finish(self) -> None:
        self._file.close()
