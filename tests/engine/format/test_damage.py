"""Damage and forgery: every flipped byte, every cut, every swap of a small backup is a typed error, never wrong data."""

import base64
import dataclasses
import hashlib
import json
import struct

import pytest

from engine.errors import FormatError, FrameCorrupt, ManifestCorrupt, SegmentCorrupt, WrongKey
from engine.extents import Extent
from engine.format import documents, manifest, names
from engine.format.crypto import ServerKey
from engine.format.frames import FrameOpener
from engine.format.index import INDEX_BYTES_MAX
from engine.format.layout import FOOTER_BYTES, HEADER_BYTES, Footer, SegmentRef
from engine.format.reader import SegmentReader
from tests.engine.format.samples import (
    FULL,
    INCREMENTAL,
    SERVER,
    SERVER_KEY,
    Luck,
    MemoryReader,
    Objects,
    Writing,
    apply,
    disk_manifest,
    first_image,
    frame,
    noise,
    put_manifest,
    restore,
    second_image,
    small_chain,
    write_layer,
)

KEYS = {"plain": None, "sealed": SERVER_KEY}
CHAINS = {kind: small_chain(Writing(key, Luck(kind), segment_plain_bytes=3000)) for kind, key in KEYS.items()}
ALL = [(kind, name) for kind, objects in CHAINS.items() for name in objects]
SEGMENTS = [(kind, name) for kind, name in ALL if name.endswith(".data")]


def references(objects: Objects, key: ServerKey | None) -> dict[str, SegmentRef]:
    """Return what the undamaged manifests say of each segment."""
    found: dict[str, SegmentRef] = {}
    for name, data in objects.items():
        if name.endswith("manifest.json"):
            one = manifest.load_disk(data, name, key)
            found |= {names.segment_name(SERVER, one.backup_id, one.disk, ref.number): ref for ref in one.segments}
    return found


REFERENCES = {kind: references(CHAINS[kind], KEYS[kind]) for kind in CHAINS}


def read_all(name: str, data: bytes, ref: SegmentRef | None, key: ServerKey | None) -> None:
    """Read everything that an object holds."""
    if name.endswith(".data"):
        image = bytearray(8192)
        apply(image, {name: data}, name, ref, key)
    elif name.endswith("backup.json"):
        manifest.load_server(data, name, key)
    else:
        manifest.load_disk(data, name, key)


def damaged(data: bytes):
    for position in range(len(data)):
        for mask in (0xFF, 1 << position % 8):
            yield data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def test_the_sample_restores_undamaged():
    for kind, key in KEYS.items():
        assert len([name for name in CHAINS[kind] if name.endswith(".data")]) == 3
        assert restore(CHAINS[kind], FULL, "vda", key) == first_image()
        assert restore(CHAINS[kind], INCREMENTAL, "vda", key) == second_image()


@pytest.mark.feature("T12", "T14", "T16")
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_flipped_byte_is_an_error(kind, name):
    for data in damaged(CHAINS[kind][name]):
        with pytest.raises(FormatError):
            read_all(name, data, REFERENCES[kind].get(name), KEYS[kind])


@pytest.mark.feature("T16")
@pytest.mark.parametrize(("kind", "name"), SEGMENTS)
def test_every_flipped_byte_is_an_error_even_without_a_manifest(kind, name):
    for data in damaged(CHAINS[kind][name]):
        with pytest.raises(FormatError):
            read_all(name, data, None, KEYS[kind])


@pytest.mark.feature("T16")
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_flipped_byte_is_noticed_without_a_key(kind, name):
    for data in damaged(CHAINS[kind][name]):
        with pytest.raises(FormatError):
            verify(name, data)


def verify(name: str, data: bytes) -> None:
    if not name.endswith(".data"):
        read_all(name, data, None, None)
        return
    reader = SegmentReader(MemoryReader(data), name, None, None)
    for row in reader.rows():
        reader.verify(row, FrameOpener())


@pytest.mark.feature("T12", "T14", "T16")
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_cut_and_every_addition_is_an_error(kind, name):
    whole = CHAINS[kind][name]
    for data in [whole[:length] for length in range(len(whole))] + [
        whole + b"\0",
        whole + b"\n",
        b"\0" + whole,
        whole * 2,
    ]:
        for ref in {REFERENCES[kind].get(name), None}:
            with pytest.raises(FormatError):
                read_all(name, data, ref, KEYS[kind])


# ---- forgery: whoever can write to the storage can make every hash fit, but has no key --------------------------------


def parts(data: bytes) -> tuple[Footer, list[bytes], list[bytes], bytes]:
    """Return a segment's footer, frames, table rows and map."""
    footer = Footer.unpack(data[-FOOTER_BYTES:], data[:HEADER_BYTES], "sample")
    table_end = footer.table_offset + 36 * footer.frames
    rows = [data[at : at + 36] for at in range(footer.table_offset, table_end, 36)]
    frames, offset = [], HEADER_BYTES
    for row in rows:
        (length,) = struct.unpack_from("<I", row)
        frames.append(data[offset : offset + length])
        offset += length
    return footer, frames, rows, data[table_end : table_end + footer.map_bytes]


def forge(data: bytes, frames: list[bytes], packed_map: bytes | None = None, plain_bytes: int | None = None) -> bytes:
    """Return a segment of other frames under the same header, with a table and a footer that fit."""
    footer, _, _, old_map = parts(data)
    packed_map = old_map if packed_map is None else packed_map
    digests = [hashlib.sha256(one).digest() for one in frames]
    table = b"".join(struct.pack("<I32s", len(one), digest) for one, digest in zip(frames, digests, strict=True))
    made = Footer(
        footer.encrypted,
        footer.last,
        len(frames),
        HEADER_BYTES + sum(map(len, frames)),
        len(packed_map),
        footer.map_plain_bytes,
        footer.entries,
        footer.plain_bytes if plain_bytes is None else plain_bytes,
        hashlib.sha256(b"".join(digests)).digest(),
        hashlib.sha256(table + packed_map).digest(),
    )
    return data[:HEADER_BYTES] + b"".join(frames) + table + packed_map + made.pack(data[:HEADER_BYTES])


def twins(key: ServerKey | None) -> tuple[bytes, bytes]:
    """Return segments of two backups with frames of equal lengths: the same places of a disk, other content."""
    found = []
    for backup_id in (FULL, INCREMENTAL):
        objects = Objects()
        image = noise(2000, backup_id)
        write_layer(
            objects, Writing(key, Luck(backup_id)), backup_id, "vda", image, [frame((at, 500)) for at in (0, 500, 1000)]
        )
        found.append(objects[names.segment_name(SERVER, backup_id, "vda", 0)])
    return found[0], found[1]


@pytest.mark.feature("T14")
@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 2), (0, 1), (0, 1, 2, 2), (2, 1, 0), (), (1, 2)])
def test_frames_swapped_repeated_or_dropped_with_hashes_that_fit(order):
    one, _ = twins(SERVER_KEY)
    _, frames, _, _ = parts(one)
    forged = forge(one, [frames[number] for number in order], plain_bytes=500 * len(order))
    name = names.segment_name(SERVER, FULL, "vda", 0)

    with pytest.raises(FormatError):
        read_all(name, forged, None, SERVER_KEY)


def test_a_forged_segment_that_changes_nothing_is_read():
    one, _ = twins(SERVER_KEY)

    assert forge(one, parts(one)[1]) == one


@pytest.mark.feature("T14")
def test_frames_of_another_backup_with_hashes_that_fit():
    one, other = twins(SERVER_KEY)
    _, frames, _, _ = parts(one)
    _, foreign, _, foreign_map = parts(other)
    name = names.segment_name(SERVER, FULL, "vda", 0)

    for forged in (
        forge(one, [frames[0], foreign[1], frames[2]]),
        forge(one, foreign, foreign_map),
        forge(one, frames, foreign_map),
    ):
        with pytest.raises(SegmentCorrupt):
            read_all(name, forged, None, SERVER_KEY)


@pytest.mark.feature("T14")
def test_a_frame_of_another_backup_does_not_open_even_behind_a_genuine_index():
    one, other = twins(SERVER_KEY)
    name = names.segment_name(SERVER, FULL, "vda", 0)
    reader = SegmentReader(MemoryReader(one), name, None, SERVER_KEY)
    entries = [entry for entry in reader.entries() if not isinstance(entry, Extent)]
    mixed = bytearray(one)
    mixed[entries[1].offset : entries[1].offset + 528] = other[entries[1].offset : entries[1].offset + 528]
    reader._source = MemoryReader(bytes(mixed))

    assert reader.read(entries[0], FrameOpener()) == noise(2000, FULL)[:500]
    with pytest.raises(FrameCorrupt):
        reader.read(entries[1], FrameOpener())


def test_without_encryption_a_manifest_still_notices_a_forged_segment():
    one, other = twins(None)
    name = names.segment_name(SERVER, FULL, "vda", 0)
    ref = SegmentReader(MemoryReader(one), name, None, None).ref
    forged = forge(one, parts(other)[1])
    read_all(name, forged, None, None)

    with pytest.raises(SegmentCorrupt):
        read_all(name, forged, ref, None)


@pytest.mark.parametrize(
    "absurd",
    [
        {"frames": 2**32 - 1},
        {"frames": 0},
        {"frames": 2},
        {"map_bytes": 2**32 - 1},
        {"map_bytes": 0},
        {"map_plain_bytes": 2**32 - 1},
        {"map_plain_bytes": 8 << 20},
        {"map_plain_bytes": 0},
        {"entries": 2**32 - 1},
        {"entries": 0},
        {"plain_bytes": 2**64 - 1},
        {"plain_bytes": 0},
        {"table_offset": 0},
        {"table_offset": 2**64 - 1},
        {"encrypted": True},
        {"digest": bytes(32)},
        {"index_hash": bytes(32)},
    ],
    ids=str,
)
def test_absurd_counts_under_a_check_that_fits_are_refused(absurd):
    one, _ = twins(None)
    header, footer = one[:HEADER_BYTES], parts(one)[0]
    forged = one[:-FOOTER_BYTES] + dataclasses.replace(footer, **absurd).pack(header)

    with pytest.raises(SegmentCorrupt):
        read_all(names.segment_name(SERVER, FULL, "vda", 0), forged, None, None)


def test_an_index_beyond_the_limit_is_refused_before_it_is_read():
    one, _ = twins(None)
    header, footer = one[:HEADER_BYTES], parts(one)[0]
    many = INDEX_BYTES_MAX // 36 + 1
    forged = dataclasses.replace(footer, frames=many).pack(header)
    data = one[: footer.table_offset] + bytes(36 * many + footer.map_bytes) + forged

    with pytest.raises(SegmentCorrupt, match="beyond the limit"):
        read_all(names.segment_name(SERVER, FULL, "vda", 0), data, None, None)


def test_a_segment_with_the_header_of_another_is_an_error():
    one, other = twins(SERVER_KEY)
    swapped = other[:HEADER_BYTES] + one[HEADER_BYTES:]

    with pytest.raises(SegmentCorrupt):
        read_all(names.segment_name(SERVER, INCREMENTAL, "vda", 0), swapped, None, SERVER_KEY)


@pytest.mark.feature("T14")
@pytest.mark.parametrize("where", ["manifest.json", "backup.json"])
def test_a_forged_manifest_with_a_hash_that_fits_is_not_authentic(where):
    name = next(name for name in CHAINS["sealed"] if name.endswith(where))
    body, trailer = CHAINS["sealed"][name].splitlines()
    values, mac = json.loads(body), bytes.fromhex(json.loads(trailer)["hmac"])

    for field, old in values.items():
        value = old + 1 if isinstance(old, int) else {} if isinstance(old, dict) else old + (old[:1] or type(old)("x"))
        forged = documents.wrap(documents.to_json({**values, field: value}), mac)
        with pytest.raises((FormatError, WrongKey)):
            read_all(name, forged, None, SERVER_KEY)
    for field in ("create_time", "domain_name", "checkpoint"):
        if field in values:
            other = "2020-01-01T00:00:00Z" if field == "create_time" else "other"
            forged = documents.wrap(documents.to_json({**values, field: other}), mac)
            with pytest.raises(ManifestCorrupt):
                read_all(name, forged, None, SERVER_KEY)
            read_all(name, forged, None, None)  # only the key tells


def test_a_sealed_part_of_another_manifest_does_not_open_even_with_a_new_hmac():
    """As if somebody had the MAC key alone: the box is bound to its manifest by itself."""
    one, other = (names.manifest_name(SERVER, backup_id, "vda") for backup_id in (FULL, INCREMENTAL))
    values = json.loads(CHAINS["sealed"][one].splitlines()[0])
    values["sealed"] = json.loads(CHAINS["sealed"][other].splitlines()[0])["sealed"]
    body = documents.to_json(values)

    with pytest.raises(ManifestCorrupt):
        read_all(
            one, documents.wrap(body, SERVER_KEY.mac(bytes.fromhex(values["sealed"]["salt"]), body)), None, SERVER_KEY
        )


def test_an_encrypted_manifest_cannot_be_replaced_by_a_plain_one():
    how, objects = Writing(None), Objects()
    layer = manifest.Layer(FULL, write_layer(objects, how, FULL, "vda", bytes(600), [frame((0, 600))]))
    value = disk_manifest(how, FULL, "vda", 600, (layer,))
    data = put_manifest(objects, how, value)

    with pytest.raises(ManifestCorrupt):
        manifest.load_disk(data, value.name, SERVER_KEY)


def test_the_sealed_part_is_not_readable_in_the_stored_bytes():
    for name, data in CHAINS["sealed"].items():
        boxes = [json.loads(data.splitlines()[0])["sealed"]["box"]] if name.endswith(".json") else []
        for secret in (b"<domain>", b"qcow2", b"AAECAw=="):
            assert secret not in data
            assert all(secret not in base64.b64decode(box) for box in boxes)
