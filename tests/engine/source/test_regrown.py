"""What is stored of a disk that was shrunk and grown back: with what was recorded it makes the parent's content the present one."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.extents import Extent
from engine.source.regrown import GRAIN_BYTES, Look, last_data, regrown
from engine.units import MIB

pytestmark = pytest.mark.feature("T27")


class Blocks:
    """A disk of blocks of the grain, each a number; 0 reads as zeros. `holes` tells whether allocation says so of zeros."""

    def __init__(self, content: list[int], *, holes: bool) -> None:
        self.content = list(content)
        self.recorded: set[int] = set()
        self.holes = holes
        self.read_bytes = 0

    def write(self, number: int, value: int) -> None:
        self.content[number] = value
        self.recorded.add(number)

    def cut(self, number: int) -> None:
        """Shrink to so many blocks and grow back."""
        self.content[number:] = [0] * (len(self.content) - number)
        self.recorded = {one for one in self.recorded if one < number}

    def look(self) -> Look:
        def is_zero(start: int, length: int) -> bool:
            self.read_bytes += length
            return not any(self.content[start // GRAIN_BYTES : (start + length) // GRAIN_BYTES])

        return Look(
            self._pieces(lambda number: Extent(number, 1, zero=self.holes and not self.content[number])),
            self._pieces(lambda number: Extent(number, 1) if number in self.recorded else None),
            is_zero,
        )

    def _pieces(self, of: Callable[[int], Extent | None]) -> Callable[[int, int], Iterator[Extent]]:
        def ask(start: int, length: int) -> Iterator[Extent]:
            for number in range(start // GRAIN_BYTES, (start + length) // GRAIN_BYTES):
                if (piece := of(number)) is not None:
                    yield Extent(piece.start * GRAIN_BYTES, GRAIN_BYTES, piece.zero)

        return ask


STEPS = st.lists(st.tuples(st.sampled_from(["write", "cut"]), st.integers(0, 39), st.integers(0, 3)), max_size=12)


@given(st.lists(st.integers(0, 3), min_size=40, max_size=40), STEPS, st.booleans())
def test_the_parent_and_what_is_stored_make_the_disk(
    before: list[int], steps: list[tuple[str, int, int]], holes: bool
) -> None:
    disk = Blocks(before, holes=holes)
    end = last_data(disk.look(), len(before) * GRAIN_BYTES)
    assert end == max((number + 1 for number, value in enumerate(before) if value), default=0) * GRAIN_BYTES
    for act, number, value in steps:
        disk.cut(number) if act == "cut" else disk.write(number, value)

    found = regrown(disk.look(), end, exact=True)

    made = list(before)
    for number in disk.recorded:
        made[number] = disk.content[number]
    for extent in found.extents:
        numbers = range(extent.start // GRAIN_BYTES, extent.end // GRAIN_BYTES)
        assert not {*numbers} & disk.recorded
        for number in numbers:
            made[number] = 0 if extent.zero else disk.content[number]
    assert made == disk.content
    assert list(found.extents) == sorted(found.extents, key=lambda extent: extent.start)
    assert found.kept_end == max(
        (number + 1 for number in range(end // GRAIN_BYTES) if disk.content[number] and number not in disk.recorded), default=0
    ) * GRAIN_BYTES  # fmt: skip


def test_a_disk_that_was_not_cut_costs_one_small_read() -> None:
    disk = Blocks([1] * 30 + [0] * 10, holes=True)
    assert regrown(disk.look(), 30 * GRAIN_BYTES, exact=True).extents == ()
    assert disk.read_bytes == GRAIN_BYTES


def test_where_the_parent_does_not_say_holes_alone_are_found_and_nothing_is_read() -> None:
    disk = Blocks([1] * 10 + [0] * 10, holes=True)
    found = regrown(disk.look(), 20 * GRAIN_BYTES, exact=False)
    assert found.extents == (
        Extent(9 * GRAIN_BYTES, GRAIN_BYTES),
        Extent(10 * GRAIN_BYTES, 10 * GRAIN_BYTES, zero=True),
    )
    assert disk.read_bytes == 0


def test_a_long_end_of_zeros_is_not_looked_through() -> None:
    disk = Blocks([1] + [0] * (8 * MIB // GRAIN_BYTES), holes=False)
    assert last_data(disk.look(), len(disk.content) * GRAIN_BYTES) is None
    assert disk.read_bytes == 4 * MIB
