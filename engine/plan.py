"""Which type of backup each disk gets, and why. Pure: manifests, tracking points and `now` in, a choice out.

An incremental is a promise that nothing changed outside of it. Whatever makes that promise doubtful makes the backup a
full, with the reason on record (T26); never the other way round.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
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
CHAIN_LONG = "chain_long"

# Every incremental lists all layers below it and a restore opens each: 512 is 17 months of daily backups, far below what a
# manifest may hold (LAYERS_MAX), where no further backup could be made.
CHAIN_LAYERS_MAX = 512


@dataclass(frozen=True, slots=True)
class DiskState:
    """A disk as the hypervisor shows it now. `tracking` has our checkpoints of this repository: "" usable, else why not.

    What is not in it is gone, as every record of a raw disk's changes is when its domain stops.
    `restored_time` is when a restore wrote over it, as far as that is known. `elsewhere` has the last backup of each other
    repository that has a record of its changes: only `elsewhere_max` of them may, beside the one that is used now.
    `displaced`: another tool has made a checkpoint of the disk since the last backup.
    """

    disk: str
    size_bytes: int
    path: str
    tracking: Mapping[str, str]
    restored_time: datetime | None = None
    elsewhere: tuple[str, ...] = ()
    elsewhere_max: int = 1
    bitmaps: Collection[str] = ()
    displaced: bool = False


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


def choose(
    wish: Wish,
    state: DiskState,
    points: Iterable[DiskManifest],
    *,
    unreadable: bool = False,
    whole: Callable[[DiskManifest], bool] = lambda _: True,
) -> Choice:
    """Return the choice for one disk.

    `points` are its readable manifests on this storage; `unreadable`: there are others. `whole` tells of a point whether
    every data file that it needs is there.
    """
    if wish.type == "copy":
        return Choice(state.disk, "copy", None, "")
    chained = [point for point in points if point.type != "copy"]
    reason = REQUESTED if wish.type == "full" else _why_full(wish, state, chained, unreadable=unreadable, whole=whole)
    if reason:
        return Choice(state.disk, "full", None, reason)
    return Choice(state.disk, wish.type, base(wish, chained, state.bitmaps), "")


def base(wish: Wish, points: Iterable[DiskManifest], tracked: Collection[str] = ()) -> DiskManifest | None:
    """Return the point that the next incremental would build on, None if there is none.

    With a key it is one that is sealed with that key: who can write to the storage and has no key can put any plain
    manifest there, and it must neither become a parent nor stand in the way of the real one.
    """
    return head((point for point in points if not wish.key_id or point.key_id == wish.key_id), tracked)


def head(points: Iterable[DiskManifest], tracked: Collection[str]) -> DiskManifest | None:
    """Return the point that was made last, None if there is none.

    Times may lie, after a clock has jumped: a point that another one follows is never it, and one whose bitmap is still there
    (`tracked` has their names) comes before all others, since each backup takes the older bitmaps away.
    """
    chained = [point for point in points if point.type != "copy"]
    followed = {point.parent_backup_id for point in chained}
    heads = [point for point in chained if point.backup_id not in followed]
    return newest([point for point in heads if point.checkpoint in tracked] or heads or chained)


def newest(points: Iterable[DiskManifest]) -> DiskManifest | None:
    """Return the latest point; ids settle equal times."""
    return max(points, key=lambda point: (datetime.fromisoformat(point.create_time), point.backup_id), default=None)


def _why_full(
    wish: Wish,
    state: DiskState,
    points: list[DiskManifest],
    *,
    unreadable: bool,
    whole: Callable[[DiskManifest], bool],
) -> str:
    parent = base(wish, points, state.bitmaps)
    if parent is None:
        # What cannot be read may be anything, so it is the better explanation of why there is no parent.
        return CHAIN_UNREADABLE if unreadable else ENCRYPTION_CHANGED if points else FIRST
    by_id = {point.backup_id: point for point in points}
    if any(layer.backup_id not in by_id for layer in parent.layers):
        return CHAIN_UNREADABLE if unreadable else CHAIN_BROKEN
    if not whole(parent):
        return CHAIN_BROKEN
    if parent.key_id != wish.key_id:
        return ENCRYPTION_CHANGED
    if parent.size_bytes != state.size_bytes:
        return DISK_RESIZED
    if _interval_due(wish, by_id[parent.layers[0].backup_id]):
        return INTERVAL_DUE
    if not parent.checkpoint:
        return UNTRACKED
    if wish.type == "incremental" and len(parent.layers) >= CHAIN_LAYERS_MAX:
        return CHAIN_LONG
    if state.restored_time and state.restored_time >= datetime.fromisoformat(parent.create_time):
        return RESTORED_OVER
    if parent.checkpoint not in state.tracking:
        return _why_lost(state, parent, points, unreadable=unreadable)
    return state.tracking[parent.checkpoint]


def _why_lost(state: DiskState, parent: DiskManifest, points: list[DiskManifest], *, unreadable: bool) -> str:
    """Return why the parent's bitmap is not there. A later backup takes it away, also one that is no parent itself."""
    if (parent.sealed or {}).get("path", state.path) != state.path:
        return DISK_REPLACED
    if (last := newest(points)) is not None and last.key_id != parent.key_id:
        return ENCRYPTION_CHANGED
    if sum(backup_id > parent.backup_id for backup_id in state.elsewhere) > state.elsewhere_max:
        return STORAGE_CHANGED  # ids sort by time: others were used since, and took this one's place
    if unreadable:
        return CHAIN_UNREADABLE
    return FOREIGN_CHECKPOINT if state.displaced else BITMAP_LOST


def _interval_due(wish: Wish, full: DiskManifest) -> bool:
    """T29: due when half a run's interval from now would be too late, so that jitter does not make it a day more.

    Due, too, when the full's time lies further ahead than that: it was taken by a clock that had jumped.
    """
    if wish.full_interval_days == 0:
        return False
    made, days = datetime.fromisoformat(full.create_time), timedelta(days=wish.full_interval_days)
    return wish.now + wish.interval / 2 >= made + days or made > wish.now + days
