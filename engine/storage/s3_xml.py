"""The XML of S3's answers, as values. Pure. What does not parse raises ElementTree's ParseError.

Keys are asked for in quoted form, since XML cannot hold every byte that a key can; a server that does not know that says so.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True)
class Key:
    """One object of a listing, by its key; `modified_time` is Unix seconds, 0 where unknown."""

    key: str
    size_bytes: int
    modified_time: float


@dataclass(frozen=True, slots=True)
class Listing:
    """One page; `next_token` is "" on the last."""

    keys: tuple[Key, ...]
    folders: tuple[str, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that is not complete; `initiated_time` is Unix seconds on the storage's clock."""

    key: str
    upload_id: str
    initiated_time: float


def document(text: bytes) -> ET.Element:
    """Return the root of an XML text, every name without its namespace."""
    root = ET.fromstring(text)  # noqa: S314  # Expat bounds what entities may expand to; the answer's length is bounded too
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def listing(root: ET.Element) -> Listing:
    """Return a page of a listing (ListObjectsV2)."""
    keys = tuple(
        Key(_key(root, one), _number(one.findtext("Size", "")), parse(one.findtext("LastModified", "")))
        for one in root.iterfind("Contents")
    )
    folders = tuple(_key(root, one, "Prefix") for one in root.iterfind("CommonPrefixes"))
    more = root.findtext("IsTruncated") == "true"
    return Listing(keys, folders, (root.findtext("NextContinuationToken") or "") if more else "")


def uploads(root: ET.Element) -> tuple[list[Upload], tuple[str, str]]:
    """Return a page of uploads (ListMultipartUploads), and the markers of the next page, ("", "") on the last."""
    found = [
        Upload(_key(root, one), one.findtext("UploadId", ""), parse(one.findtext("Initiated", "")))
        for one in root.iterfind("Upload")
    ]
    if root.findtext("IsTruncated") != "true":
        return found, ("", "")
    marker = _decoded(root, root.findtext("NextKeyMarker") or "")
    return found, (marker, root.findtext("NextUploadIdMarker") or "")


def parse(text: str) -> float:
    """Return an ISO 8601 time as Unix seconds, 0 for what is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _key(root: ET.Element, element: ET.Element, name: str = "Key") -> str:
    return _decoded(root, element.findtext(name) or "")


def _decoded(root: ET.Element, text: str) -> str:
    return unquote_plus(text, errors="replace") if root.findtext("EncodingType") == "url" else text


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1
