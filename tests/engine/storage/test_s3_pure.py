"""What needs no server: how objects are cut into parts (S6), and signatures, compared with those of the field's own library."""

from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidSpec
from engine.spec import S3Config
from engine.storage.s3 import S3Storage
from engine.storage.s3_cleanup import is_stale
from engine.storage.s3_parts import FLIGHT_BYTES, PART_BYTES_MAX, PART_BYTES_MIN, PARTS_MAX, parts_of
from engine.storage.s3_sign import EMPTY_SHA256, Signer, path_text, query_text
from engine.storage.s3_wire import Address
from engine.storage.s3_xml import document, listing, uploads
from engine.units import GIB, MIB

SIZES = st.integers(0, 33 * GIB)
PART_SIZES = st.one_of(st.just(0), st.integers(PART_BYTES_MIN, PART_BYTES_MAX))


@pytest.mark.feature("S6")
@given(SIZES, PART_SIZES, st.integers(1, 64))
def test_any_segment_fits_into_its_parts(size, part_size, concurrency):
    parts = parts_of(size, part_size, concurrency)
    assert PART_BYTES_MIN <= parts.size_bytes <= PART_BYTES_MAX
    assert -(-(33 * GIB) // parts.size_bytes) <= PARTS_MAX, "also where the hint was too low"
    assert parts.size_bytes == part_size or not part_size
    assert part_size or parts.size_bytes >= 10 * MIB
    assert part_size or not size or -(-size // parts.size_bytes) <= 2000


@pytest.mark.feature("S6")
@given(SIZES, PART_SIZES, st.integers(1, 64))
def test_what_is_in_memory_is_bounded(size, part_size, concurrency):
    parts = parts_of(size, part_size, concurrency)
    assert parts.in_flight >= 2
    assert parts.in_flight <= max(2, concurrency)
    assert parts.memory_bytes <= FLIGHT_BYTES or parts.in_flight == 2


@pytest.mark.feature("S6")
@pytest.mark.parametrize(
    ("size", "asked", "concurrency", "part", "in_flight"),
    [
        (1 * GIB, 0, 8, 10 * MIB, 6),
        (32 * GIB, 0, 8, 17_182_720, 3),
        (0, 0, 8, 17_182_720, 3),
        (32 * GIB, 5 * MIB, 8, 5 * MIB, 8),
        (32 * GIB, 512 * MIB, 8, 512 * MIB, 2),
        (1 * GIB, 0, 1, 10 * MIB, 2),
    ],
)
def test_examples_of_parts(size, asked, concurrency, part, in_flight):
    assert (parts_of(size, asked, concurrency).size_bytes, parts_of(size, asked, concurrency).in_flight) == (
        part,
        in_flight,
    )


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=("Cs", "Cc")), max_size=20)


@pytest.mark.feature("S5")
@settings(deadline=None)  # the other implementation takes a second to import
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"]),
    TEXT,
    st.dictionaries(TEXT.filter(bool), TEXT, max_size=4),
    st.dictionaries(st.sampled_from(["range", "if-none-match", "content-md5", "x-amz-meta-writer"]), st.just("a  b")),
)
def test_a_signature_is_that_of_another_implementation(method, key, query, headers):
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    now = datetime(2026, 11, 23, 13, 0, 7, tzinfo=UTC)
    path = "/" + path_text(f"bucket/{key}")
    ours = Signer("key", "secret", "eu-west-1").sign(
        method, path, query, {"host": "s3.example.com:9000", **headers}, EMPTY_SHA256, now
    )
    url = f"https://s3.example.com:9000{path}?{query_text(query)}"
    theirs = AWSRequest(method, url, headers={**headers, "host": "s3.example.com:9000"})
    theirs.headers["X-Amz-Date"] = ours["x-amz-date"]
    theirs.headers["X-Amz-Content-SHA256"] = EMPTY_SHA256
    theirs.context["timestamp"] = ours["x-amz-date"]
    auth = S3SigV4Auth(Credentials("key", "secret"), "s3", "eu-west-1")
    signature = auth.signature(auth.string_to_sign(theirs, auth.canonical_request(theirs)), theirs)
    assert ours["authorization"].endswith(f"Signature={signature}")
    assert dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)) == query


def test_a_secret_is_in_no_text():
    assert "secret" not in repr(Signer("key", "secret", "region"))


@pytest.mark.feature("C10")
@given(*[st.floats(0, 1e10)] * 3, st.floats(0, 1e7))
def test_only_what_is_known_to_be_old_is_stale(begin, last, now, age):
    stale = is_stale(begin, last, now, age)
    assert not stale or (begin > 0 and last > 0 and now - begin > age and now - last > age)
    assert stale or not (begin > 0 and last > 0 and now - max(begin, last) > age)


@pytest.mark.feature("S5")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bucket", ""), ("bucket", "a/b"), ("access_key", ""), ("access_key", "a\nb"), ("secret_key", ""), ("prefix", "a/../b"),
        ("prefix", "a//b"), ("prefix", "a\0"), ("part_size_bytes", 1), ("part_size_bytes", 513 * MIB), ("concurrency", 0),
        ("concurrency", 65), ("endpoint", "s3.example.com"), ("endpoint", "ftp://a"), ("endpoint", "http://a:b"),
        ("endpoint", "https://user:word@host"), ("ca_certificate", "nonsense"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(field, value):
    right = {"bucket": "b", "region": "", "access_key": "k", "secret_key": "s", "endpoint": "https://127.0.0.1:1"}
    with pytest.raises(InvalidSpec) as caught:
        S3Storage(S3Config(**{**right, field: value}))
    assert caught.value.facts["field"] == f"s3.{field}"


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("https://s3.example.com", "s3.example.com", ""),
        ("https://s3.example.com:443/base/", "s3.example.com", "/base"),
        ("http://127.0.0.1:9000", "127.0.0.1:9000", ""),
        ("http://[::1]:9000/", "[::1]:9000", ""),
    ],
)
def test_addresses(url, authority, path):
    assert (Address.parse(url).authority, Address.parse(url).path) == (authority, path)


def test_quoted_keys_of_an_answer_are_read():
    text = b"""<?xml version="1.0"?><R xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>
      <IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>
      <Contents><Key>a+b%2Fc%00</Key><Size>5</Size><LastModified>2026-11-23T13:00:00.000Z</LastModified></Contents>
      <Contents><Key>d</Key><Size>-1</Size></Contents><CommonPrefixes><Prefix>e/</Prefix></CommonPrefixes></R>"""
    page = listing(document(text))
    assert [(one.key, one.size_bytes, one.modified_time) for one in page.keys] == [
        ("a b/c\0", 5, 1795438800.0),
        ("d", -1, 0.0),
    ]
    assert (page.folders, page.next_token) == (("e/",), "t")


def test_uploads_of_a_last_page_end_there():
    found, markers = uploads(
        document(b"<R><Upload><Key>k</Key><UploadId>u</UploadId></Upload><NextKeyMarker>k</NextKeyMarker></R>")
    )
    assert [(one.key, one.upload_id, one.initiated_time) for one in found] == [("k", "u", 0.0)]
    assert markers == ("", "")
