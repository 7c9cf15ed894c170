"""The SFTP protocol against servers no real one would be: short answers, answers out of order, nonsense, silence.

The peer is a thread at the other end of a socket pair that answers from a script; a socket has what Wire uses of a channel.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest

from engine.storage.sftp_connect import shut
from engine.storage.sftp_wire import Lost, Refused, Wire
from engine.units import KIB

STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 101, 102, 103, 104, 105, 201
READ, STAT = 5, 17
Answer = Callable[[int, int, bytes], bytes]  # of a request's kind, number and body: the packets to send


@contextmanager
def wire_to(answer: Answer, hello: bytes = b"", stall_seconds: float = 10) -> Iterator[Wire]:
    """Give a Wire to a peer that greets with `hello` and sends what `answer` returns for each request."""
    here, there = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(there, hello or packet(2, struct.pack(">I", 3)), answer))
    thread.start()
    try:
        yield Wire(cast("Any", here), stall_seconds, lambda: shut(here))
    finally:
        shut(here)
        shut(there)
        thread.join(10)
        here.close()
        there.close()


def _serve(there: socket.socket, hello: bytes, answer: Answer) -> None:
    stream = there.makefile("rb")
    try:
        stream.read(9)
        there.sendall(hello)
        while head := stream.read(9):
            length, kind, number = struct.unpack(">IBI", head)
            there.sendall(answer(kind, number, stream.read(length - 5)))
    except OSError:
        pass
    finally:
        stream.close()


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def reply(kind: int, number: int, body: bytes = b"") -> bytes:
    return packet(kind, struct.pack(">I", number) + body)


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def status(number: int, code: int) -> bytes:
    return reply(STATUS, number, struct.pack(">I", code) + string(b"text") + string(b"en"))


class File:
    """Answers reads of `content`, at most `piece` bytes at a time."""

    def __init__(self, content: bytes, piece: int) -> None:
        self.content, self.piece = content, piece

    def __call__(self, kind: int, number: int, body: bytes) -> bytes:
        assert kind == READ
        offset, length = struct.unpack(">QI", body[-12:])
        data = self.content[offset : offset + min(length, self.piece)]
        return reply(DATA, number, string(data)) if data else status(number, 1)


@pytest.mark.parametrize("piece", [1000, 32 * KIB - 1, 32 * KIB])
def test_short_answers_are_completed(piece):
    content = os.urandom(100_001)
    with wire_to(File(content, piece)) as wire:
        assert wire.read(b"h", 0, 100_001) == content
        assert wire.read(b"h", 7, 70_000) == content[7:70_007]
        assert wire.read(b"h", 90_000, 50_000) == content[90_000:]
        assert wire.read(b"h", 200_000, 1) == b""


def test_a_server_that_answers_with_more_than_asked_is_cut_down():
    with wire_to(lambda kind, number, body: reply(DATA, number, string(bytes(100)))) as wire:
        assert wire.read(b"h", 0, 60) == bytes(60)


def test_answers_in_another_order_reach_those_who_asked():
    held: list[bytes] = []

    def answer(kind: int, number: int, body: bytes) -> bytes:
        path = body[4:]
        held.append(reply(ATTRS, number, struct.pack(">IQ", 1, int(path))))
        return b"".join(reversed(held)) if len(held) == 8 else b""

    with wire_to(answer) as wire, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: wire.stat(b"%d" % number).size, range(8))) == list(range(8))


def test_a_status_is_told_with_its_number():
    with wire_to(lambda kind, number, body: status(number, 4)) as wire:
        with pytest.raises(Refused) as caught:
            wire.stat(b"/")
        assert (caught.value.code, caught.value.text) == (4, "text")
        with pytest.raises(Refused):
            wire.stat(b"/")


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda number: packet(ATTRS, b""),  # shorter than any reply
        lambda number: struct.pack(">I", 1 << 30),  # a packet of 1 GiB
        lambda number: reply(ATTRS, number, b"\0\0"),
        lambda number: reply(ATTRS, number, struct.pack(">I", 1)),  # says that a size follows
        lambda number: reply(ATTRS, number, struct.pack(">III", 0x80000000, 1, 0xFFFFFFFF)),
        lambda number: reply(HANDLE, number, string(b"h")),  # not what was asked for
        lambda number: reply(STATUS, number, b""),
        lambda number: reply(STATUS, number, struct.pack(">I", 0)),  # OK, but no attributes
    ],
)
def test_nonsense_is_an_error_not_a_crash(nonsense):
    with wire_to(lambda kind, number, body: nonsense(number)) as wire:
        with pytest.raises((Lost, Refused)):
            wire.stat(b"/")


@pytest.mark.parametrize(
    "hello",
    [packet(2, struct.pack(">I", 2)), packet(STATUS, bytes(8)), b"SSH-2.0-not-sftp\r\n", packet(2, bytes(2) * 2)],
)
def test_what_is_not_sftp_is_said_at_once(hello):
    with pytest.raises(Lost), wire_to(lambda *_: b"", hello):
        pass


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((0, 0), 32 * KIB), ((261_120, 261_120), 250 * KIB), ((65_536, 65_536), 65_536), ((1 << 62, 1 << 62), 250 * KIB)],
)
def test_requests_are_as_large_as_the_server_allows(limits, expected):
    hello = packet(2, struct.pack(">I", 3) + string(b"limits@openssh.com") + string(b"1"))

    def answer(kind: int, number: int, body: bytes) -> bytes:
        return reply(EXTENDED_REPLY, number, struct.pack(">QQQQ", 0, *limits, 0))

    with wire_to(answer, hello) as wire:
        assert (wire.read_bytes_max, wire.write_bytes_max) == (expected, expected)


def test_silence_ends_after_its_time():
    with wire_to(lambda *_: b"", stall_seconds=0.3) as wire:
        begin = time.monotonic()
        with pytest.raises(Lost) as caught:
            wire.stat(b"/")
        assert 0.25 < time.monotonic() - begin < 5
        assert "no answer" in str(caught.value)
        with pytest.raises(Lost):
            wire.stat(b"/")


def test_an_end_reaches_everyone_who_waits():
    arrived = threading.Semaphore(0)

    def answer(kind: int, number: int, body: bytes) -> bytes:
        arrived.release()
        return b""

    def look(wire: Wire) -> str:
        with pytest.raises(Lost) as caught:
            wire.stat(b"/")
        return str(caught.value)

    with wire_to(answer) as wire, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(look, wire) for _ in range(4)]
        for _ in waiting:
            assert arrived.acquire(timeout=10)
        wire.end("told to")
        assert [one.result(10) for one in waiting] == ["told to"] * 4


def test_forgotten_answers_are_not_kept():
    with wire_to(lambda kind, number, body: reply(DATA, number, string(b"x"))) as wire:
        for _ in range(100):
            wire.close_later(b"h")
        assert wire.read(b"h", 0, 1) == b"x"
        assert wire._replies == {}
        assert wire._awaited == set()
