"""How the processes that work on one storage at once share its budget on this hypervisor (P1, S27). Pure.

budget: 4 workers, 100 MB/s        one backup: 4, 100       two: 2 + 2, 50 each      three: 2 + 1 + 1, 33.3 each
                                   a backup and a restore: 2 + 2, and the backup alone has the limits

Only who uses something takes a share of it: a restore uploads nothing and is not held by the limits (P8, P9), and a delete
beside a backup must not cost it half of its threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.records import Verb

_WITH_WORKERS = frozenset({"backup", "restore", "verify"})
_LIMITED = frozenset({"backup"})


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


def split(budget: Budget, verbs: Sequence[Verb]) -> list[Grant]:
    """Return the shares of processes that do `verbs`, the older ones first, which get what cannot be divided.

    Everybody gets one worker at least: more processes than workers is for the controller to avoid, and a process without a
    worker would hold its lease and never end.
    """
    workers = _divide(budget.workers, [verb in _WITH_WORKERS for verb in verbs], _even, none=1)
    reads = _divide(budget.read_limit, [verb in _LIMITED for verb in verbs], _rates, none=budget.read_limit)
    uploads = _divide(budget.upload_limit, [verb in _LIMITED for verb in verbs], _rates, none=budget.upload_limit)
    return [Grant(max(1, own), read, upload) for own, read, upload in zip(workers, reads, uploads, strict=True)]


def _divide(total: int, users: list[bool], divide: Callable[[int, int], list[int]], *, none: int) -> list[int]:
    """Divide `total` among the users; the others get `none`, of which they use nothing worth counting."""
    shares = iter(divide(total, sum(users)))
    return [next(shares) if uses else none for uses in users]


def _even(total: int, count: int) -> list[int]:
    return [total // count + (position < total % count) for position in range(count)]


def _rates(total: int, count: int) -> list[int]:
    """Divide a rate; a limited share is never 0, for that would mean unlimited."""
    return [0] * count if total == 0 else [max(1, share) for share in _even(total, count)]
