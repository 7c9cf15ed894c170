"""What this host knows of its servers' backups: an index of their manifests, kept beside the agent's state (C9).

    <folder>/<repository id>/<server id>.json        SHA-256 of the rest, and the records that a reindex would bring
                            /<server id>.<job>.open  a job is about to change it; whoever holds its lock is alive

The storage is the truth. Each backup, deletion and reindex of this host brings the file up to date, by replacing it; one that is
missing, damaged, or was being changed when its engine died counts as not there and is built anew from the storage.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from engine import spec
from engine.errors import InvalidSpec
from engine.ids import is_id
from engine.results import BackupRecord

log = logging.getLogger(__name__)

VERSION = 1
Record: TypeAlias = dict[str, Any]
Change: TypeAlias = Callable[[list[Record]], list[Record]]


@dataclass(frozen=True, slots=True)
class HostCatalog:
    """The files of one repository. Methods raise OSError where the folder cannot be used; any process may call them."""

    folder: Path
    repository_id: str

    @property
    def _home(self) -> Path:
        return self.folder / self.repository_id

    def servers(self) -> list[str]:
        """Return the ids of the servers that have a file."""
        return sorted(path.stem for path in self._home.glob("*.json") if is_id(path.stem))

    def read(self, server_id: str) -> list[Record] | None:
        """Return a server's records, oldest first; None where only the storage can tell."""
        if any(not _is_held(mark) for mark in self._marks(server_id)):
            return None
        try:
            return _parse((self._home / f"{server_id}.json").read_bytes(), self.repository_id, server_id)
        except (OSError, InvalidSpec) as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("The catalog file of a server cannot be used server_id=%s: %s", server_id, error)
            return None

    def rebuild(self, server_id: str, records: list[Record]) -> None:
        """Put what the storage says in the file's place; none if there are no records."""
        with self._locked():
            for mark in self._marks(server_id):
                if not _is_held(mark):
                    mark.unlink(missing_ok=True)
            self._write(server_id, records)

    def keep_only(self, servers: Collection[str]) -> None:
        """Forget all other servers: the storage has nothing of them."""
        for server_id in set(self.servers()) - set(servers):
            self.rebuild(server_id, [])

    def update(self, server_id: str, change: Change) -> None:
        """Change a server's records, if they are known; else they stay unknown until the storage is read."""
        with self._locked():
            records = self.read(server_id)
            if records is not None:
                self._write(server_id, change(records))

    @contextlib.contextmanager
    def changing(self, server_id: str, job_id: str) -> Iterator[None]:
        """Mark for the block that the storage may change: if this process dies in it, the file is not believed any more."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark = self._home / f"{server_id}.{job_id}.open"
        with mark.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                mark.unlink(missing_ok=True)

    def _marks(self, server_id: str) -> list[Path]:
        return list(self._home.glob(f"{server_id}.*.open"))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._home / ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, server_id: str, records: list[Record]) -> None:
        path = self._home / f"{server_id}.json"
        if not records:
            path.unlink(missing_ok=True)
            return
        ordered = sorted(records, key=lambda one: (one["backup"]["create_time"], one["backup"]["backup_id"]))
        head = {"version": VERSION, "repository_id": self.repository_id, "server_id": server_id}
        body = json.dumps({**head, "records": ordered}, separators=(",", ":")).encode()
        part = path.with_suffix(f".part{os.getpid()}")
        with part.open("wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def repositories(folder: Path) -> list[HostCatalog]:
    """Return the catalogs of all repositories that this host knows something of."""
    with contextlib.suppress(OSError):
        return [HostCatalog(folder, path.name) for path in sorted(folder.iterdir()) if is_id(path.name)]
    return []


def with_backup(record: BackupRecord) -> Change:
    """Return the change that a new backup makes."""

    def change(records: list[Record]) -> list[Record]:
        others = [one for one in records if one["backup"]["backup_id"] != record.backup.backup_id]
        return [*others, asdict(record)]

    return change


def without(backup_ids: Collection[str]) -> Change:
    """Return the change that a deletion makes."""
    return lambda records: [one for one in records if one["backup"]["backup_id"] not in backup_ids]


def rebuilder(catalog: HostCatalog, warn: Callable[[str], None]) -> Callable[[str, list[Record]], None]:
    """Return what a reindex calls for each server it has read; a folder that cannot be written is only warned of."""

    def keep(server_id: str, records: list[Record]) -> None:
        try:
            catalog.rebuild(server_id, records)
        except OSError as error:
            warn(f"this host's own catalog could not be written: {error}")

    return keep


def _is_held(mark: Path) -> bool:
    """Tell whether the process that made the mark is alive; a mark that is gone meanwhile stands for one that ended well."""
    try:
        with mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return True
    return False


def _parse(data: bytes, repository_id: str, server_id: str) -> list[Record]:
    digest, _, rest = data.partition(b"\n")
    body = rest.removesuffix(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise InvalidSpec(field=server_id, problem="the file is damaged")
    values = json.loads(body)
    found = (values.get("version"), values.get("repository_id"), values.get("server_id"))
    if found != (VERSION, repository_id, server_id):
        raise InvalidSpec(field=server_id, problem="the file is of another version, repository or server")
    records: list[Record] = values["records"]
    for position, one in enumerate(records):
        spec.from_json(BackupRecord, one, f"records[{position}]")
    return records
