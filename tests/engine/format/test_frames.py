"""Frames: plaintext to stored bytes and back, bound to their place."""

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import FrameCorrupt
from engine.extents import FRAME_BYTES_MAX, Extent, FramePlan
from engine.format.frames import STORED_BYTES_MAX, FrameOpener, FrameSealer, SealedFrame
from engine.format.index import RAW, ZSTD, FrameEntry
from engine.format.layout import Identity, Segment
from engine.format.placement import PlacedFrame
from tests.engine.format.samples import FULL, INCREMENTAL, RELAXED, SERVER, SERVER_KEY, frame, noise, text

SEALER, OPENER = FrameSealer(), FrameOpener()
IDENTITY = Identity(SERVER, FULL, "vda", 0, 1 << 30)


def seal(plain: bytes, plan: FramePlan | None = None, key=SERVER_KEY, number=0, last=True, sealer=SEALER, target=None):
    """Return a new segment and the one frame sealed in it."""
    segment = Segment.begin(IDENTITY, key)
    placed = PlacedFrame(0, number, plan or frame((0, len(plain))), last)
    return segment, sealer.seal(segment, placed, sealer.compress(memoryview(plain)), target)


def entry_of(sealed: SealedFrame) -> FrameEntry:
    placed = sealed.placed
    return FrameEntry(
        placed.number,
        160,
        len(sealed.stored),
        sealed.digest,
        sealed.method,
        placed.plan.extents,
        placed.plan.length,
        placed.last,
    )


def opened(segment: Segment, entry: FrameEntry, stored: bytes, header: bytes | None = None) -> bytes:
    return bytes(OPENER.open(stored, entry, header or segment.header, segment.frames_key, "name"))


plaintexts = st.one_of(st.binary(min_size=1, max_size=600), st.builds(text, st.integers(1, 5000), st.just("a")))


@pytest.mark.feature("T12", "T14", "T16")
@RELAXED
@given(plain=plaintexts, encrypted=st.booleans(), number=st.integers(0, 9999), last=st.booleans())
def test_opening_gives_what_was_sealed(plain, encrypted, number, last):
    segment, sealed = seal(plain, key=SERVER_KEY if encrypted else None, number=number, last=last)

    assert sealed.digest == hashlib.sha256(sealed.stored).digest()
    assert opened(segment, entry_of(sealed), bytes(sealed.stored)) == plain


@pytest.mark.feature("T12", "T13")
def test_a_whole_frame_of_4_mib():
    plain = text(FRAME_BYTES_MAX // 2, "half") + noise(FRAME_BYTES_MAX // 2, "half")

    segment, sealed = seal(plain)

    assert sealed.method == ZSTD
    assert opened(segment, entry_of(sealed), bytes(sealed.stored)) == plain


@pytest.mark.feature("T13", "T14")
def test_what_does_not_compress_is_stored_raw_and_sealing_adds_28_bytes():
    plain = noise(FRAME_BYTES_MAX, "all")

    _, plainly = seal(plain, key=None)
    assert (plainly.method, len(plainly.stored)) == (RAW, len(plain))
    _, sealed = seal(plain)
    assert (sealed.method, len(sealed.stored)) == (RAW, len(plain) + 28)
    assert len(sealed.stored) == STORED_BYTES_MAX


@pytest.mark.feature("T13")
def test_level_0_stores_as_it_is():
    segment, sealed = seal(text(1000, "x"), key=None, sealer=FrameSealer(level=0))

    assert (sealed.method, bytes(sealed.stored)) == (RAW, text(1000, "x"))
    assert opened(segment, entry_of(sealed), bytes(sealed.stored)) == text(1000, "x")


def test_the_view_of_the_last_frame_is_released():
    sealer = FrameSealer()
    _, first = seal(noise(100, "a"), sealer=sealer)
    kept = first.stored

    seal(noise(100, "b"), sealer=sealer)

    with pytest.raises(ValueError, match="released"):
        bytes(kept)


@pytest.mark.parametrize("key", [None, SERVER_KEY])
@pytest.mark.parametrize("plain", [noise(500, "a"), text(500, "a")])
def test_with_a_target_the_result_outlives_the_sealers_next_frame(key, plain):
    sealer, buffer = FrameSealer(), bytearray(plain)
    target = memoryview(bytearray(STORED_BYTES_MAX))
    segment = Segment.begin(IDENTITY, key)
    first = sealer.seal(
        segment, PlacedFrame(0, 0, frame((0, 500)), last=False), sealer.compress(memoryview(buffer)), target
    )

    buffer[:] = noise(500, "b")
    sealer.seal(segment, PlacedFrame(0, 1, frame((500, 500)), last=True), sealer.compress(memoryview(buffer)))

    assert opened(segment, entry_of(first), bytes(first.stored)) == plain


@pytest.mark.feature("T14")
def test_a_frame_number_is_sealed_once():
    segment, _ = seal(b"content", number=9)

    for number in (8, 10, 0):
        SEALER.seal(segment, PlacedFrame(0, number, frame((0, 7)), last=False), SEALER.compress(memoryview(b"content")))
    with pytest.raises(RuntimeError):
        SEALER.seal(segment, PlacedFrame(0, 9, frame((0, 7)), last=False), SEALER.compress(memoryview(b"content")))


def test_content_of_another_length_or_segment_is_refused():
    segment = Segment.begin(IDENTITY, None)
    for placed in (PlacedFrame(0, 0, frame((0, 8)), last=False), PlacedFrame(1, 0, frame((0, 7)), last=False)):
        with pytest.raises(ValueError):
            SEALER.seal(segment, placed, SEALER.compress(memoryview(b"content")))


@pytest.mark.feature("T14", "T16")
def test_a_frame_opens_only_in_its_place():
    plan = frame((0, 300), (4096, 200))
    segment, sealed = seal(text(500, "x"), plan)
    entry, stored = entry_of(sealed), bytes(sealed.stored)
    other = Segment.begin(dataclasses.replace(IDENTITY, backup_id=INCREMENTAL), SERVER_KEY)

    assert opened(segment, entry, stored) == text(500, "x")
    for wrong in (
        {"number": 1},
        {"last": False},
        {"extents": (Extent(0, 300), Extent(4097, 200))},
        {"extents": (Extent(0, 500),)},
        {"extents": (Extent(0, 200), Extent(4096, 300))},
        {"method": RAW},
        {"plain_bytes": 501},
    ):
        with pytest.raises(FrameCorrupt):
            opened(segment, dataclasses.replace(entry, **wrong), stored)
    with pytest.raises(FrameCorrupt):
        opened(segment, entry, stored, other.header)
    with pytest.raises(FrameCorrupt):
        opened(other, entry, stored)


@pytest.mark.feature("T16")
@pytest.mark.parametrize("key", [None, SERVER_KEY])
@pytest.mark.parametrize("plain", [noise(100, "raw"), text(300, "zstd")])
def test_every_damaged_byte_and_every_cut_is_an_error(key, plain):
    segment, sealed = seal(plain, key=key)
    entry, stored = entry_of(sealed), bytes(sealed.stored)

    for position in range(len(stored)):
        with pytest.raises(FrameCorrupt):
            opened(segment, entry, stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :])
        with pytest.raises(FrameCorrupt):
            opened(segment, entry, stored[:position])


@pytest.mark.feature("T14")
def test_damage_under_a_hash_that_was_made_to_fit_is_an_error_too():
    segment, sealed = seal(text(300, "zstd"))
    stored = bytes(sealed.stored)

    for position in range(len(stored)):
        forged = stored[:position] + bytes([stored[position] ^ 0x80]) + stored[position + 1 :]
        entry = dataclasses.replace(entry_of(sealed), digest=hashlib.sha256(forged).digest())
        with pytest.raises(FrameCorrupt):
            opened(segment, entry, forged)
