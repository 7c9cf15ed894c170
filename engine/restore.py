"""Restore a backup: into the domain's own disks, or to new raw files.

    manifests authentic ─► key opens ─► every index read ─► sizes fit      nothing is touched before all of this holds
      ─► the domain is stopped ─► its checkpoints go ─► disk by disk ─► it is started again, if it ran

A restore that fails after the first byte says so, leaves the domain stopped, and can be run again; one that fails before it
starts the domain again.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine.catalog import Keys, Point, find_point
from engine.errors import (
    BackupManagerError,
    ChainBroken,
    DiskMismatch,
    DiskNotFound,
    DomainNotFound,
    DomainState,
    KeyMissing,
    ManifestCorrupt,
    TargetError,
)
from engine.failpoint import reached
from engine.format.manifest import DiskManifest
from engine.jobs import Surroundings, keys_of
from engine.rebuild import check_layers, rebuild
from engine.results import RestoreResult
from engine.spec import RestoreJob
from engine.storage.base import Storage
from engine.target import NbdTarget, RawTarget

if TYPE_CHECKING:
    from engine.hypervisor.connection import Connection, Domain
    from engine.hypervisor.domains import DiskInfo, DomainInfo

log = logging.getLogger(__name__)


def restore(around: Surroundings) -> RestoreResult:
    """Restore what the job asks for. Raises what stands in errors.py."""
    spec = around.job.restore
    assert spec is not None
    around.work.report.stage("prepare")
    with around.repository() as storage:
        keys = keys_of(spec.server_keys)
        point = _point(storage, spec, keys)
        chosen = _chosen(point, spec)
        for manifest in chosen:
            check_layers(storage, manifest, keys.get(manifest.key_id), around.work)
        if spec.target_folder:
            return _to_files(around, storage, Path(spec.target_folder), chosen, keys)
        return _Domain(around, spec, storage, point, keys).restore(chosen)


def _point(storage: Storage, spec: RestoreJob, keys: Keys) -> Point:
    """Return the backup with its manifests, opened and authenticated."""
    point = find_point(storage, spec.server_id, spec.backup_id, keys)
    if point.server.key_id and point.server.key_id not in keys:
        raise KeyMissing(key_id=point.server.key_id)
    if keys and not point.server.key_id:
        raise ManifestCorrupt(name=point.server.name, detail="is not encrypted, but a key was given for it")
    if spec.manifest_digest and spec.manifest_digest != point.digest:
        raise ManifestCorrupt(name=point.server.name, detail="is not the one that the catalog knows")
    return point


def _chosen(point: Point, spec: RestoreJob) -> list[DiskManifest]:
    """Return the manifests of the disks to restore; all of the backup's if none is named."""
    held = {summary.disk for summary in point.server.disks}
    for disk in spec.disks:
        if disk not in held:
            raise DiskNotFound(domain=f"backup {spec.backup_id}", disk=disk)
    names = spec.disks or tuple(sorted(held))
    for disk in names:
        if disk not in point.disks:
            missing = point.unreadable.get(disk, "its data, which was deleted")
            raise ChainBroken(backup_id=spec.backup_id, disk=disk, missing=missing)
    return [point.disks[disk] for disk in names]


def _expect(around: Surroundings, chosen: list[DiskManifest]) -> None:
    total = sum(segment.plain_bytes for one in chosen for layer in one.layers for segment in layer.segments)
    around.work.report.stage("write", total)


# ---- to files ----------------------------------------------------------------------------------------------------------


def _to_files(
    around: Surroundings, storage: Storage, folder: Path, chosen: list[DiskManifest], keys: Keys
) -> RestoreResult:
    """Write `<disk>.raw` for each disk into `folder`, which must exist; a file appears under that name when it is whole."""
    _expect(around, chosen)
    written, files = 0, []
    for manifest in chosen:
        final = folder / f"{manifest.disk}.raw"
        if final.exists():
            raise TargetError(target=final, detail="is there already")
        part = folder / f".{manifest.disk}.raw.part"
        part.unlink(missing_ok=True)
        target = RawTarget.create(part, manifest.size_bytes)
        whole = False
        try:
            written += rebuild(storage, manifest, keys.get(manifest.key_id), target, around.work)
            whole = True
        finally:
            target.finish()
            if not whole:
                part.unlink(missing_ok=True)
        _publish(part, final)
        files.append(str(final))
    return RestoreResult([one.disk for one in chosen], written, server_started=False, files=files)


def _publish(part: Path, final: Path) -> None:
    """Give a whole file its name, unless that is taken. Raises TargetError; the file then stays under the name it has."""
    from engine.storage.local import rename_exclusively

    try:
        try:
            os.link(part, final)
        except FileExistsError:
            raise
        except OSError:  # exFAT, CIFS and many FUSE file systems have no links
            folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                rename_exclusively(folder, part.name, final.name)
            finally:
                os.close(folder)
        part.unlink(missing_ok=True)
    except OSError as error:
        raise TargetError(target=final, detail=f"{error.strerror}; the whole disk is in {part}") from error


# ---- into the domain ---------------------------------------------------------------------------------------------------


class _Domain:
    """The domain whose disks are written."""

    def __init__(self, around: Surroundings, spec: RestoreJob, storage: Storage, point: Point, keys: Keys) -> None:
        self._around = around
        self._spec = spec
        self._storage = storage
        self._point = point
        self._keys = keys
        self._touched = False  # some disk may not be what it was

    def restore(self, chosen: list[DiskManifest]) -> RestoreResult:
        from engine.hypervisor.connection import RESTART_SECONDS, open_connection
        from engine.hypervisor.domains import domain_info, shut_down, start
        from engine.hypervisor.lock import DomainLock

        around, uuid = self._around, self._spec.domain_uuid
        with (
            DomainLock(around.lock_folder, uuid, around.job.job_id),
            open_connection(around.operation.libvirt_uri, RESTART_SECONDS) as connection,
        ):
            domain = self._find_or_define(connection, chosen)
            info = domain_info(domain)
            if not info.persistent:  # to stop it would be its end
                raise DomainState(domain=info.name, state="transient", needed="a persistent domain")
            images = {disk.target: disk for disk in info.disks}
            for manifest in chosen:
                _check_fit(info, images, manifest)
            ran = info.active
            reached("checked")
            around.work.stop.check()
            try:
                if ran:
                    around.work.report.info(f"stopping domain {domain.name}")
                    shut_down(domain, around.operation.stop_grace_seconds, around.work.stop)
                reached("stopped")
                self._forget_changes(domain, chosen)
                reached("forgotten")
                written = self._write(chosen, images)
            except BaseException:
                if ran and not self._touched:
                    self._leave_running(domain)
                raise
            reached("written")
            if ran:
                start(domain)
            reached("started")
        return RestoreResult([one.disk for one in chosen], written, server_started=ran)

    def _leave_running(self, domain: "Domain") -> None:
        """Start the domain again, whose disks are as they were. One that was only asked to shut down may do so yet."""
        from engine.hypervisor.domains import is_active, start

        if is_active(domain):
            self._around.work.report.warn(
                f"domain {domain.name} was asked to shut down and still runs; if it does stop, it has to be started again"
            )
        start(domain)

    def _find_or_define(self, connection: "Connection", chosen: list[DiskManifest]) -> "Domain":
        """Return the domain; one that is gone is defined anew from the backup, with empty images (T25)."""
        try:
            return connection.domain(self._spec.domain_uuid)
        except DomainNotFound:
            definition = self._point.server.sealed
            if definition is None or not definition.domain_xml:
                raise
        from engine.revive import define_anew

        domain = define_anew(connection, definition, {one.disk: one.size_bytes for one in chosen})
        self._around.work.report.warn("the domain was gone and has been defined anew from the backup")
        return domain

    def _forget_changes(self, domain: "Domain", chosen: list[DiskManifest]) -> None:
        """Remove our checkpoints of all repositories: what a bitmap recorded says nothing about a disk that was written over."""
        from engine.hypervisor.checkpoints import delete_checkpoint, list_checkpoints
        from engine.hypervisor.notes import note_restored

        written = {one.disk for one in chosen}
        note_restored(domain, written, self._around.now())
        for checkpoint in list_checkpoints(domain):
            if written & ({*checkpoint.disks} | {*checkpoint.noted}):
                delete_checkpoint(domain, checkpoint.name)

    def _write(self, chosen: list[DiskManifest], images: dict[str, "DiskInfo"]) -> int:
        from engine.source.export import export_image

        _expect(self._around, chosen)
        written = 0
        with contextlib.ExitStack() as stack:
            # All are opened before the first byte is written: one that cannot be must not be found with another half new.
            targets = []
            for manifest in chosen:
                image = images[manifest.disk]
                export = stack.enter_context(export_image(image.path, image.format, writable=True))
                targets.append((manifest, NbdTarget(export.socket, export.name, export.size_bytes)))
            for manifest, target in targets:
                written += self._write_disk(manifest, target)
        return written

    def _write_disk(self, manifest: DiskManifest, target: NbdTarget) -> int:
        work = self._around.work
        try:
            return rebuild(self._storage, manifest, self._keys.get(manifest.key_id), target, work)
        except BackupManagerError:
            if target.touched:
                work.report.warn(
                    f"disk {manifest.disk} is half restored and the server is left stopped; run the restore again"
                )
            raise
        finally:
            self._touched |= target.touched


def _check_fit(info: "DomainInfo", images: dict[str, "DiskInfo"], manifest: DiskManifest) -> None:
    """Raise unless the domain has the disk, and it is large enough."""
    image = images.get(manifest.disk)
    if image is None:
        raise DiskNotFound(domain=info.name, disk=manifest.disk)
    if image.unsupported:
        raise DiskMismatch(disk=manifest.disk, detail=image.unsupported)
    if image.size_bytes < manifest.size_bytes:
        detail = f"it has {image.size_bytes} bytes, the backup's has {manifest.size_bytes}"
        raise DiskMismatch(disk=manifest.disk, detail=detail)
