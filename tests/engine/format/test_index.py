"""The index: kept as bytes, and every rule of the map checked."""

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SegmentCorrupt
from engine.extents import FRAME_BYTES_MAX, FRAME_EXTENTS_MAX, Extent
from engine.format.index import INDEX_BYTES_MAX, RAW, ZSTD, FrameEntry, IndexBuilder, Map, Table
from engine.units import KIB
from tests.engine.format.samples import RELAXED, frame, noise, zero

SIZE = 1 << 40


@st.composite
def entries(draw):
    """Frames and zero extents that share a disk: ascending, disjoint, in the order in which they were drawn."""
    position = 0
    found: list[Any] = []
    for _ in range(draw(st.integers(0, 12))):
        position += draw(st.integers(0, 50))
        if draw(st.booleans()):
            found.append(zero(position, draw(st.integers(1, 1 << 33))))
            position = found[-1].end
            continue
        extents = []
        for _ in range(draw(st.integers(1, 4))):
            extents.append(Extent(position, draw(st.integers(1, 1 << 20))))
            position = extents[-1].end + draw(st.integers(0, 3))
        found.append((draw(st.sampled_from([RAW, ZSTD])), tuple(extents)))
    return found


def build(items: list[Any]) -> IndexBuilder:
    index = IndexBuilder()
    for number, item in enumerate(items):
        if isinstance(item, Extent):
            index.add_zero(item)
            continue
        method, extents = item
        length = sum(extent.length for extent in extents)
        index.add_frame(method, extents, length if method == RAW else max(1, length - 1), noise(32, str(number)))
    return index


@pytest.mark.feature("T12")
@RELAXED
@given(items=entries())
def test_reading_gives_what_was_built(items):
    items = [one for one in items if isinstance(one, Extent) or one[0] == RAW or sum(e.length for e in one[1]) > 1]
    index = build(items)
    table, opened = Table(bytes(index.table)), Map(bytes(index.map))

    rows = list(table.rows())
    end = rows[-1].offset + rows[-1].stored_bytes if rows else 160
    table.check(end, index.digest, encrypted=False, name="name")
    opened.check(index.frames, index.entries, index.plain_bytes, SIZE, "name")
    found = list(opened.entries(table, encrypted=False, name="name"))

    assert [one if isinstance(one, Extent) else (one.method, one.extents) for one in found] == items
    frames = [one for one in found if isinstance(one, FrameEntry)]
    assert [(one.number, one.offset, one.digest) for one in frames] == [
        (one.number, one.offset, one.digest) for one in rows
    ]
    assert [one.last for one in frames] == [False] * (len(frames) - 1) + [True] * bool(frames)
    assert index.plain_bytes == sum(one.plain_bytes for one in frames)


def frame_bytes_of(method: int, *extents: tuple[int, int]) -> bytes:
    return struct.pack("<BH", method, len(extents)) + b"".join(struct.pack("<QI", *extent) for extent in extents)


def zero_bytes_of(start: int, length: int) -> bytes:
    return struct.pack("<BQQ", 0, start, length)


GOOD = frame_bytes_of(RAW, (0, 10), (20, 10)) + zero_bytes_of(10, 10)


def test_frames_and_zeros_may_interleave():
    Map(GOOD).check(1, 2, 20, 30, "name")
    Map(zero_bytes_of(10, 10) + frame_bytes_of(ZSTD, (0, 10), (20, 10))).check(1, 2, 20, 30, "name")


@pytest.mark.parametrize(
    ("data", "frames", "entries", "plain_bytes"),
    [
        (GOOD, 2, 2, 20),
        (GOOD, 1, 3, 20),
        (GOOD, 1, 2, 21),
        (GOOD + b"\0", 1, 3, 20),
        (GOOD[:-1], 1, 2, 20),
        (b"\3" + GOOD, 1, 3, 20),
        (b"\xff" * 17, 0, 1, 0),
        (frame_bytes_of(RAW), 1, 1, 0),
        (frame_bytes_of(RAW, (0, 0)), 1, 1, 0),
        (zero_bytes_of(0, 0), 0, 1, 0),
        (zero_bytes_of(0, 31), 0, 1, 0),
        (zero_bytes_of(2**64 - 1, 2), 0, 1, 0),
        (zero_bytes_of(1, 2**64 - 1), 0, 1, 0),
        (frame_bytes_of(RAW, (25, 6)), 1, 1, 6),
        (frame_bytes_of(RAW, (5, 5), (0, 5)), 1, 1, 10),
        (frame_bytes_of(RAW, (0, 5), (4, 5)), 1, 1, 10),
        (frame_bytes_of(RAW, (5, 5)) + frame_bytes_of(RAW, (0, 5)), 2, 2, 10),
        (frame_bytes_of(RAW, (0, 5)) + frame_bytes_of(RAW, (0, 5)), 2, 2, 10),
        (frame_bytes_of(RAW, (0, 10)) + zero_bytes_of(9, 5), 1, 2, 10),
        (zero_bytes_of(0, 30) + frame_bytes_of(RAW, (10, 5)), 1, 2, 5),
        (zero_bytes_of(10, 5) + zero_bytes_of(0, 5), 0, 2, 0),
        (struct.pack("<BH", RAW, 65535), 1, 1, 0),
    ],
)
def test_a_map_that_breaks_a_rule_is_refused(data, frames, entries, plain_bytes):
    with pytest.raises(SegmentCorrupt):
        Map(data).check(frames, entries, plain_bytes, 30, "name")


@RELAXED
@given(
    data=st.binary(max_size=80)
    | st.lists(st.sampled_from([b"\0", b"\1", b"\2", GOOD, bytes(7)]), max_size=9).map(b"".join)
)
def test_any_bytes_are_a_map_or_refused(data):
    try:
        Map(data).check(1, 2, 20, 30, "name")
    except SegmentCorrupt:
        return
    assert len(data) == len(GOOD)


def test_a_frame_of_too_much_or_too_many_is_refused():
    half = FRAME_BYTES_MAX // 2
    for extents in ([(0, half), (half, half + 1)], [(2 * at, 1) for at in range(FRAME_EXTENTS_MAX + 1)]):
        with pytest.raises(SegmentCorrupt):
            Map(frame_bytes_of(RAW, *extents)).check(1, 1, sum(one[1] for one in extents), SIZE, "name")


@pytest.mark.parametrize(("method", "stored"), [(RAW, 9), (RAW, 11), (ZSTD, 10), (ZSTD, 11), (ZSTD, 0)])
def test_a_stored_length_that_does_not_fit_the_method_is_refused(method, stored):
    table, opened = Table(struct.pack("<I32s", stored, b"")), Map(frame_bytes_of(method, (0, 10)))
    with pytest.raises(SegmentCorrupt):
        list(opened.entries(table, encrypted=False, name="name"))
    table = Table(struct.pack("<I32s", stored + 28, b""))
    with pytest.raises(SegmentCorrupt):
        list(opened.entries(table, encrypted=True, name="name"))


@pytest.mark.parametrize(
    "wrong", [(Extent(14, 2),), (zero(20, 1),), (), (Extent(20, 0),), (Extent(30, 5), Extent(20, 5))]
)
def test_the_builder_refuses_what_a_reader_would(wrong):
    index = IndexBuilder()
    index.add_frame(RAW, frame((5, 10)).extents, 10, bytes(32))
    with pytest.raises(ValueError):
        index.add_frame(RAW, wrong, 5, bytes(32))
    with pytest.raises(ValueError):
        index.add_zero(Extent(0, 5))
    index.add_zero(zero(10, 5))
    with pytest.raises(ValueError):
        index.add_zero(zero(14, 5))


@pytest.mark.feature("T12")
def test_an_index_takes_no_more_memory_than_its_bytes():
    """Dirty 64 KiB extents, every second one: the worst a segment meets in practice. 8192 such frames are 32 GiB."""
    index, position = IndexBuilder(), 0
    tracemalloc.start()
    try:
        for _ in range(128):
            extents = tuple(Extent(position + at * 128 * KIB, 64 * KIB) for at in range(64))
            position = extents[-1].end
            index.add_frame(ZSTD, extents, 100, bytes(32))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    index_bytes = len(index.table) + len(index.map)
    assert 64 * index_bytes <= INDEX_BYTES_MAX
    assert held < 1.3 * index_bytes, "a bytearray may be an eighth longer than what is in it"


def test_a_full_index_is_refused():
    index = IndexBuilder()
    index.map += bytes(INDEX_BYTES_MAX - 17)
    index.add_zero(zero(0, 1))

    with pytest.raises(ValueError, match="full"):
        index.add_zero(zero(2, 1))
