"""Settings of a bucket (S5, S6)."""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from clients.gen.backupmanager.v1 import storage_pb2
from controller.addresses import is_address, is_host
from controller.errors import InvalidField
from controller.services import check
from controller.services.storage_checks import fields
from controller.services.storage_checks.fields import expect
from engine.units import MIB

REGION_DEFAULT = "us-east-1"  # what servers without regions accept
CONCURRENCY_DEFAULT, CONCURRENCY_MAX = 8, 64
PART_BYTES_MIN, PART_BYTES_MAX = 5 * MIB, 512 * MIB  # 5 MiB is S3's own floor for all parts but the last
ACCESS_KEY_CHARACTERS_MAX = 128
ENDPOINT_CHARACTERS_MAX = 512
# AWS's rule, which names in host names need; servers of one's own often allow more where the name stands in the path.
_STRICT_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LOOSE_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_URL_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ADDRESSINGS = {
    storage_pb2.S3_ADDRESSING_UNSPECIFIED: "unset",
    storage_pb2.S3_ADDRESSING_PATH: "path",
    storage_pb2.S3_ADDRESSING_VIRTUAL: "virtual",
}


def config(given: storage_pb2.S3Config) -> storage_pb2.S3Config:
    fields.known_enum("s3.addressing", given.addressing, _ADDRESSINGS)
    endpoint = _endpoint(given.endpoint)
    by_path = bool(endpoint) and given.addressing != storage_pb2.S3_ADDRESSING_VIRTUAL
    certificates = fields.certificates("s3.ca_certificate", given.ca_certificate)
    expect(not (certificates and endpoint.startswith("http:")), "s3.ca_certificate", "is not used over plain http")
    region = given.region or REGION_DEFAULT
    expect(_REGION.fullmatch(region) is not None, "s3.region", "must be a name such as eu-central-1")
    concurrency = given.concurrency or CONCURRENCY_DEFAULT
    return storage_pb2.S3Config(
        bucket=_bucket(given.bucket, by_path=by_path),
        region=region,
        endpoint=endpoint,
        access_key=_access_key(given.access_key),
        prefix=fields.folder("s3.prefix", given.prefix),
        concurrency=check.number("s3.concurrency", concurrency, 1, CONCURRENCY_MAX),
        part_size_bytes=_part_size(given.part_size_bytes),
        addressing=given.addressing,
        ca_certificate=certificates,
        bind_address=fields.bind_address("s3.bind_address", given.bind_address),
    )


def secrets(known: Mapping[str, str]) -> None:
    fields.secret("secrets.s3_secret_key", known.get("s3_secret_key", ""))


def _bucket(name: str, *, by_path: bool) -> str:
    rule = _LOOSE_BUCKET if by_path else _STRICT_BUCKET
    letters = "letters, digits, '.', '_' or '-'" if by_path else "lower-case letters, digits, '.' or '-'"
    most = 255 if by_path else 63
    expect(
        rule.fullmatch(name) is not None and ".." not in name,
        "s3.bucket",
        f"must be 3 to {most} {letters}, beginning and ending with a letter or a digit",
    )
    expect(not is_address(name), "s3.bucket", "must not look like an address")
    return name


def _endpoint(text: str) -> str:
    """Return the URL without a slash at its end, scheme and host in lower case; "" for AWS."""
    if not text:
        return ""
    field = "s3.endpoint"
    expect(len(text) <= ENDPOINT_CHARACTERS_MAX, field, f"is longer than {ENDPOINT_CHARACTERS_MAX} characters")
    expect(text.isprintable() and " " not in text, field, "holds spaces or control characters")
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        raise InvalidField(field=field, problem="is not a URL") from None
    expect(url.scheme in {"http", "https"}, field, "must begin with https:// or http://")
    expect(is_host(host), field, "names neither a host nor an address")
    expect(url.username is None and url.password is None, field, "must not hold a user or a password")
    expect(not url.query and not url.fragment and "?" not in text and "#" not in text, field, "must end with the path")
    expect(port is None or port > 0, field, "has a port that cannot be")
    path = url.path.rstrip("/")
    expect(_URL_PATH.fullmatch(path) is not None and ".." not in path, field, "has a path that cannot be")
    shown = f"[{host}]" if _is_ipv6(host) else host
    return f"{url.scheme}://{shown}{f':{port}' if port else ''}{path}"


def _is_ipv6(host: str) -> bool:
    return is_address(host) and ipaddress.ip_address(host).version == 6


def _access_key(text: str) -> str:
    fits = 0 < len(text) <= ACCESS_KEY_CHARACTERS_MAX and text.isascii() and text.isprintable()
    expect(
        fits and not set(text) & set(" /,="),  # they would end it in the header that it is sent in
        "s3.access_key",
        f"must be 1 to {ACCESS_KEY_CHARACTERS_MAX} ASCII characters, none of them a space, '/', ',' or '='",
    )
    return text


def _part_size(size: int) -> int:
    fits = size == 0 or PART_BYTES_MIN <= size <= PART_BYTES_MAX
    expect(fits, "s3.part_size_bytes", f"must be 0, or from {PART_BYTES_MIN} to {PART_BYTES_MAX} (5 to 512 MiB)")
    return size
