"""How an object is cut into parts, and how many of them are under way at an instant. Pure. Source: rule S6.

    part size   asked for, or the object's expected bytes / 2,000, at least 10 MiB     10,000 parts are the protocol's limit
    in flight   min(concurrency, 64 MiB / part size), at least 2                       each costs its size in memory

A guess that is too low does no harm: an object is a segment, at most 32 GiB and its index, and 10,000 parts of 10 MiB are 97 GiB.
"""

from dataclasses import dataclass

from engine.units import GIB, MIB

AUTO_PARTS = 2000
AUTO_BYTES_MIN = 10 * MIB
PART_BYTES_MIN = 5 * MIB  # the protocol's, for every part but the last
PART_BYTES_MAX = 512 * MIB
PARTS_MAX = 10_000
FLIGHT_BYTES = 64 * MIB
FLIGHT_MIN = 2
UNKNOWN_BYTES = 32 * GIB  # what a segment holds at most


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of `size_bytes`, of which at most `in_flight` are in memory: one that is being filled, the others on their way."""

    size_bytes: int
    in_flight: int

    @property
    def memory_bytes(self) -> int:
        """Return what an upload may hold in memory."""
        return self.size_bytes * self.in_flight


def parts_of(size_hint: int, part_size_bytes: int = 0, concurrency: int = 8) -> Parts:
    """Return how to cut an object of about `size_hint` bytes (0: unknown); `part_size_bytes` 0 means: choose."""
    expected = size_hint or UNKNOWN_BYTES
    size = part_size_bytes or max(AUTO_BYTES_MIN, _round_up(-(-expected // AUTO_PARTS)))
    size = min(size, PART_BYTES_MAX)
    return Parts(size, max(FLIGHT_MIN, min(concurrency, FLIGHT_BYTES // size)))


def _round_up(count: int) -> int:
    """Return `count` rounded up to a whole number of 4 KiB pages."""
    return -(-count // 4096) * 4096
