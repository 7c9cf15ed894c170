"""A storage as a repository: whose it is, the keys that lie in it, and what it holds, told by names alone.

repository.json   absent ──► written, exclusively; who loses that race reads what the winner wrote
                  another repository's or installation's ──► refused: two installations never prune each other (S29)
                  unreadable, or of a later format ──► refused, and never overwritten
keys/             each key of the spec is there; a passphrase added since is written as the key's next revision
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from engine import ids, listing
from engine.errors import (
    InvalidSpec,
    ManifestCorrupt,
    ObjectExists,
    ObjectNotFound,
    ObjectTruncated,
    RepositoryForeign,
    RepositoryMissing,
)
from engine.failpoint import reached
from engine.format import names
from engine.format.keys import KeyObject
from engine.format.markers import FORMAT, Repository
from engine.spec import StorageSpec
from engine.storage.base import Storage
from engine.units import KIB

log = logging.getLogger(__name__)

REPOSITORY_BYTES_MAX = 64 * KIB
KEY_BYTES_MAX = 64 * KIB  # 16 slots of about 300 bytes
_RACE_TRIES = 10  # writers of one key's next revision


@dataclass(frozen=True, slots=True)
class BackupFolder:
    """What lies in one backup's folder. Without `committed` it is no backup: work in progress, or an orphan."""

    backup_id: str
    committed: bool  # there is a backup.json
    intent: bool  # there is an intent.json
    disks: frozenset[str]  # disks with any object
    deleted_disks: frozenset[str]  # disks whose data is marked as gone, or going
    stored_bytes: int  # of all objects


def open_repository(storage: Storage, spec: StorageSpec, now: datetime, *, initialize: bool = True) -> Repository:
    """Return the repository of `spec`, initialized if the place is empty, with the spec's keys in it. `now` is aware.

    Without `initialize` an empty place raises RepositoryMissing. Raises RepositoryForeign, RepositoryUnsupported, and ManifestCorrupt if repository.json is damaged, or missing beside
    backups. For a storage that shall only be read there is `check_repository`.
    """
    _check_spec(spec)
    try:
        repository = _read(storage)
    except ObjectNotFound as error:
        if not initialize:
            raise RepositoryMissing(storage=storage.label) from error
        repository = _initialize(storage, spec, now)
    _check_owner(storage, spec, repository)
    for key_id, text in spec.wrapped_keys.items():
        _ensure_key(storage, key_id, text)
    return repository


def check_repository(storage: Storage, spec: StorageSpec) -> Repository:
    """Return the repository of `spec` without writing anything. Raises like `open_repository`, and RepositoryMissing."""
    _check_spec(spec)
    try:
        repository = _read(storage)
    except ObjectNotFound as error:
        raise RepositoryMissing(storage=storage.label) from error
    _check_owner(storage, spec, repository)
    return repository


def read_keys(storage: Storage) -> dict[str, KeyObject]:
    """Return the keys that lie on the storage, by key id, the highest revision of each. Raises ManifestCorrupt."""
    highest: dict[str, int] = {}
    for parsed in _key_names(storage):
        highest[parsed.key_id] = max(parsed.number, highest.get(parsed.key_id, 0))
    return {key_id: _read_key(storage, names.key_name(key_id, number)) for key_id, number in highest.items()}


# ---- what it holds ------------------------------------------------------------------------------------------------------


def list_servers(storage: Storage) -> tuple[str, ...]:
    """Return the ids of the servers that have a folder, ascending. Costs one request on most storages."""
    return tuple(sorted(name for name in listing.folders(storage, names.SERVERS) if ids.is_id(name)))


def list_backups(storage: Storage, server_id: str) -> tuple[str, ...]:
    """Return the ids of a server's committed backups, oldest first."""
    return tuple(folder.backup_id for folder in list_backup_folders(storage, server_id) if folder.committed)


def list_backup_folders(storage: Storage, server_id: str) -> tuple[BackupFolder, ...]:
    """Return what lies in each backup's folder of a server, by id, that is by time; foreign names do not count."""
    found: dict[str, list[tuple[names.ObjectName, int]]] = {}
    for parsed, entry in listing.objects(storage, names.server_folder(server_id)):
        found.setdefault(parsed.backup_id, []).append((parsed, entry.size_bytes))
    return tuple(_folder(backup_id, found[backup_id]) for backup_id in sorted(found))


def _folder(backup_id: str, objects: list[tuple[names.ObjectName, int]]) -> BackupFolder:
    kinds = {name.kind for name, _ in objects}
    return BackupFolder(
        backup_id=backup_id,
        committed="backup" in kinds,
        intent="intent" in kinds,
        disks=frozenset(name.disk for name, _ in objects if name.disk),
        deleted_disks=frozenset(name.disk for name, _ in objects if name.kind == "deleted"),
        stored_bytes=sum(size for _, size in objects),
    )


# ---- repository.json ----------------------------------------------------------------------------------------------------


def _check_spec(spec: StorageSpec) -> None:
    for field in ("repository_id", "installation_id"):
        if not ids.is_id(getattr(spec, field)):
            raise InvalidSpec(field=field, problem="is not an id")


def _read(storage: Storage) -> Repository:
    """Return what repository.json says. Raises ObjectNotFound, ManifestCorrupt, RepositoryUnsupported."""
    try:
        data = storage.get(names.REPOSITORY, REPOSITORY_BYTES_MAX)
    except ObjectTruncated as error:
        raise ManifestCorrupt(name=names.REPOSITORY, detail="is too long or was cut short") from error
    return Repository.load(data, storage.label)


def _initialize(storage: Storage, spec: StorageSpec, now: datetime) -> Repository:
    wanted = Repository(spec.repository_id, spec.installation_id, FORMAT, _time(now))
    if _holds_anything(storage):
        # Either someone initialized the place since we looked, or repository.json is lost. Then nobody knows whose
        # backups these are, and to write our name over them could be the end of somebody's.
        try:
            return _read(storage)
        except ObjectNotFound:
            raise ManifestCorrupt(name=names.REPOSITORY, detail="is missing, yet there are backups") from None
    try:
        storage.put(names.REPOSITORY, wanted.dump())
        reached("repository")
        log.info("repository initialized storage=%s repository_id=%s", storage.label, spec.repository_id)
    except ObjectExists:
        log.info("repository initialized by another storage=%s", storage.label)
    return _read(storage)  # the truth is what lies there, whoever wrote it


def _holds_anything(storage: Storage) -> bool:
    return any(True for folder in (names.SERVERS, names.KEYS) for _ in listing.objects(storage, folder))


def _check_owner(storage: Storage, spec: StorageSpec, found: Repository) -> None:
    if (found.repository_id, found.installation_id) != (spec.repository_id, spec.installation_id):
        raise RepositoryForeign(
            storage=storage.label,
            found=f"{found.repository_id} of installation {found.installation_id}",
            expected=f"{spec.repository_id} of installation {spec.installation_id}",
        )


def _time(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# ---- keys ---------------------------------------------------------------------------------------------------------------


def _ensure_key(storage: Storage, key_id: str, text: str) -> None:
    """See to it that the storage has this key, in this or a later form. Nothing that is there is touched."""
    data = text.encode()
    wanted = KeyObject.load(data, names.key_name(key_id))
    for _ in range(_RACE_TRIES):
        number = max((parsed.number for parsed in _key_names(storage) if parsed.key_id == key_id), default=-1)
        if number >= 0:
            there = _read_key(storage, names.key_name(key_id, number))
            if set(wanted.slots) <= set(there.slots):
                return  # the same, or a passphrase has been added there
            if not set(there.slots) < set(wanted.slots):
                log.warning("key on the storage differs from the known one storage=%s key_id=%s", storage.label, key_id)
                return
        try:
            storage.put(names.key_name(key_id, number + 1), data)
            reached("key")
        except ObjectExists:
            continue  # written beside us; look at what it is
        return
    raise ObjectExists(storage=storage.label, step="write key", name=names.key_name(key_id))


def _key_names(storage: Storage) -> Iterator[names.ObjectName]:
    for parsed, _ in listing.objects(storage, names.KEYS):
        if parsed.kind == "key":
            yield parsed


def _read_key(storage: Storage, name: str) -> KeyObject:
    """Return the key object of that name, which must be that key's. Raises ManifestCorrupt."""
    try:
        return KeyObject.load(storage.get(name, KEY_BYTES_MAX), name)
    except ObjectTruncated as error:
        raise ManifestCorrupt(name=name, detail="is too long or was cut short") from error
