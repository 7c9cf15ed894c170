"""Identifiers: UUID version 7 (RFC 9562), whose text sorts by the time it was made."""

import os
import uuid
from datetime import datetime

_RUN_BITS = 20  # of the lowest bits, which count in a run; 54 random ones are left


def new_id(now: datetime) -> str:
    """Return a new id, 36 characters, lower case; ids made in different milliseconds sort by `now`."""
    return _text(_value(now))


def new_ids(now: datetime, count: int) -> list[str]:
    """Return ids that are neighbors and ascend; the first of them is like one of `new_id`.

    What is made at once then stands side by side in every index: fifty scattered ids are fifty pages of each to read and write.
    Source: RFC 9562, 6.2, method 2. Raises ValueError for more than a million.
    """
    if count > 1 << _RUN_BITS:
        raise ValueError(f"{count} ids are too many for one run")
    first = _value(now) >> _RUN_BITS << _RUN_BITS
    return [_text(first + number) for number in range(count)]


def _value(now: datetime) -> int:
    milliseconds = int(now.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    return (
        (milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (random >> 68 & 0xFFF) << 64
        | 0x2 << 62
        | random & (1 << 62) - 1
    )


def _text(value: int) -> str:
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def first_id(time: datetime) -> str:
    """Return what all ids made before the millisecond of `time` sort below, and all made since do not."""
    return str(uuid.UUID(int=max(0, int(time.timestamp() * 1000)) << 80))


def is_id(text: str) -> bool:
    """Tell whether `text` is an id in canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
