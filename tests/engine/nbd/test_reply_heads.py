"""Replies are taken by the fewest receives; however the stream is cut and mixed, each byte lands where it belongs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.extents import Extent
from engine.nbd.client import Client
from tests.engine.nbd.test_evil_peer import DONE, NONE, Peer, chunk, data, hole, playing

PIECE = 512
KINDS = ("whole", "two", "hole", "empty end", "hole, then data")


def content(start: int) -> bytes:
    return bytes([start // PIECE % 251 + 1]) * PIECE


def reply(kind: str, cookie: int, start: int) -> tuple[bytes, bytes]:
    """Return an answer of this kind to a read of PIECE bytes, and what has been read then."""
    whole, half = content(start), PIECE // 2
    if kind == "whole":
        return data(cookie, start, whole, DONE), whole
    if kind == "two":
        return data(cookie, start, whole[:half]) + data(cookie, start + half, whole[half:], DONE), whole
    if kind == "hole":
        return hole(cookie, start, PIECE, DONE), bytes(PIECE)
    if kind == "empty end":
        return data(cookie, start, whole) + chunk(cookie, NONE, flags=DONE), whole
    return hole(cookie, start, half) + data(cookie, start + half, whole[half:], DONE), bytes(half) + whole[half:]


@pytest.mark.feature("T11")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), st.lists(st.integers(1, 60), max_size=80))
def test_any_mix_of_replies_in_any_pieces(kinds: list[str], cuts: list[int]) -> None:
    extents = tuple(Extent(2 * PIECE * number, PIECE) for number in range(len(kinds)))
    expected = [reply(kind, 0, extent.start)[1] for kind, extent in zip(kinds, extents, strict=True)]

    def script(peer: Peer) -> None:
        peer.handshake()
        asked = [peer.request() for _ in kinds]
        kind_of = {extent.start: kind for extent, kind in zip(extents, kinds, strict=True)}
        stream = b"".join(reply(kind_of[start], cookie, start)[0] for cookie, start, _ in reversed(asked))
        for cut in cuts:
            peer.send(stream[:cut])
            stream = stream[cut:]
        peer.send(stream)
        peer.drain()

    buffer = bytearray(PIECE * len(kinds))
    with playing(script) as connection, Client(connection) as client:
        client.read_into(extents, memoryview(buffer))

    assert bytes(buffer) == b"".join(expected)
