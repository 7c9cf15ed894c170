"""The envelope of every JSON object, and the strict reading of what is inside."""

import dataclasses
import json
import time
from typing import Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.errors import FormatError, ManifestCorrupt, RepositoryUnsupported
from engine.format import documents, manifest, names
from engine.format.markers import Deleted, Intent, Repository
from tests.engine.format.samples import FULL, INSTALLATION, OTHER_SERVER, RELAXED, REPOSITORY, SERVER, TIME
from tests.vectors import generate

NAME = "name.json"
VECTOR = names.manifest_name(SERVER, FULL, "vda")


@dataclasses.dataclass(frozen=True)
class Inner:
    number: int


@dataclasses.dataclass(frozen=True)
class Outer:
    text: str
    kind_of: Literal["a", "b"]
    inner: tuple[Inner, ...]
    more: dict[str, Inner]
    maybe: str | None


GOOD = {"text": "x", "kind_of": "a", "inner": [{"number": 1}], "more": {"k": {"number": 2}}, "maybe": None}


def test_decoding_gives_the_dataclass():
    assert documents.decode(Outer, GOOD, NAME) == Outer("x", "a", (Inner(1),), {"k": Inner(2)}, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": 1},
        {"text": None},
        {"kind_of": "c"},
        {"kind_of": 1},
        {"inner": {}},
        {"inner": [1]},
        {"inner": [{"number": 1, "x": 2}]},
        {"inner": [{}]},
        {"inner": [{"number": "1"}]},
        {"inner": [{"number": True}]},
        {"inner": [{"number": 1.0}]},
        {"inner": [{"number": -1}]},
        {"inner": [{"number": 2**63}]},
        {"more": []},
        {"more": {"k": 1}},
        {"maybe": 1},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ManifestCorrupt):
        documents.decode(Outer, {**GOOD, **wrong}, NAME)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b'{"kind":"key","version":1',
        b'{"kind":"key","version":1,"version":1}',
        b'{"kind":"key","version":1,"x":{"a":1,"a":1}}',
        b'{"kind":"key","version":1,"x":NaN}',
        b'{"kind":"key","version":1,"x":-Infinity}',
        b'{"kind":"key","version":1,"x":' + b"9" * 10_000 + b"}",
        b'{"kind":"key","version":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        '{"kind":"key","version":1,"x":"é"}'.encode(),
        b'{"kind":"key","version":1,"x":"\xff"}',
        b'{"kind":"key","version":0}',
        b'{"kind":"key","version":null}',
        b'{"kind":"key","version":1.0}',
        b'{"kind":"disk","version":1}',
        b'{"version":1}',
        b'{"kind":"key"}',
    ],
    ids=lambda body: repr(body[:50]),
)
def test_a_body_that_is_no_document_is_refused(body):
    with pytest.raises(ManifestCorrupt):
        documents.unwrap(documents.wrap(body), "key", NAME)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@RELAXED
@given(
    value=json_values,
    field=st.sampled_from(["layers", "sealed", "server_id", "size_bytes", "key_id", "version", "type"]),
)
def test_any_json_in_any_field_is_refused_as_a_whole(value, field):
    whole = json.loads((generate.FOLDER / "plain" / VECTOR).read_bytes().splitlines()[0])
    assume(whole[field] != value or type(whole[field]) is not type(value))
    assume(field != "size_bytes" or type(value) is not int or value < 0)  # any other size may be some disk's

    with pytest.raises(FormatError):
        manifest.load_disk(documents.wrap(documents.to_json({**whole, field: value})), VECTOR, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b'"hmac":null', b'"hmac": null'),
        lambda data: data.replace(b'"hmac":null', b'"hmac":"' + b"0" * 64 + b'"'),
        lambda data: b"\n" + data,
        lambda data: b" " + data,
        lambda data: data.split(b"\n")[1] + b"\n",
        lambda data: data.upper(),
    ],
)
def test_two_lines_that_are_not_exactly_so_are_refused(change):
    data = documents.wrap(b'{"kind":"key","version":1}')
    documents.unwrap(data, "key", NAME)

    with pytest.raises(ManifestCorrupt):
        documents.unwrap(change(data), "key", NAME)


def test_an_object_beyond_the_limit_is_refused_before_it_is_read():
    begin = time.process_time()
    with pytest.raises(ManifestCorrupt):
        documents.unwrap(bytes(documents.DOCUMENT_BYTES_MAX + 1), "key", NAME)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("text", ["2026-11-23T03:00:00Z", "2026-11-23T03:00:00.5Z", "2026-11-23T03:00:00.123456+00:00"])
def test_times(text):
    assert documents.is_time(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-23",
        "2026-11-23T03:00:00",
        "2026-11-23T25:00:00Z",
        "2026-11-23T03:00:00+02:00",
        "2026-02-30T03:00:00Z",
        " 2026-11-23T03:00:00Z",
    ],
)
def test_no_times(text):
    assert not documents.is_time(text)


@pytest.mark.feature("S29")
def test_repository_reads_as_it_was_written():
    value = Repository(REPOSITORY, INSTALLATION, 1, TIME)

    assert Repository.load(value.dump(), "here") == value


@pytest.mark.feature("S29")
def test_a_later_repository_is_unsupported():
    later = dataclasses.replace(Repository(REPOSITORY, INSTALLATION, 1, TIME), format=2)
    newer = documents.wrap(documents.to_json({"kind": "repository", "version": 2}))

    for data in (later.dump(), newer):
        with pytest.raises(RepositoryUnsupported) as caught:
            Repository.load(data, "here")
        assert caught.value.facts["found"] == "2"


@pytest.mark.parametrize(
    "fields", [{"repository_id": "x"}, {"installation_id": ""}, {"create_time": "x"}, {"format": "1"}]
)
def test_a_repository_that_breaks_a_rule_is_refused(fields: dict[str, Any]):
    with pytest.raises(ManifestCorrupt):
        Repository.load(dataclasses.replace(Repository(REPOSITORY, INSTALLATION, 1, TIME), **fields).dump(), "here")


@pytest.mark.feature("R19")
def test_markers_read_as_they_were_written_and_belong_to_their_place():
    intent = Intent(SERVER, FULL, "job-1", "host", TIME)
    deleted = Deleted(SERVER, FULL, "vda", "job-1", "host", TIME)

    assert Intent.load(intent.dump(), names.intent_name(SERVER, FULL)) == intent
    assert Deleted.load(deleted.dump(), names.deleted_name(SERVER, FULL, "vda")) == deleted
    with pytest.raises(ManifestCorrupt):
        Intent.load(intent.dump(), names.intent_name(OTHER_SERVER, FULL))
    for name in (names.deleted_name(SERVER, FULL, "vdb"), names.deleted_name(SERVER, OTHER_SERVER, "vda")):
        with pytest.raises(ManifestCorrupt):
            Deleted.load(deleted.dump(), name)
    for load in (
        lambda: Deleted.load(intent.dump(), names.deleted_name(SERVER, FULL, "vda")),
        lambda: Intent.load(dataclasses.replace(intent, start_time="x").dump(), names.intent_name(SERVER, FULL)),
        lambda: Intent.load(dataclasses.replace(intent, server_id="x").dump(), names.intent_name(SERVER, FULL)),
        lambda: Deleted.load(dataclasses.replace(deleted, disk="..").dump(), names.deleted_name(SERVER, FULL, "vda")),
    ):
        with pytest.raises(ManifestCorrupt):
            load()
