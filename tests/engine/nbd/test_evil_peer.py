"""A peer that breaks the protocol, byte for byte by hand: always a typed error, never a hang, never wrong bytes."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import NbdDisconnected, NbdError, NbdProtocolError, NbdReadFailed, NbdRefused
from engine.extents import Extent
from engine.nbd.client import Client
from engine.nbd.connection import Connection
from engine.nbd.exchange import REQUESTS_IN_FLIGHT
from engine.nbd.protocol import CONTEXT_ALLOCATION

SIZE = 1 << 20
SILENCE_SECONDS = 5.0  # a test that reaches it fails: the error would not be the expected one

GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
OPTION_REPLY = 0x3E889045565A9
DONE, NONE, DATA, HOLE, STATUS, ERROR = 1, 0, 1, 2, 5, 1 << 15 | 1


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", OPTION_REPLY, option, kind, len(data)) + data


def chunk(cookie: int, kind: int, payload: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    count = len(payload) if length is None else length
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, count) + payload


def data(cookie: int, start: int, content: bytes, flags: int = 0) -> bytes:
    return chunk(cookie, DATA, struct.pack(">Q", start) + content, flags)


def hole(cookie: int, start: int, length: int, flags: int = 0) -> bytes:
    return chunk(cookie, HOLE, struct.pack(">QI", start, length), flags)


def error(cookie: int, number: int, message: bytes = b"", flags: int = DONE) -> bytes:
    return chunk(cookie, ERROR, struct.pack(">IH", number, len(message)) + message, flags)


STRUCTURED = option_reply(8, 1)
CONTEXT = option_reply(10, 4, struct.pack(">I", 7) + CONTEXT_ALLOCATION.encode()) + option_reply(10, 1)
EXPORT = option_reply(7, 3, struct.pack(">HQH", 0, SIZE, 1))
GO = EXPORT + option_reply(7, 1)


class Peer:
    """The server's end of a connection, played by a script in a thread of its own."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._stream = end.makefile("rb")

    def send(self, *parts: bytes) -> None:
        self._socket.sendall(b"".join(parts))

    def option(self) -> int:
        _, option, length = struct.unpack(">8sII", self._stream.read(16))
        self._stream.read(length)
        return int(option)

    def request(self) -> tuple[int, int, int]:
        """Return cookie, start and length of the next request."""
        _, _, _, cookie, start, length = struct.unpack(">IHHQQI", self._stream.read(28))
        return cookie, start, length

    def handshake(self, *, contexts: bool = False, structured: bytes = STRUCTURED, go: bytes = GO) -> None:
        self.send(GREETING)
        self._stream.read(4)
        self.option()
        self.send(structured)
        if contexts:
            self.option()
            self.send(CONTEXT)
        self.option()
        self.send(go)

    def drain(self) -> None:
        """Take whatever comes until the client hangs up."""
        self._stream.read()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@contextmanager
def playing(script: Callable[[Peer], None]) -> Iterator[Connection]:
    """Run `script` as the peer of the connection that is yielded; the peer hangs up when the script ends."""
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def play() -> None:
        peer = Peer(theirs)
        try:
            script(peer)
        except (OSError, struct.error):
            pass  # the client hung up in the middle, as it should
        except BaseException as failure:
            failures.append(failure)
        finally:
            peer.close()

    thread = threading.Thread(target=play)
    thread.start()
    connection = Connection(ours, SILENCE_SECONDS)
    try:
        yield connection
    finally:
        connection.close()
        thread.join(10)
    assert not thread.is_alive()
    assert not failures


def read(connection: Connection, length: int = 4096, start: int = 0) -> bytes:
    with Client(connection) as client:
        return client.read(start, length)


# ---- handshake -----------------------------------------------------------------------------------------------------------

BROKEN_HANDSHAKES: dict[str, bytes] = {
    "no NBD": b"SSH-2.0-OpenSSH_9.2p1 Debian",
    "oldstyle": b"NBDMAGIC" + bytes.fromhex("00420281861253") + bytes(20),
    "not fixed newstyle": b"NBDMAGICIHAVEOPT" + bytes(2),
    "wrong reply magic": GREETING + struct.pack(">QIII", 1, 8, 1, 0),
    "reply to another option": GREETING + option_reply(9, 1),
    "huge option reply": GREETING + struct.pack(">QIII", OPTION_REPLY, 8, 1, 1 << 31),
    "acknowledgement with data": GREETING + option_reply(8, 1, b"x"),
    "no size": GREETING + STRUCTURED + option_reply(7, 1),
    "short export info": GREETING + STRUCTURED + option_reply(7, 3, bytes(3)),
    "size beyond 2^63": GREETING + STRUCTURED + option_reply(7, 3, struct.pack(">HQH", 0, 1 << 63, 1)),
    "odd block size": GREETING + STRUCTURED + option_reply(7, 3, struct.pack(">HIII", 3, 3, 4096, 1 << 20)),
    "no maximum": GREETING + STRUCTURED + option_reply(7, 3, struct.pack(">HIII", 3, 512, 4096, 0)),
    "unknown reply": GREETING + STRUCTURED + option_reply(7, 99),
    "endless replies": GREETING + STRUCTURED + EXPORT * 5000,
}


@pytest.mark.parametrize("name", BROKEN_HANDSHAKES)
def test_broken_handshake(name: str) -> None:
    def script(peer: Peer) -> None:
        peer.send(BROKEN_HANDSHAKES[name])
        peer.drain()

    with playing(script) as connection:
        with pytest.raises(NbdProtocolError):
            Client(connection)


@pytest.mark.parametrize("kept", range(len(GREETING + STRUCTURED + GO)))
def test_handshake_cut_at_every_byte(kept: int) -> None:
    whole = GREETING + STRUCTURED + GO
    with playing(lambda peer: peer.send(whole[:kept])) as connection, pytest.raises(NbdDisconnected):
        Client(connection)


def test_refusal_carries_the_servers_words() -> None:
    go = option_reply(7, (1 << 31) + 6, b"no such export here")
    with playing(lambda peer: peer.handshake(go=go)) as connection:
        with pytest.raises(NbdRefused, match="no such export here"):
            Client(connection, "vda")


def test_context_granted_twice() -> None:
    twice = CONTEXT[: -len(option_reply(10, 1))] + option_reply(
        10, 4, struct.pack(">I", 8) + CONTEXT_ALLOCATION.encode()
    )

    def script(peer: Peer) -> None:
        peer.send(GREETING, STRUCTURED, twice, option_reply(10, 1), GO)
        peer.drain()

    with playing(script) as connection, pytest.raises(NbdProtocolError):
        Client(connection, "vda", [CONTEXT_ALLOCATION])


# ---- reads ---------------------------------------------------------------------------------------------------------------

BROKEN_READS: dict[str, Callable[[int], bytes]] = {
    "wrong magic": lambda cookie: struct.pack(">IIQ", 0x12345678, 0, cookie),
    "foreign cookie": lambda cookie: data(cookie + 1, 0, bytes(4096), DONE),
    "simple reply": lambda cookie: struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(4096),
    "oversized chunk": lambda cookie: data(cookie, 0, bytes(4097), DONE),
    "chunk of 4 GiB": lambda cookie: chunk(cookie, DATA, bytes(8), DONE, length=0xFFFFFFFF),
    "empty data chunk": lambda cookie: chunk(cookie, DATA, bytes(8), DONE),
    "before the start": lambda cookie: data(cookie, 0, bytes(512)),
    "behind the end": lambda cookie: data(cookie, 8192, bytes(512)),
    "hole behind the end": lambda cookie: hole(cookie, 8192 - 512, 1024),
    "empty hole": lambda cookie: hole(cookie, 4096, 0),
    "hole of odd length": lambda cookie: chunk(cookie, HOLE, bytes(13)),
    "overlap": lambda cookie: data(cookie, 4096, bytes(4096)) + data(cookie, 4096, bytes(512), DONE),
    "overlap instead of the rest": lambda cookie: data(cookie, 4096, bytes(2048)) + hole(cookie, 5120, 2048, DONE),
    "gap": lambda cookie: data(cookie, 4096, bytes(2048)) + hole(cookie, 7168, 1024, DONE),
    "nothing at all": lambda cookie: chunk(cookie, NONE, flags=DONE),
    "none without done": lambda cookie: chunk(cookie, NONE),
    "none with payload": lambda cookie: chunk(cookie, NONE, b"x", DONE),
    "unknown chunk": lambda cookie: chunk(cookie, 77, b"", DONE),
    "extents": lambda cookie: chunk(cookie, STATUS, struct.pack(">III", 7, 4096, 0), DONE),
    "short error": lambda cookie: chunk(cookie, ERROR, bytes(5), DONE),
    "error without error": lambda cookie: error(cookie, 0),
    "error message too long": lambda cookie: chunk(cookie, ERROR, struct.pack(">IH", 5, 100) + b"short", DONE),
    "huge error": lambda cookie: chunk(cookie, ERROR, length=1 << 30),
    "endless chunks": lambda cookie: error(cookie, 5, flags=0) * 5000,
}


@pytest.mark.parametrize("name", BROKEN_READS)
def test_broken_read(name: str) -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        cookie, _, _ = peer.request()
        peer.send(BROKEN_READS[name](cookie))
        peer.drain()

    with playing(script) as connection:
        with Client(connection) as client:
            with pytest.raises(NbdProtocolError):
                client.read(4096, 4096)
            with pytest.raises(NbdDisconnected):  # nobody knows which byte comes next
                client.read(0, 512)


def test_reply_cut_at_every_byte() -> None:
    whole = data(1, 0, b"ab" * 16) + hole(1, 32, 32) + chunk(1, NONE, flags=DONE)
    for kept in range(len(whole)):

        def script(peer: Peer, kept: int = kept) -> None:
            peer.handshake()
            peer.request()
            peer.send(whole[:kept])

        with playing(script) as connection, pytest.raises(NbdDisconnected):
            read(connection, 64)


def test_second_done_is_a_foreign_cookie() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        cookie, _, _ = peer.request()
        peer.send(data(cookie, 0, bytes(512), DONE), data(cookie, 0, b"\xff" * 512, DONE))
        peer.drain()

    with playing(script) as connection, Client(connection) as client:
        assert client.read(0, 512) == bytes(512)
        with pytest.raises(NbdProtocolError):
            client.read(0, 512)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_chunks_in_any_order_and_holes_read_right(draw: st.DataObject) -> None:
    """Several requests in flight, each answered in pieces, all pieces shuffled among each other."""
    content = bytes(draw.draw(st.lists(st.integers(1, 255), min_size=64, max_size=64))) * 64
    extents = tuple(Extent(start, 1024) for start in draw.draw(st.permutations([0, 1024, 2048, 3072])))
    cuts = draw.draw(st.lists(st.integers(1, 1023), max_size=5, unique=True).map(sorted))
    zero_piece = draw.draw(st.integers(0, len(cuts)))
    orders = draw.draw(st.permutations(range(len(extents) * (len(cuts) + 1))))

    def pieces(start: int) -> list[tuple[int, int, bool]]:
        ends = [*cuts, 1024]
        return [
            (start + begin, end - begin, number == zero_piece)
            for number, (begin, end) in enumerate(zip([0, *cuts], ends, strict=True))
        ]

    def script(peer: Peer) -> None:
        peer.handshake()
        asked = [peer.request() for _ in extents]
        parts = [(cookie, piece) for cookie, start, _ in asked for piece in pieces(start)]
        for cookie, (start, length, zero) in (parts[order] for order in orders):
            peer.send(hole(cookie, start, length) if zero else data(cookie, start, content[start : start + length]))
        for cookie, _, _ in reversed(asked):
            peer.send(chunk(cookie, NONE, flags=DONE))

    expected = bytearray(content)
    for extent in extents:
        start, length, _ = pieces(extent.start)[zero_piece]
        expected[start : start + length] = bytes(length)
    buffer = bytearray(b"\xee" * 4096)
    with playing(script) as connection, Client(connection) as client:
        client.read_into(extents, memoryview(buffer))
    assert buffer == b"".join(expected[extent.start : extent.end] for extent in extents)


def test_error_drains_what_is_in_flight_and_the_next_read_is_right() -> None:
    later: list[int] = []

    def script(peer: Peer) -> None:
        peer.handshake()
        asked = [peer.request() for _ in range(REQUESTS_IN_FLIGHT)]
        peer.send(error(asked[1][0], 5, b"bad sector"))
        for cookie, start, length in (asked[0], *reversed(asked[2:])):
            peer.send(data(cookie, start, bytes(length), DONE))
        cookie, start, length = peer.request()
        later.append(start)
        peer.send(data(cookie, start, b"\x42" * length, DONE))
        peer.drain()

    extents = tuple(Extent(4096 * number, 512) for number in range(3 * REQUESTS_IN_FLIGHT))
    with playing(script) as connection, Client(connection) as client:
        with pytest.raises(NbdReadFailed, match="bad sector") as caught:
            client.read_into(extents, memoryview(bytearray(512 * len(extents))))
        assert client.read(SIZE - 512, 512) == b"\x42" * 512
    assert caught.value.facts["start"] == "4096"
    assert later == [SIZE - 512]  # after an error nothing more of that call is asked


def test_error_and_then_hanging_up_tells_the_error() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        asked = [peer.request() for _ in range(2)]
        peer.send(error(asked[0][0], 28))

    with playing(script) as connection, Client(connection) as client:
        with pytest.raises(NbdReadFailed, match="no space left"):
            client.read_into((Extent(0, 512), Extent(4096, 512)), memoryview(bytearray(1024)))
        with pytest.raises(NbdDisconnected):
            client.read(0, 1)


def test_peer_that_stops_in_the_middle_of_a_chunk_is_given_up() -> None:
    gate = threading.Event()

    def script(peer: Peer) -> None:
        peer.handshake()
        cookie, _, _ = peer.request()
        peer.send(data(cookie, 0, bytes(512), DONE)[:100])
        gate.wait(10)

    with playing(script) as connection:
        connection._set_silence(0.1)
        with pytest.raises(NbdDisconnected, match="silent"):
            read(connection, 512)
        gate.set()


def test_peer_that_takes_no_more_data_is_given_up() -> None:
    gate = threading.Event()

    def script(peer: Peer) -> None:
        peer.handshake()
        gate.wait(10)

    with playing(script) as connection:
        connection._set_silence(0.1)
        with Client(connection) as client, pytest.raises(NbdDisconnected, match="silent"):
            client.write(0, bytes(SIZE))
        gate.set()


# ---- block status --------------------------------------------------------------------------------------------------------


def statuses(*extents: tuple[int, int], context: int = 7) -> bytes:
    return struct.pack(">I", context) + b"".join(struct.pack(">II", *extent) for extent in extents)


BROKEN_STATUSES: dict[str, Callable[[int], bytes]] = {
    "simple reply": lambda cookie: struct.pack(">IIQ", 0x67446698, 0, cookie),
    "no extents": lambda cookie: chunk(cookie, STATUS, statuses(), DONE),
    "odd length": lambda cookie: chunk(cookie, STATUS, statuses((4096, 0)) + b"x", DONE),
    "empty extent": lambda cookie: chunk(cookie, STATUS, statuses((4096, 0), (0, 0)), DONE),
    "foreign context": lambda cookie: chunk(cookie, STATUS, statuses((SIZE, 0), context=8), DONE),
    "twice": lambda cookie: chunk(cookie, STATUS, statuses((SIZE, 0))) * 2,
    "too many": lambda cookie: chunk(cookie, STATUS, length=4 + 8 * ((1 << 20) + 1)),
    "beyond what was asked": lambda cookie: chunk(cookie, STATUS, statuses((SIZE, 0), (512, 0)), DONE),
    "nothing": lambda cookie: chunk(cookie, NONE, flags=DONE),
    "one byte": lambda cookie: chunk(cookie, STATUS, statuses((1, 0)), DONE),
}


@pytest.mark.parametrize("name", BROKEN_STATUSES)
def test_broken_block_status(name: str) -> None:
    def script(peer: Peer) -> None:
        peer.handshake(contexts=True)
        cookie, _, _ = peer.request()
        peer.send(BROKEN_STATUSES[name](cookie))
        peer.drain()

    with playing(script) as connection, Client(connection, "", [CONTEXT_ALLOCATION]) as client:
        with pytest.raises(NbdProtocolError):
            list(client.block_status(0, SIZE, CONTEXT_ALLOCATION))


def test_answers_that_cover_less_or_more_than_asked() -> None:
    asked: list[tuple[int, int]] = []

    def script(peer: Peer) -> None:
        peer.handshake(contexts=True)
        for answer in (statuses((4096, 0), (8192, 3)), statuses((SIZE * 4, 2))):
            cookie, start, length = peer.request()
            asked.append((start, length))
            peer.send(chunk(cookie, STATUS, answer, DONE))

    with playing(script) as connection, Client(connection, "", [CONTEXT_ALLOCATION]) as client:
        found = [(one.start, one.length, one.flags) for one in client.block_status(0, SIZE, CONTEXT_ALLOCATION)]
    assert asked == [(0, SIZE), (12288, SIZE - 12288)]
    assert found == [(0, 4096, 0), (4096, 8192, 3), (12288, SIZE - 12288, 2)]


def test_several_ranges_are_asked_about_before_the_first_answer_and_a_short_one_is_asked_on() -> None:
    ranges = [Extent(start, 8192) for start in range(0, 5 * 65536, 65536)]
    asked: list[tuple[int, int]] = []

    def script(peer: Peer) -> None:
        peer.handshake(contexts=True)
        requests = [peer.request() for _ in ranges]
        for cookie, start, length in reversed(requests):  # in any order
            asked.append((start, length))
            short = start == 2 * 65536
            peer.send(chunk(cookie, STATUS, statuses((4096, 3) if short else (SIZE, 0)), DONE))
        cookie, start, length = peer.request()
        asked.append((start, length))
        peer.send(chunk(cookie, STATUS, statuses((4096, 2)), DONE))

    with playing(script) as connection, Client(connection, "", [CONTEXT_ALLOCATION]) as client:
        found = [(one.start, one.length, one.flags) for one in client.block_statuses(ranges, CONTEXT_ALLOCATION)]
    assert asked == [*((one.start, one.length) for one in reversed(ranges)), (2 * 65536 + 4096, 4096)]
    expected = [(one.start, 8192, 0) for one in ranges]
    expected[2:3] = [(2 * 65536, 4096, 3), (2 * 65536 + 4096, 4096, 2)]
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_noise_after_the_handshake_never_gives_bytes(noise: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        peer.request()
        peer.send(noise)

    with playing(script) as connection, pytest.raises(NbdError):
        read(connection)
