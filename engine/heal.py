"""Tidy up after an engine that died: thaw first, then its block job, its files, and its half-written backup (C7, C11).

    backup.json there?  no: the attempt is removed, and its checkpoint      yes: the backup is whole, and its record is told

Only the storage knows whether a backup was committed before its engine died, so its word decides how the job ended.
Safe to run at any time: a domain that somebody works on is locked and left alone, and what belongs to others is not ours.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine import spec
from engine.attempt import check_sizes, remove_attempt
from engine.catalog import read_point
from engine.errors import BackupManagerError, DomainBusy, DomainNotFound, EngineError, ObjectNotFound, QuiesceFailed
from engine.format import names
from engine.reindex import record
from engine.results import BackupRecord
from engine.spec import StorageSpec
from engine.storage.base import Storage
from engine.unfinished import NoteFile
from engine.work import Stop

if TYPE_CHECKING:
    from engine.hypervisor.connection import Connection, Domain

THAW_SECONDS = 60.0
THAW_TRY_SECONDS = 2.0
LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HealSpec:
    """What to tidy up. With `storage`, `backup_id` of `server_id` is removed there unless it is whole.

    With `resume_job_id` all of that waits if the next engine can go on with this job: the guest is thawed, that is all.
    """

    libvirt_uri: str
    domain_uuid: str
    scratch_folder: str
    lock_folder: str
    storage: StorageSpec | None = None
    server_id: str = ""
    backup_id: str = ""
    resume_job_id: str = ""


@dataclass(slots=True)
class Healed:
    """What was done and what could not be done, in sentences; `record` is the backup's, if it is whole.

    `resumable`: the job that was asked for can be gone on with, and nothing of it was touched.
    """

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    record: BackupRecord | None = None
    resumable: bool = False


def heal_from_json(text: str | bytes, stop: Stop) -> str:
    """Do what a HealSpec in JSON says; return a Healed in JSON."""
    return json.dumps(asdict(heal(spec.load(HealSpec, text), stop)))


def heal(what: HealSpec, stop: Stop | None = None) -> Healed:
    """Tidy up. What fails is told and does not keep the rest from being done; what `stop` keeps from being done is told too."""
    healed = Healed()
    stop = stop or Stop()
    whole = False

    def tend_storage(what: HealSpec, healed: Healed) -> None:
        nonlocal whole
        whole = _heal_storage(what, healed)

    def attempt(step: Callable[[HealSpec, Healed], None]) -> bool:
        try:
            stop.check()
            step(what, healed)
        except BackupManagerError as error:
            healed.failed.append(str(error))
            return False
        return True

    if what.domain_uuid:
        attempt(partial(_heal_domain, stop=stop))
    if healed.resumable:
        return healed
    # Only a storage that answered can say that the backup never became whole; its checkpoint goes in that case alone.
    if what.storage is not None and attempt(tend_storage) and what.domain_uuid and not whole:
        attempt(partial(_drop_checkpoint, stop=stop))
    return healed


def _heal_domain(what: HealSpec, healed: Healed, stop: Stop) -> None:
    """Thaw and resume, and end our leftover block job. Raises DomainBusy, HypervisorError, Cancelled."""
    from engine.hypervisor.backup_job import clean_stale
    from engine.hypervisor.connection import open_connection

    with open_connection(what.libvirt_uri) as connection:
        healed.done += _thaw(connection, what, stop)
        try:
            domain = connection.domain(what.domain_uuid)
        except DomainNotFound:
            NoteFile(Path(what.lock_folder), what.domain_uuid).remove()
            return
        with _locked(what, stop):
            if _is_resumable(domain, what):
                healed.resumable = True
                return
            NoteFile(Path(what.lock_folder), what.domain_uuid).remove()
            if clean_stale(domain, Path(what.scratch_folder)):
                healed.done.append(f"ended the leftover backup job of domain {domain.name}")


def _is_resumable(domain: "Domain", what: HealSpec) -> bool:
    """Tell whether the next engine can go on with the job that was asked for. Raises HypervisorError."""
    from engine.source.held import why_not_open

    note = NoteFile(Path(what.lock_folder), what.domain_uuid).read()
    if note is None or not what.resume_job_id or note.job_id != what.resume_job_id:
        return False
    return note.complete or not why_not_open(domain, note, Path(what.scratch_folder))


def _thaw(connection: "Connection", what: HealSpec, stop: Stop) -> list[str]:
    """Bring this domain's guest back if a dead engine left it frozen or paused. Raises QuiesceFailed while it is not known to be well."""
    from engine.hypervisor import thaw_guard

    folder = Path(what.lock_folder)

    def marked() -> bool:
        return what.domain_uuid in {mark.uuid for mark in thaw_guard.marks(folder)}

    if not marked():
        return []
    deadline = time.monotonic() + THAW_SECONDS
    while True:
        # A portion of the time at once, so that a cancel is heard in between.
        left = thaw_guard.heal(connection, folder, min(THAW_TRY_SECONDS, THAW_SECONDS), only=what.domain_uuid)
        if not marked():
            break
        if time.monotonic() >= deadline:
            raise QuiesceFailed(
                domain=what.domain_uuid, detail="the guest does not confirm yet that it is thawed and runs"
            )
        if not left:  # its guard is at it and holds the lock
            stop.event.wait(LOCK_POLL_SECONDS)
        stop.check()
    return [f"thawed and resumed domain {what.domain_uuid}"]


@contextlib.contextmanager
def _locked(what: HealSpec, stop: Stop) -> Iterator[None]:
    """Hold the domain's lock, waiting a while: a dead engine's thaw guard has it until the guest is thawed. Raises DomainBusy, Cancelled."""
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
            stop.event.wait(LOCK_POLL_SECONDS)
            stop.check()
    try:
        yield
    finally:
        lock.release()


def _drop_checkpoint(what: HealSpec, healed: Healed, stop: Stop) -> None:
    """Remove the checkpoint of a backup that never was. Raises DomainBusy, HypervisorError, Cancelled."""
    from engine.hypervisor.checkpoints import delete_checkpoint, list_checkpoints
    from engine.hypervisor.connection import open_connection

    with open_connection(what.libvirt_uri) as connection:
        try:
            domain = connection.domain(what.domain_uuid)
        except DomainNotFound:
            return
        with _locked(what, stop):
            for checkpoint in list_checkpoints(domain):
                if checkpoint.backup_id == what.backup_id:
                    delete_checkpoint(domain, checkpoint.name)
                    healed.done.append(f"removed the checkpoint of the unfinished backup {what.backup_id}")


def _heal_storage(what: HealSpec, healed: Healed) -> bool:
    """Remove an unfinished backup from the storage; of a whole one tell the record. Return whether it is whole. Raises StorageError."""
    from engine.storage.open import open_storage

    assert what.storage is not None
    with open_storage(what.storage) as storage:
        if _has_commit(storage, what):
            _tell_whole(storage, what, healed)
            return True
        left = any(True for _ in storage.list(names.backup_folder(what.server_id, what.backup_id)))
        remove_attempt(storage, what.server_id, what.backup_id)
        if left:
            healed.done.append(f"removed the unfinished backup {what.backup_id}")
    return False


def _has_commit(storage: Storage, what: HealSpec) -> bool:
    """Tell whether the backup's last object is there."""
    try:
        storage.size(names.backup_name(what.server_id, what.backup_id))
    except ObjectNotFound:
        return False
    return True


def _tell_whole(storage: Storage, what: HealSpec, healed: Healed) -> None:
    """Note the record of a committed backup whose manifests and sizes are right. Any other stays too, for a person to look at."""
    try:
        point = read_point(storage, what.server_id, what.backup_id, {})
        for manifest in point.disks.values():
            check_sizes(storage, manifest)
        found = record(point)
        fault = f"the manifests of {', '.join(found.unreadable_disks)} cannot be read" if found.unreadable_disks else ""
    except EngineError as error:
        fault = str(error)
    if fault:
        healed.done.append(f"kept the backup {what.backup_id}, which was committed and is damaged: {fault}")
    else:
        healed.record = found
