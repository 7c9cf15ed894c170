"""A server's backups as a tree (M10): disk ──► storage ──► chain ──► records, with each disk's copies in a group of their own. Pure.

vda  nas      chain c2  *current   full, incremental, incremental
              chain c1             full, incremental
              copies               copy, copy
vdb  (removed) nas  chain c1       full                             the server has it no more, its data is kept (M17)
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from controller.db.fields import to_microseconds

Key: TypeAlias = tuple[str, str, int, int, str]
RECORDS_MAX = 2000  # of one chain that are shown; the newest
COPY = "copy"


@dataclass(frozen=True, slots=True)
class Record:
    """One disk's part in one backup."""

    backup_id: str
    disk: str
    storage_id: str
    chain_id: str
    create_time: datetime
    type: str
    state: str
    parent_backup_id: str
    size_bytes: int
    data_bytes: int
    stored_bytes: int
    fallback_reason: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of one disk on one storage, or (`copies`) its copies there. `records` are oldest first."""

    disk: str
    storage_id: str
    chain_id: str
    copies: bool
    current: bool
    disk_removed: bool
    backup_count: int
    stored_bytes: int
    start_time: datetime
    last_time: datetime
    records: tuple[Record, ...]

    @property
    def key(self) -> Key:
        """What chains are sorted by: disk, storage, copies last, the newest first."""
        return self.disk, self.storage_id, int(self.copies), -to_microseconds(self.start_time), self.chain_id


def build(records: Iterable[Record], present_disks: Collection[str]) -> list[Chain]:
    """Return the chains of a server's records, in the order of their keys.

    `present_disks` are those that the server has now; none at all means that nobody knows, and then none is called removed.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda one: (one.create_time, one.backup_id)):
        chain_id = "" if _is_copy(record) else record.chain_id
        groups.setdefault((record.disk, record.storage_id, chain_id), []).append(record)
    current = _current(groups)
    chains = [_chain(group, current, present_disks) for group in groups.values()]
    return sorted(chains, key=lambda one: one.key)


def _current(groups: dict[tuple[str, str, str], list[Record]]) -> set[tuple[str, str, str]]:
    """Return the chains that the next incremental would extend: per disk and storage that of the newest record."""
    newest: dict[tuple[str, str], Record] = {}
    for (disk, storage_id, chain_id), group in groups.items():
        known = newest.get((disk, storage_id))
        if chain_id and (known is None or _age(group[-1]) > _age(known)):
            newest[disk, storage_id] = group[-1]
    return {(disk, storage_id, record.chain_id) for (disk, storage_id), record in newest.items()}


def _age(record: Record) -> tuple[datetime, str]:
    return record.create_time, record.backup_id


def _chain(group: Sequence[Record], current: set[tuple[str, str, str]], present_disks: Collection[str]) -> Chain:
    first = group[0]
    copies = _is_copy(first)
    return Chain(
        disk=first.disk,
        storage_id=first.storage_id,
        chain_id="" if copies else first.chain_id,
        copies=copies,
        current=not copies and (first.disk, first.storage_id, first.chain_id) in current,
        disk_removed=bool(present_disks) and first.disk not in present_disks,
        backup_count=len(group),
        stored_bytes=sum(one.stored_bytes for one in group),
        start_time=first.create_time,
        last_time=group[-1].create_time,
        records=tuple(group[-RECORDS_MAX:]),
    )


def _is_copy(record: Record) -> bool:
    return record.type == COPY or not record.chain_id
