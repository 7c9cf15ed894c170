"""Small checks of single fields, for all servicers. Each returns the value it accepts, or raises InvalidField naming the field."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from controller.errors import InvalidField

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

T = TypeVar("T")

NAME_CHARACTERS_MAX = 64
TITLE_CHARACTERS_MAX = 128
DOMAIN_NAME_CHARACTERS_MAX = 255  # libvirt keeps a file per domain, and file systems end there
PATH_BYTES_MAX = 1024  # of Linux's 4096: our own names come below it
DISKS_MAX = 256
KINDS_MAX = 50
_KIND = re.compile(r"[a-z][a-z_]{0,31}\.([a-z][a-z_]{0,31})?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID_START = re.compile(r"[0-9A-Fa-f-]{0,36}")
_DISK = re.compile(r"[A-Za-z0-9_-]{1,32}")


def name(field: str, text: str) -> str:
    """A unique name: 1 to 64 letters, digits, `.`, `-` or `_`."""
    _expect(_NAME.fullmatch(text) is not None, field, "must be 1 to 64 letters, digits, '.', '-' or '_'")
    return text


def title(field: str, text: str, *, optional: bool = True) -> str:
    """A name for people, or another system's id: one line of at most 128 characters."""
    _expect(optional or bool(text), field, "is missing")
    _expect(len(text) <= TITLE_CHARACTERS_MAX, field, f"is longer than {TITLE_CHARACTERS_MAX} characters")
    _expect(not set(text) & set("\t\r\n") and text == text.strip(), field, "must be one line without spaces around it")
    return text


def reference(field: str, text: str, *, optional: bool = False) -> str:
    """What names a thing, whichever way: an id, a name, another system's id."""
    return title(field, text, optional=optional)


def domain_name(field: str, text: str) -> str:
    """Libvirt's name of a domain; may be empty."""
    _expect(len(text) <= DOMAIN_NAME_CHARACTERS_MAX, field, f"is longer than {DOMAIN_NAME_CHARACTERS_MAX} characters")
    return text


def identifier(field: str, text: str) -> str:
    """An id of ours or of libvirt: a UUID; returned in its canonical form."""
    _expect(bool(text), field, "is missing")
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidField(field=field, problem="is not a UUID") from None


def id_start(field: str, text: str) -> str:
    """The beginning of an id, as people copy it; may be empty."""
    _expect(_ID_START.fullmatch(text) is not None, field, "is not the beginning of a UUID")
    return text.lower()


def request_id(text: str) -> str:
    """A caller's own id of a request, a UUID; "" for a caller that takes the risk of working twice after a lost answer."""
    return identifier("request_id", text) if text else ""


def path(field: str, text: str) -> str:
    """An absolute path, returned without `//`, `.` or a slash at its end. `..` is refused."""
    _expect(text.startswith("/"), field, "must be an absolute path")
    _expect(len(text.encode()) <= PATH_BYTES_MAX, field, f"is longer than {PATH_BYTES_MAX} bytes")
    parts = [part for part in text.split("/") if part not in {"", "."}]
    _expect(".." not in parts, field, "must not contain '..'")
    _expect(not set(text) & set("\0\t\r\n"), field, "holds control characters")
    return "/" + "/".join(parts)


def disks(field: str, names: Iterable[str]) -> tuple[str, ...]:
    """Target devices of a domain, such as `vda`; each once, in the caller's order."""
    chosen = tuple(dict.fromkeys(names))
    _expect(len(chosen) <= DISKS_MAX, field, f"has more than {DISKS_MAX} entries")
    for one in chosen:
        _expect(_DISK.fullmatch(one) is not None, field, "holds a name that no disk has")
    return chosen


def by_disk(field: str, values: Mapping[str, T]) -> dict[str, T]:
    """What is given for single disks, by their target devices such as `vda`."""
    return {disk: values[disk] for disk in disks(field, values)}


def identifiers(field: str, texts: Sequence[str], most: int) -> tuple[str, ...]:
    """One to `most` ids, each once."""
    _expect(bool(texts), field, "is missing")
    _expect(len(texts) <= most, field, f"has more than {most} entries")
    return tuple(dict.fromkeys(identifier(field, text) for text in texts))


def kinds(field: str, texts: Sequence[str]) -> tuple[str, ...]:
    """At most 50 kinds of events, or things with their dot, each once."""
    _expect(len(texts) <= KINDS_MAX, field, f"has more than {KINDS_MAX} entries")
    for one in texts:
        _expect(_KIND.fullmatch(one) is not None, field, "holds what is neither a kind such as job.failed nor job.")
    return tuple(dict.fromkeys(texts))


def number(field: str, value: int, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    _expect(least <= value <= most, field, f"must be from {least} to {most}")
    return value


def span(
    message: Message, field: str, default: timedelta | None, least: timedelta, most: timedelta
) -> timedelta | None:
    """A Duration from `least` to `most`; `default` where it is not set."""
    if not message.HasField(field):
        return default
    value: Duration = getattr(message, field)
    exact = timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    _expect(
        least <= exact <= most, field, f"must be from {least.total_seconds():g} to {most.total_seconds():g} seconds"
    )
    return exact


def instant(message: Message, field: str) -> datetime | None:
    """A Timestamp as aware UTC; None where it is not set."""
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    return value.ToDatetime(tzinfo=UTC)


def mask(field_mask: FieldMask, known: Iterable[str]) -> frozenset[str]:
    """The paths of an update mask, all of which must be known; an empty mask changes nothing and is refused."""
    paths = frozenset(field_mask.paths)
    _expect(bool(paths), "update_mask", "is missing")
    strange = sorted(paths - set(known))
    _expect(not strange, "update_mask", f"may hold {', '.join(sorted(known))} only")
    return paths


def _expect(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidField(field=field, problem=problem)
