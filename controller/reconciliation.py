"""Which storages may be deleted from, after the controller lost its memory (N10, N11).

    epoch 1: nothing was ever lost ──► no storage is blocked
    epoch 2 and up ──► each storage blocked ──► a reindex of all of it, ended well in this epoch ──► free

A catalog that is older than its storage, and policies as they once were, must delete nothing: deletes, prunes and purges are
refused until the storage was read as a whole. A local folder is another one on each hypervisor, and each is free by itself.
Sync functions, run by `Database.run`.
"""

import functools
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller import health, hypervisors, installation, jobs, removals, schedules, storages, system_log
from controller.db import models
from controller.discrepancies import Flaws
from controller.errors import StorageUnreconciled
from controller.limits import Limits
from controller.rules import storage_types
from controller.storages import Storage

FIRST_EPOCH = 1
INTERVAL = timedelta(days=1)
TRY_AGAIN = timedelta(hours=1)
LOOK_SPAN = timedelta(days=1)  # that somebody has for a look at policies that may be yesterday's, before they delete
Row = models.Reconciliation


@dataclass(frozen=True, slots=True)
class Due:
    """A storage to reconcile from a hypervisor."""

    storage_id: str
    hypervisor_id: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A storage read as a whole from a hypervisor, in a job of `epoch` that began at `start_time`, and what lay there."""

    storage_id: str
    hypervisor_id: str
    epoch: int
    start_time: datetime
    found_count: int
    unreadable_count: int
    flaws: Flaws
    adopted_count: int


def check(verb: str, storage: Storage, hypervisor_id: str) -> None:
    """Raise StorageUnreconciled for a removal on a storage that was not reconciled since the present epoch began."""
    if verb not in removals.REMOVALS:
        return
    epoch = installation.get().epoch
    if epoch != FIRST_EPOCH and _find(storage, hypervisor_id).epoch != epoch:
        raise StorageUnreconciled(storage_id=storage.storage_id, epoch=epoch)


def blocked_at(storage: Storage) -> list[str]:
    """Return where nothing is deleted on a storage: hypervisors of a local folder, [""] for the whole of another, [] for nowhere."""
    epoch = installation.get().epoch
    if epoch == FIRST_EPOCH:
        return []
    places = sorted(storages.makers(storage.storage_id) | schedules_of(storage)) if storage.per_hypervisor else [""]
    return [one for one in places if _find(storage, one).epoch != epoch]


def retention_resume_time(now: datetime) -> datetime | None:
    """Return until when retention deletes nothing by itself, because the epoch is new; None where it does."""
    began = installation.get().epoch_time
    return began + LOOK_SPAN if began is not None and now < began + LOOK_SPAN else None


def reconciled(reading: Reading, now: datetime) -> None:
    """Note that a storage was read as a whole, and that the catalog says what lies there; tell people what it did not know."""
    storage = storages.find(reading.storage_id)
    key = _key(storage, reading.hypervisor_id)
    _tell(reading, storage, _find(storage, reading.hypervisor_id), now)
    values = {
        "epoch": reading.epoch,
        "end_time": now,
        "start_time": reading.start_time,
        "found_count": reading.found_count,
        "unreadable_count": reading.unreadable_count,
        "missing_count": reading.flaws.missing,
        "damaged_count": reading.flaws.damaged,
    }
    Row.insert(storage_id=reading.storage_id, hypervisor_id=key, **values).on_conflict(
        conflict_target=[Row.storage_id, Row.hypervisor_id], update=values
    ).execute()


def _tell(reading: Reading, storage: Storage, last: models.Reconciliation, now: datetime) -> None:
    """Write to the system log what is otherwise than at the last reading; the same again is told once."""
    flaws, before = reading.flaws, Flaws(last.missing_count, last.damaged_count)
    kinds = ((flaws.missing, "gone"), (flaws.damaged, "damaged"), (reading.adopted_count, "new to the catalog"))
    told = ", ".join(f"{count} {what}" for count, what in kinds if count)
    if flaws != before or reading.adopted_count:
        level: system_log.Level = "warning" if told else "info"
        text = f"Storage {storage.name} was read: of its backups, {told or 'all are as the catalog says again'}"
        system_log.write(level, "inventory", text, now, storage_id=storage.storage_id)


def tried(due: Due, now: datetime) -> None:
    """Note that a storage's turn came, whatever becomes of it."""
    key = _key(storages.find(due.storage_id), due.hypervisor_id)
    Row.insert(storage_id=due.storage_id, hypervisor_id=key, epoch=0, try_time=now).on_conflict(
        conflict_target=[Row.storage_id, Row.hypervisor_id], update={Row.try_time: now}
    ).execute()


def due(limits: Limits, now: datetime) -> list[Due]:
    """Return what is to be reconciled now, blocked storages first: a day after the last time, and at once in a new epoch."""
    online = hypervisors.online(limits, now)
    if not online:
        return []
    epoch, users = installation.get().epoch, health.users()
    busy = {(job.storage_id, job.hypervisor_id) for job in jobs.live() if job.type == "reindex"}
    known = {(row.storage_id, row.hypervisor_id): row for row in Row.select()}
    found: list[tuple[bool, Due]] = []
    for row in models.Storage.select().where(models.Storage.enabled):
        unread = functools.partial(_unread, created=row.create_time, epoch=epoch, now=now)
        shared = not storage_types.BY_TYPE[row.type].per_hypervisor
        if shared and not unread(known.get((row.storage_id, ""))):
            continue  # most of the time, and before it is asked who might read it
        storage = storages.find(row.storage_id)
        for hypervisor_id in _from(storage, users.get(storage.storage_id, ()), online):
            last = known.get((storage.storage_id, _key(storage, hypervisor_id)))
            if unread(last) and (storage.storage_id, hypervisor_id) not in busy:
                found.append((not _blocks(last, epoch), Due(storage.storage_id, hypervisor_id)))
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].storage_id, pair[1].hypervisor_id))]


def _unread(last: models.Reconciliation | None, *, created: datetime, epoch: int, now: datetime) -> bool:
    """Tell whether a place is to be read again, by what is known of it."""
    if last is not None and last.try_time is not None and now - last.try_time < TRY_AGAIN:
        return False
    end_time = last.end_time if last is not None else None
    return _blocks(last, epoch) or now - (end_time or created) >= INTERVAL


def _blocks(last: models.Reconciliation | None, epoch: int) -> bool:
    return epoch not in {FIRST_EPOCH, last.epoch if last is not None else 0}


def reader(storage: Storage, limits: Limits, now: datetime) -> str:
    """Return an online hypervisor to read a storage from: one that uses it, else one that made a backup there, else any."""
    online = sorted(hypervisors.online(limits, now))
    for known in (
        health.users().get(storage.storage_id, ()),
        storages.makers(storage.storage_id),
        schedules_of(storage),
        online,
    ):
        able = [one for one in online if one in set(known)]
        if able:
            return able[0]
    return ""


def schedules_of(storage: Storage) -> set[str]:
    """Return the hypervisors that back up to a storage."""
    return {one.hypervisor_id for one in schedules.list_schedules(storage_id=storage.storage_id, limit=None)}


def _from(storage: Storage, users: "list[str] | tuple[str, ...]", online: "frozenset[str] | set[str]") -> list[str]:
    """Return from where a storage is to be read: a local folder from each hypervisor that has one."""
    if storage.per_hypervisor:
        return sorted((set(users) | storages.makers(storage.storage_id) | schedules_of(storage)) & set(online))
    able = sorted(set(users) & set(online)) or sorted(storages.makers(storage.storage_id) & set(online))
    return able[:1]


def _key(storage: Storage, hypervisor_id: str) -> str:
    return hypervisor_id if storage.per_hypervisor else ""


def _find(storage: Storage, hypervisor_id: str) -> models.Reconciliation:
    key = _key(storage, hypervisor_id)
    row = Row.get_or_none((Row.storage_id == storage.storage_id) & (Row.hypervisor_id == key))
    return row or Row(storage_id=storage.storage_id, hypervisor_id=key)
