"""Waiting for what cannot be woken, and being told to stop meanwhile."""

import threading

import pytest

from engine.errors import Cancelled, StorageUnreachable
from engine.work import Stop
from tests.waiting import wait_until


def test_what_is_made_is_returned_and_its_error_is_raised() -> None:
    def fail() -> int:
        raise StorageUnreachable(storage="s", step="connect", detail="nobody there")

    given_up: list[int] = []

    assert Stop().obtain(lambda: 7, given_up.append) == 7
    with pytest.raises(StorageUnreachable):
        Stop().obtain(fail, given_up.append)
    assert given_up == []


@pytest.mark.feature("M7")
def test_a_stop_does_not_wait_and_what_comes_late_is_given_up() -> None:
    stop, begun, go_on = Stop(), threading.Event(), threading.Event()
    given_up: list[int] = []

    def make() -> int:
        begun.set()
        go_on.wait(30)
        return 7

    def stop_when_begun() -> None:
        begun.wait(30)
        stop.set()

    threading.Thread(target=stop_when_begun).start()
    with pytest.raises(Cancelled):
        stop.obtain(make, given_up.append)
    assert given_up == []
    go_on.set()

    wait_until(lambda: given_up == [7], 10, "the late value to be given up")


@pytest.mark.feature("M7")
def test_after_a_stop_nothing_is_made() -> None:
    stop = Stop()
    stop.set()

    with pytest.raises(Cancelled):
        stop.obtain(lambda: pytest.fail("it began all the same"), lambda _: None)
