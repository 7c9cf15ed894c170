"""Batches: in which order servers come, how long a batch may take, and when what waits holds others back. Pure.

cut off by a stale batch ──► never backed up ──► oldest success first          (X13; within each, as the rest decides)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

FAIR_AFTER = timedelta(hours=1)  # so long a deferred batch lets singles pass; then new ones queue behind it (X3)
INTERVALS_MAX = 3
SENT_MAX = 400  # jobs that one hypervisor is told of at a time; the rest of a larger batch follows as these end
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that a batch takes. `cut_off`: its turn in the schedule's last batch ended because that was stale."""

    server_id: str
    last_success: datetime | None
    cut_off: bool = False


def order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the servers in the order in which they begin."""
    return sorted(candidates, key=lambda one: (not one.cut_off, one.last_success or _NEVER, one.server_id))


def time_max(cap: timedelta, interval: timedelta) -> timedelta:
    """Return how long a batch may be at work: the cap, or three intervals if these are shorter (X7)."""
    return min(cap, INTERVALS_MAX * interval) if interval > timedelta(0) else cap


def holds_back(waiting_since: datetime, asked: datetime, now: datetime) -> bool:
    """Tell whether a batch that waits for a hypervisor's singles goes before a single that was asked for at `asked`.

    Those that were there first still do: only what came after an hour of waiting queues behind the batch.
    """
    return now - waiting_since >= FAIR_AFTER and asked - waiting_since >= FAIR_AFTER
