"""Segments written and read: round trips, several threads, keyless verification, what is refused."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidSpec, KeyMissing, SegmentCorrupt, WrongKey
from engine.extents import Extent
from engine.format import names
from engine.format.crypto import ServerKey
from engine.format.frames import FrameOpener, FrameSealer
from engine.format.index import FrameEntry
from engine.format.layout import Identity, Segment, SegmentRef
from engine.format.placement import PlacedFrame, place
from engine.format.reader import SegmentReader
from engine.format.writer import SegmentWriter
from tests.engine.format.samples import (
    FULL,
    OTHER_SERVER,
    RELAXED,
    SERVER,
    SERVER_KEY,
    STORAGE_KEY,
    Item,
    MemoryReader,
    MemorySink,
    Objects,
    Writing,
    apply,
    frame,
    noise,
    write_layer,
    zero,
)

NAME = names.segment_name(SERVER, FULL, "vda", 0)


@st.composite
def disks(draw):
    """An image, and frames and zero extents that cover parts of it."""
    image = bytearray()
    items: list[Item] = []
    for number in range(draw(st.integers(0, 12))):
        image += noise(draw(st.integers(0, 40)), f"gap {number}")  # not in the backup
        start, length = len(image), draw(st.integers(1, 300))
        kind = draw(st.sampled_from(["zero", "text", "noise", "two"]))
        image += {
            "zero": bytes(length),
            "text": b"ab" * length,
            "noise": noise(length, str(number)),
            "two": b"c" * 600,
        }[kind]
        if kind == "zero":
            items.append(zero(start, length))
        elif kind == "two":
            items.append(frame((start, length), (start + length + 10, 590 - length)))
        else:
            items.append(frame((start, len(image) - start)))
    return bytes(image), items


@pytest.mark.feature("T12", "T13", "T14", "T16")
@settings(RELAXED, max_examples=60)
@given(disk=disks(), encrypted=st.booleans(), segment_bytes=st.integers(600, 3000))
def test_a_layer_of_many_segments_reads_as_it_was_written(disk, encrypted, segment_bytes):
    image, items = disk
    how, objects = Writing(SERVER_KEY if encrypted else None, segment_plain_bytes=segment_bytes), Objects()

    refs = write_layer(objects, how, FULL, "vda", image, items)
    found = bytearray(len(image))
    for ref in refs:
        apply(found, objects, names.segment_name(SERVER, FULL, "vda", ref.number), ref, how.key)

    expected = bytearray(len(image))
    for item in items:
        for extent in item.extents if not isinstance(item, Extent) else ():
            expected[extent.start : extent.end] = image[extent.start : extent.end]
    assert found == expected
    assert [ref.stored_bytes for ref in refs] == [len(data) for data in objects.values()]
    assert sum(ref.plain_bytes for ref in refs) == sum(item.length for item in items if not isinstance(item, Extent))


ITEMS: tuple[Item, ...] = (frame((0, 700)), zero(700, 300), frame((1000, 500), (1600, 100)))


def written(key: ServerKey | None = None, items: tuple[Item, ...] = ITEMS) -> tuple[bytes, SegmentRef]:
    objects = Objects()
    (ref,) = write_layer(objects, Writing(key), FULL, "vda", b"text" * 500, items)
    return objects[NAME], ref


@pytest.mark.feature("T16")
@pytest.mark.parametrize("key", [None, SERVER_KEY])
def test_without_a_key_everything_can_be_verified(key):
    data, ref = written(key)
    reader = SegmentReader(MemoryReader(data), NAME, ref, None)

    rows = list(reader.rows())
    for row in rows:
        reader.verify(row, FrameOpener())

    assert [row.number for row in rows] == [0, 1]
    assert (reader.ref, reader.size_bytes, reader.last) == (ref, 2000, True)


@pytest.mark.feature("T14")
def test_an_encrypted_segment_needs_its_key():
    data, ref = written(SERVER_KEY)

    with pytest.raises(KeyMissing):
        SegmentReader(MemoryReader(data), NAME, ref, None).entries()
    for key in (
        STORAGE_KEY.server_key(OTHER_SERVER),
        type(STORAGE_KEY).generate(STORAGE_KEY.key_id).server_key(SERVER),
    ):
        with pytest.raises(WrongKey):
            SegmentReader(MemoryReader(data), NAME, ref, key)


def test_a_plain_segment_is_refused_when_a_key_is_given():
    data, ref = written(None)

    with pytest.raises(SegmentCorrupt):
        SegmentReader(MemoryReader(data), NAME, ref, SERVER_KEY)


def test_a_segment_is_refused_under_another_name():
    data, ref = written()
    for name in (
        names.segment_name(SERVER, FULL, "vdb", 0),
        names.segment_name(SERVER, FULL, "vda", 1),
        names.segment_name(OTHER_SERVER, FULL, "vda", 0),
        names.segment_name(SERVER, OTHER_SERVER, "vda", 0),
    ):
        with pytest.raises(SegmentCorrupt):
            SegmentReader(MemoryReader(data), name, ref, None)


def test_a_whole_segment_of_another_attempt_is_refused():
    data, _ = written()
    _, other = written(items=(frame((0, 701)),))

    with pytest.raises(SegmentCorrupt):
        SegmentReader(MemoryReader(data), NAME, other, None)


@pytest.mark.feature("T12")
def test_several_threads_seal_and_read_one_segment():
    image = b"".join(noise(100, str(number)) + bytes([number]) * 400 for number in range(60))
    plans = [frame((number * 500, 500)) for number in range(60)]
    segment = Segment.begin(Identity(SERVER, FULL, "vda", 0, len(image)), SERVER_KEY)
    placed = [one for one in place(plans) if isinstance(one, PlacedFrame)]

    def seal(one: PlacedFrame):
        sealer = FrameSealer()
        start = one.plan.extents[0].start
        return sealer.seal(segment, one, sealer.compress(memoryview(image)[start : start + 500]))

    sink = MemorySink()
    writer = SegmentWriter(sink, segment)
    with ThreadPoolExecutor(4) as pool:
        for sealed in pool.map(seal, placed):
            writer.append(sealed)
        ref = writer.finish(last=True)
        reader = SegmentReader(MemoryReader(bytes(sink.data)), NAME, ref, SERVER_KEY)
        frames = [entry for entry in reader.entries() if isinstance(entry, FrameEntry)]
        found = list(pool.map(lambda entry: bytes(reader.read(entry, FrameOpener())), frames))

    assert b"".join(found) == image


def test_the_writer_takes_frames_in_order_only():
    segment = Segment.begin(Identity(SERVER, FULL, "vda", 0, 2000), None)
    sealer = FrameSealer()
    first, second = (
        sealer.seal(
            segment,
            PlacedFrame(0, number, frame((number * 5, 5)), last=number == 1),
            sealer.compress(memoryview(b"12345")),
        )
        for number in (0, 1)
    )
    writer = SegmentWriter(MemorySink(), segment)

    with pytest.raises(ValueError):
        writer.append(second)
    writer.append(first)
    with pytest.raises(ValueError):
        writer.append(first)
    with pytest.raises(ValueError):
        writer.finish(last=True)
    with pytest.raises(ValueError):
        writer.append(dataclasses.replace(second, placed=dataclasses.replace(second.placed, segment=1)))
    writer.append(second)
    with pytest.raises(ValueError):
        writer.append(dataclasses.replace(second, placed=dataclasses.replace(second.placed, number=2)))
    assert writer.finish(last=True).frames == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"server_id": "web-1"},
        {"backup_id": ""},
        {"disk": "../x"},
        {"number": 10_000},
        {"number": -1},
        {"size_bytes": 1 << 63},
    ],
)
def test_an_impossible_identity_is_refused(wrong):
    with pytest.raises(InvalidSpec):
        Segment.begin(dataclasses.replace(Identity(SERVER, FULL, "vda", 0, 2000), **wrong), None)


def test_salts_differ():
    identity = Identity(SERVER, FULL, "vda", 0, 2000)

    assert Segment.begin(identity, SERVER_KEY).header != Segment.begin(identity, SERVER_KEY).header
