"""Ids: their form, and that those which are made together stand together."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from engine.ids import first_id, is_id, new_id, new_ids

NOW = datetime(2026, 5, 4, 3, 2, 1, 123000, UTC)


@pytest.mark.feature("N7")
def test_ids_of_one_run_ascend_and_are_like_any_other() -> None:
    run = new_ids(NOW, 1000)
    assert run == sorted(set(run))
    assert all(is_id(one) for one in (new_id(NOW), *run))
    assert {one[14] for one in run} == {"7"}
    assert {one[19] for one in run} <= set("89ab")
    assert first_id(NOW) <= run[0]
    assert run[-1] < first_id(NOW + timedelta(milliseconds=1))


@pytest.mark.feature("N7")
def test_runs_of_one_instant_do_not_run_into_each_other() -> None:
    runs = [new_ids(NOW, 100) for _ in range(100)]
    assert len({one for run in runs for one in run}) == 10_000
    ends = sorted((run[0], run[-1]) for run in runs)
    assert all(before[1] < after[0] for before, after in pairwise(ends))


@pytest.mark.feature("N7")
def test_a_run_has_a_limit() -> None:
    assert new_ids(NOW, 0) == []
    with pytest.raises(ValueError, match="too many"):
        new_ids(NOW, (1 << 20) + 1)
