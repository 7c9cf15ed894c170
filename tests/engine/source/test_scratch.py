"""When room is short, and how soon that has to be noticed."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import HypervisorError
from engine.source.scratch import (
    LOOK_SECONDS_MAX,
    LOOK_SECONDS_MIN,
    RESERVE_BYTES,
    Gauge,
    free_room,
    largest_elsewhere,
    needed_before,
)
from engine.units import GIB, MIB

GB = 10**9
ABORT_SECONDS = 0.09  # the longest that ending a job was seen to take on an idle host


def test_much_room_is_looked_at_seldom_and_little_room_often() -> None:
    assert Gauge(1000 * GIB, 0).look_seconds == LOOK_SECONDS_MAX
    assert Gauge(RESERVE_BYTES + MIB, 0).look_seconds == LOOK_SECONDS_MIN
    assert LOOK_SECONDS_MIN < Gauge(RESERVE_BYTES + GIB, 0).look_seconds < LOOK_SECONDS_MAX


def test_the_reserve_grows_with_the_rate_and_shrinks_when_it_is_quiet_again() -> None:
    gauge = Gauge(100 * GIB, 0)
    assert gauge.reserve_bytes == RESERVE_BYTES
    gauge.read(99 * GIB, 1)
    assert (gauge.rate, gauge.reserve_bytes) == (GIB, GIB // 2)
    gauge.read(99 * GIB, 11)
    assert gauge.reserve_bytes == GIB // 4
    gauge.read(100 * GIB, 200)  # somebody made room
    assert gauge.reserve_bytes == RESERVE_BYTES


def test_a_lump_of_room_is_no_rate() -> None:
    gauge = Gauge(GIB, 0)
    gauge.read(GIB - 64 * MIB, 0.001)  # what a file system sets aside for a growing file at once
    assert gauge.rate == 640 * MIB
    assert not gauge.short


def test_what_somebody_else_takes_at_once_is_short_at_the_next_look() -> None:
    gauge = Gauge(10 * GIB, 0)
    before = (gauge.short, gauge.dire)
    gauge.read(0, 0.5)
    assert (before, (gauge.short, gauge.dire)) == ((False, False), (True, True))


@pytest.mark.feature("C11")
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(
    room=st.integers(0, 20 * GIB),
    rate=st.integers(50 * MIB, GB),
    quiet_seconds=st.floats(0, 3),
    late_seconds=st.floats(0, 0.02),
)
def test_a_guest_of_a_gigabyte_a_second_is_noticed_in_time(
    room: int, rate: int, quiet_seconds: float, late_seconds: float
) -> None:
    """Whenever it begins to write, however much room there is: ending the job then takes less than what is left lasts."""
    now, start = 0.0, RESERVE_BYTES + room
    gauge = Gauge(start, now)
    while not gauge.short:
        now += gauge.look_seconds + late_seconds
        gauge.read(start - int(rate * max(0.0, now - quiet_seconds)), now)
    assert gauge.free_bytes >= rate * ABORT_SECONDS


def test_the_need_is_known_before(tmp_path: Path) -> None:
    assert needed_before([100 * GIB, 20 * GIB]) == RESERVE_BYTES + 12 * GIB
    assert free_room(tmp_path) > 0
    with pytest.raises(HypervisorError):
        free_room(tmp_path / "gone")


def test_the_largest_of_others(tmp_path: Path) -> None:
    for folder, name, size in (("a", "vda.scratch", 4), ("b", "vda.scratch", 1), ("b", "vdb.scratch", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(os.urandom(size * MIB))
    assert largest_elsewhere(tmp_path, tmp_path / "b") >= 4 * MIB
    assert 3 * MIB <= largest_elsewhere(tmp_path, tmp_path / "a") < 4 * MIB
    assert largest_elsewhere(tmp_path / "a", tmp_path) == 0
