"""Manifests: what is dumped is what is loaded, the clear part needs no key, and every rule is checked."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidSpec, ManifestCorrupt, ManifestUnsupported, WrongKey
from engine.format import documents, manifest, names
from engine.format.layout import SegmentRef
from engine.format.manifest import Definition, DiskManifest, Layer, ServerManifest, SkippedDisk
from tests.engine.format.samples import (
    FULL,
    INCREMENTAL,
    KEY,
    OTHER_SERVER,
    RELAXED,
    SERVER,
    SERVER_KEY,
    STORAGE_KEY,
    Writing,
    disk_manifest,
    server_manifest,
)

uuids = st.uuids().map(str)
sizes = st.integers(0, 2**63 - 1)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.text(max_size=20)
small = st.integers(0, 10**12)


@st.composite
def layers(draw):
    ids = draw(st.lists(uuids, min_size=1, max_size=4, unique=True))
    return tuple(
        Layer(
            one,
            tuple(
                SegmentRef(number, draw(small), draw(small), draw(st.integers(0, 9999)), draw(hashes), draw(hashes))
                for number in range(draw(st.integers(1, 3)))
            ),
        )
        for one in ids
    )


@st.composite
def disk_manifests(draw):
    found = draw(layers())
    key = SERVER_KEY if draw(st.booleans()) else None
    parent = found[0].backup_id if len(found) > 1 and draw(st.booleans()) else ""
    base = disk_manifest(Writing(key), found[-1].backup_id, "vda", draw(sizes), found, parent)
    return dataclasses.replace(
        base,
        chain_id=draw(uuids),
        checkpoint=draw(texts),
        reason=draw(st.sampled_from(["", "first", "interval_due", "bitmap_lost", "a_reason_of_a_later_version"])),
        create_time=draw(st.sampled_from(["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456+00:00"])),
        sealed=draw(st.dictionaries(texts, texts, max_size=3)),
    ), key


@pytest.mark.feature("T25", "T26", "T28")
@settings(RELAXED, max_examples=60)
@given(made=disk_manifests())
def test_a_disk_manifest_reads_as_it_was_written(made):
    value, key = made

    data = manifest.dump(value, key)

    assert manifest.load_disk(data, value.name, key) == value
    if key is not None:
        assert manifest.load_disk(data, value.name) == dataclasses.replace(value, sealed=None)


@pytest.mark.feature("T25", "T20", "N12")
@settings(RELAXED, max_examples=60)
@given(
    made=disk_manifests(),
    xml=st.text(max_size=200),
    nvram=st.sampled_from(["", "AA==", "AAECAw=="]),
    warnings=st.lists(texts, max_size=3),
)
def test_a_server_manifest_reads_as_it_was_written(made, xml, nvram, warnings):
    disk, key = made
    base = server_manifest(
        Writing(key), disk.backup_id, {"vda": (disk, manifest.dump(disk, key))}, "the key object\n" if key else ""
    )
    value = dataclasses.replace(
        base,
        warnings=tuple(warnings),
        skipped=(SkippedDisk("sda (cdrom)", "DISK_UNSUPPORTED", xml),),
        sealed=Definition(xml, nvram, {"vda": {"path": xml}}),
    )

    data = manifest.dump(value, key)

    assert manifest.load_server(data, value.name, key) == value
    if key is not None:
        assert manifest.load_server(data, value.name) == dataclasses.replace(value, sealed=None)


def disk_value(key=None, **fields: Any) -> DiskManifest:
    ref = SegmentRef(0, 500, 300, 2, "ab" * 32, "cd" * 32)
    value = disk_manifest(
        Writing(key), INCREMENTAL, "vda", 8192, (Layer(FULL, (ref,)), Layer(INCREMENTAL, (ref,))), FULL
    )
    return dataclasses.replace(value, **fields)


def server_value(key=None, **fields: Any) -> ServerManifest:
    disk = disk_value(key)
    value = server_manifest(Writing(key), INCREMENTAL, {"vda": (disk, manifest.dump(disk, key))})
    return dataclasses.replace(value, **fields)


def test_a_summary_says_what_the_disks_manifest_says():
    value = disk_value()
    data = manifest.dump(value, None)

    summary = manifest.summarize(value, data)

    assert summary.manifest_sha256 == hashlib.sha256(data).hexdigest()
    for field in (
        "disk",
        "type",
        "chain_id",
        "parent_backup_id",
        "size_bytes",
        "plain_bytes",
        "stored_bytes",
        "sha256",
        "reason",
    ):
        assert getattr(summary, field) == getattr(value, field)


REF = SegmentRef(0, 500, 300, 2, "ab" * 32, "cd" * 32)
WRONG_DISKS: list[dict[str, Any]] = [
    {"repository_id": "x"},
    {"installation_id": ""},
    {"chain_id": "x"},
    {"parent_backup_id": ""},
    {"parent_backup_id": "x"},
    {"type": "full"},
    {"type": "synthetic"},
    {"create_time": "2026-11-23 03:00:00Z"},
    {"create_time": "2026-13-23T03:00:00Z"},
    {"create_time": "2026-11-23T03:00:00+01:00"},
    {"create_time": ""},
    {"size_bytes": -1},
    {"size_bytes": 2**63},
    {"size_bytes": "8192"},
    {"size_bytes": True},
    {"size_bytes": 8192.0},
    {"reason": "Bitmap lost"},
    {"compression_level": 20},
    {"key_id": "x"},
    {"key_check": "00"},
    {"plain_bytes": 301},
    {"stored_bytes": 501},
    {"sha256": "00" * 32},
    {"layers": ()},
    {"layers": (Layer(INCREMENTAL, (REF,)),)},
    {"layers": (Layer(FULL, (REF,)),)},
    {"layers": (Layer(INCREMENTAL, (REF,)), Layer(FULL, (REF,)))},
    {"layers": (Layer(INCREMENTAL, (REF,)), Layer(INCREMENTAL, (REF,)))},
    {"layers": (Layer("x", (REF,)), Layer(INCREMENTAL, (REF,)))},
    {"layers": (Layer(FULL, ()), Layer(INCREMENTAL, (REF,)))},
    {"layers": (Layer(FULL, (dataclasses.replace(REF, number=1),)), Layer(INCREMENTAL, (REF,)))},
    {"layers": (Layer(FULL, (dataclasses.replace(REF, digest="AB" * 32),)), Layer(INCREMENTAL, (REF,)))},
    {"layers": (Layer(FULL, (dataclasses.replace(REF, check=""),)), Layer(INCREMENTAL, (REF,)))},
    {"sealed": {"path": 1}},
    {"sealed": []},
]
WRONG_SERVERS: list[dict[str, Any]] = [
    {"repository_id": "x"},
    {"create_time": "now"},
    {"key_check": "zz"},
    {"warnings": ("x",) * 1001},
    {"warnings": (1,)},
    {"skipped": (SkippedDisk("x", "y", "z"),) * 257},
    {"disks": server_value().disks * 2},
    {"disks": (dataclasses.replace(server_value().disks[0], disk="../x"),)},
    {"disks": (dataclasses.replace(server_value().disks[0], sha256="x"),)},
    {"disks": (dataclasses.replace(server_value().disks[0], manifest_sha256=""),)},
    {"disks": (dataclasses.replace(server_value().disks[0], type="full"),)},
    {"sealed": Definition("<domain/>", "not base64", {})},
    {"sealed": {"domain_xml": ""}},
]


def written(value: DiskManifest | ServerManifest, fields: dict[str, Any]) -> bytes:
    """Return a plain manifest with some fields replaced, whatever they are, under hashes that fit."""
    values = json.loads(manifest.dump(value, None).splitlines()[0])
    fields = {name: _plain(one) for name, one in fields.items()}
    if "sealed" in fields:
        fields["sealed"] = {"clear": fields["sealed"]}
    return documents.wrap(documents.to_json({**values, **fields}))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


@pytest.mark.parametrize("fields", WRONG_DISKS, ids=str)
def test_a_disk_manifest_that_breaks_a_rule_is_refused(fields):
    with pytest.raises(ManifestCorrupt):
        manifest.load_disk(written(disk_value(), fields), disk_value().name)


@pytest.mark.parametrize("fields", WRONG_SERVERS, ids=lambda fields: str(fields)[:60])
def test_a_server_manifest_that_breaks_a_rule_is_refused(fields):
    with pytest.raises(ManifestCorrupt):
        manifest.load_server(written(server_value(), fields), server_value().name)


@pytest.mark.parametrize("field", ["size_bytes", "layers", "sealed", "kind", "version", "reason"])
def test_a_missing_field_is_refused(field):
    values = json.loads(manifest.dump(disk_value(), None).splitlines()[0])
    del values[field]
    with pytest.raises(ManifestCorrupt):
        manifest.load_disk(documents.wrap(documents.to_json(values)), disk_value().name)


def test_an_unknown_field_is_refused():
    for where in ({"extra": 1}, {"layers": [{**dataclasses.asdict(layer), "x": 1} for layer in disk_value().layers]}):
        with pytest.raises(ManifestCorrupt):
            manifest.load_disk(written(disk_value(), where), disk_value().name)


def test_a_manifest_that_a_reader_would_refuse_is_not_written():
    with pytest.raises(ManifestCorrupt):
        manifest.dump(disk_value(stored_bytes=1), None)
    with pytest.raises(InvalidSpec):
        manifest.dump(disk_value(sealed=None), None)


def test_a_later_version_is_told_apart_from_damage():
    data = written(disk_value(), {"version": 2, "kind": "whatever", "new": []})

    with pytest.raises(ManifestUnsupported) as caught:
        manifest.load_disk(data, disk_value().name)
    assert caught.value.facts["found"] == "2"


@pytest.mark.feature("T14")
def test_another_key_is_a_wrong_key():
    value = disk_value(SERVER_KEY)
    data = manifest.dump(value, SERVER_KEY)

    for key in (
        STORAGE_KEY.server_key(OTHER_SERVER),
        type(STORAGE_KEY)(OTHER_SERVER, STORAGE_KEY.secret).server_key(SERVER),
    ):
        with pytest.raises(WrongKey) as caught:
            manifest.load_disk(data, value.name, key)
        assert caught.value.facts["key_id"] == KEY
        with pytest.raises(InvalidSpec):
            manifest.dump(value, key)
    with pytest.raises(InvalidSpec):
        manifest.dump(value, None)
    with pytest.raises(InvalidSpec):
        manifest.dump(disk_value(), SERVER_KEY)


def test_a_manifest_is_refused_under_another_name():
    data = manifest.dump(disk_value(), None)
    for name in (
        names.manifest_name(SERVER, FULL, "vda"),
        names.manifest_name(SERVER, INCREMENTAL, "vdb"),
        names.manifest_name(OTHER_SERVER, INCREMENTAL, "vda"),
        names.backup_name(SERVER, INCREMENTAL),
    ):
        with pytest.raises(ManifestCorrupt):
            manifest.load_disk(data, name)
    with pytest.raises(ManifestCorrupt):
        manifest.load_server(data, names.backup_name(SERVER, INCREMENTAL))


@pytest.mark.feature("S28")
def test_no_repr_shows_the_sealed_part():
    assert "qcow2" not in repr(disk_value())
    assert "<domain>" not in repr(server_value())


@pytest.mark.feature("S28")
def test_no_error_quotes_the_sealed_part():
    value = server_value(SERVER_KEY)
    for sealed in ({"domain_xml": "hunter2"}, {"domain_xml": "x", "nvram": "hunter2", "disk_map": {}}, {"hunter2": 1}):
        forged = written(server_value(), {"sealed": sealed})
        with pytest.raises(ManifestCorrupt) as caught:
            manifest.load_server(forged, value.name)
        assert "hunter2" not in str(caught.value)


def test_a_chain_of_many_layers_fits():
    segments = tuple(dataclasses.replace(REF, number=number) for number in range(32))
    found = tuple(Layer(f"00000000-0000-7000-8000-{number:012x}", segments) for number in range(100))
    value = disk_manifest(Writing(), found[-1].backup_id, "vda", 8192, found, found[0].backup_id)

    assert manifest.load_disk(manifest.dump(value, None), value.name) == value
