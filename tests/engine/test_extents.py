"""Cutting extents into frames: the same bytes on both sides, whatever the shape."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.extents import (
    FRAME_BYTES_MAX,
    FRAME_EXTENTS_MAX,
    PACKED_BYTES_MAX,
    Extent,
    FramePlan,
    cut_by,
    merge,
    plan_full,
    plan_packed,
)
from engine.units import KIB, MIB

BLOCK = 64 * KIB


@st.composite
def ascending(draw: st.DrawFn, *, gaps: bool) -> list[Extent]:
    """Disjoint extents of whole blocks, ascending; without gaps they begin at 0 and follow on each other."""
    extents: list[Extent] = []
    position = 0
    for _ in range(draw(st.integers(0, 12))):
        if gaps:
            position += BLOCK * draw(st.integers(0, 70))
        length = BLOCK * draw(st.integers(1, 150))
        extents.append(Extent(position, length, draw(st.booleans())))
        position += length
    return extents


def blocks(extents: Iterable[Extent]) -> list[tuple[int, bool]]:
    return [(start, one.zero) for one in extents for start in range(one.start, one.end, BLOCK)]


def flat(items: Iterable[FramePlan | Extent]) -> list[Extent]:
    return [one for item in items for one in (item.extents if isinstance(item, FramePlan) else (item,))]


@given(ascending(gaps=False))
def test_frames_of_a_full_are_the_same_bytes_and_aligned(extents: list[Extent]) -> None:
    items = list(plan_full(extents))
    assert sorted(blocks(flat(items))) == blocks(extents)
    for item in items:
        if isinstance(item, FramePlan):
            assert item.length <= FRAME_BYTES_MAX
            assert item.extents[0].start // FRAME_BYTES_MAX == (item.extents[-1].end - 1) // FRAME_BYTES_MAX


@given(ascending(gaps=True))
def test_packed_frames_are_the_same_bytes_and_all_but_the_last_are_full(extents: list[Extent]) -> None:
    items = list(plan_packed(extents))
    frames = [item for item in items if isinstance(item, FramePlan)]
    assert sorted(blocks(flat(items))) == blocks(extents)
    assert all(frame.length == PACKED_BYTES_MAX for frame in frames[:-1])


def test_a_frame_holds_a_bounded_number_of_extents() -> None:
    extents = [Extent(2 * KIB * number, 1 * KIB) for number in range(FRAME_EXTENTS_MAX + 1)]
    assert [len(item.extents) for item in plan_packed(extents) if isinstance(item, FramePlan)] == [1024, 1]
    assert [len(item.extents) for item in plan_full(extents) if isinstance(item, FramePlan)] == [1024, 1]


@given(ascending(gaps=True), st.data())
def test_what_is_cut_stays_the_same_bytes_and_takes_the_cover_s_kind(
    extents: list[Extent], data: st.DataObject
) -> None:
    end = extents[-1].end if extents else 0
    borders = sorted({0, end} | set(data.draw(st.lists(st.integers(0, end // BLOCK).map(BLOCK.__mul__), max_size=8))))
    cover = [Extent(start, end - start, bool(number % 2)) for number, (start, end) in enumerate(pairwise(borders))]
    kind = dict(blocks(cover))
    pieces = list(cut_by(extents, [(one.end, one.zero) for one in cover]))
    assert blocks(pieces) == [(start, kind[start]) for start, _ in blocks(extents)]
    assert all(piece.length for piece in pieces)


def test_a_cover_that_leaves_something_out_is_a_mistake_not_data() -> None:
    with pytest.raises(RuntimeError):
        list(cut_by([Extent(0, 2 * MIB)], [(1 * MIB, True)]))


def test_neighbours_of_one_kind_are_joined() -> None:
    assert list(merge([Extent(0, 1), Extent(1, 2), Extent(3, 1, zero=True), Extent(5, 1, zero=True)])) == [
        Extent(0, 3),
        Extent(3, 1, zero=True),
        Extent(5, 1, zero=True),
    ]
