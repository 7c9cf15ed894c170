"""Identifiers: UUID version 7 (RFC 9562), whose text sorts by the time it was made."""

import os
import uuid
from datetime import datetime


def new_id(now: datetime) -> str:
    """Return a new id, 36 characters, lower case; ids made in different milliseconds sort by `now`."""
    milliseconds = int(now.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = (
        (milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (random >> 68 & 0xFFF) << 64
        | 0x2 << 62
        | random & (1 << 62) - 1
    )
    return str(uuid.UUID(int=value))


def first_id(time: datetime) -> str:
    """Return what all ids made before the millisecond of `time` sort below, and all made since do not."""
    return str(uuid.UUID(int=max(0, int(time.timestamp() * 1000)) << 80))


def is_id(text: str) -> bool:
    """Tell whether `text` is an id in canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
