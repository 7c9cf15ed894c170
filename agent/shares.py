"""How the processes that work on one storage at once share its budget on this hypervisor (P1, S27). Pure.

budget: 4 workers, 100 MB/s        one process: 4, 100      two: 2 + 2, 50 each      three: 2 + 1 + 1, 33.3 each
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What all processes on a storage may use together. Rates are bytes a second, 0 for no limit."""

    workers: int
    read_limit: int
    upload_limit: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What one process may use; the same units as the budget's."""

    workers: int
    read_limit: int
    upload_limit: int


def split(budget: Budget, count: int) -> list[Grant]:
    """Return the shares of `count` processes, the older ones first, which get what cannot be divided.

    Everybody gets one worker at least: more processes than workers is for the controller to avoid, and a process without a
    worker would hold its lease and never end.
    """
    workers = _even(budget.workers, count)
    reads, uploads = _rates(budget.read_limit, count), _rates(budget.upload_limit, count)
    return [Grant(max(1, own), read, upload) for own, read, upload in zip(workers, reads, uploads, strict=True)]


def _even(total: int, count: int) -> list[int]:
    return [total // count + (position < total % count) for position in range(count)]


def _rates(total: int, count: int) -> list[int]:
    """Divide a rate; a limited share is never 0, for that would mean unlimited."""
    return [0] * count if total == 0 else [max(1, share) for share in _even(total, count)]
