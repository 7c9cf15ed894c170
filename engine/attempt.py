"""A backup while it is being written: nothing of it counts before its last object, and nothing stays if it fails.

    intent.json ─► segments of every disk ─► sizes checked ─► lease asked ─► ancestors still there ─► manifest.json of every disk ─► backup.json
    └──────────────── a failure anywhere: backup.json first, then the whole folder, are removed ────────────┘

Every manifest is read back. A write whose outcome is unknown (the connection broke) is settled by reading.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from engine import listing
from engine.errors import (
    ChainBroken,
    EngineError,
    LeaseLost,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageUnreachable,
)
from engine.failpoint import reached
from engine.format import names
from engine.format.manifest import DiskManifest
from engine.format.markers import Intent
from engine.storage.base import Storage
from engine.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    server_id: str
    backup_id: str
    job_id: str
    host: str

    @property
    def folder(self) -> str:
        return names.backup_folder(self.server_id, self.backup_id)


@contextlib.contextmanager
def attempt(
    storage: Storage,
    reopen: Callable[[], Storage],
    identity: AttemptIdentity,
    now: datetime,
    work: Work,
    *,
    announced: bool = False,
) -> Iterator[None]:
    """Announce a backup, unless one that died has done so, and remove everything of it if the block fails.

    `storage` may have been interrupted by then, so `reopen` connects once more. What cannot be removed (the storage is
    gone) is an orphan without backup.json: it is no backup, a warning says so, and cleanup removes it later.
    """
    if not announced:
        intent = Intent(identity.server_id, identity.backup_id, identity.job_id, identity.host, now.isoformat())
        storage.put(names.intent_name(identity.server_id, identity.backup_id), intent.dump())
    try:
        yield
    except BaseException:
        try:
            with reopen() as fresh:
                remove_attempt(fresh, identity.server_id, identity.backup_id)
        except EngineError as error:
            log.warning(
                "Leftovers of the failed backup stay on the storage backup_id=%s: %s", identity.backup_id, error
            )
            work.report.warn(f"what was uploaded of backup {identity.backup_id} could not be removed: {error}")
        raise


def remove_attempt(storage: Storage, server_id: str, backup_id: str) -> None:
    """Remove all of a backup's folder: backup.json first, so that at no moment it looks like a backup without its data.

    The intent goes last: as long as anything is left, it tells on which host whoever made this is known to be dead.
    """
    folder = names.backup_folder(server_id, backup_id)
    storage.delete(names.backup_name(server_id, backup_id))
    for disk in sorted(listing.folders(storage, folder)):
        storage.sweep(f"{folder}/{disk}")
        reached("disk_swept")
    storage.sweep(folder)
    reached("swept")


def check_sizes(storage: Storage, manifest: DiskManifest) -> None:
    """Compare each of the disk's own segments with its size on the storage. Raises StorageError for the first that differs."""
    for segment in manifest.segments:
        name = names.segment_name(manifest.server_id, manifest.backup_id, manifest.disk, segment.number)
        size = storage.size(name)
        if size != segment.stored_bytes:
            detail = f"{name} has {size} bytes there, {segment.stored_bytes} were written"
            raise StorageError(storage=storage.label, step="size check", detail=detail)


def check_ancestors(storage: Storage, disks: Iterable[DiskManifest]) -> None:
    """Raise ChainBroken unless everything that `disks` build upon is there, and nobody has begun to delete it.

    A deletion by hand takes no lock. It looks for unfinished backups after it has left its mark, and we look for its mark
    after we have left our intent: at least one of the two sees the other.
    """
    below = [(one, layer) for one in disks for layer in one.layers if layer.backup_id != one.backup_id]
    if not below:
        return
    folder = names.server_folder(below[0][0].server_id)
    there = {entry.name: entry.size_bytes for _, entry in listing.objects(storage, folder)}
    for one, layer in below:
        where = (one.server_id, layer.backup_id)
        segments = {names.segment_name(*where, one.disk, ref.number): ref.stored_bytes for ref in layer.segments}
        missing = [
            name for name in (names.backup_name(*where), names.manifest_name(*where, one.disk)) if name not in there
        ]
        missing += [name for name, size_bytes in segments.items() if there.get(name) != size_bytes]
        if names.deleted_name(*where, one.disk) in there:
            missing.insert(0, f"backup {layer.backup_id}, which is being deleted")
        if names.damaged_name(*where, one.disk) in there:
            missing.insert(0, f"backup {layer.backup_id}, which is damaged")
        if missing:
            raise ChainBroken(backup_id=one.backup_id, disk=one.disk, missing=missing[0])


def ask_lease(identity: AttemptIdentity, work: Work) -> None:
    """Ask whether the job may still commit. Raises LeaseLost, Cancelled."""
    work.stop.check()
    if not work.report.may_commit():
        work.stop.check()
        raise LeaseLost(job_id=identity.job_id, detail="another attempt has taken its place")


def commit(storage: Storage, disks: dict[str, bytes], server: tuple[str, bytes]) -> str:
    """Write the disks' manifests (by name), then backup.json, each read back; return the SHA-256 of backup.json."""
    for name, data in disks.items():
        _put(storage, name, data, "disk_manifest")
    _put(storage, *server, "backup_manifest")
    return hashlib.sha256(server[1]).hexdigest()


def _put(storage: Storage, name: str, data: bytes, step: str) -> None:
    unsettled: StorageError | None = None
    try:
        storage.put(name, data)
    except (ObjectExists, StorageUnreachable) as error:
        unsettled = error
    reached(step)
    try:
        found = storage.get(name)
    except ObjectNotFound:
        if unsettled is None:
            raise
        storage.put(name, data)
        found = storage.get(name)
    if found != data:
        raise unsettled or StorageError(
            storage=storage.label, step="read back", detail=f"{name} is not what was written"
        )
