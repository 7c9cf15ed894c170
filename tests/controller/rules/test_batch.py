"""The rules of batches: order, hours, fairness, and how a batch ends by its jobs."""

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rules import states
from controller.rules.batch import FAIR_AFTER, Candidate, holds_back, order, time_max
from tests.clock import START

HOUR, ZERO = timedelta(hours=1), timedelta(0)
ENDS = (states.COMPLETED, states.COMPLETED_WITH_WARNINGS, states.FAILED, states.CANCELLED, states.SKIPPED)
CANDIDATES = st.builds(
    Candidate,
    server_id=st.uuids().map(str),
    last_success=st.none() | st.integers(0, 1000).map(lambda hours: START - hours * HOUR),
    cut_off=st.booleans(),
)


@pytest.mark.feature("X13")
@given(st.lists(CANDIDATES, max_size=20, unique_by=lambda one: one.server_id))
def test_cut_off_first_then_never_backed_up_then_the_oldest_success(candidates: list[Candidate]) -> None:
    found = order(candidates)

    assert sorted(found, key=id) == sorted(candidates, key=id)
    for one, other in itertools.pairwise(found):
        assert one.cut_off or not other.cut_off
        if one.cut_off == other.cut_off:
            assert one.last_success is None or (
                other.last_success is not None and one.last_success <= other.last_success
            )


@pytest.mark.feature("X7")
@pytest.mark.parametrize(
    ("cap_hours", "interval_hours", "wanted_hours"),
    [(48, 24, 48), (48, 16, 48), (48, 15, 45), (48, 1, 3), (2, 24, 2), (48, 0, 48)],
)
def test_a_batch_has_the_cap_or_three_intervals(cap_hours: int, interval_hours: int, wanted_hours: int) -> None:
    assert time_max(cap_hours * HOUR, interval_hours * HOUR) == wanted_hours * HOUR


@pytest.mark.feature("X3")
@pytest.mark.parametrize(
    ("waited", "asked_after", "wanted"),
    [
        (ZERO, ZERO, False),
        (FAIR_AFTER - timedelta(seconds=1), FAIR_AFTER - timedelta(seconds=1), False),
        (FAIR_AFTER, FAIR_AFTER, True),
        (2 * FAIR_AFTER, FAIR_AFTER, True),
        (2 * FAIR_AFTER, FAIR_AFTER - timedelta(seconds=1), False),  # it was there before
        (2 * FAIR_AFTER, -HOUR, False),
    ],
)
def test_only_what_came_after_an_hour_of_waiting_queues_behind(
    waited: timedelta, asked_after: timedelta, wanted: bool
) -> None:
    assert holds_back(START, START + asked_after, START + waited) is wanted


@pytest.mark.feature("X17", "S21", "M5", "M18")
@pytest.mark.parametrize(
    "kinds",
    [set(one) for n in range(6) for one in itertools.combinations(ENDS, n)],
    ids=lambda kinds: "+".join(sorted(kinds)),
)
def test_how_a_batch_ends_by_its_jobs(kinds: set[str]) -> None:
    well, failed = bool(kinds & states.WELL), states.FAILED in kinds
    found = states.outcome(kinds, cancelled=False)

    assert states.outcome(kinds, cancelled=True) == states.CANCELLED
    assert (found == states.PARTIAL) is (well and failed)
    assert (found == states.FAILED) is (failed and not well)
    assert (found == states.COMPLETED) is (kinds <= {states.COMPLETED})
    assert (found == states.CANCELLED) is (states.CANCELLED in kinds and not well and not failed)
