"""A disk at one instant, whatever stands behind it: QEMU's pull-mode export, an image of a stopped domain, a test's file."""

from collections.abc import Iterator
from typing import Protocol

from engine.extents import Extent


class Reader(Protocol):
    """One connection to a disk, used by one thread."""

    def read_into(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `extents`, one after the other; their lengths sum to `len(buffer)` exactly.

        Raises NbdReadFailed for an error reply, NbdDisconnected when the peer is gone.
        """

    def close(self) -> None: ...


class Disk(Protocol):
    """`size_bytes` of content that does not change while the disk is open."""

    size_bytes: int

    def extents(self) -> Iterator[Extent]:
        """Yield what a backup has to hold, ascending and disjoint.

        Of a full: data and zero extents that cover the whole disk. Of an incremental: the dirty extents only, those that
        read as zeros marked so.
        """

    def connect(self) -> Reader:
        """Open one more connection; the caller closes it."""

    def interrupt(self) -> None:
        """Make every blocked read of every connection end at once with NbdDisconnected; any thread may call this."""
