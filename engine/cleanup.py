"""Tidy up with a look at the storage (C7): what dead engines of this host left there, and checkpoints that belong to no backup.

    storage   attempts of this host that nobody is at work on go                 (orphans.py)
              uploads in parts that nothing came to for a week go                (storage/s3_cleanup.py, storage/rclone_stale.py)
              objects and unfinished files that killed writers and tests left beside backups a week ago or earlier go
    domain    checkpoints and bitmaps of this repository without a backup go: nothing can be counted from them

An agent does the same with what it remembers of each job (heal.py). This is for a person, who remembers nothing; and for one
who wants a domain without any of our checkpoints, to take an internal snapshot for example.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engine import listing
from engine.catalog import list_servers, read_history
from engine.format import names
from engine.orphans import ORPHAN_AGE, remove_dead_here
from engine.storage import check
from engine.storage.base import PART_SUFFIX, Entry, Storage

if TYPE_CHECKING:
    from engine.hypervisor.checkpoints import Checkpoint


def clean_storage(storage: Storage, host: str, lock_folder: Path, now: datetime | None = None) -> list[str]:
    """Remove the dead attempts of this host, whatever their server; return sentences of what was done. Raises StorageError."""
    now = now or datetime.now(UTC)
    done = []
    for server_id in list(list_servers(storage)):
        history = read_history(storage, server_id, {})
        removed = remove_dead_here(storage, server_id, history, host, lock_folder)
        done += [f"removed the unfinished backup {backup_id}" for backup_id in removed]
    stale = storage.remove_stale(ORPHAN_AGE.total_seconds())
    for name in stale:
        unfinished = name.endswith(PART_SUFFIX)
        done.append(
            f"removed {name}, unfinished" if unfinished else f"aborted the upload of {name}, which nobody went on with"
        )
    for name in forgotten_trials(storage.list(check.FOLDER), now):
        storage.delete(name)
        done.append(f"removed {name}, which a test of the storage left")
    return done


def forgotten_trials(entries: Iterable[Entry], now: datetime) -> list[str]:
    """Return the names among `entries` that tests of the storage left, longer ago than any test may run. Pure.

    One whose time is not known stays; so does what no test of ours makes.
    """
    old = now.timestamp() - ORPHAN_AGE.total_seconds()
    return sorted(one.name for one in entries if check.is_trial(one.name) and 0 < one.modified_time < old)


def drop_stale_checkpoints(
    storage: Storage, repository_id: str, libvirt_uri: str, domain_uuid: str, lock_folder: Path
) -> list[str]:
    """Remove a domain's checkpoints of this repository that belong to no backup on it; return sentences of what was done.

    Raises DomainBusy while an engine works on the domain, HypervisorError, StorageError.
    """
    from engine.hypervisor.checkpoints import delete_checkpoint, list_checkpoints, repository_digits
    from engine.hypervisor.connection import open_connection
    from engine.hypervisor.lock import DomainLock

    done = []
    with DomainLock(lock_folder, domain_uuid, "cleanup"), open_connection(libvirt_uri) as connection:
        domain = connection.domain(domain_uuid)
        digits = repository_digits(repository_id)
        ours = [one for one in list_checkpoints(domain) if one.repository == digits]
        for checkpoint in _without_backup(storage, ours):
            delete_checkpoint(domain, checkpoint.name)
            done.append(f"removed checkpoint {checkpoint.name} of domain {domain.name}, which belongs to no backup")
    return done


def _without_backup(storage: Storage, checkpoints: list["Checkpoint"]) -> list["Checkpoint"]:
    """Return those whose backup no server on the storage has. A domain's server need not bear its UUID."""
    if not checkpoints:
        return []
    found = (one for one, _ in listing.objects(storage, names.SERVERS, listing.ENTRIES_MAX))
    there = {one.backup_id for one in found if one.kind == "backup"}
    return [one for one in checkpoints if one.backup_id not in there]


def forget_domain(libvirt_uri: str, domain_uuid: str, lock_folder: Path) -> list[str]:
    """Remove all our checkpoints and bitmaps of a domain, whatever their repository; return sentences of what was done.

    The next backup to each storage is a full. For whom they are in the way: an internal snapshot, another tool, a last farewell.
    Raises DomainBusy while an engine works on the domain, HypervisorError.
    """
    from engine.hypervisor.checkpoints import delete_checkpoint, list_checkpoints
    from engine.hypervisor.connection import open_connection
    from engine.hypervisor.lock import DomainLock

    done = []
    with DomainLock(lock_folder, domain_uuid, "forget"), open_connection(libvirt_uri) as connection:
        domain = connection.domain(domain_uuid)
        for checkpoint in list_checkpoints(domain):
            delete_checkpoint(domain, checkpoint.name)
            done.append(f"removed checkpoint {checkpoint.name} of domain {domain.name}")
    return done
