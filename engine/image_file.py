"""A file or block device that a restore writes: large pieces past the page cache, the rest through it.

    1 MiB and more, aligned    ──► O_DIRECT         1 GiB costs 0.1 s of CPU time and no memory
    the rest                   ──► page cache       3 s of it on the same machine; small pieces gain from being sorted

Both lie beside each other in one file: a piece is written by one way only, and direct ones are whole pages.
"""

import ctypes
import errno
import os
from pathlib import Path

from engine import direct_io
from engine.errors import StorageFull, TargetError
from engine.extents import Extent
from engine.units import MIB
from engine.writeback import begin_writeback

DIRECT_BYTES_MIN = 1 * MIB  # a smaller piece would wait for its own turn of a rotating disk
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)  # its calls release the interpreter lock


class ImageFile:
    """One descriptor for all threads, and a second one for direct writes where the file system has them. Close it in the end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over a `descriptor` of the file at `path`, open for writing."""
        self.path = path
        self._descriptor = descriptor
        self._can_punch = True
        self._direct = direct_io.reopen(descriptor)

    def write_all(self, extents: tuple[Extent, ...], data: memoryview) -> None:
        """Write `data` to `extents`, one after the other, and let the disk begin with what lies in the page cache."""
        cached, done = False, 0
        for extent in extents:
            cached |= self.write(extent.start, data[done : done + extent.length])
            done += extent.length
        if cached:
            begin_writeback(self._descriptor, extents[0].start, extents[-1].end)

    def write(self, start: int, data: memoryview) -> bool:
        """Write all of `data` at `start`, and tell whether some of it went to the page cache; not durable before `flush`.

        Raises TargetError, StorageFull.
        """
        try:
            done = self._write_direct(start, data)
            cached = done < len(data)
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], start + done)
        except OSError as error:
            raise failure(self.path, error) from error
        return cached

    def punch(self, start: int, length: int) -> bool:
        """Let the kernel make a hole that reads as zeros; False where it cannot. On a device it is a discard that promises zeros."""
        if not self._can_punch:
            return False
        self._can_punch = punch_hole(self._descriptor, start, length)
        return self._can_punch

    def flush(self) -> None:
        """Return when all that was written is on stable storage. Raises TargetError, StorageFull."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise failure(self.path, error) from error

    def close(self) -> None:
        for descriptor in {self._descriptor, self._direct} - {-1}:
            os.close(descriptor)
        self._descriptor = self._direct = -1

    def _write_direct(self, start: int, data: memoryview) -> int:
        """Write as much of `data` as can go past the page cache, and return how many bytes that is. Raises OSError."""
        if self._direct < 0 or len(data) < DIRECT_BYTES_MIN or not direct_io.is_aligned(start, data):
            return 0
        return direct_io.write(self._direct, start, data)


def punch_hole(descriptor: int, start: int, length: int) -> bool:
    """Deallocate a part of a file or block device, so that it reads as zeros; tell whether that could be done. Linux only."""
    mode = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
    return bool(_libc.fallocate(descriptor, mode, ctypes.c_int64(start), ctypes.c_int64(length)) == 0)


def failure(path: Path, error: OSError) -> TargetError | StorageFull:
    """Return what `error` means for a restore's target."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull(storage="restore target", step="write", name=path)
    return TargetError(target=path, detail=error.strerror)
