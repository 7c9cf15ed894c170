"""Pages of a list: where the next one begins, and how much fits.

A page token says after which row the next page begins (the row's sort key), so a list stays right while rows come and go.
It is bound to its list and its filters; any other use is refused with INVALID_PAGE_TOKEN. To a client it is opaque.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from controller.errors import InvalidField, InvalidPageToken

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000
PAGE_BYTES_MAX = 900 << 10  # of the 1 MiB that a message may have (N9); the token and the frame need a little
TOKEN_CHARACTERS_MAX = 2048
_FRAME_BYTES = 8  # tag and length of an element
_NUMBER_MAX = 1 << 63

Key: TypeAlias = tuple[str | int, ...]
Row = TypeVar("Row")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Page:
    """What a caller asked of a list: how many rows, and after which."""

    size: int
    after: Any  # a sort key of the types that the list asked for, or None
    digest: str

    def token(self, key: Key) -> str:
        """Return the token of the page that begins after the row with this key."""
        text = json.dumps([self.digest, *key], separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Filled(Generic[M]):
    """The messages of a page, and the token of the next one ("" when there is none)."""

    messages: list[M]
    next_page_token: str


def page(name: str, filters: Iterable[object], size: int, token: str, kinds: Sequence[type]) -> Page:
    """Return the page that a request asks for. `kinds` are the types of the list's sort key.

    Raises InvalidField for a size that is negative or too large, InvalidPageToken for a token that is not of this list.
    """
    if not 0 <= size <= PAGE_SIZE_MAX:
        raise InvalidField(field="page_size", problem=f"must be from 0 to {PAGE_SIZE_MAX}")
    digest = hashlib.sha256(json.dumps([name, *map(str, filters)]).encode()).hexdigest()[:16]
    after = _parse(token, digest, kinds) if token else None
    return Page(size or PAGE_SIZE_DEFAULT, after, digest)


def fill(wanted: Page, rows: Sequence[Row], message: Callable[[Row], M], key: Callable[[Row], Key]) -> Filled[M]:
    """Return a page's messages from its rows, of which one more than the page holds may be given: it says there is more.

    The page ends early where the messages would not fit in one reply; it never ends before its first.
    """
    messages: list[M] = []
    room = PAGE_BYTES_MAX
    for row in rows[: wanted.size]:
        one = message(row)
        room -= one.ByteSize() + _FRAME_BYTES
        if messages and room < 0:
            break
        messages.append(one)
    more = len(rows) > len(messages)
    return Filled(messages, wanted.token(key(rows[len(messages) - 1])) if more else "")


def fitting(messages: Sequence[M], bytes_max: int = PAGE_BYTES_MAX) -> list[M]:
    """Return as many of the messages, from the first on, as fit together in one reply; the first always does."""
    room = bytes_max
    for count, one in enumerate(messages):
        room -= one.ByteSize() + _FRAME_BYTES
        if count and room < 0:
            return list(messages[:count])
    return list(messages)


def fits(messages: Iterable[Message]) -> bool:
    """Tell whether messages fit together in one reply."""
    return sum(one.ByteSize() + _FRAME_BYTES for one in messages) <= PAGE_BYTES_MAX


def _parse(token: str, digest: str, kinds: Sequence[type]) -> Key:
    try:
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise ValueError
        values = json.loads(base64.b64decode(token.encode("ascii") + b"==", altchars=b"-_", validate=False))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise InvalidPageToken from error
    fits = (
        isinstance(values, list)
        and len(values) == len(kinds) + 1
        and values[0] == digest
        and all(type(value) is kind for value, kind in zip(values[1:], kinds, strict=True))
        and all(_is_storable(value) for value in values[1:])
    )
    if not fits:
        raise InvalidPageToken
    return tuple(values[1:])


def _is_storable(value: str | int) -> bool:
    if isinstance(value, int):
        return -_NUMBER_MAX <= value < _NUMBER_MAX
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
