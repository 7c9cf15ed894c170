"""Letting the disk begin to write what lies in the page cache, before a flush waits for all of it at once. Linux only."""

import ctypes

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)  # its calls release the interpreter lock


def begin_writeback(descriptor: int, start: int, end: int) -> None:
    """Let the disk begin with the bytes from `start` to `end`, and do not wait for it.

    Not posix_fadvise(DONTNEED), which begins the same and then waits for every core of the host. Advice: failures are none.
    """
    _libc.sync_file_range(descriptor, ctypes.c_int64(start), ctypes.c_int64(end - start), _SYNC_FILE_RANGE_WRITE)
