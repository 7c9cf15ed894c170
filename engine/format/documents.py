"""JSON objects as the storage holds them: two lines, the second with a SHA-256, and an HMAC if encrypted.

    {"kind":"disk","version":1,...}
    {"hmac":null,"sha256":"..."}

Frozen dataclasses go in and come out. Reading is strict, and on purpose separate from `engine.spec`, which may become more
lenient one day: what the format allows never changes. Source: FORMAT.md, "JSON objects".
"""

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeVar

from engine import ids
from engine.errors import ManifestCorrupt, ManifestUnsupported
from engine.units import MIB

VERSION = 1
DOCUMENT_BYTES_MAX = 32 * MIB
INTEGER_MAX = (1 << 63) - 1
T = TypeVar("T")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)", re.ASCII)
_TRAILER = re.compile(rb'\{"hmac":(?:null|"([0-9a-f]{64})"),"sha256":"([0-9a-f]{64})"\}\n')


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A document whose SHA-256 fits: the body's exact bytes and values, and the HMAC if there is one."""

    body: bytes
    values: dict[str, Any]
    hmac: bytes | None


def to_json(value: object) -> bytes:
    """Return JSON text in ASCII, on one line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def wrap(body: bytes, hmac: bytes | None = None) -> bytes:
    """Return the two lines of a document."""
    mac = f'"{hmac.hex()}"' if hmac is not None else "null"
    hashed = body + f'\n{{"hmac":{mac},"sha256":"'.encode()
    return hashed + hashlib.sha256(hashed).hexdigest().encode() + b'"}\n'


def dump_plain(kind: str, value: Any) -> bytes:
    """Return a dataclass without a sealed part as a document."""
    return wrap(to_json({"kind": kind, "version": VERSION, **dataclasses.asdict(value)}))


def load_plain(cls: type[T], kind: str, data: bytes, name: str) -> T:
    """Return the dataclass that `dump_plain` made a document of. Raises ManifestCorrupt, ManifestUnsupported."""
    document = unwrap(data, kind, name)
    if document.hmac is not None:
        corrupt(name, "has an HMAC without a key")
    return decode(cls, document.values, name)


def unwrap(data: bytes, kind: str, name: str) -> Document:
    """Return a document's body after checking its hash, kind and version; the values come without kind and version.

    Raises ManifestCorrupt, and ManifestUnsupported for a whole document of a later version.
    """
    if len(data) > DOCUMENT_BYTES_MAX:
        corrupt(name, f"has {len(data)} bytes, more than {DOCUMENT_BYTES_MAX}")
    end = data.find(b"\n")
    trailer = _TRAILER.fullmatch(data, end + 1) if end > 0 else None
    if trailer is None:
        corrupt(name, "is not two lines with a hash: it was cut short or grew")
    body = data[:end]
    if hashlib.sha256(data[: trailer.start(2)]).hexdigest().encode() != trailer[2]:
        corrupt(name, "the SHA-256 does not fit")
    values = from_json(body, name)
    version = values.pop("version", None)
    if type(version) is int and version > VERSION:
        raise ManifestUnsupported(name=name, found=version, known=VERSION)
    if type(version) is not int or version != VERSION or values.pop("kind", None) != kind:
        corrupt(name, f"is no {kind} document")
    return Document(body, values, bytes.fromhex(trailer[1].decode()) if trailer[1] else None)


def from_json(text: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object's values: no key twice, no NaN, not nested without end. Raises ManifestCorrupt."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return values

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number here")

    try:
        values = json.loads(text.decode("ascii"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        # The error's own text quotes the document, which may be a sealed part.
        raise ManifestCorrupt(name=name, detail="is not JSON as the format demands") from error
    if not isinstance(values, dict):
        corrupt(name, "is not a JSON object")
    return values


def decode(kind: type[T], values: Any, name: str, where: str = "") -> T:
    """Return `values` as a `kind`: of a dataclass exactly its fields, each of exactly its type. Raises ManifestCorrupt."""
    return typing.cast("T", _decode(kind, values, name, where))


def _decode(kind: Any, value: Any, name: str, where: str) -> Any:
    if kind is str and type(value) is str:
        return value  # most values: a manifest may name thousands of segments
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast("type", kind), value, name, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            corrupt(name, f"{where} has an unknown value")
        return value
    if origin in {typing.Union, types.UnionType}:
        if value is None:
            return None
        return _decode(next(one for one in arguments if one is not type(None)), value, name, where)
    if origin is tuple and type(value) is list:
        return tuple(_decode(arguments[0], item, name, f"{where}[{position}]") for position, item in enumerate(value))
    if origin is dict and type(value) is dict:
        return {key: _decode(arguments[1], item, name, f"{where}.{key}") for key, item in value.items()}
    if origin is not None or type(value) is not kind:
        corrupt(name, f"{where} is of the wrong type")
    if kind is int and not 0 <= value <= INTEGER_MAX:
        corrupt(name, f"{where} is out of range")
    return value


def _dataclass(cls: type, values: Any, name: str, where: str) -> Any:
    hints = _hints(cls)
    if type(values) is not dict or values.keys() != hints.keys():
        corrupt(name, f"{where or 'the body'} has not exactly the fields of {cls.__name__}")
    return cls(**{field: _decode(hint, values[field], name, f"{where}.{field}") for field, hint in hints.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {one.name: hints[one.name] for one in dataclasses.fields(cls)}


def corrupt(name: str, detail: str) -> NoReturn:
    raise ManifestCorrupt(name=name, detail=detail)


def expect(condition: bool, name: str, detail: str) -> None:
    """Raise ManifestCorrupt unless the condition holds."""
    if not condition:
        corrupt(name, detail)


def is_time(text: str) -> bool:
    """Tell whether `text` is an instant in UTC as the format writes it."""
    if not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def is_hex(text: str, length: int) -> bool:
    """Tell whether `text` is lower-case hex of `length` bytes."""
    return re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", text) is not None


def check_ids(name: str, **values: str) -> None:
    """Raise ManifestCorrupt naming the first value that is not an id."""
    for field, value in values.items():
        expect(ids.is_id(value), name, f"{field} is not an id")
