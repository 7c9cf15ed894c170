"""Placement: every frame once, in order, within limits, the last one marked."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan
from engine.format.index import INDEX_BYTES_MAX, ZERO_BYTES, frame_bytes
from engine.format.placement import PlacedFrame, PlacedZero, SegmentEnd, place
from tests.engine.format.samples import RELAXED, Item, frame, zero

items = st.lists(
    st.one_of(
        st.builds(
            lambda length, count: FramePlan(tuple(Extent(0, length) for _ in range(count))),
            st.integers(1, 9),
            st.integers(1, 4),
        ),
        st.builds(lambda length: zero(0, length), st.integers(1, 9)),
    ),
    max_size=40,
)


@pytest.mark.feature("T12")
@RELAXED
@given(items=items, plain_max=st.integers(1, 60), index_max=st.integers(60, 400))
def test_every_item_has_one_place(items, plain_max, index_max):
    placed = list(place(items, plain_max, index_max))
    frames = [one for one in placed if isinstance(one, PlacedFrame)]
    zeros = [one for one in placed if isinstance(one, PlacedZero)]
    ends = [one for one in placed if isinstance(one, SegmentEnd)]

    assert [one.plan for one in frames] == [one for one in items if isinstance(one, FramePlan)]
    assert [one.extent for one in zeros] == [one for one in items if isinstance(one, Extent)]
    assert [one.segment for one in placed] == sorted(one.segment for one in placed)
    assert [one.segment for one in ends] == list(range(len(ends)))
    assert [one.last for one in ends] == [False] * (len(ends) - 1) + [True]
    for _, group in itertools.groupby(frames, key=lambda one: one.segment):
        of_segment = list(group)
        assert [one.number for one in of_segment] == list(range(len(of_segment)))
        assert [one.last for one in of_segment] == [False] * (len(of_segment) - 1) + [True]


@pytest.mark.feature("T12")
@RELAXED
@given(items=items, plain_max=st.integers(36, 90), index_max=st.integers(87, 400))
def test_no_segment_exceeds_a_limit(items, plain_max, index_max):
    placed = list(place(items, plain_max, index_max))

    for _, group in itertools.groupby(placed, key=lambda one: one.segment):
        plain = index = 0
        for one in group:
            if isinstance(one, PlacedFrame):
                plain += one.plan.length
                index += frame_bytes(len(one.plan.extents))
            elif isinstance(one, PlacedZero):
                index += ZERO_BYTES
        assert plain <= plain_max
        assert index <= index_max


def test_a_disk_without_content_has_one_segment():
    assert list(place([])) == [SegmentEnd(0, last=True)]


def test_it_is_one_frame_ahead_and_no_more():
    taken: list[int] = []

    def endless() -> Iterator[Item]:
        for number in itertools.count():
            taken.append(number)
            yield frame((number * 8, 4))

    placed = place(endless())

    assert next(placed) == PlacedFrame(0, 0, frame((0, 4)), last=False)
    assert taken == [0, 1]


def test_zero_extents_do_not_pile_up_behind_a_frame():
    def endless() -> Iterator[Item]:
        yield frame((0, 4))
        for number in itertools.count(1):
            yield zero(number * 8, 4)

    placed = place(endless(), index_bytes_max=10 * ZERO_BYTES)
    first = list(itertools.islice(placed, 9))

    assert first[-2:] == [PlacedFrame(0, 0, frame((0, 4)), last=True), SegmentEnd(0, last=False)]
    assert all(isinstance(one, PlacedZero) for one in first[:-2])


def test_whole_frames_and_the_worst_scatter_both_fit_the_index():
    whole = 32 * 1024 // 4
    assert whole * frame_bytes(1) < INDEX_BYTES_MAX // 10
    assert whole * frame_bytes(64) < INDEX_BYTES_MAX


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1])
def test_a_frame_beyond_the_limit_is_refused(length):
    with pytest.raises(ValueError):
        list(place([FramePlan((Extent(0, length),))]))
