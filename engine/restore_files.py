"""Restore disks to new image files, in place of old ones, or to block devices.

    new file        .NAME.part ── whole, flushed ──► NAME, if nobody took that name meanwhile
    existing file   the same, and then in its place: the old one is whole until the new one is       only with `overwrite`
    block device    written where it is                                                              only with `overwrite`

Nothing that is mounted, open in any process, behind a loop device or named by a domain is written to.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.catalog import Keys
from engine.errors import BackupManagerError, LibvirtUnreachable, TargetError
from engine.failpoint import reached
from engine.format.manifest import DiskManifest
from engine.in_use import refuse_used
from engine.qcow2 import Qcow2Target, Unusual
from engine.rebuild import rebuild
from engine.restore import expect
from engine.results import RestoreResult
from engine.source.export import export_image
from engine.source.images import create_image
from engine.storage.base import Storage
from engine.surroundings import Surroundings
from engine.target import NbdTarget, RawTarget, Target


def restore_to_files(
    around: Surroundings, storage: Storage, paths: dict[str, Path], chosen: list[DiskManifest], keys: Keys
) -> RestoreResult:
    """Write each disk to its path. Raises TargetError before anything is written if one of them will not do."""
    spec = around.job.restore
    assert spec is not None
    for manifest in chosen:
        _check(around, paths[manifest.disk], overwrite=spec.overwrite)
    expect(around, chosen)
    written, done = 0, list[str]()
    for manifest in chosen:
        path = paths[manifest.disk]
        try:
            with _opened(path, manifest.size_bytes, spec.target_format, overwrite=spec.overwrite) as target:
                written += rebuild(storage, manifest, keys.get(manifest.key_id), target, around.work)
        except BackupManagerError as error:
            error.facts["whole"] = ", ".join(done)
            if done:
                around.work.report.warn(f"restored whole before this failed: {', '.join(done)}")
            if _is_device(path):
                around.work.report.warn(f"{path} may be half written; run the restore of {manifest.disk} again")
            raise
        done.append(f"{manifest.disk} in {path}")
    files = [str(paths[one.disk]) for one in chosen]
    return RestoreResult([one.disk for one in chosen], written, server_started=False, files=files)


def _check(around: Surroundings, path: Path, *, overwrite: bool) -> None:
    """Raise TargetError unless the path is free, or may be written over and is not in use."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise TargetError(target=path, detail="its folder does not exist") from None
        if _below_dev(path):
            raise TargetError(target=path, detail="there is no such device, and /dev is memory") from None
        return
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise TargetError(target=path, detail="is neither a file nor a block device")
    if not overwrite:
        raise TargetError(target=path, detail="is there already; ask for it to be written over if that is meant")
    refuse_used(path)
    _refuse_disk_of_domain(around, path)


def _refuse_disk_of_domain(around: Surroundings, path: Path) -> None:
    """Raise TargetError if a domain of this host names the path; without libvirt nobody can tell."""
    from engine.hypervisor.connection import open_connection
    from engine.hypervisor.domains import sources_in_use

    try:
        with open_connection(around.operation.libvirt_uri) as connection:
            owner = sources_in_use(connection).get(os.path.realpath(path))
    except LibvirtUnreachable:
        around.work.report.warn(f"libvirt cannot be asked whether {path} is a domain's disk")
        return
    if owner:
        raise TargetError(target=path, detail=f"it is a disk of domain {owner}; restore into the domain instead")


@contextlib.contextmanager
def _opened(path: Path, size_bytes: int, image_format: str, *, overwrite: bool) -> Iterator[Target]:
    """Open the target for the block; a file gets its name when the block succeeds, and goes when it fails."""
    if _is_device(path):
        device = RawTarget.device(path, size_bytes)
        try:
            yield device
        finally:
            device.finish()
        return
    final = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    part = final.with_name(f".{final.name}.part")
    part.unlink(missing_ok=True)
    try:
        with _new_image(part, size_bytes, image_format) as target:
            reached("file_made")
            yield target
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if overwrite and final.exists():
        _replace(part, final)
    else:
        publish(part, final)
    reached("file_named")


@contextlib.contextmanager
def _new_image(part: Path, size_bytes: int, image_format: str) -> Iterator[Target]:
    if image_format == "qcow2":
        create_image(str(part), "qcow2", size_bytes)
        with _new_qcow2(part) as target:
            yield target
        return
    raw = RawTarget.create(part, size_bytes)
    try:
        yield raw
    finally:
        raw.finish()


@contextlib.contextmanager
def _new_qcow2(part: Path) -> Iterator[Target]:
    try:
        image = Qcow2Target(part)
    except Unusual:
        with export_image(str(part), "qcow2", writable=True) as export:
            yield NbdTarget(export.socket, export.name, export.size_bytes, blank=True)
        return
    try:
        yield image
    finally:
        image.finish()


def publish(part: Path, final: Path) -> None:
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


def _replace(part: Path, final: Path) -> None:
    """Put a whole file in the place of another, with that one's owner and mode. Raises TargetError."""
    refuse_used(final)  # hours have passed since it was looked at
    try:
        status = final.stat()
        os.chown(part, status.st_uid, status.st_gid)
        part.chmod(stat.S_IMODE(status.st_mode))
        part.replace(final)
    except OSError as error:
        raise TargetError(target=final, detail=f"{error.strerror}; the whole disk is in {part}") from error


def _is_device(path: Path) -> bool:
    return path.is_block_device()


def _below_dev(path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to("/dev")
