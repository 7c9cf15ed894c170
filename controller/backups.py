"""The index of restore points: what manifests and jobs told, rebuilt by `reindex` at any time. Storage is the truth.

    backup ── backup_disk (chain, parent, sizes)
           └─ backup_need (what it cannot be restored without)

A backup that a job deleted keeps its row with a `delete_time`: a reindex that read the storage before cannot bring it back.
Digests are kept from the first sight on; a manifest that shows another one later was tampered with, since none is rewritten.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controller.db import models
from controller.errors import BackupNotFound

AVAILABLE, DAMAGED, MISSING = "available", "damaged", "missing"
Row, DiskRow, NeedRow = models.Backup, models.BackupDisk, models.BackupNeed


@dataclass(frozen=True, slots=True)
class DiskBackup:
    """One disk's part in a backup; the words of `backupmanager.v1.DiskBackup`."""

    disk: str
    type: str
    chain_id: str
    parent_backup_id: str = ""
    size_bytes: int = 0
    data_bytes: int = 0
    stored_bytes: int = 0
    sha256: str = ""
    fallback_reason: str = ""


@dataclass(frozen=True, slots=True)
class Backup:
    """A restore point as the catalog knows it. `skipped_disks` are JSON forms of SkippedDisk."""

    backup_id: str
    server_id: str
    storage_id: str
    hypervisor_id: str
    job_id: str
    create_time: datetime
    state: str
    disks: tuple[DiskBackup, ...]
    skipped_disks: tuple[dict[str, Any], ...]
    consistency: str
    encrypted: bool
    stored_bytes: int
    path: str
    domain_name: str
    domain_uuid: str
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class BackupRecord:
    """What a manifest says. `needed_backup_ids` are oldest first, and may name the backup itself."""

    backup_id: str
    server_id: str
    job_id: str
    create_time: datetime
    disks: tuple[DiskBackup, ...]
    skipped_disks: tuple[dict[str, Any], ...] = ()
    consistency: str = ""
    encrypted: bool = False
    stored_bytes: int = 0
    path: str = ""
    domain_name: str = ""
    domain_uuid: str = ""
    manifest_digest: str = ""
    needed_backup_ids: tuple[str, ...] = ()
    unreadable_disks: tuple[str, ...] = field(default=())


# ---- looking ------------------------------------------------------------------------------------------------------------


def get(backup_id: str) -> Backup:
    """Return a backup. Raises BackupNotFound."""
    row = Row.get_or_none((Row.backup_id == backup_id) & Row.delete_time.is_null())
    if row is None:
        raise BackupNotFound(backup_id=backup_id, server_id="")
    return _backup(row)


def list_backups(
    *,
    server_id: str = "",
    storage_id: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    after: tuple[str] | None = None,
    limit: int = 101,
) -> list[Backup]:
    """Return backups, newest first, those after the backup id in `after`."""
    query = Row.select().where(Row.delete_time.is_null())
    if server_id:
        query = query.where(Row.server_id == server_id)
    if storage_id:
        query = query.where(Row.storage_id == storage_id)
    if start_time:
        query = query.where(Row.create_time >= start_time)
    if end_time:
        query = query.where(Row.create_time < end_time)
    if after:
        query = query.where(Row.backup_id < after[0])
    return [_backup(row) for row in query.order_by(Row.backup_id.desc()).limit(limit)]


def latest(server_id: str) -> Backup:
    """Return the newest usable backup of a server. Raises BackupNotFound."""
    row = (
        Row.select()
        .where((Row.server_id == server_id) & (Row.state == AVAILABLE) & Row.delete_time.is_null())
        .order_by(Row.create_time.desc(), Row.backup_id.desc())
        .first()
    )
    if row is None:
        raise BackupNotFound(backup_id="", server_id=server_id)
    return _backup(row)


def needs(backup_id: str) -> list[str]:
    """Return all that a backup cannot be restored without, oldest first, itself last."""
    found: dict[str, int] = {}
    open_ids = [backup_id]
    while open_ids:
        rows = NeedRow.select().where(NeedRow.backup.in_(open_ids)).order_by(NeedRow.position)
        new = [row.needed_backup_id for row in rows if row.needed_backup_id not in found]
        found |= dict.fromkeys(new, 0)
        open_ids = new
    found.pop(backup_id, None)
    return [*sorted(found), backup_id]  # ids sort by time, and what is needed is older


def dependents(backup_ids: Iterable[str]) -> list[str]:
    """Return these backups and all that cannot live without them, newest first."""
    found = set(backup_ids)
    open_ids = list(found)
    while open_ids:
        rows = (
            NeedRow.select(NeedRow.backup)
            .join(Row)
            .where(NeedRow.needed_backup_id.in_(open_ids) & Row.delete_time.is_null())
        )
        open_ids = sorted({row[0] for row in _tuples(rows)} - found)
        found.update(open_ids)
    return sorted(found, reverse=True)


def chains_of(backup_ids: Sequence[str]) -> frozenset[str]:
    """Return the chains that backups lie in; a copy outside any chain is a chain of its own."""
    rows = DiskRow.select(DiskRow.chain_id, DiskRow.backup).where(DiskRow.backup.in_(list(backup_ids)))
    return frozenset(chain_id or backup_id for chain_id, backup_id in _tuples(rows))


def active_chains(server_id: str, storage_id: str) -> frozenset[str]:
    """Return the chains that a next backup of the server there would extend: per disk, that of its newest backup."""
    rows = (
        DiskRow.select(DiskRow.disk, DiskRow.chain_id)
        .join(Row)
        .where(
            (Row.server_id == server_id)
            & (Row.storage_id == storage_id)
            & Row.delete_time.is_null()
            & (DiskRow.type != "copy")
            & (DiskRow.chain_id != "")
        )
        .order_by(Row.create_time, Row.backup_id)
    )
    return frozenset({row.disk: row.chain_id for row in rows}.values())


# ---- what work brought --------------------------------------------------------------------------------------------------


def record(made: BackupRecord, storage_id: str, hypervisor_id: str, now: datetime) -> None:
    """Add the backup that a job made; a reindex may have found it before its job's end was told.

    Its end is a sight of it: a reindex that runs meanwhile may have read the storage before the backup was there.
    """
    Row.delete().where((Row.backup_id == made.backup_id) & (Row.storage_id == storage_id)).execute()
    _insert(made, storage_id, hypervisor_id, AVAILABLE, "", now)


def sight(seen: BackupRecord, storage_id: str, hypervisor_id: str, job_id: str, since: datetime, now: datetime) -> bool:
    """Take in what the reindex `job_id`, which began at `since`, found. Returns whether it is new to the catalog."""
    row = Row.get_or_none(Row.backup_id == seen.backup_id)
    state = DAMAGED if seen.unreadable_disks else AVAILABLE
    if row is None:
        _insert(seen, storage_id, hypervisor_id, state, job_id, now)
        return True
    if row.storage_id != storage_id or row.server_id != seen.server_id:
        return False  # a copy of another storage, or a forged manifest: what we know stays
    if row.delete_time is not None and row.delete_time >= since:
        return False  # it was read before it was deleted
    if row.manifest_digest and seen.manifest_digest != row.manifest_digest:
        state = DAMAGED
    elif row.state == DAMAGED:
        state = DAMAGED  # only a verification says otherwise
    Row.update(
        state=state, see_time=now, delete_time=None, manifest_digest=row.manifest_digest or seen.manifest_digest
    ).where(Row.backup_id == seen.backup_id).execute()
    return False


def sweep(
    storage_id: str, hypervisor_id: str, server_id: str, since: datetime, unreadable: Sequence[str], *, local: bool
) -> None:
    """Mark what a complete reindex, begun at `since`, did not see: damaged where its manifest was unreadable, else missing.

    What was made meanwhile is left alone; in a local folder, so is what lies on other hypervisors.
    """
    query = Row.select().where(
        (Row.storage_id == storage_id)
        & Row.delete_time.is_null()
        & (Row.create_time < since)
        & (Row.see_time.is_null() | (Row.see_time < since))
    )
    if server_id:
        query = query.where(Row.server_id == server_id)
    if local:
        query = query.where(Row.hypervisor_id == hypervisor_id)
    for row in list(query):
        damaged = any(row.backup_id in name for name in unreadable)
        Row.update(state=DAMAGED if damaged else MISSING).where(Row.backup_id == row.backup_id).execute()


def adopted_count(job_id: str) -> int:
    """Return how many backups a reindex found that the catalog did not know."""
    return int(Row.select().where(Row.adopt_job_id == job_id).count())


def mark_deleted(backup_ids: Sequence[str], now: datetime) -> None:
    """Take backups out of the catalog that a job deleted."""
    for chunk in _chunks(backup_ids):
        Row.update(delete_time=now).where(Row.backup_id.in_(chunk) & Row.delete_time.is_null()).execute()


def mark_damaged(backup_ids: Iterable[str]) -> None:
    """Mark backups as damaged, and with them all that need them."""
    for chunk in _chunks(dependents(backup_ids)):
        Row.update(state=DAMAGED).where(Row.backup_id.in_(chunk)).execute()


def mark_verified(backup_id: str) -> None:
    """Mark a backup and all that it needs as usable: every frame was read and found good."""
    for chunk in _chunks(needs(backup_id)):
        Row.update(state=AVAILABLE).where(Row.backup_id.in_(chunk)).execute()


# ---- inside -------------------------------------------------------------------------------------------------------------


def _insert(
    new: BackupRecord, storage_id: str, hypervisor_id: str, state: str, adopt_job_id: str, now: datetime
) -> None:
    Row.insert(
        backup_id=new.backup_id,
        server_id=new.server_id,
        storage_id=storage_id,
        hypervisor_id=hypervisor_id,
        job_id=new.job_id,
        create_time=new.create_time,
        state=state,
        consistency=new.consistency,
        encrypted=new.encrypted,
        stored_bytes=new.stored_bytes or sum(disk.stored_bytes for disk in new.disks),
        path=new.path,
        domain_name=new.domain_name,
        domain_uuid=new.domain_uuid,
        manifest_digest=new.manifest_digest,
        skipped_disks=list(new.skipped_disks),
        adopt_job_id=adopt_job_id,
        see_time=now,
    ).execute()
    for position, disk in enumerate({one.disk: one for one in new.disks}.values()):
        values = {name: getattr(disk, name) for name in DiskBackup.__dataclass_fields__}
        DiskRow.insert(backup=new.backup_id, position=position, **values).execute()
    for position, needed in enumerate(dict.fromkeys(new.needed_backup_ids)):
        if needed != new.backup_id:
            NeedRow.insert(backup=new.backup_id, needed_backup_id=needed, position=position).execute()


def _backup(row: models.Backup) -> Backup:
    disks = DiskRow.select().where(DiskRow.backup == row.backup_id).order_by(DiskRow.position)
    names = [name for name in Backup.__dataclass_fields__ if name not in {"disks", "skipped_disks"}]
    return Backup(
        **{name: getattr(row, name) for name in names},
        disks=tuple(
            DiskBackup(**{name: getattr(disk, name) for name in DiskBackup.__dataclass_fields__}) for disk in disks
        ),
        skipped_disks=tuple(row.skipped_disks),
    )


def _tuples(query: Any) -> list[tuple[str, ...]]:
    """Return a query's rows as plain tuples, which peewee's types do not know of."""
    return list(query.tuples())


def _chunks(ids: Iterable[str]) -> list[list[str]]:
    """Cut a list for databases that take so many parameters in a statement."""
    wanted = list(ids)
    return [wanted[start : start + 500] for start in range(0, len(wanted), 500)]
