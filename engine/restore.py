"""Restore a backup: into the domain's own disks, or to files and block devices.

    manifests authentic ─► key opens ─► every index read ─► targets fit      nothing is touched before all of this holds
      ─► restore_domain.py: the domain's disks, in place        ─► restore_files.py: raw, qcow2, block devices

Any disks of any point: each disk may come from a backup of its own, whatever its chain. A restore that fails half-way says
which disks are whole and which are not, leaves the domain stopped, and can be run again.
"""

from pathlib import Path

from engine.catalog import Keys, Point, find_point
from engine.errors import ChainBroken, DiskNotFound, InvalidSpec, KeyMissing, ManifestCorrupt
from engine.format.manifest import DiskManifest
from engine.rebuild import check_layers
from engine.results import RestoreResult
from engine.spec import RestoreJob
from engine.storage.base import Storage
from engine.surroundings import Surroundings, keys_of


def restore(around: Surroundings) -> RestoreResult:
    """Restore what the job asks for. Raises what stands in errors.py."""
    spec = around.job.restore
    assert spec is not None
    around.work.report.stage("prepare")
    with around.repository() as storage:
        keys = keys_of(spec.server_keys)
        point, chosen = find_disks(storage, spec, keys)
        for manifest in chosen:
            check_layers(storage, manifest, keys.get(manifest.key_id), around.work)
        if spec.target_folder or spec.targets:
            from engine.restore_files import restore_to_files

            return restore_to_files(around, storage, _paths(spec, chosen), chosen, keys)
        from engine.restore_domain import DomainRestore

        return DomainRestore(around, spec, storage, point, keys).restore(chosen)


def find_disks(storage: Storage, spec: RestoreJob, keys: Keys) -> tuple[Point, list[DiskManifest]]:
    """Return the job's backup, and the manifests of the disks to restore, all opened and authenticated. Raises what `restore` does."""
    point = _point(storage, spec, spec.backup_id, keys)
    return point, _chosen(storage, point, spec, keys)


def _point(storage: Storage, spec: RestoreJob, backup_id: str, keys: Keys) -> Point:
    """Return a backup with its manifests, opened and authenticated."""
    point = find_point(storage, spec.server_id, backup_id, keys)
    if point.server.key_id and point.server.key_id not in keys:
        raise KeyMissing(key_id=point.server.key_id)
    if keys and not point.server.key_id:
        raise ManifestCorrupt(name=point.server.name, detail="is not encrypted, but a key was given for it")
    if backup_id == spec.backup_id and spec.manifest_digest and spec.manifest_digest != point.digest:
        raise ManifestCorrupt(name=point.server.name, detail="is not the one that the catalog knows")
    return point


def _chosen(storage: Storage, base: Point, spec: RestoreJob, keys: Keys) -> list[DiskManifest]:
    """Return the manifests of the disks to restore, each of the backup that is asked for it; all disks if none is named."""
    points = {base.server.backup_id: base}
    held = {summary.disk for summary in base.server.disks}
    names = spec.disks or tuple(sorted(held | set(spec.points)))
    for disk in (*spec.points, *spec.targets):
        if disk not in names:
            raise InvalidSpec(
                field=disk, problem="is given a backup or a target, and is not among the disks to restore"
            )
    chosen = []
    for disk in dict.fromkeys(names):
        backup_id = spec.points.get(disk, spec.backup_id)
        if backup_id not in points:
            points[backup_id] = _point(storage, spec, backup_id, keys)
        chosen.append(_manifest(points[backup_id], disk))
    return chosen


def _manifest(point: Point, disk: str) -> DiskManifest:
    backup_id = point.server.backup_id
    if disk not in {summary.disk for summary in point.server.disks}:
        raise DiskNotFound(domain=f"backup {backup_id}", disk=disk)
    if disk not in point.disks:
        missing = point.unreadable.get(disk, "its data, which was deleted")
        raise ChainBroken(backup_id=backup_id, disk=disk, missing=missing)
    return point.disks[disk]


def _paths(spec: RestoreJob, chosen: list[DiskManifest]) -> dict[str, Path]:
    """Return where each disk goes: its own target, or `<disk>.<format>` in the folder."""
    paths: dict[str, Path] = {}
    for manifest in chosen:
        name = spec.targets.get(manifest.disk, "")
        if not name and not spec.target_folder:
            raise InvalidSpec(field=manifest.disk, problem="is given no target, and there is no folder for it")
        path = Path(name) if name else Path(spec.target_folder) / f"{manifest.disk}.{spec.target_format}"
        if not path.is_absolute():
            raise InvalidSpec(field=str(path), problem="must be an absolute path")
        if path in paths.values():
            raise InvalidSpec(field=str(path), problem="is the target of two disks")
        paths[manifest.disk] = path
    return paths


def expect(around: Surroundings, chosen: list[DiskManifest]) -> None:
    """Say that the data begins to be written, and how much it is."""
    total = sum(segment.plain_bytes for one in chosen for layer in one.layers for segment in layer.segments)
    around.work.report.stage("write", total)
