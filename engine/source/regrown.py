"""What was cut off a disk's end and grown back while its changes were recorded: QEMU forgets with the end what was written there.

    at the parent      data data data data ....        the last data ended here ┐ (`data_end`, in its manifest)
    shrunk             data data ▏                                              │
    grown back         data data ▏.... NEW. ....                                ▼
    the bitmap         .... .... ▏.... #### ....    knows of NEW, and not that what is beside it became zeros
                            kept ▏zeros that nobody recorded: these are stored too

What was data and reads as zeros was written to, discarded, or cut off. The first two are recorded. Before the last data that is
there and not recorded nothing was cut. A disk that was not cut has such data just below `data_end`, so one small read tells.

Where allocation says "hole" nothing is read. Where it says "data" it may be wrong: QEMU 7.2 remembers of a raw file what it was
before the cut, and a block device has no holes. Pure but for the questions that `Look` answers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from engine.extents import Extent, merge
from engine.units import GIB, KIB, MIB

# The first look; each further one goes as far back again as all before, up to a bound on what is kept in memory.
_LOOK_BYTES = 64 * MIB
_LOOK_BYTES_MAX = 4 * GIB
# What is read at once, and the grain of what is recorded: a cut may go through the last thing kept.
GRAIN_BYTES = 64 * KIB
# So much of the disk's end may be read for zeros when a backup is made; where there are more, its manifest does not say.
_ZEROS_BYTES_MAX = 4 * MIB


@dataclass(frozen=True, slots=True)
class Look:
    """What can be asked of a disk, each of `length` bytes from `start`.

    `allocation`: data and zero extents without gaps; `recorded`: those written to since the parent; `is_zero`: reads the bytes.
    """

    allocation: Callable[[int, int], Iterable[Extent]]
    recorded: Callable[[int, int], Iterable[Extent]]
    is_zero: Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class Regrown:
    """`extents`, ascending, are to be stored beside what is recorded, none of which they touch. What is not recorded has no
    data at or behind `kept_end`.
    """

    extents: tuple[Extent, ...]
    kept_end: int


def regrown(look: Look, end: int, *, exact: bool) -> Regrown:
    """Look for what a cut left below `end`, behind which the parent had no data, and just before which it had, if `exact`.

    Where that is not known, nothing is read: holes alone are found.
    """
    zeros: list[Extent] = []
    for piece in _backwards(
        end, lambda start, length: _without(look.allocation(start, length), look.recorded(start, length))
    ):
        kept_end = piece.start if piece.zero else _data_end(look, piece, piece.length) if exact else piece.end
        if kept_end < piece.end:
            zeros.append(Extent(kept_end, piece.end - kept_end, zero=True))
        if kept_end > piece.start:
            start = max(piece.start, kept_end - GRAIN_BYTES)
            edge = [Extent(start, kept_end - start)] if zeros else []
            return Regrown((*edge, *reversed(zeros)), kept_end)
    return Regrown(tuple(reversed(zeros)), 0)


def last_data(look: Look, end: int) -> int | None:
    """Return where the data of the disk ends, to the next 64 KiB, if it has none at or behind `end`; None if that takes too long."""
    budget = _ZEROS_BYTES_MAX
    for piece in _backwards(end, look.allocation):
        if piece.zero:
            continue
        found = _data_end(look, piece, budget)
        if found > piece.start:
            return found if piece.end - found < budget else None
        budget -= piece.length
        if budget <= 0:
            return None
    return 0


def _backwards(end: int, ask: Callable[[int, int], Iterable[Extent]]) -> Iterator[Extent]:
    """Yield the pieces below `end`, the last one first."""
    step = _LOOK_BYTES
    while end > 0:
        start = max(0, end - step)
        yield from reversed(list(merge(ask(start, end - start))))
        end, step = start, min(step * 2, _LOOK_BYTES_MAX)


def _data_end(look: Look, piece: Extent, bytes_max: int) -> int:
    """Return where the data of a piece ends; no more than `bytes_max` of zeros are looked through, what is before counts as data."""
    end = piece.end
    while end > piece.start and piece.end - end < bytes_max:
        start = max(piece.start, end - GRAIN_BYTES)
        if not look.is_zero(start, end - start):
            break
        end = start
    return end


def _without(extents: Iterable[Extent], others: Iterable[Extent]) -> Iterator[Extent]:
    """Yield what of `extents` no other covers; both are ascending and disjoint."""
    rest = iter(others)
    other = next(rest, None)
    for extent in extents:
        start = extent.start
        while other is not None and other.start < extent.end:
            if start < other.start:
                yield Extent(start, other.start - start, extent.zero)
            start = max(start, other.end)
            if other.end > extent.end:
                break
            other = next(rest, None)
        if start < extent.end:
            yield Extent(start, extent.end - start, extent.zero)


class DataEnd:
    """Where the data of a disk ends, as far as the extents tell that went by."""

    def __init__(self) -> None:
        self.end = 0

    def follow(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            if not extent.zero:
                self.end = max(self.end, extent.end)
            yield extent
