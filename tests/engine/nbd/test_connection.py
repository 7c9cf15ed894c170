"""Connecting to a unix socket whose server is behind with accepting."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import NbdDisconnected
from engine.nbd.connection import Connection

pytestmark = pytest.mark.feature("T11")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Return the path of a socket whose backlog is full, and its listener."""
    path = str(tmp_path / "nbd")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(path)
            except BlockingIOError:
                break
        yield path, listener


def test_a_full_backlog_is_waited_for(full: tuple[str, socket.socket]) -> None:
    path, listener = full
    accepted: list[socket.socket] = []
    timer = threading.Timer(0.2, lambda: accepted.append(listener.accept()[0]))
    timer.start()
    try:
        Connection.open(path, 10).close()
    finally:
        timer.join()
        for one in accepted:
            one.close()


def test_a_backlog_that_stays_full_is_given_up(full: tuple[str, socket.socket]) -> None:
    with pytest.raises(NbdDisconnected) as caught:
        Connection.open(full[0], 0.1)

    assert caught.value.facts["operation"] == "connect"
