"""What a storage holds of one server, read from its manifests: the truth that every decision is made on.

servers/<server_id>/<backup_id>/backup.json            a point, if it can be read
                               /<disk>/manifest.json   believed only with the digest that backup.json names
                               /<disk>/damaged.json    a verification found damage in that disk's segments: not built upon any more
                               /<disk>/deleted.json    that disk's data is going, or gone
… without backup.json                                  an attempt: unfinished, or what a crash left
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from engine import chain, listing
from engine.errors import (
    BackupNotFound,
    EngineError,
    FormatError,
    ObjectNotFound,
    ObjectTruncated,
    StorageDenied,
    StorageError,
)
from engine.format import manifest, names
from engine.format.crypto import ServerKey
from engine.format.manifest import DiskManifest, DiskSummary, ServerManifest
from engine.storage.base import Storage

Keys = Mapping[str, ServerKey]


@dataclass(frozen=True, slots=True)
class Point:
    """A backup of a server. `disks` are those whose manifest is whole; `unreadable` the others, with what is wrong."""

    server: ServerManifest
    digest: str
    disks: dict[str, DiskManifest]
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def marked(self) -> bool:
        """Tell whether a disk of it bears the mark of a deletion: the backup is going, and no restore point any more."""
        return any(one.disk not in self.disks and one.disk not in self.unreadable for one in self.server.disks)


@dataclass(frozen=True, slots=True)
class History:
    """All of a server's backups on one storage, oldest first and each after what it builds upon, and what else lies there.

    `unreadable` maps backup ids whose backup.json cannot be used to the reason; `attempts` are folders without one.
    `sizes` has every object of the server by name, in bytes as the storage lists it.
    """

    points: tuple[Point, ...]
    unreadable: dict[str, EngineError]
    attempts: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def damaged(self, backup_id: str, disk: str) -> bool:
        """Tell whether a verification has left its mark on a disk's segments in a backup."""
        return any(
            names.damaged_name(point.server.server_id, backup_id, disk) in self.sizes for point in self.points[:1]
        )

    def of_disk(self, disk: str) -> list[DiskManifest]:
        """Return the whole manifests of a disk, oldest first."""
        return [point.disks[disk] for point in self.points if disk in point.disks]

    def doubtful(self, disk: str) -> bool:
        """Tell whether there are backups that may hold this disk and cannot be read."""
        return bool(self.unreadable) or any(disk in point.unreadable for point in self.points)

    def whole(self, manifest: DiskManifest) -> bool:
        """Tell whether every data file that a disk needs is there with its size, and none is known to be damaged.

        What is in them is not looked at: that is what a verification does, which leaves its mark.
        """
        return not any(self.damaged(layer.backup_id, manifest.disk) for layer in manifest.layers) and all(
            self.sizes.get(names.segment_name(manifest.server_id, layer.backup_id, manifest.disk, segment.number))
            == segment.stored_bytes
            for layer in manifest.layers
            for segment in layer.segments
        )

    def extendable(self, manifest: DiskManifest) -> bool:
        """Tell whether a backup may build upon a disk: it is `whole`, and the listing has the manifests of what it needs.

        A backup.json that is there, but in no listing, makes a restore point, and would be missed at the next commit.
        """
        server_id = manifest.server_id
        return self.whole(manifest) and all(
            {names.backup_name(server_id, one.backup_id), names.manifest_name(server_id, one.backup_id, manifest.disk)}
            <= self.sizes.keys()
            for one in manifest.layers
        )

    def point(self, server_id: str, backup_id: str) -> Point:
        """Return one backup. Raises BackupNotFound, or the reason why it cannot be read: a FormatError, mostly."""
        for point in self.points:
            if point.server.backup_id == backup_id:
                return point
        if backup_id in self.unreadable:
            raise self.unreadable[backup_id]
        raise BackupNotFound(backup_id=backup_id, server_id=server_id)


def read_history(storage: Storage, server_id: str, keys: Keys) -> History:
    """Read every manifest of a server; with a backup's key in `keys` it is authenticated and opened, without only hashed.

    A manifest that is damaged, or that the storage does not hand out though it can be reached, is part of the answer, not an
    error; WrongKey is one, since it says nothing about the backup.
    """
    folders: dict[str, list[names.ObjectName]] = {}
    sizes: dict[str, int] = {}
    for parsed, entry in listing.objects(storage, names.server_folder(server_id)):
        if parsed.kind == "deleted" and not _is_there(storage, entry.name):
            continue  # a mark has its backup deleted: a listing that is behind, or lies, is not enough for that
        folders.setdefault(parsed.backup_id, []).append(parsed)
        sizes[entry.name] = entry.size_bytes
    points, attempts = [], []
    unreadable: dict[str, EngineError] = {}
    for backup_id, objects in sorted(folders.items()):
        kinds = {one.kind for one in objects}
        # A listing may leave out what is there (one that lags behind its storage, or lies): where there are manifests,
        # backup.json itself is asked for. What it needs would be deleted otherwise.
        if not kinds & {"backup", "manifest"}:
            attempts.append(backup_id)
            continue
        try:
            gone = {one.disk for one in objects if one.kind == "deleted"}
            points.append(read_point(storage, server_id, backup_id, keys, gone=gone))
        except ObjectNotFound:  # deleted since it was listed
            if "backup" not in kinds:
                attempts.append(backup_id)
        except (FormatError, StorageError) as error:
            if not of_one_object(error):
                raise
            unreadable[backup_id] = error
    return History(_in_order(points), unreadable, tuple(attempts), sizes)


def _in_order(points: Iterable[Point]) -> tuple[Point, ...]:
    """Return points by their times, but never one before another that it builds upon."""
    by_time = sorted(points, key=lambda point: (point.server.create_time, point.server.backup_id))
    by_id = {point.server.backup_id: point for point in by_time}
    needs = {
        backup_id: [layer.backup_id for disk in sorted(point.disks) for layer in point.disks[disk].layers]
        for backup_id, point in by_id.items()
    }
    return tuple(by_id[backup_id] for backup_id in chain.in_order(needs))


def read_point(storage: Storage, server_id: str, backup_id: str, keys: Keys, gone: set[str] | None = None) -> Point:
    """Read one backup's manifests; `gone` are disks whose data is marked as deleted. Raises FormatError, ObjectNotFound, WrongKey."""
    name = names.backup_name(server_id, backup_id)
    data = storage.get(name)
    server = manifest.load_server(data, name, _key(data, name, keys))
    disks: dict[str, DiskManifest] = {}
    unreadable: dict[str, str] = {}
    for summary in server.disks:
        if summary.disk in (gone or set()):
            continue
        try:
            disks[summary.disk] = _read_disk(storage, server, summary, keys)
        except (FormatError, StorageError) as error:
            if not of_one_object(error):
                raise
            unreadable[summary.disk] = str(error)
    return Point(server, hashlib.sha256(data).hexdigest(), disks, unreadable)


def find_point(storage: Storage, server_id: str, backup_id: str, keys: Keys) -> Point:
    """Read one backup without a look at the server's others. Raises BackupNotFound, and like `read_point`."""
    found = listing.objects(storage, names.backup_folder(server_id, backup_id))
    gone = {one.disk for one, entry in found if one.kind == "deleted" and _is_there(storage, entry.name)}
    try:
        return read_point(storage, server_id, backup_id, keys, gone=gone)
    except ObjectNotFound as error:
        raise BackupNotFound(backup_id=backup_id, server_id=server_id) from error


def of_one_object(error: EngineError) -> bool:
    """Tell whether a failed read says something of that object alone: a bad sector, a right that is missing, damage."""
    if type(error) is StorageError:
        return True
    return isinstance(error, FormatError | ObjectNotFound | ObjectTruncated | StorageDenied)


def list_servers(storage: Storage) -> Iterator[str]:
    """Yield the ids of all servers that have anything on the storage, ascending."""
    found = {one.server_id for one, _ in listing.objects(storage, names.SERVERS, listing.ENTRIES_MAX)}
    yield from sorted(found)


def _is_there(storage: Storage, name: str) -> bool:
    try:
        storage.size(name)
    except ObjectNotFound:
        return False
    return True


def _read_disk(storage: Storage, server: ServerManifest, summary: DiskSummary, keys: Keys) -> DiskManifest:
    name = names.manifest_name(server.server_id, server.backup_id, summary.disk)
    data = storage.get(name)
    if hashlib.sha256(data).hexdigest() != summary.manifest_sha256:
        raise FormatError(name=name, detail="is not the manifest that backup.json names")
    return manifest.load_disk(data, name, keys.get(server.key_id))


def _key(data: bytes, name: str, keys: Keys) -> ServerKey | None:
    """Return the key of the manifest in `data`, None where there is none in `keys`."""
    return keys.get(manifest.load_server(data, name).key_id)
