"""Which frame goes into which segment: decided in plan order, before any worker has seen the frame. Pure.

    plan         F   F   Z   F   F   Z   Z
    placed       0.0 Z0  0.1 0.2*end0  1.0*  Z1 Z1 end1*        segment.frame, * marks the last

A frame must know when it is sealed whether it is its segment's last one. So exactly one frame is held back until the next
frame or the end is seen; zero extents overtake it, which the format allows, because there may be millions of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan
from engine.format.index import ZERO_BYTES, frame_bytes
from engine.units import GIB, MIB

SEGMENT_PLAIN_BYTES_MAX = 32 * GIB  # fits every backend's object limit; a failed upload costs at most this much
# What a segment's index costs in memory, writing and reading, is a few times its size. Readers allow four times as much; 32 GiB
# of whole frames need 0.4 MiB, of scattered 64 KiB extents 6.4 MiB, which are then four segments instead of one.
INDEX_BYTES_MAX = 2 * MIB


@dataclass(frozen=True, slots=True)
class PlacedFrame:
    """Frame `number` of segment `segment`; `last` marks the segment's last frame."""

    segment: int
    number: int
    plan: FramePlan
    last: bool


@dataclass(frozen=True, slots=True)
class PlacedZero:
    """A zero extent in segment `segment`'s index."""

    segment: int
    extent: Extent


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """Nothing more goes into segment `segment`; `last` marks the disk's last segment."""

    segment: int
    last: bool


Placed: TypeAlias = PlacedFrame | PlacedZero | SegmentEnd


def place(
    items: Iterable[FramePlan | Extent],
    plain_bytes_max: int = SEGMENT_PLAIN_BYTES_MAX,
    index_bytes_max: int = INDEX_BYTES_MAX,
    first: int = 0,
) -> Iterator[Placed]:
    """Yield where each frame and zero extent goes, every segment closed by a SegmentEnd; there is at least one segment.

    Segments are numbered from `first` on. A segment never exceeds either limit (a single frame always fits: `plain_bytes_max` is at least FRAME_BYTES_MAX, or
    the segment then holds that frame alone). Lazy: it is one item ahead of what it yields.
    """
    segment, number, plain_bytes, index_bytes = first, 0, 0, 0
    held: FramePlan | None = None
    for item in items:
        if isinstance(item, FramePlan):
            plain, index = item.length, frame_bytes(len(item.extents))
            if not 1 <= plain <= FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {plain} bytes")
        else:
            plain, index = 0, ZERO_BYTES
        if index_bytes and (plain_bytes + plain > plain_bytes_max or index_bytes + index > index_bytes_max):
            if held is not None:
                yield PlacedFrame(segment, number, held, last=True)
            yield SegmentEnd(segment, last=False)
            segment, number, plain_bytes, index_bytes, held = segment + 1, 0, 0, 0, None
        plain_bytes += plain
        index_bytes += index
        if not isinstance(item, FramePlan):
            yield PlacedZero(segment, item)
            continue
        if held is not None:
            yield PlacedFrame(segment, number, held, last=False)
            number += 1
        held = item
    if held is not None:
        yield PlacedFrame(segment, number, held, last=True)
    yield SegmentEnd(segment, last=True)
