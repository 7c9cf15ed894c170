"""What dead attempts left on the storage: folders of backups that never became whole, and that nobody works on any more.

    servers/<server_id>/<backup_id>/   no backup.json
        intent names this host, and we hold the domain's lock     ─► dead: whoever wrote it would hold that lock
        otherwise, begun longer ago than any job may run,         ─► dead
          and nothing written for as long, by the storage's clock    (one that jumps makes nobody's upload old)
        a readable manifest needs its data                        ─► not an attempt: a backup that lost its backup.json
        any manifest of the server cannot be read                 ─► nothing is known of what it needs: all stays

An attempt removes itself when it fails. What it cannot remove, because the storage is gone or the process was killed, is
removed from here by the server's next backup, on whatever host that runs.
"""

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from engine import listing
from engine.attempt import remove_attempt
from engine.catalog import History
from engine.errors import FormatError, ObjectNotFound, StorageError
from engine.format import names
from engine.format.markers import Intent
from engine.hypervisor.lock import at_work
from engine.ids import is_id
from engine.storage.base import Storage

log = logging.getLogger(__name__)

# Longer than any job may run: batches are ended after 48 hours (a setting), and a day of grace for clocks that differ.
ORPHAN_AGE = timedelta(days=7)


def remove_orphans(storage: Storage, server_id: str, history: History, host: str, now: datetime, own: str) -> list[str]:
    """Remove the dead attempts of a server, and return their ids. The caller holds the lock of the server's domain on `host`.

    `own` is the caller's backup, whose intent was written just now. `history` is what the storage held of the server before
    that. What cannot be removed stays for the next time. Raises StorageUnreachable and its like only from looking.
    """
    storage_time = _last_write(storage, server_id, own)

    def is_dead(backup_id: str) -> bool:
        if _is_of_host(storage, server_id, backup_id, host):
            return True
        written = _last_write(storage, server_id, backup_id)
        idle = storage_time - written if storage_time and written else ORPHAN_AGE.total_seconds() + 1
        return _is_dead(storage, server_id, backup_id, host, now) and idle > ORPHAN_AGE.total_seconds()

    return _remove(storage, server_id, history, is_dead, own)


def remove_dead_here(storage: Storage, server_id: str, history: History, host: str, lock_folder: Path) -> list[str]:
    """Remove the attempts of this host that no engine is at work on, and return their ids. Needs no lock (see may_commit)."""

    def is_dead(backup_id: str) -> bool:
        intent = _intent(storage, server_id, backup_id)
        return intent is not None and intent.host == host and not at_work(lock_folder, intent.job_id)

    return _remove(storage, server_id, history, is_dead)


def _remove(
    storage: Storage, server_id: str, history: History, is_dead: Callable[[str], bool], own: str = ""
) -> list[str]:
    if history.unreadable or any(point.unreadable for point in history.points):
        return []
    removed = []
    for backup_id in sorted(_unfinished(storage, server_id, history) - _needed(history) - {own}):
        if not is_dead(backup_id) or _has_commit(storage, server_id, backup_id):
            continue
        try:
            remove_attempt(storage, server_id, backup_id)
        except StorageError as error:  # one that may not be deleted from, say; no reason to go without a backup
            log.warning("A dead attempt stays on the storage backup_id=%s: %s", backup_id, error)
            continue
        log.info("a dead attempt was removed server_id=%s backup_id=%s", server_id, backup_id)
        removed.append(backup_id)
    return removed


def may_commit(storage: Storage, server_id: str, backup_id: str, host: str, now: datetime, lock_folder: Path) -> bool:
    """Tell whether somebody may still be making this backup, which is not whole yet. No lock is needed for asking.

    An engine of this host holds a lock for its job from before its intent until after its commit.
    """
    name = names.intent_name(server_id, backup_id)
    try:
        intent = Intent.load(storage.get(name), name)
    except ObjectNotFound:  # the first thing that an attempt writes, and the last that it removes
        return False
    except FormatError:
        return now - _begin_time(backup_id) <= ORPHAN_AGE
    if intent.host != host:
        return not _is_dead(storage, server_id, backup_id, host, now)
    return at_work(lock_folder, intent.job_id) or _has_commit(storage, server_id, backup_id)


def _has_commit(storage: Storage, server_id: str, backup_id: str) -> bool:
    try:
        storage.size(names.backup_name(server_id, backup_id))
    except ObjectNotFound:
        return False
    return True


def _unfinished(storage: Storage, server_id: str, history: History) -> set[str]:
    """Return the ids of all folders that hold no backup; one with nothing but `.part` objects is in no listing."""
    whole = {point.server.backup_id for point in history.points}
    return {name for name in listing.folders(storage, names.server_folder(server_id)) if is_id(name)} - whole


def _needed(history: History) -> set[str]:
    manifests = (manifest for point in history.points for manifest in point.disks.values())
    return {layer.backup_id for manifest in manifests for layer in manifest.layers}


def _intent(storage: Storage, server_id: str, backup_id: str) -> Intent | None:
    """Return an attempt's intent, None if there is none that can be read."""
    name = names.intent_name(server_id, backup_id)
    try:
        return Intent.load(storage.get(name), name)
    except (ObjectNotFound, FormatError):
        return None


def _is_of_host(storage: Storage, server_id: str, backup_id: str, host: str) -> bool:
    intent = _intent(storage, server_id, backup_id)
    return intent is not None and intent.host == host


def _last_write(storage: Storage, server_id: str, backup_id: str) -> float:
    """Return when something was last written into a backup's folder: Unix seconds on the storage's clock, 0 where unknown."""
    entries = listing.objects(storage, names.backup_folder(server_id, backup_id))
    return max((entry.modified_time for _, entry in entries), default=0.0)


def _is_dead(storage: Storage, server_id: str, backup_id: str, host: str, now: datetime) -> bool:
    intent = _intent(storage, server_id, backup_id)
    if intent is None:
        return now - _begin_time(backup_id) > ORPHAN_AGE
    begun = max(_begin_time(backup_id), datetime.fromisoformat(intent.start_time))
    return intent.host == host or now - begun > ORPHAN_AGE


def _begin_time(backup_id: str) -> datetime:
    """Return when an id was made: a UUID of version 7 begins with its milliseconds. Any other counts as made just now."""
    value = uuid.UUID(backup_id)
    if value.version != 7:
        return datetime.max.replace(tzinfo=UTC)
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)
