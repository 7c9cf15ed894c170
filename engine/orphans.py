"""What dead attempts left on the storage: folders of backups that never became whole, and that nobody works on any more.

    servers/<server_id>/<backup_id>/   no backup.json
        intent names this host, and we hold the domain's lock     ─► dead: whoever wrote it would hold that lock
        otherwise, begun longer ago than any job may run          ─► dead
        a readable manifest needs its data                        ─► not an attempt: a backup that lost its backup.json
        any manifest of the server cannot be read                 ─► nothing is known of what it needs: all stays

An attempt removes itself when it fails. What it cannot remove, because the storage is gone or the process was killed, is
removed from here by the server's next backup, on whatever host that runs.
"""

import logging
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

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


def remove_orphans(storage: Storage, server_id: str, history: History, host: str, now: datetime) -> list[str]:
    """Remove the dead attempts of a server, and return their ids. The caller holds the lock of the server's domain on `host`.

    `history` is what the storage holds of the server, just read. What cannot be removed stays for the next time. Raises
    StorageUnreachable and its like only from looking.
    """
    if history.unreadable or any(point.unreadable for point in history.points):
        return []
    removed = []
    for backup_id in sorted(_unfinished(storage, server_id, history) - _needed(history)):
        if not _is_dead(storage, server_id, backup_id, host, now):
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
    return {name for name in storage.folders(names.server_folder(server_id)) if is_id(name)} - whole


def _needed(history: History) -> set[str]:
    manifests = (manifest for point in history.points for manifest in point.disks.values())
    return {layer.backup_id for manifest in manifests for layer in manifest.layers}


def _is_dead(storage: Storage, server_id: str, backup_id: str, host: str, now: datetime) -> bool:
    name = names.intent_name(server_id, backup_id)
    try:
        intent = Intent.load(storage.get(name), name)
    except (ObjectNotFound, FormatError):
        return now - _begin_time(backup_id) > ORPHAN_AGE
    begun = max(_begin_time(backup_id), datetime.fromisoformat(intent.start_time))
    return intent.host == host or now - begun > ORPHAN_AGE


def _begin_time(backup_id: str) -> datetime:
    """Return when an id was made: a UUID of version 7 begins with its milliseconds. Any other counts as made just now."""
    value = uuid.UUID(backup_id)
    if value.version != 7:
        return datetime.max.replace(tzinfo=UTC)
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)
