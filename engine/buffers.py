"""Buffers for frames, used again and again: a new one of 4 MiB costs a thousand page faults.

    reserve (ordered.py): capacity_of(item)        take ──► fill, compress, seal ──► give_back
    free     64 KiB … 4 MiB, powers of two         what is free goes when another size needs its room

Who takes buffers has reserved their capacity before, so what is lent never exceeds the limit, and what is lent and free
together does not either: memory is bounded by bytes, whatever the sizes of the frames.
"""

import mmap
import threading

from engine.extents import FRAME_BYTES_MAX
from engine.units import KIB, MIB

CAPACITY_MIN = 64 * KIB  # one dirty cluster of a disk
# Up to this size all pages come at once, for a third of what they cost one by one: an incremental is over before its buffers have
# been used often. Of larger ones only what is used: the second buffer of a frame is filled by as much as compression leaves.
WHOLE_BYTES_MAX = 1 * MIB
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def capacity_of(length: int) -> int:
    """Return what a frame of `length` bytes (at most FRAME_BYTES_MAX) takes: the next power of two; nothing for nothing."""
    if length <= 0:
        return 0
    return min(FRAME_BYTES_MAX, max(CAPACITY_MIN, 1 << (length - 1).bit_length()))


class Buffers:
    """Buffers of together at most `bytes_max`, each with `extra` bytes more than its capacity. Any thread may use them."""

    def __init__(self, bytes_max: int, extra: int = 0) -> None:
        self._bytes_max = bytes_max
        self._extra = extra
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []
        self._allocated = 0  # capacities of all buffers, lent or free

    @property
    def allocated(self) -> int:
        """The capacities of all buffers there are."""
        return self._allocated

    def take(self, length: int) -> mmap.mmap:
        """Return a buffer for a frame of `length` bytes, of capacity_of(length) + extra bytes of anything. Give it back."""
        capacity = capacity_of(length)
        with self._lock:
            for position in reversed(range(len(self._free))):  # the one used last: it may be in a core's cache yet
                if len(self._free[position]) == capacity + self._extra:
                    return self._free.pop(position)
            while self._free and self._allocated + capacity > self._bytes_max:
                self._allocated -= len(self._free.pop(0)) - self._extra
            self._allocated += capacity
        whole = mmap.MAP_POPULATE if capacity <= WHOLE_BYTES_MAX else 0
        return mmap.mmap(-1, capacity + self._extra, flags=_PRIVATE | whole)

    def give_back(self, buffer: mmap.mmap) -> None:
        """Take back a buffer that nobody looks at any more. Any buffer of these will do: two of one capacity may be swapped."""
        with self._lock:
            self._free.append(buffer)
