"""The index of restore points: what manifests and jobs told, rebuilt by `reindex` at any time. Storage is the truth.

    backup ── backup_disk (chain, parent, sizes)
           └─ backup_need (what it cannot be restored without)

A backup that a job deleted keeps its row with a `delete_time`: a reindex that read the storage before cannot bring it back.
Digests are kept from the first sight on; a manifest that shows another one later was tampered with, since none is rewritten.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import peewee

from controller import happenings, totals
from controller.db import models
from controller.db.statements import chunks, statement, value_lines
from controller.errors import BackupNotFound
from controller.rules import tree
from controller.rules.tree import Chain

AVAILABLE, DAMAGED, MISSING = "available", "damaged", "missing"
Row, DiskRow, NeedRow = models.Backup, models.BackupDisk, models.BackupNeed
_Needed = Row.alias()
_KIN = (_Needed.server_id == Row.server_id) & (_Needed.storage_id == Row.storage_id)


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


@dataclass(frozen=True, slots=True)
class BackupFilter:
    """Which backups; empty means all. `start_time` <= create_time < `end_time`; `types` are of any of its disks."""

    server_id: str = ""
    storage_id: str = ""
    job_id: str = ""
    types: Sequence[str] = ()
    states: Sequence[str] = ()
    encrypted: bool | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


def list_backups(wanted: BackupFilter, *, after: tuple[str] | None = None, limit: int = 101) -> list[Backup]:
    """Return backups, newest first, those after the backup id in `after`."""
    query = Row.select().where(Row.delete_time.is_null())
    for name in ("server_id", "storage_id", "job_id"):
        if getattr(wanted, name):
            query = query.where(getattr(Row, name) == getattr(wanted, name))
    if wanted.types:
        query = query.where(
            Row.backup_id.in_(DiskRow.select(DiskRow.backup).where(DiskRow.type.in_(list(wanted.types))))
        )
    if wanted.states:
        query = query.where(Row.state.in_(list(wanted.states)))
    if wanted.encrypted is not None:
        query = query.where(Row.encrypted == wanted.encrypted)
    if wanted.start_time:
        query = query.where(Row.create_time >= wanted.start_time)
    if wanted.end_time:
        query = query.where(Row.create_time < wanted.end_time)
    if after:
        query = query.where(Row.backup_id < after[0])
    return _backups(list(query.order_by(Row.backup_id.desc()).limit(limit)))


def list_chains(server_id: str, present_disks: Collection[str], *, storage_id: str = "", disk: str = "") -> list[Chain]:
    """Return a server's backups as chains (`rules/tree.py`), by one query; `present_disks` are those that it has now."""
    columns = (
        Row.backup_id, DiskRow.disk, Row.storage_id, DiskRow.chain_id, Row.create_time, DiskRow.type, Row.state,
        DiskRow.parent_backup_id, DiskRow.size_bytes, DiskRow.data_bytes, DiskRow.stored_bytes, DiskRow.fallback_reason,
    )  # fmt: skip
    query = Row.select(*columns).join(DiskRow).where((Row.server_id == server_id) & Row.delete_time.is_null())
    if storage_id:
        query = query.where(Row.storage_id == storage_id)
    if disk:
        query = query.where(DiskRow.disk == disk)
    return tree.build((tree.Record(*row) for row in _tuples(query)), present_disks)


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
    """Return all that a backup cannot be restored without, oldest first, itself last.

    What belongs to another server or storage is left out, whatever a manifest says of it.
    """
    found: set[str] = {backup_id}
    open_ids = [backup_id]
    while open_ids:
        rows = (
            NeedRow.select(NeedRow.needed_backup_id)
            .join(Row)
            .join(_Needed, peewee.JOIN.LEFT_OUTER, on=(_Needed.backup_id == NeedRow.needed_backup_id))
            .where(NeedRow.backup.in_(open_ids) & (_Needed.backup_id.is_null() | _KIN))
        )
        open_ids = sorted({row[0] for row in _tuples(rows)} - found)
        found.update(open_ids)
    return [*sorted(found - {backup_id}), backup_id]  # ids sort by time, and what is needed is older


def dependents(backup_ids: Iterable[str]) -> list[str]:
    """Return these backups and all that cannot live without them, newest first.

    One that is missing counts only if it is among `backup_ids`: nothing is there to be removed or to be damaged.
    """
    asked = set(backup_ids)
    found, missing, open_ids = set(asked), set[str](), sorted(asked)
    while open_ids:
        rows = (
            NeedRow.select(NeedRow.backup, Row.state)
            .join(Row)
            .join(_Needed, on=(_Needed.backup_id == NeedRow.needed_backup_id))
            .where(NeedRow.needed_backup_id.in_(open_ids) & Row.delete_time.is_null() & _KIN)
        )
        states = {backup_id: state for backup_id, state in _tuples(rows)}  # noqa: C416 - dict() does not know their length
        open_ids = sorted(set(states) - found)
        found.update(open_ids)
        missing.update(one for one in open_ids if states[one] == MISSING)
    return sorted(found - missing, reverse=True)


def chains_of(backup_ids: Sequence[str]) -> frozenset[str]:
    """Return the chains that backups lie in, as `server/chain`; a copy outside any chain is a chain of its own.

    A chain's id comes from a manifest. With the server's before it, no manifest lays hands on the chain of another server.
    """
    rows = (
        DiskRow.select(Row.server_id, DiskRow.chain_id, DiskRow.backup)
        .join(Row)
        .where(DiskRow.backup.in_(list(backup_ids)))
    )
    return frozenset(f"{server_id}/{chain_id or backup_id}" for server_id, chain_id, backup_id in _tuples(rows))


def of_chain(server_id: str, storage_id: str, chain_id: str, disk: str = "") -> list[str]:
    """Return the backups that lie in a chain, of one disk or of any, oldest first; a copy is in the chain of its own id."""
    own = (DiskRow.chain_id == chain_id) | ((DiskRow.chain_id == "") & (DiskRow.backup == chain_id))
    query = (
        DiskRow.select(DiskRow.backup)
        .join(Row)
        .where(own & (Row.server_id == server_id) & (Row.storage_id == storage_id) & Row.delete_time.is_null())
    )
    if disk:
        query = query.where(DiskRow.disk == disk)
    return [row[0] for row in _tuples(query.distinct().order_by(DiskRow.backup))]


def makers(backup_ids: Sequence[str]) -> dict[str, str]:
    """Return the hypervisor that made each of these backups."""
    found: dict[str, str] = {}
    for chunk in chunks(backup_ids):
        rows = _tuples(Row.select(Row.backup_id, Row.hypervisor_id).where(Row.backup_id.in_(chunk)))
        found.update({backup_id: hypervisor_id for backup_id, hypervisor_id in rows})  # noqa: C416 - as in dependents
    return found


def active_chains(server_id: str, storage_id: str) -> frozenset[str]:
    """Return the chains that a next backup of the server there would extend: per disk, that of its newest backup.

    They are named as in `chains_of`.
    """
    return active_chains_of([server_id], storage_id)[server_id]


_ACTIVE = """
    SELECT backup.server_id, backup_disk.disk, backup_disk.chain_id
    FROM backup JOIN backup_disk ON backup_disk.backup_id = backup.backup_id
    WHERE backup.server_id IN ({}) AND backup.storage_id = ? AND backup.delete_time IS NULL
        AND backup_disk.type <> 'copy' AND backup_disk.chain_id <> ''
    ORDER BY backup.create_time, backup.backup_id
"""


def active_chains_of(server_ids: Sequence[str], storage_id: str) -> dict[str, frozenset[str]]:
    """Return what `active_chains` does for each of these servers."""
    newest: dict[str, dict[str, str]] = {one: {} for one in server_ids}
    for chunk in chunks(server_ids):
        for server_id, disk, chain_id in statement(_ACTIVE.format(value_lines(len(chunk), "?")), *chunk, storage_id):
            newest[server_id][disk] = f"{server_id}/{chain_id}"
    return {server_id: frozenset(chains.values()) for server_id, chains in newest.items()}


# ---- what work brought --------------------------------------------------------------------------------------------------


def record(made: BackupRecord, storage_id: str, hypervisor_id: str, now: datetime) -> None:
    """Add the backup that a job made; a reindex may have found it before its job's end was told.

    Its end is a sight of it: a reindex that runs meanwhile may have read the storage before the backup was there.
    """
    Row.delete().where((Row.backup_id == made.backup_id) & (Row.storage_id == storage_id)).execute()
    _insert(made, storage_id, hypervisor_id, AVAILABLE, "", now)
    _event("backup.created", Row.get(Row.backup_id == made.backup_id), now)
    totals.recount([(made.server_id, storage_id)])


def sight(seen: BackupRecord, storage_id: str, hypervisor_id: str, job_id: str, since: datetime, now: datetime) -> bool:
    """Take in what the reindex `job_id`, which began at `since`, found. Returns whether it is new to the catalog."""
    row = Row.get_or_none(Row.backup_id == seen.backup_id)
    state = DAMAGED if seen.unreadable_disks else AVAILABLE
    if row is None:
        _insert(seen, storage_id, hypervisor_id, state, job_id, now)
        _event("backup.found", Row.get(Row.backup_id == seen.backup_id), now)
        totals.recount([(seen.server_id, storage_id)])
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
    if state != row.state or row.delete_time is not None:
        _event(f"backup.{state}", row, now)
        totals.recount([(seen.server_id, storage_id)])
    return False


def sweep(
    storage_id: str,
    hypervisor_id: str,
    server_id: str,
    since: datetime,
    unreadable: Sequence[str],
    now: datetime,
    *,
    local: bool,
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
        _mark([row.backup_id], DAMAGED if damaged else MISSING, now)


def pass_on(storage_id: str, server_id: str, now: datetime) -> None:
    """Mark as damaged what needs a backup that is damaged or missing, of one server or of all."""
    broken = Row.select(Row.backup_id).where(
        (Row.storage_id == storage_id) & Row.delete_time.is_null() & Row.state.in_((DAMAGED, MISSING))
    )
    if server_id:
        broken = broken.where(Row.server_id == server_id)
    ids = [row[0] for row in _tuples(broken)]
    for chunk in chunks(ids):
        _mark(set(dependents(chunk)) - set(ids), DAMAGED, now)


def adopted_count(job_id: str) -> int:
    """Return how many backups a reindex found that the catalog did not know."""
    return int(Row.select().where(Row.adopt_job_id == job_id).count())


def mark_deleted(backup_ids: Sequence[str], now: datetime) -> None:
    """Take backups out of the catalog that a job deleted."""
    for chunk in chunks(backup_ids):
        gone = Row.update(delete_time=now).where(Row.backup_id.in_(chunk) & Row.delete_time.is_null())
        rows = list(gone.returning(Row).execute())
        for row in rows:
            _event("backup.deleted", row, now)
        totals.recount((row.server_id, row.storage_id) for row in rows)


def mark_damaged(backup_ids: Iterable[str], now: datetime) -> None:
    """Mark backups as damaged, and with them all that need them."""
    _mark(dependents(backup_ids), DAMAGED, now)


def mark_verified(backup_id: str, now: datetime) -> None:
    """Mark a backup and all that it needs as usable: every frame was read and found good."""
    _mark(needs(backup_id), AVAILABLE, now)


# ---- inside -------------------------------------------------------------------------------------------------------------


def _mark(backup_ids: Iterable[str], state: str, now: datetime) -> None:
    for chunk in chunks(backup_ids):
        changed = Row.update(state=state).where(Row.backup_id.in_(chunk) & (Row.state != state)).returning(Row)
        rows = list(changed.execute())
        for row in rows:
            _event(f"backup.{state}", row, now)
        totals.recount((row.server_id, row.storage_id) for row in rows)


def _event(kind: str, row: models.Backup, now: datetime) -> None:
    happenings.record(
        kind,
        now,
        job_id=row.job_id,
        server_id=row.server_id,
        storage_id=row.storage_id,
        hypervisor_id=row.hypervisor_id,
        body={"backup_id": row.backup_id},
    )


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
    wanted = [one for one in dict.fromkeys(new.needed_backup_ids) if one != new.backup_id]
    foreign = _foreign(wanted, new.server_id, storage_id)
    for position, needed in enumerate(wanted):
        if needed not in foreign:
            NeedRow.insert(backup=new.backup_id, needed_backup_id=needed, position=position).execute()


def _foreign(backup_ids: Sequence[str], server_id: str, storage_id: str) -> set[str]:
    """Return those of the backups that are known to belong to another server or storage."""
    found: set[str] = set()
    for chunk in chunks(backup_ids):
        rows = Row.select(Row.backup_id).where(
            Row.backup_id.in_(chunk) & ((Row.server_id != server_id) | (Row.storage_id != storage_id))
        )
        found.update(row[0] for row in _tuples(rows))
    return found


def _backup(row: models.Backup) -> Backup:
    return _backups([row])[0]


def _backups(rows: Sequence[models.Backup]) -> list[Backup]:
    """Return rows as backups, the disks of all of them by few queries."""
    names = [name for name in Backup.__dataclass_fields__ if name not in {"disks", "skipped_disks"}]
    disks = _disks_of([row.backup_id for row in rows])
    return [
        Backup(
            **{name: getattr(row, name) for name in names},
            disks=tuple(disks.get(row.backup_id, ())),
            skipped_disks=tuple(row.skipped_disks),
        )
        for row in rows
    ]


def _disks_of(backup_ids: Sequence[str]) -> dict[str, list[DiskBackup]]:
    columns = [getattr(DiskRow, name) for name in DiskBackup.__dataclass_fields__]
    found: dict[str, list[DiskBackup]] = {}
    for chunk in chunks(backup_ids):
        rows: Any = (
            DiskRow.select(DiskRow.backup, *columns)
            .where(DiskRow.backup.in_(chunk))
            .order_by(DiskRow.backup, DiskRow.position)
            .tuples()
        )
        for backup_id, *values in rows:
            found.setdefault(backup_id, []).append(DiskBackup(*values))
    return found


def _tuples(query: Any) -> list[tuple[Any, ...]]:
    """Return a query's rows as plain tuples, which peewee's types do not know of."""
    return list(query.tuples())
