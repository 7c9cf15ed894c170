"""Reads of one stream by several threads: in the order of their offsets, and without a wait where nobody comes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.storage import turns
from engine.storage.turns import AHEAD_BYTES_MAX, Turns
from engine.units import MIB
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("P11")


def test_who_is_early_by_a_little_goes_after_who_comes_before(monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 60.0)
    shared, order = Turns(), list[int]()
    read(shared, 8 * MIB)
    with ThreadPoolExecutor(4) as pool:
        with shared.turn(0, MIB):  # back: from now on it is worth a wait
            reads = [pool.submit(read, shared, number * MIB, order) for number in (3, 1, 2)]
            wait_until(lambda: waiting(shared) == 3, 10, "all to ask")
        for one in reads:
            one.result(10)
    assert order == [1 * MIB, 2 * MIB, 3 * MIB]


def test_waiting_is_given_up_where_nobody_comes(monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.05)
    shared = Turns()
    read(shared, 8 * MIB)
    read(shared, 0)
    begun = time.monotonic()
    for number in range(2, 400, 2):
        read(shared, number * MIB)
    assert time.monotonic() - begun < 2.0, "199 gaps, of which three were waited for"


def test_nobody_waits_who_reads_alone_and_forward_or_far_ahead(monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 60.0)
    shared = Turns()
    read(shared, 2 * MIB)
    read(shared, 0)
    read(shared, MIB + AHEAD_BYTES_MAX + 1)


def test_between_turns_the_stream_may_be_had_without_a_wait():
    shared = Turns()
    with shared.turn(0, MIB):
        with shared.between(wait=False) as free:
            assert not free
        with shared.between(wait=False) as free:
            assert not free, "it was not set free by who did not have it"
    with shared.between(wait=False) as free:
        assert free
    read(shared, MIB)


def test_a_failed_turn_lets_the_next_one_in():
    shared = Turns()
    with pytest.raises(OSError, match="lost"), shared.turn(0, MIB):
        raise OSError("lost")
    read(shared, 0)


def read(shared: Turns, offset: int, order: list[int] | None = None) -> None:
    with shared.turn(offset, MIB):
        if order is not None:
            order.append(offset)


def waiting(shared: Turns) -> int:
    return len(shared._changed._waiters)  # type: ignore[attr-defined]  # the library keeps its list there
