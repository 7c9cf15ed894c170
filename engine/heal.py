"""Tidy up after an engine that died: thaw first, then its block job, its files, and its half-written backup (C7, C11).

Safe to run at any time: a domain that somebody works on is locked and left alone, and what belongs to others is not ours.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import spec
from engine.attempt import remove_attempt
from engine.errors import BackupManagerError, DomainBusy, DomainNotFound, ObjectNotFound, QuiesceFailed
from engine.format import names
from engine.spec import StorageSpec

if TYPE_CHECKING:
    from engine.hypervisor.connection import Connection

THAW_SECONDS = 60.0
LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HealSpec:
    """What to tidy up. With `storage`, `backup_id` of `server_id` is removed there unless it is whole."""

    libvirt_uri: str
    domain_uuid: str
    scratch_folder: str
    lock_folder: str
    storage: StorageSpec | None = None
    server_id: str = ""
    backup_id: str = ""


def heal_from_json(text: str | bytes) -> str:
    """Do what a HealSpec in JSON says; return JSON {"done": [sentences], "failed": [sentences]}."""
    done, failed = heal(spec.load(HealSpec, text))
    return json.dumps({"done": done, "failed": failed})


def heal(what: HealSpec) -> tuple[list[str], list[str]]:
    """Tidy up, and return what was done and what could not be done, in sentences."""
    done: list[str] = []
    failed: list[str] = []

    def attempt(step: Callable[[HealSpec], list[str]]) -> bool:
        try:
            done.extend(step(what))
        except BackupManagerError as error:
            failed.append(str(error))
            return False
        return True

    if what.domain_uuid:
        attempt(_heal_domain)
    # Only a storage that answered can say that the backup never became whole; its checkpoint goes in that case alone.
    if what.storage is not None and attempt(_heal_storage) and what.domain_uuid and not _is_whole(what):
        attempt(_drop_checkpoint)
    return done, failed


def _heal_domain(what: HealSpec) -> list[str]:
    """Thaw and resume, and end our leftover block job. Raises DomainBusy, HypervisorError."""
    from engine.hypervisor.backup_job import clean_stale
    from engine.hypervisor.connection import open_connection

    with open_connection(what.libvirt_uri) as connection:
        done = _thaw(connection, what)
        try:
            domain = connection.domain(what.domain_uuid)
        except DomainNotFound:
            return done
        with _locked(what):
            if clean_stale(domain, Path(what.scratch_folder)):
                done.append(f"ended the leftover backup job of domain {domain.name}")
    return done


def _thaw(connection: "Connection", what: HealSpec) -> list[str]:
    """Bring this domain's guest back if a dead engine left it frozen or paused. Raises QuiesceFailed while it is not known to be well."""
    from engine.hypervisor import thaw_guard

    folder = Path(what.lock_folder)
    if what.domain_uuid not in {mark.uuid for mark in thaw_guard.marks(folder)}:
        return []
    if what.domain_uuid in thaw_guard.heal(connection, folder, THAW_SECONDS):
        raise QuiesceFailed(domain=what.domain_uuid, detail="the guest does not confirm yet that it is thawed and runs")
    return [f"thawed and resumed domain {what.domain_uuid}"]


@contextlib.contextmanager
def _locked(what: HealSpec) -> Iterator[None]:
    """Hold the domain's lock, waiting a while: a dead engine's thaw guard has it until the guest is thawed. Raises DomainBusy."""
    from engine.hypervisor.lock import DomainLock

    lock = DomainLock(Path(what.lock_folder), what.domain_uuid, "self-heal")
    deadline = time.monotonic() + THAW_SECONDS
    while True:
        try:
            lock.acquire()
            break
        except DomainBusy:
            if time.monotonic() >= deadline:
                raise
            time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _drop_checkpoint(what: HealSpec) -> list[str]:
    """Remove the checkpoint of a backup that never was. Raises DomainBusy, HypervisorError."""
    from engine.hypervisor.checkpoints import delete_checkpoint, list_checkpoints
    from engine.hypervisor.connection import open_connection

    done: list[str] = []
    with open_connection(what.libvirt_uri) as connection:
        try:
            domain = connection.domain(what.domain_uuid)
        except DomainNotFound:
            return done
        with _locked(what):
            for checkpoint in list_checkpoints(domain):
                if checkpoint.backup_id == what.backup_id:
                    delete_checkpoint(domain, checkpoint.name)
                    done.append(f"removed the checkpoint of the unfinished backup {what.backup_id}")
    return done


def _is_whole(what: HealSpec) -> bool:
    from engine.storage.open import open_storage

    assert what.storage is not None
    with open_storage(what.storage) as storage:
        try:
            storage.size(names.backup_name(what.server_id, what.backup_id))
        except ObjectNotFound:
            return False
    return True


def _heal_storage(what: HealSpec) -> list[str]:
    """Remove an unfinished backup from the storage; a whole one stays. Raises StorageError."""
    from engine.storage.open import open_storage

    assert what.storage is not None
    if _is_whole(what):
        return []
    with open_storage(what.storage) as storage:
        left = any(True for _ in storage.list(names.backup_folder(what.server_id, what.backup_id)))
        remove_attempt(storage, what.server_id, what.backup_id)
    return [f"removed the unfinished backup {what.backup_id}"] if left else []
