"""Storages: where backups go, with secrets and keys that never leave this file in clear but for a command to an agent.

The key of an encrypted storage is random. It is kept twice: wrapped by the passphrase, as the object that lies under `keys/`
on the storage and in every backup; and sealed under the master key, so that work needs no passphrase.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controller import happenings, health, proofs, reach, settings, totals
from controller.db import models, secrets
from controller.db.fields import to_microseconds
from controller.db.secrets import Vault
from controller.db.statements import find_row, find_where, statement
from controller.errors import (
    EncryptionImmutable,
    EtagMismatch,
    HypervisorNotFound,
    InvalidField,
    StorageExists,
    StorageInUse,
    StorageNotFound,
    StorageOfBundles,
)
from controller.rules import storage_types
from controller.rules.retention import KEEP_LAST_DEFAULT
from engine.errors import InvalidSpec, WrongKey
from engine.format import keys
from engine.format.crypto import StorageKey
from engine.ids import new_id

Row = models.Storage
TABLE = "storage"  # its secrets' table name
_CHANGEABLE = (
    "name",
    "config",
    "compression",
    "limits",
    "enabled",
    "read_only",
    "encryption_enabled",
    "retention",
    "keep_last",
    "delete_hypervisor_id",
    "defaults",
)


@dataclass(frozen=True, slots=True)
class SecretStatus:
    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as it stands. `config`, `compression` and `limits` are JSON forms of the proto messages, `retention` a policy's
    (rules/retention.py). `delete_hypervisor_id` is "" where every hypervisor that uses the storage may delete there.

    `defaults` is what its jobs go by where no schedule says otherwise, by the names of `rules/settings.py`; absent is unset.
    """

    storage_id: str
    name: str
    type: str
    config: dict[str, Any]
    compression: dict[str, Any]
    limits: dict[str, Any]
    encryption_enabled: bool
    key_id: str
    enabled: bool
    read_only: bool
    repository_id: str
    retention: dict[str, Any]
    keep_last: int
    delete_hypervisor_id: str
    secrets: tuple[SecretStatus, ...]
    create_time: datetime
    update_time: datetime
    etag: str
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def per_hypervisor(self) -> bool:
        """Tell whether each hypervisor sees a place of its own, so that a backup lies only where it was made."""
        return storage_types.BY_TYPE[self.type].per_hypervisor


@dataclass(frozen=True, slots=True)
class NewStorage:
    """What is asked for. `secrets` has the field names of StorageSecrets; "" and absent mean not given."""

    name: str
    type: str
    config: dict[str, Any]
    compression: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    encryption_enabled: bool = False
    retention: dict[str, Any] = field(default_factory=dict)
    keep_last: int = KEEP_LAST_DEFAULT
    delete_hypervisor_id: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class StorageChange:
    """New values; None keeps the old. A secret that is not given is kept too."""

    name: str | None = None
    config: dict[str, Any] | None = None
    compression: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None
    enabled: bool | None = None
    read_only: bool | None = None
    encryption_enabled: bool | None = None
    retention: dict[str, Any] | None = None
    keep_last: int | None = None
    delete_hypervisor_id: str | None = None
    defaults: dict[str, Any] | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A fresh storage key, and the same wrapped by the passphrase."""

    key: StorageKey = field(repr=False)
    wrapped: str = field(repr=False)


def make_key(passphrase: str, now: datetime) -> NewKey:
    """Return a new storage key wrapped by a passphrase. Slow on purpose: never on the event loop or the database's thread."""
    key = StorageKey.generate(new_id(now))
    return NewKey(key, keys.wrap_key(key, passphrase, _stamp(now)).dump().decode("ascii"))


def _stamp(now: datetime) -> str:
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def with_passphrase(key: StorageKey, wrapped: str, added: str, now: datetime) -> str:
    """Return a wrapped key's next revision, which `added` opens too; the same text where it does already. Slow on purpose.

    Raises InvalidField when no further passphrase goes in.
    """
    name = f"keys/{key.key_id}.json"
    closed = keys.KeyObject.load(wrapped.encode(), name)
    try:
        keys.unwrap_key(closed, added)
    except WrongKey:
        pass
    else:
        return wrapped
    try:
        return keys.add_slot(closed, key, added, _stamp(now)).dump().decode("ascii")
    except InvalidSpec as error:
        raise InvalidField(field="secrets.added_passphrase", problem=str(error.facts["problem"])) from error


# ---- looking ------------------------------------------------------------------------------------------------------------


def find(reference: str) -> Storage:
    """Return the storage with this id or name. Raises StorageNotFound."""
    row = find_row(Row.storage_id, reference) or find_row(Row.name, reference)
    if row is None or not reference:
        raise StorageNotFound(storage_id=reference)
    return _storage(row)


def list_storages(*, after: tuple[str] | None = None, limit: int = 101) -> list[Storage]:
    """Return storages by name, those after the name in `after`."""
    query = Row.select() if after is None else Row.select().where(Row.name > after[0])
    return _storages(list(query.order_by(Row.name).limit(limit)))


def names_of(storage_ids: Collection[str]) -> dict[str, str]:
    """Return the names of storages, by one query; one that is gone is left out."""
    rows: Any = Row.select(Row.storage_id, Row.name).where(Row.storage_id.in_(list(storage_ids))).tuples()
    return dict(rows)


def open_keys(storage_id: str, vault: Vault) -> list[StorageKey]:
    """Return all keys of a storage, opened; for work, never for a reply. Raises BoxDamaged."""
    rows = find_where(models.StorageKey, "storage_id = ? ORDER BY key_id", storage_id)
    return [StorageKey(row.key_id, vault.open("storage_key", "box", row.key_id, bytes(row.box))) for row in rows]


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key as it lies on the storage, closed by the passphrase."""

    key_id: str
    text: str = field(repr=False)
    create_time: datetime


def closed_keys(storage_id: str) -> list[WrappedKey]:
    """Return a storage's closed keys, oldest first."""
    table = models.StorageKey
    rows = table.select().where(table.storage_id == storage_id).order_by(table.create_time, table.key_id)
    return [WrappedKey(row.key_id, row.wrapped, row.create_time) for row in rows]


def wrapped_keys(storage_id: str) -> dict[str, str]:
    """Return the key objects that lie under `keys/`, by key id."""
    return {row.key_id: row.wrapped for row in find_where(models.StorageKey, "storage_id = ?", storage_id)}


_HAS_BACKUP = "SELECT 1 FROM backup WHERE storage_id = ? AND delete_time IS NULL"
_HAS_JOB = """
    SELECT 1 FROM job WHERE storage_id = ? AND type IN ('backup', 'test')
        AND state IN ('completed', 'completed_with_warnings') AND dispatch_time > ?
"""


def has_been_used(storage: Storage, hypervisor_id: str) -> bool:
    """Tell whether the storage's repository was made already, as far as this hypervisor sees it (a local folder is its own).

    A backup of it says so, or a job that wrote there since the storage was changed last: that may have been its place.
    """
    seen, values = ("AND hypervisor_id = ?", [hypervisor_id]) if storage.per_hypervisor else ("", [])
    if statement(f"{_HAS_BACKUP} {seen} LIMIT 1", storage.storage_id, *values):
        return True
    changed = to_microseconds(storage.update_time)
    return bool(statement(f"{_HAS_JOB} {seen} LIMIT 1", storage.storage_id, changed, *values))


# From one hypervisor to the next over the index `backup_maker`: DISTINCT would read every backup of the storage.
_MAKERS = """
    WITH RECURSIVE maker (hypervisor_id) AS (
        SELECT MIN(hypervisor_id) FROM backup WHERE storage_id = ? AND delete_time IS NULL
        UNION ALL
        SELECT (SELECT MIN(hypervisor_id) FROM backup
                WHERE storage_id = ? AND delete_time IS NULL AND hypervisor_id > maker.hypervisor_id)
        FROM maker WHERE maker.hypervisor_id IS NOT NULL
    )
    SELECT hypervisor_id FROM maker WHERE hypervisor_id IS NOT NULL
"""


def makers(storage_id: str) -> set[str]:
    """Return the hypervisors that made the backups on a storage."""
    return {hypervisor_id for (hypervisor_id,) in statement(_MAKERS, storage_id, storage_id)}


# ---- changing -----------------------------------------------------------------------------------------------------------


def create(new: NewStorage, key: NewKey | None, vault: Vault, now: datetime) -> Storage:
    """Make a storage; nothing is written to it before its first use. Raises StorageExists, HypervisorNotFound, InvalidField."""
    if new.encryption_enabled and key is None:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is needed for encryption")
    _check_name(new.name, "")
    storage_id = new_id(now)
    Row.insert(
        storage_id=storage_id,
        name=new.name,
        type=new.type,
        config=new.config,
        compression=new.compression,
        limits=new.limits,
        encryption_enabled=new.encryption_enabled,
        key_id=key.key.key_id if key else "",
        repository_id=new_id(now),
        retention=new.retention,
        keep_last=new.keep_last,
        delete_hypervisor_id=_hypervisor_id(new.delete_hypervisor_id),
        defaults=new.defaults,
        create_time=now,
        update_time=now,
    ).execute()
    _put_secrets(storage_id, new.secrets, vault, now)
    if key is not None:
        _put_key(storage_id, key, vault, now)
    _event("storage.created", storage_id, now)
    return find(storage_id)


def update(
    storage_id: str, change: StorageChange, key: NewKey | None, etag: str, vault: Vault, now: datetime
) -> Storage:
    """Change a storage; `key` replaces its key (a new passphrase).

    Raises StorageNotFound, EtagMismatch, StorageExists, HypervisorNotFound; StorageOutOfReach for a remote that the hypervisor of an
    enabled schedule has not; StorageImmutable for another place and EncryptionImmutable for
    another encryption while backups lie there or a job may be writing one, EncryptionUnproven while nobody knows (S0, S25).
    """
    row = find_row(Row.storage_id, storage_id)
    if row is None:
        raise StorageNotFound(storage_id=storage_id)
    if etag and etag != str(row.version):
        raise EtagMismatch(etag=str(row.version))
    values: dict[str, Any] = {name: getattr(change, name) for name in _CHANGEABLE if getattr(change, name) is not None}
    if change.name is not None:
        _check_name(change.name, storage_id)
    if change.delete_hypervisor_id is not None:
        values["delete_hypervisor_id"] = _hypervisor_id(change.delete_hypervisor_id)
    in_use = _use_count(storage_id) > 0
    if change.config is not None:
        _check_place(row, change.config, in_use=in_use, now=now)
        reach.check_change(_storage(row), change.config)
    encryption_changes = values.get("encryption_enabled", row.encryption_enabled) != row.encryption_enabled
    if encryption_changes or key is not None:
        if in_use:
            raise EncryptionImmutable(storage_id=storage_id)
        proofs.check_encryption(row, "", now)
    if key is not None:
        models.StorageKey.delete().where(models.StorageKey.storage_id == storage_id).execute()
        _put_key(storage_id, key, vault, now)
        values["key_id"] = key.key.key_id
    if values.get("encryption_enabled", row.encryption_enabled) and not values.get("key_id", row.key_id):
        raise InvalidField(field="secrets.encryption_passphrase", problem="is needed for encryption")
    Row.update(**values, update_time=now, version=Row.version + 1).where(Row.storage_id == storage_id).execute()
    _put_secrets(storage_id, change.secrets, vault, now)
    _event("storage.updated", storage_id, now)
    return find(storage_id)


def set_wrapped(storage_id: str, key_id: str, before: str, after: str) -> None:
    """Put a key's next revision in place of the one that it was made of. Raises EtagMismatch when that is no longer there."""
    table = models.StorageKey
    this = (table.storage_id == storage_id) & (table.key_id == key_id) & (table.wrapped == before)
    if not table.update(wrapped=after).where(this).execute():
        raise EtagMismatch(etag=find(storage_id).etag)


def delete(storage_id: str, now: datetime) -> None:
    """Forget a storage, its secrets and keys; what lies there stays. Raises StorageNotFound, StorageInUse."""
    find(storage_id)
    schedules = _schedule_count(storage_id)
    if settings.get().bundle_storage_id == storage_id:
        raise StorageOfBundles(storage_id=storage_id)
    if schedules or _use_count(storage_id):
        there = totals.of_storages([storage_id]).get(storage_id, totals.NONE)
        raise StorageInUse(storage_id=storage_id, backup_count=there.backup_count, schedule_count=schedules)
    secrets.remove_all(TABLE, storage_id)
    models.StorageKey.delete().where(models.StorageKey.storage_id == storage_id).execute()
    health.forget_storage(storage_id)
    models.Reconciliation.delete().where(models.Reconciliation.storage_id == storage_id).execute()
    Row.delete().where(Row.storage_id == storage_id).execute()
    _event("storage.deleted", storage_id, now)


def pin_host_key(storage_id: str, host_key: str, now: datetime) -> bool:
    """Keep the host key that a first test saw (S4). False when one is pinned already, or the storage has none."""
    row = find_row(Row.storage_id, storage_id)
    if row is None or row.type != "sftp" or row.config.get("host_key") or not host_key:
        return False
    Row.update(config={**row.config, "host_key": host_key}, update_time=now, version=Row.version + 1).where(
        Row.storage_id == storage_id
    ).execute()
    _event("storage.host_key_pinned", storage_id, now)
    return True


# ---- inside -------------------------------------------------------------------------------------------------------------


def _check_name(name: str, storage_id: str) -> None:
    if Row.select().where((Row.name == name) & (Row.storage_id != storage_id)).exists():
        raise StorageExists(name=name)


def _hypervisor_id(reference: str) -> str:
    """Return the id of a hypervisor that is given by id or name, "" for none. Raises HypervisorNotFound."""
    table = models.Hypervisor
    row = find_row(table.hypervisor_id, reference) or find_row(table.name, reference)
    if row is None and reference:
        raise HypervisorNotFound(hypervisor_id=reference)
    return str(row.hypervisor_id) if row is not None else ""


def _check_place(row: models.Storage, config: Mapping[str, Any], *, in_use: bool, now: datetime) -> None:
    """Raise StorageImmutable for another place of a storage in use; what was read at the old one says nothing of the new."""
    if not proofs.moved_fields(row.type, row.config, config):
        return
    if in_use:
        proofs.check_place(row, config, makers(row.storage_id), now)
    read = models.Reconciliation
    read.update(start_time=None).where(read.storage_id == row.storage_id).execute()


def _use_count(storage_id: str, hypervisor_id: str = "") -> int:
    """Return how many backups and unfinished jobs refer to a storage, of one hypervisor or of all."""
    backup, job = models.Backup, models.Job
    backups = backup.select().where((backup.storage_id == storage_id) & backup.delete_time.is_null())
    works = (job.type != "health") & job.end_time.is_null()  # to look at a storage leaves nothing there
    live = job.select().where((job.storage_id == storage_id) & works)
    if hypervisor_id:
        backups = backups.where(backup.hypervisor_id == hypervisor_id)
        live = live.where(job.hypervisor_id == hypervisor_id)
    return int(backups.count() + live.count())


def _schedule_count(storage_id: str) -> int:
    """Return how many schedules back up to a storage; deleted ones do not hold it."""
    row = models.Schedule
    return int(row.select().where((row.storage_id == storage_id) & row.delete_time.is_null()).count())


def check_proven(storage_id: str, hypervisor_id: str, now: datetime) -> None:
    """Raise EncryptionUnproven where a hypervisor may have backups on a storage that the catalog does not know (S25)."""
    proofs.check_encryption(Row.get(Row.storage_id == storage_id), hypervisor_id, now)


def is_in_use(storage_id: str, hypervisor_id: str) -> bool:
    """Tell whether backups that a hypervisor made lie on a storage, or a job of it may be writing one."""
    return _use_count(storage_id, hypervisor_id) > 0


def _put_secrets(storage_id: str, given: Mapping[str, str], vault: Vault, now: datetime) -> None:
    for name, value in given.items():
        if (
            value and name != "added_passphrase"
        ):  # the passphrase has wrapped the key, and nobody needs it any more (S26)
            secrets.put(vault, TABLE, storage_id, name, value, now, keep=name != "encryption_passphrase")


def _put_key(storage_id: str, key: NewKey, vault: Vault, now: datetime) -> None:
    box = vault.seal("storage_key", "box", key.key.key_id, key.key.secret)
    models.StorageKey.insert(
        key_id=key.key.key_id, storage_id=storage_id, box=box, wrapped=key.wrapped, create_time=now
    ).execute()


def _storage(row: models.Storage) -> Storage:
    return _storages([row])[0]


def _storages(rows: Sequence[models.Storage]) -> list[Storage]:
    """Return rows as storages, the secrets of all of them by one query."""
    known = secrets.fingerprints_of(TABLE, [row.storage_id for row in rows])
    return [_made(row, known.get(row.storage_id, {})) for row in rows]


def _made(row: models.Storage, known: Mapping[str, str]) -> Storage:
    names = [
        name for name in Storage.__dataclass_fields__ if hasattr(row, name) and name not in {"secrets", "defaults"}
    ]
    return Storage(
        **{name: getattr(row, name) for name in names},
        defaults=row.defaults or {},
        secrets=tuple(SecretStatus(name, fingerprint) for name, fingerprint in known.items()),
        etag=str(row.version),
    )


def _event(kind: str, storage_id: str, now: datetime) -> None:
    happenings.record(kind, now, storage_id=storage_id)
