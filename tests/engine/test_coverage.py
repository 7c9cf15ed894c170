"""Coverage against a set of bytes, which cannot be wrong."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engine.coverage import Coverage

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8).map(
    lambda found: sorted((start, start + length) for start, length in found)
)


def covered(batches: list[list[tuple[int, int]]]) -> set[int]:
    return {byte for batch in batches for start, end in batch for byte in range(start, end)}


@given(st.lists(pieces, max_size=4), st.integers(0, 80), st.integers(0, 30))
def test_gaps_are_what_no_piece_covers(batches: list[list[tuple[int, int]]], start: int, length: int) -> None:
    coverage = Coverage()
    for batch in batches:
        coverage.add(batch)

    gaps = list(coverage.gaps(start, start + length))

    assert {byte for one, end in gaps for byte in range(one, end)} == set(range(start, start + length)) - covered(
        batches
    )
    assert all(one < end for one, end in gaps)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(gaps))


@given(st.lists(pieces, max_size=4))
def test_neighbors_are_joined(batches: list[list[tuple[int, int]]]) -> None:
    coverage = Coverage()
    for batch in batches:
        coverage.add(batch)

    bytes_covered = covered(batches)

    assert len(coverage) == sum(1 for byte in bytes_covered if byte - 1 not in bytes_covered)
