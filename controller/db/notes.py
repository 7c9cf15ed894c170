"""What a transaction wants told once it is committed: a function notes it, and the database hands it out after the commit.

A note of a function that failed is never handed out, and none is before its facts can be read.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Note:
    """`topic` is "job" (key: job id, value: its version), "outbox" (key: hypervisor id, value: the command's number), or
    "event" (no key, value: the newest sequence, set at the commit).
    """

    topic: str
    key: str
    value: int = 0


Listener: TypeAlias = Callable[[Sequence[Note]], None]
_active = threading.local()


def note(topic: str, key: str, value: int = 0) -> None:
    """Note something in the transaction of this thread. Raises RuntimeError outside one: it would never be told."""
    notes: list[Note] | None = getattr(_active, "notes", None)
    if notes is None:
        raise RuntimeError("note() outside of Database.run")
    notes.append(Note(topic, key, value))


@contextmanager
def collecting() -> Iterator[list[Note]]:
    """Collect what this thread notes inside the block."""
    notes: list[Note] = []
    _active.notes = notes
    try:
        yield notes
    finally:
        _active.notes = None
