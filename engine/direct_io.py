"""Writes past the page cache (O_DIRECT): no copy into it, no pages taken from what the host's guests use, nothing left for fsync.

    descriptor ──reopen──► a second descriptor of the same file, O_DIRECT      -1 where the file system has none
    data       ──write───► as much of it as whole, aligned pages make           the caller writes the rest as usual

A page is written one way only: the rest begins on a page of its own.
"""

import ctypes
import errno
import os

from engine.units import KIB

ALIGNMENT = 4 * KIB  # of place, length and memory: what any disk asks for


def reopen(descriptor: int) -> int:
    """Return a second descriptor, for direct writes, of the file that `descriptor` is of; -1 where there can be none."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:  # a tmpfs of an old kernel, an odd network file system, no /proc
        return -1


def is_aligned(start: int, data: memoryview) -> bool:
    """Tell whether `data` can go directly to `start`: both begin at a page. What is readonly is of no known place in memory."""
    if start % ALIGNMENT or data.readonly or len(data) < ALIGNMENT:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % ALIGNMENT == 0


def write(descriptor: int, start: int, data: memoryview) -> int:
    """Write as many whole pages of aligned `data` as go, and return how many bytes that is. Raises OSError.

    Fewer than all of them where the disk wants larger pages, or a write ends in the middle of one.
    """
    done, whole = 0, len(data) - len(data) % ALIGNMENT
    while done < whole and done % ALIGNMENT == 0:
        try:
            done += os.pwrite(descriptor, data[done:whole], start + done)
        except OSError as error:
            if error.errno != errno.EINVAL:  # this one says: not here, not so
                raise
            return done
    return done
