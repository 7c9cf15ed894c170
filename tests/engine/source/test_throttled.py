"""A throttled reader gives the same bytes in smaller portions."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.extents import Extent
from engine.limit import Limit
from engine.source.throttled import ThrottledReader
from engine.throttle import Throttle

pytestmark = pytest.mark.feature("P9")

CONTENT = bytes(range(251)) * 400


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, stop: threading.Event, seconds: float) -> None:
        self.seconds += seconds


class BytesReader:
    """A disk in memory, which keeps the sizes of the reads."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.closed = False

    def read_into(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        assert sum(extent.length for extent in extents) == len(buffer)
        buffer[:] = b"".join(CONTENT[extent.start : extent.end] for extent in extents)
        self.sizes.append(len(buffer))

    def close(self) -> None:
        self.closed = True


@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 10_000)), max_size=20),
    st.sampled_from([0, 1000, 100_000, 10_000_000]),
)
def test_any_extents_read_the_same(pairs: list[tuple[int, int]], rate: int) -> None:
    extents = tuple(Extent(start, length) for start, length in pairs)
    inner, throttle = BytesReader(), Throttle(rate, FakeClock())
    buffer = bytearray(sum(extent.length for extent in extents))

    ThrottledReader(inner, throttle, Limit(1), threading.Event()).read_into(extents, memoryview(buffer))

    assert buffer == b"".join(CONTENT[extent.start : extent.end] for extent in extents)
    assert all(size % 4096 == 0 for size in inner.sizes[:-1])


def test_closing_closes_the_reader() -> None:
    inner = BytesReader()
    ThrottledReader(inner, Throttle(), Limit(1), threading.Event()).close()
    assert inner.closed
