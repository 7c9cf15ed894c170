"""Restore into the disks of a domain, in place.

    found, or defined anew from the backup ─► missing images made ─► fits, free ─► stopped ─► its bitmaps of these disks go
      ─► disk by disk ─► started again, if it ran

Until the first byte is written everything can be undone, and is: what was made goes, and a domain that ran runs again. From
then on it stays stopped until all its disks are whole. Disks that are not restored keep their bitmaps: their next backup is
an incremental.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from engine.catalog import Keys, Point
from engine.errors import (
    BackupManagerError,
    DiskMismatch,
    DiskNotFound,
    DomainBusy,
    DomainNotFound,
    DomainState,
    ImageBusy,
)
from engine.failpoint import reached
from engine.format.manifest import DiskManifest
from engine.rebuild import rebuild
from engine.restore import expect
from engine.results import RestoreResult
from engine.spec import RestoreJob
from engine.storage.base import Storage
from engine.surroundings import Surroundings
from engine.target import NbdTarget

if TYPE_CHECKING:
    from engine.hypervisor.connection import Connection, Domain
    from engine.hypervisor.domains import DiskInfo, DomainInfo


class DomainRestore:
    """One restore into one domain."""

    def __init__(self, around: Surroundings, spec: RestoreJob, storage: Storage, point: Point, keys: Keys) -> None:
        self._around = around
        self._spec = spec
        self._storage = storage
        self._point = point
        self._keys = keys
        self._whole: list[str] = []
        self._half: list[str] = []
        self._undo = contextlib.ExitStack()  # what was made, until the first byte is written

    def restore(self, chosen: list[DiskManifest]) -> RestoreResult:
        """Restore the disks. Raises what stands in errors.py."""
        from engine.hypervisor.connection import RESTART_SECONDS, open_connection
        from engine.hypervisor.lock import DomainLock

        around = self._around
        with (
            DomainLock(around.lock_folder, self._spec.domain_uuid, around.job.job_id),
            open_connection(around.operation.libvirt_uri, RESTART_SECONDS) as connection,
        ):
            try:
                return self._restore(connection, chosen)
            except BaseException:
                if not self._touched:
                    self._undo.close()
                raise

    @property
    def _touched(self) -> bool:
        """Whether some disk may not be what it was."""
        return bool(self._whole or self._half)

    def _restore(self, connection: "Connection", chosen: list[DiskManifest]) -> RestoreResult:
        from engine.hypervisor.domains import domain_info, shut_down, start

        around = self._around
        domain = self._find_or_define(connection, chosen)
        self._make_missing(connection, domain, chosen)
        info = domain_info(domain)
        if not info.persistent:  # to stop it would be its end
            raise DomainState(domain=info.name, state="transient", needed="a persistent domain")
        if info.migrating:
            raise DomainBusy(domain=info.name, holder="a migration")
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
            _refuse_busy(chosen, images)
            self._forget_changes(domain, chosen)
            reached("forgotten")
            written = self._write(domain, chosen, images)
        except BaseException:
            if ran and not self._touched:
                self._leave_running(domain)
            raise
        reached("written")
        self._warn_of_absent(images)
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

    # ---- what has to be there ----------------------------------------------------------------------------------------

    def _find_or_define(self, connection: "Connection", chosen: list[DiskManifest]) -> "Domain":
        """Return the domain; one that is gone is defined anew from the backup, with empty images (T25)."""
        try:
            return connection.domain(self._spec.domain_uuid)
        except DomainNotFound:
            definition = self._point.server.sealed
            if definition is None or not definition.domain_xml:
                raise
        from engine.revive import define_anew

        sizes = {one.disk: one.size_bytes for one in chosen}
        domain = define_anew(connection, definition, sizes, self._undo)
        self._around.work.report.warn("the domain was gone and has been defined anew from the backup")
        return domain

    def _make_missing(self, connection: "Connection", domain: "Domain", chosen: list[DiskManifest]) -> None:
        """Make the images that the domain names and that are not there, as after a restore of some of its disks."""
        from engine.hypervisor.domains import definition
        from engine.revive import make_missing_images

        sizes = {one.disk: one.size_bytes for one in chosen}
        for path in make_missing_images(connection, definition(domain), sizes, domain.uuid, self._undo):
            self._around.work.report.warn(f"the image {path} was gone and is made anew")

    def _warn_of_absent(self, images: dict[str, "DiskInfo"]) -> None:
        absent = sorted(one.target for one in images.values() if one.path and not Path(one.path).exists())
        if absent:
            self._around.work.report.warn(
                f"the image of disk {', '.join(absent)} is not there: restore that too before the server is started"
            )

    def _forget_changes(self, domain: "Domain", chosen: list[DiskManifest]) -> None:
        """Remove our bitmaps of these disks, of all repositories: they say nothing about a disk that was written over."""
        from engine.hypervisor.checkpoints import forget_disks
        from engine.hypervisor.notes import note_restored

        written = {one.disk for one in chosen}
        note_restored(domain, written, self._around.now())
        reached("noted")
        forget_disks(domain, written)

    def _forget_memory(self, domain: "Domain") -> None:
        """Drop the memory of a saved domain: going on from there, its guest would write over a disk that it does not know."""
        from engine.hypervisor.domains import drop_managed_save

        if drop_managed_save(domain):
            self._around.work.report.warn(
                "the domain was saved with its memory, which is dropped: its disks are others now"
            )

    # ---- the data ----------------------------------------------------------------------------------------------------

    def _write(self, domain: "Domain", chosen: list[DiskManifest], images: dict[str, "DiskInfo"]) -> int:
        from engine.source.export import export_image

        expect(self._around, chosen)
        written = 0
        with contextlib.ExitStack() as stack:
            # All are opened before the first byte is written: one that cannot be must not be found with another half new.
            targets = []
            for manifest in chosen:
                image = images[manifest.disk]
                export = stack.enter_context(export_image(image.path, image.format, writable=True))
                targets.append((manifest, NbdTarget(export.socket, export.name, export.size_bytes)))
                reached("exported")
            self._forget_memory(domain)
            for manifest, target in targets:
                written += self._write_disk(manifest, target, chosen)
        self._undo.pop_all()
        return written

    def _write_disk(self, manifest: DiskManifest, target: NbdTarget, chosen: list[DiskManifest]) -> int:
        try:
            written = rebuild(self._storage, manifest, self._keys.get(manifest.key_id), target, self._around.work)
        except BaseException as error:
            if target.touched:
                self._half.append(manifest.disk)
            if self._touched:
                self._tell_state(chosen, error)
            raise
        self._whole.append(manifest.disk)
        reached("disk_written")
        return written

    def _tell_state(self, chosen: list[DiskManifest], error: BaseException) -> None:
        """Say which disks are what they should be; the error carries it too."""
        as_before = [one.disk for one in chosen if one.disk not in {*self._whole, *self._half}]
        state = {"whole": self._whole, "half": self._half, "as_before": as_before}
        words = {"whole": "restored", "half": "half restored", "as_before": "not begun"}
        text = "; ".join(f"{words[kind]}: {', '.join(disks)}" for kind, disks in state.items() if disks)
        self._around.work.report.warn(f"the server is left stopped ({text}); run the restore again")
        if isinstance(error, BackupManagerError):
            error.facts.update({kind: ", ".join(disks) for kind, disks in state.items()})


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


def _refuse_busy(chosen: list[DiskManifest], images: dict[str, "DiskInfo"]) -> None:
    """Raise ImageBusy while another process has one of the images open: before the first bitmap is given up for it."""
    from engine.source.images import image_in_use

    for manifest in chosen:
        image = images[manifest.disk]
        if Path(image.path).exists() and image_in_use(image.path, image.format):
            raise ImageBusy(path=image.path)
