"""Delete backups: refused while anything needs them, and in an order that leaves no backup without its data (R19).

    read every manifest of the server again ─► veto (chain.needed_by, a backup in the making) ─► newest first, for each backup:
        deleted.json of each disk ─► backup.json ─► manifest.json ─► everything else in the folder

A deletion that was interrupted goes on where it stopped when it is asked for again, and the server's next backup finishes it:
a mark says that the data is going, so that nobody may build on it in any case.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from engine import chain, listing
from engine.attempt import remove_attempt
from engine.catalog import History, Point, read_history
from engine.errors import BackupNotFound, ObjectExists, StillNeeded, StorageError, StorageUnreachable
from engine.failpoint import reached
from engine.format import names
from engine.format.markers import Deleted
from engine.ids import is_id
from engine.orphans import may_commit
from engine.results import DeleteResult
from engine.storage.base import Storage
from engine.surroundings import Surroundings
from engine.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Deleter:
    """Who deletes, for the marks."""

    job_id: str
    host: str
    now: datetime


def delete_backups(
    storage: Storage,
    server_id: str,
    backup_ids: tuple[str, ...],
    job_id: str,
    host: str,
    now: datetime,
    lock_folder: Path,
    work: Work,
) -> DeleteResult:
    """Delete `backup_ids` of a server, all or none as far as vetoes go; return what went and how many bytes.

    Raises StillNeeded if one that stays needs one that should go, if a manifest cannot be read (it may need anything), or if
    a backup is being made that may build upon them; BackupNotFound if nothing of any of them is there. One that is gone
    counts as deleted: an interrupted deletion is asked for again with the same ids.
    """
    work.report.stage("prepare")
    history = read_history(storage, server_id, {})
    wanted = set(backup_ids)
    gone = check_deletable(history, server_id, wanted)
    if gone:
        work.report.warn(f"gone already, perhaps by a deletion that was interrupted: {', '.join(sorted(gone))}")
    for backup_id in sorted({*history.attempts} - wanted - _half_deleted(history)):
        if may_commit(storage, server_id, backup_id, host, now, lock_folder):
            raise _unfinished(min(wanted), backup_id)
    sizes = _sizes(storage, server_id)
    work.report.stage("clean", sum(sizes.get(backup_id, 0) for backup_id in wanted))
    for point in reversed(history.points):
        backup_id = point.server.backup_id
        if backup_id in wanted:
            work.stop.check()
            _delete(storage, point, history, _Deleter(job_id, host, now))
            work.report.advance(sizes.get(backup_id, 0))
    for backup_id in sorted(wanted & ({*history.attempts} | {*history.unreadable})):
        remove_attempt(storage, server_id, backup_id)
        work.report.advance(sizes.get(backup_id, 0))
    return DeleteResult(sorted(wanted), sum(sizes.get(backup_id, 0) for backup_id in wanted))


def finish_deletions(around: Surroundings, storage: Storage, server_id: str, history: History) -> list[str]:
    """Finish the deletions that left marks on backups that are still listed; return the ids of those that are gone now.

    `history` is what the storage holds of the server, just read. One that is refused, or not permitted from here, stays as
    it is, and is logged. Raises StorageUnreachable.
    """
    half = tuple(sorted(point.server.backup_id for point in history.points if point.marked))
    if not half:
        return []
    operation, work = around.operation, around.work
    try:
        delete_backups(
            storage, server_id, half, around.job.job_id, operation.host, around.now(), around.lock_folder, work
        )
    except StorageUnreachable:
        raise
    except (StillNeeded, BackupNotFound, StorageError) as error:
        log.warning("A deletion that was interrupted stays unfinished backups=%s: %s", half, error)
        return []
    work.report.info(f"finished the interrupted deletion of {', '.join(half)}")
    return list(half)


def check_deletable(history: History, server_id: str, wanted: set[str]) -> set[str]:
    """Raise unless every one of `wanted` may go at once; return those of which nothing is there any more. Pure."""
    present = {point.server.backup_id for point in history.points} | set(history.attempts) | set(history.unreadable)
    if not wanted & present:
        raise BackupNotFound(backup_id=min(wanted), server_id=server_id)
    for backup_id, error in history.unreadable.items():
        if backup_id not in wanted:
            raise StillNeeded(backup_id=min(wanted), disk="", detail=f"backup {backup_id} cannot be read: {error}")
    for point in history.points:
        for disk, detail in point.unreadable.items():
            if point.server.backup_id not in wanted:
                what = f"disk {disk} of backup {point.server.backup_id} cannot be read: {detail}"
                raise StillNeeded(backup_id=min(wanted), disk=disk, detail=what)
    manifests = [manifest for point in history.points for manifest in point.disks.values()]
    # Of one that cannot be read, or has lost its backup.json, the manifests of others tell what it holds for them.
    held = {point for manifest in manifests for point in chain.needed_points(manifest)}
    held |= {chain.Point(manifest.backup_id, manifest.disk) for manifest in manifests}
    going = [point for point in held if point.backup_id in wanted]
    for vetoed, users in sorted(chain.needed_by(manifests, going).items()):
        needing = ", ".join(sorted(user.backup_id for user in users))
        raise StillNeeded(backup_id=vetoed.backup_id, disk=vetoed.disk, detail=f"it is needed by {needing}")
    return wanted - present


def _delete(storage: Storage, point: Point, history: History, by: "_Deleter") -> None:
    server_id, backup_id = point.server.server_id, point.server.backup_id
    marked = []
    for summary in point.server.disks:
        marker = Deleted(server_id, backup_id, summary.disk, by.job_id, by.host, by.now.isoformat())
        name = names.deleted_name(server_id, backup_id, summary.disk)
        try:
            storage.put(name, marker.dump())
        except ObjectExists:  # an earlier deletion was interrupted
            continue
        marked.append(name)
        reached("disk_marked")
    if newcomer := _newcomer(storage, server_id, history):
        for name in marked:
            storage.delete(name)
        raise _unfinished(backup_id, newcomer)
    reached("marked")
    storage.delete(names.backup_name(server_id, backup_id))
    reached("unlisted")
    for summary in point.server.disks:
        storage.delete(names.manifest_name(server_id, backup_id, summary.disk))
        reached("manifest_gone")
    reached("manifests_gone")
    remove_attempt(storage, server_id, backup_id)
    reached("deleted")


def _half_deleted(history: History) -> set[str]:
    """Return the backups that bear the mark of a deletion: those without backup.json are no work in progress."""
    found = (names.parse(name) for name in history.sizes)
    return {one.backup_id for one in found if one is not None and one.kind == "deleted"}


def _newcomer(storage: Storage, server_id: str, history: History) -> str:
    """Return a backup that was begun since `history` was read, whole or not, "" if there is none (see check_ancestors)."""
    known = {point.server.backup_id for point in history.points} | {*history.attempts} | {*history.unreadable}
    for backup_id in sorted(name for name in listing.folders(storage, names.server_folder(server_id)) if is_id(name)):
        if backup_id not in known and any(
            True for _ in listing.objects(storage, names.backup_folder(server_id, backup_id))
        ):
            return backup_id
    return ""


def _unfinished(backup_id: str, making: str) -> StillNeeded:
    return StillNeeded(backup_id=backup_id, disk="", detail=f"backup {making} is being made and may need it")


def _sizes(storage: Storage, server_id: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for parsed, entry in listing.objects(storage, names.server_folder(server_id)):
        sizes[parsed.backup_id] = sizes.get(parsed.backup_id, 0) + entry.size_bytes
    return sizes
