"""The small objects: whose repository this is, that a backup has begun, that a disk's data is damaged or gone.

repository.json   written once, by the first use (S29): two installations never share a repository
intent.json       written first: what lies beside it is work in progress, not an orphan
damaged.json      written by a verification that found damage: nobody builds on this data any more
deleted.json      written before data goes: from here on nobody starts to build on it
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import ManifestUnsupported, RepositoryUnsupported
from engine.format import documents, names
from engine.format.documents import check_ids, dump_plain, expect, is_time, load_plain

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Repository:
    """repository.json."""

    repository_id: str
    installation_id: str
    format: int
    create_time: str

    def dump(self) -> bytes:
        return dump_plain("repository", self)

    @classmethod
    def load(cls, data: bytes, label: str) -> "Repository":
        """Return repository.json's content. `label` is the storage's, for errors.

        Raises ManifestCorrupt, and RepositoryUnsupported for what a later version wrote.
        """
        name = names.REPOSITORY
        try:
            value = load_plain(cls, "repository", data, name)
        except ManifestUnsupported as error:
            raise RepositoryUnsupported(storage=label, found=error.facts["found"], known=FORMAT) from error
        if value.format != FORMAT:
            raise RepositoryUnsupported(storage=label, found=value.format, known=FORMAT)
        check_ids(name, repository_id=value.repository_id, installation_id=value.installation_id)
        expect(is_time(value.create_time), name, "create_time is not a time")
        return value


@dataclass(frozen=True, slots=True)
class Intent:
    """intent.json."""

    server_id: str
    backup_id: str
    job_id: str
    host: str
    start_time: str

    def dump(self) -> bytes:
        return dump_plain("intent", self)

    @classmethod
    def load(cls, data: bytes, name: str) -> "Intent":
        """Return the intent that lies under `name`. Raises ManifestCorrupt, ManifestUnsupported."""
        value = load_plain(cls, "intent", data, name)
        check_ids(name, server_id=value.server_id, backup_id=value.backup_id)
        _check_place(names.intent_name(value.server_id, value.backup_id), name, value.start_time)
        return value


@dataclass(frozen=True, slots=True)
class Damaged:
    """damaged.json. `detail` is the first damage that was found, `count` how many there were."""

    server_id: str
    backup_id: str
    disk: str
    job_id: str
    host: str
    find_time: str
    count: int
    detail: str

    def dump(self) -> bytes:
        return dump_plain("damaged", self)

    @classmethod
    def load(cls, data: bytes, name: str) -> "Damaged":
        """Return the marker that lies under `name`. Raises ManifestCorrupt, ManifestUnsupported."""
        value = load_plain(cls, "damaged", data, name)
        _check_disk(names.damaged_name, value, name, value.find_time)
        return value


@dataclass(frozen=True, slots=True)
class Deleted:
    """deleted.json."""

    server_id: str
    backup_id: str
    disk: str
    job_id: str
    host: str
    delete_time: str

    def dump(self) -> bytes:
        return dump_plain("deleted", self)

    @classmethod
    def load(cls, data: bytes, name: str) -> "Deleted":
        """Return the marker that lies under `name`. Raises ManifestCorrupt, ManifestUnsupported."""
        value = load_plain(cls, "deleted", data, name)
        _check_disk(names.deleted_name, value, name, value.delete_time)
        return value


def _check_place(own_name: str, name: str, time: str) -> None:
    documents.expect(own_name == name, name, f"is really {own_name}")
    expect(is_time(time), name, "the time is not a time")


def _check_disk(own_name: Callable[[str, str, str], str], value: Damaged | Deleted, name: str, time: str) -> None:
    check_ids(name, server_id=value.server_id, backup_id=value.backup_id)
    expect(names.is_disk(value.disk), name, "disk is not a disk's name")
    _check_place(own_name(value.server_id, value.backup_id, value.disk), name, time)
