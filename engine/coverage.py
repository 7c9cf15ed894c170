"""Which parts of a disk are settled already, when layers are restored newest first. Pure.

    newest layer     ....####........####....      written as it is
    next older       ..######....##..........      only what the newer one does not cover:  ..##........##
    full             ########################      and so on, so that every byte is written once

Held as two sorted arrays of 64-bit numbers: 16 bytes for each separate piece, 10 MB for 655,360 scattered ones.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Coverage:
    """A set of disk ranges."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")

    def __len__(self) -> int:
        """How many separate pieces there are."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield every separate piece, ascending, as (start, end)."""
        return iter(zip(self._starts, self._ends, strict=True))

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of `start` to `end` that are not covered, ascending, as (start, end)."""
        index = bisect_right(self._ends, start)
        while start < end and index < len(self._starts) and self._starts[index] < end:
            if start < self._starts[index]:
                yield start, self._starts[index]
            start = self._ends[index]
            index += 1
        if start < end:
            yield start, end

    def add(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Cover `pieces` too: (start, end), ascending; neighbours and overlaps are joined.

        Only what lies between the first and the last of them is walked through: pieces come segment by segment.
        """
        starts, ends = array("Q"), array("Q")

        def append(start: int, end: int) -> None:
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)

        low = index = -1
        for start, end in pieces:
            if low < 0:
                low = index = bisect_left(self._ends, start)
            while index < len(self._starts) and self._starts[index] <= start:
                append(self._starts[index], self._ends[index])
                index += 1
            append(start, end)
        if low < 0:
            return
        while index < len(self._starts) and self._starts[index] <= ends[-1]:
            append(self._starts[index], self._ends[index])
            index += 1
        self._starts[low:index], self._ends[low:index] = starts, ends
