"""Which type of backup each disk gets, and why. Pure: manifests, tracking points and `now` in, a choice out.

An incremental is a promise that nothing changed outside of it. Whatever makes that promise doubtful makes the backup a
full, with the reason on record (T26); never the other way round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from engine.format.manifest import DiskManifest
from engine.spec import BackupType

# Reasons of a full where an incremental was asked or possible. They are recorded in manifests: never rename one.
FIRST = "first"
REQUESTED = "requested"
INTERVAL_DUE = "interval_due"
BITMAP_LOST = "bitmap_lost"
BITMAP_INCONSISTENT = "bitmap_inconsistent"
DISK_RESIZED = "disk_resized"
DISK_REPLACED = "disk_replaced"
CHAIN_BROKEN = "chain_broken"
CHAIN_UNREADABLE = "chain_unreadable"
RESTORED_OVER = "restored_over"
STORAGE_CHANGED = "storage_changed"
ENCRYPTION_CHANGED = "encryption_changed"
FOREIGN_CHECKPOINT = "foreign_checkpoint"
UNTRACKED = "untracked"


@dataclass(frozen=True, slots=True)
class DiskState:
    """A disk as the hypervisor shows it now. `tracking` has our checkpoints of this repository: "" usable, else why not."""

    disk: str
    size_bytes: int
    path: str
    trackable: bool
    tracking: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with one disk. `parent` is None for a full or a copy; `reason` is why a full, "" for anything else."""

    disk: str
    type: BackupType
    parent: DiskManifest | None
    reason: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked of one run."""

    type: BackupType
    full_interval_days: int
    key_id: str
    now: datetime
    interval: timedelta = timedelta(0)


def choose(wish: Wish, state: DiskState, points: Iterable[DiskManifest], *, unreadable: bool = False) -> Choice:
    """Return the choice for one disk. `points` are its whole manifests on this storage; `unreadable`: there are others."""
    if wish.type == "copy":
        return Choice(state.disk, "copy", None, "")
    chained = [point for point in points if point.type != "copy"]
    reason = REQUESTED if wish.type == "full" else _why_full(wish, state, chained, unreadable=unreadable)
    if reason:
        return Choice(state.disk, "full", None, reason)
    return Choice(state.disk, wish.type, newest(chained), "")


def newest(points: Iterable[DiskManifest]) -> DiskManifest | None:
    """Return the point that the next incremental would build on: the latest; ids settle equal times."""
    return max(points, key=lambda point: (datetime.fromisoformat(point.create_time), point.backup_id), default=None)


def _why_full(wish: Wish, state: DiskState, points: list[DiskManifest], *, unreadable: bool) -> str:
    parent = newest(points)
    if unreadable:
        return CHAIN_UNREADABLE
    if parent is None:
        return FIRST
    by_id = {point.backup_id: point for point in points}
    if any(layer.backup_id not in by_id for layer in parent.layers):
        return CHAIN_BROKEN
    if parent.key_id != wish.key_id:
        return ENCRYPTION_CHANGED
    if parent.size_bytes != state.size_bytes:
        return DISK_RESIZED
    if _interval_due(wish, by_id[parent.layers[0].backup_id]):
        return INTERVAL_DUE
    if not state.trackable:
        return UNTRACKED
    if parent.checkpoint not in state.tracking:
        replaced = (parent.sealed or {}).get("path", state.path) != state.path
        return DISK_REPLACED if replaced else BITMAP_LOST
    return state.tracking[parent.checkpoint]


def _interval_due(wish: Wish, full: DiskManifest) -> bool:
    """T29: due when half a run's interval from now would be too late, so that jitter does not make it a day more."""
    if wish.full_interval_days == 0:
        return False
    due = datetime.fromisoformat(full.create_time) + timedelta(days=wish.full_interval_days)
    return wish.now + wish.interval / 2 >= due
