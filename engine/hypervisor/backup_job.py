"""A pull-mode backup job of a running domain: all its disks at one instant, served over NBD until the job ends.

    begin ──► QEMU: new bitmaps (the checkpoint), copy-before-write into scratch files, an NBD server on a unix socket
                    <scratch folder>/<digest of the domain's uuid>/nbd     export = the disk's target, such as vda
                                                              /<target>.scratch    what the guest has overwritten since
    end   ──► the job is gone, socket and scratch files too

Full and incremental disks go together in one job. A disk that holds no bitmaps takes part without a checkpoint. The
folder belongs to QEMU's user and nobody else: whoever can connect to the socket can read the guest's disks. Hosts with
AppArmor must allow QEMU the scratch folder. A scratch file without room stops the guest: measure first (`check_room`),
watch, end in time, and the end of the job lets the guest go on if it happened all the same.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self
from xml.etree import ElementTree as ET

import libvirt

from engine.errors import (
    DiskNotFound,
    DiskUnsupported,
    DomainBusy,
    DomainGone,
    DomainNotFound,
    DomainState,
    HypervisorError,
    LibvirtUnreachable,
    ScratchShort,
)
from engine.failpoint import reached
from engine.hypervisor.connection import Domain, code_of
from engine.hypervisor.domains import DiskInfo, DomainInfo, domain_info, is_active, parse, stopped_by_io_error
from engine.hypervisor.io_threads import unreadable

log = logging.getLogger(__name__)

# 5-90 ms usually; a QEMU that waits for a slow disk takes longer. And libvirt 9.0 hears of the end through the one thread that
# handles events, which each opening or closing of a guest's serial port during a backup (an agent that is restarted) holds up
# for 30 s.
_END_SECONDS_MAX = 180.0
_POLL_SECONDS = 0.02
_SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un
_FOLDER_DIGITS = 12
_DAC_LABEL = re.compile(r"\+?(\d+):\+?(\d+)")


@dataclass(frozen=True, slots=True)
class RunningJob:
    """What libvirt tells of the backup job that a domain has now, ours or not."""

    socket_path: str
    scratch_paths: tuple[str, ...]

    def belongs_to(self, folder: Path) -> bool:
        """Tell whether all of the job lies below a folder, so that it is ours to end."""
        paths = [path for path in (self.socket_path, *self.scratch_paths) if path]
        return bool(paths) and all(Path(path).is_relative_to(folder) for path in paths)


class BackupJob:
    """A job that runs, from `begin`. Any thread may use it; end it with `end` or as a `with` block."""

    def __init__(
        self,
        domain: Domain,
        folder: Path,
        socket_path: Path,
        bases: Mapping[str, str | None],
        *,
        stopped_before: bool = False,
    ) -> None:
        self.domain = domain
        self.socket_path = socket_path
        self.bases = dict(bases)
        self._folder = folder
        self._lock = threading.Lock()
        self._ended = False
        self._stopped_before = stopped_before  # by a write error that has nothing to do with us

    @property
    def disks(self) -> tuple[str, ...]:
        return tuple(self.bases)

    def bitmap_name(self, disk: str) -> str:
        """Return the name of the exported bitmap of what changed, for NBD's context `qemu:dirty-bitmap:<name>`; "" for a full."""
        return f"backup-{disk}" if self.bases[disk] is not None else ""

    def scratch_path(self, disk: str) -> Path:
        """Return the file that takes what the guest overwrites on a disk while the job runs."""
        return _scratch_path(self._folder, disk)

    def scratch_used(self) -> int:
        """Return the bytes that the scratch files take on the host now."""
        total = 0
        for disk in self.bases:
            with contextlib.suppress(FileNotFoundError):
                total += _scratch_path(self._folder, disk).stat().st_blocks * 512  # POSIX: st_blocks counts 512 bytes
        return total

    @property
    def folder(self) -> Path:
        """Where the job's scratch files are."""
        return self._folder

    def resume_io_error(self) -> bool:
        """Let the guest go on if a write error stopped it while the job ran, and it repeats that write; True if it was so."""
        return not self._stopped_before and _resume_io_error(self.domain)

    def check_alive(self) -> None:
        """Raise DomainGone if the job no longer runs, because the domain stopped or somebody ended it."""
        job = running_job(self.domain)
        if job is None or job.socket_path != str(self.socket_path):
            raise DomainGone(domain=self.domain.name, operation="backup job", detail="the job is gone", code=0)

    def end(self) -> None:
        """End the job, wait until it is gone, and remove its files. May be called twice, and after the domain's end.

        A guest that QEMU stopped while the job ran, because a write found no room, goes on: the room is there again.
        Raises HypervisorError when QEMU does not let go of it in 180 s; then the files stay for `clean_stale`.
        """
        with self._lock:
            if self._ended:
                return
            _abort(self.domain, str(self.socket_path), self.resume_io_error)
            _remove(self._folder)
            self.resume_io_error()
            with contextlib.suppress(OSError):  # given by the caller, outside of our folder
                self.socket_path.unlink(missing_ok=True)
            self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()


def begin(
    domain: Domain,
    bases: Mapping[str, str | None],
    checkpoint: str,
    scratch_folder: Path,
    socket_path: Path | None = None,
    info: DomainInfo | None = None,
    copies: Collection[str] = (),
) -> BackupJob:
    """Begin a job for the disks of `bases` at one instant; this call is the instant.

    `bases` has each disk's checkpoint to count changes from, None for a full. `checkpoint` names the new point in time that
    is made for the disks that hold bitmaps and are not in `copies`, "" for none. The caller holds the domain's lock. With `info` (from
    `domain_info`, not old) one look at the domain is saved.
    Raises DomainBusy when the domain has a job already, CheckpointUnusable when a base's bitmap is not there or broken,
    DomainState for a stopped domain, DiskNotFound and DiskUnsupported, HypervisorError for what else QEMU refuses.
    """
    info = info or domain_info(domain)
    if not info.active:
        raise DomainState(domain=domain.name, state=info.state, needed="a running domain")
    chosen = _chosen(info, bases)
    for disk, detail in unreadable(domain, info).items():
        if disk in bases:
            raise DiskUnsupported(disk=disk, detail=detail)
    _refuse_busy(domain, scratch_folder)
    folder = job_folder(scratch_folder, domain.uuid)
    socket = socket_path or folder / "nbd"
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES_MAX:
        raise HypervisorError(
            operation="virDomainBackupBegin", detail=f"the socket's path is too long: {socket}", code=0
        )
    stopped_before = stopped_by_io_error(domain)
    _prepare(domain, folder)
    backup_xml = _backup_xml(info, bases, folder, socket)
    tracked = [disk for disk in chosen if disk.target not in copies]
    checkpoint_xml = _checkpoint_xml(info, tracked, checkpoint) if checkpoint else None
    try:
        with domain.translated("virDomainBackupBegin"):
            domain.handle.backupBegin(backup_xml, checkpoint_xml, 0)
    except HypervisorError:
        # Someone else's job may have come in between, or ours began and only the answer was lost: end what is in our folder.
        with contextlib.suppress(HypervisorError):
            clean_stale(domain, scratch_folder)
        raise
    return BackupJob(domain, folder, socket, bases, stopped_before=stopped_before)


def job_folder(scratch_folder: Path, domain_uuid: str) -> Path:
    """Return the folder for a domain's scratch files and socket. Its name is short: a socket's path has 107 bytes at most."""
    return scratch_folder / hashlib.sha256(domain_uuid.encode()).hexdigest()[:_FOLDER_DIGITS]


def running_job(domain: Domain) -> RunningJob | None:
    """Return the backup job that the domain has now, None if it has none or does not run."""
    try:
        with domain.translated("virDomainBackupGetXMLDesc"):
            root = parse(domain.handle.backupGetXMLDesc())
    except HypervisorError as error:
        if code_of(error) == libvirt.VIR_ERR_NO_DOMAIN_BACKUP or not is_active(domain):
            return None
        raise
    server = root.find("server")
    scratch = tuple(one.get("file", "") for one in root.iterfind("./disks/disk/scratch"))
    return RunningJob("" if server is None else server.get("socket", ""), scratch)


def clean_stale(domain: Domain, scratch_folder: Path) -> bool:
    """End a job of ours that a dead engine left in a domain, and remove its files; True if there was anything.

    The caller holds the domain's lock, so no engine that lives can own it. Foreign jobs are left alone. A guest that our
    scratch files stopped goes on. Raises HypervisorError when the job does not end.
    """
    folder = job_folder(scratch_folder, domain.uuid)
    job = running_job(domain)
    ours = job is not None and job.belongs_to(scratch_folder)
    if job is not None and ours:
        log.warning("ending a backup job that was left behind domain=%s", domain.name)
        _abort(domain, job.socket_path, partial(_resume_io_error, domain))
        _resume_io_error(domain)
    if job is not None and not ours and any(Path(path).is_relative_to(folder) for path in job.scratch_paths):
        return False  # its scratch files are in use, whoever it belongs to
    return _remove(folder) or ours


def check_room(scratch_folder: Path, needed_bytes: int) -> int:
    """Return the bytes free for scratch files. Raises ScratchShort when they are fewer than `needed_bytes`, HypervisorError.

    In the worst case a job needs as much as its disks are large; what a guest overwrites while its backup runs is the caller's
    to estimate.
    """
    try:
        scratch_folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        room = os.statvfs(scratch_folder)
    except OSError as error:
        raise HypervisorError(operation="looking at the scratch folder", detail=str(error), code=0) from error
    free = room.f_bavail * room.f_frsize
    if free < needed_bytes:
        raise ScratchShort(path=scratch_folder, free=free, needed=needed_bytes)
    return free


# ---- beginning -----------------------------------------------------------------------------------------------------------


def _chosen(info: DomainInfo, bases: Collection[str]) -> list[DiskInfo]:
    disks = {disk.target: disk for disk in info.disks}
    for target in bases:
        if target not in disks:
            raise DiskNotFound(domain=info.name, disk=target)
        if disks[target].unsupported:
            raise DiskUnsupported(disk=target, detail=disks[target].unsupported)
    return [disks[target] for target in bases]


def _refuse_busy(domain: Domain, scratch_folder: Path) -> None:
    """Raise DomainBusy for whatever job runs: libvirt itself would let us wait 30 s before it refuses."""
    job = running_job(domain)
    if job is not None:
        whose = "a job that this product left behind" if job.belongs_to(scratch_folder) else "another program's backup"
        raise DomainBusy(domain=domain.name, holder=f"{whose} (socket {job.socket_path or 'none'})")
    with domain.translated("virDomainGetJobInfo"):
        kind = domain.handle.jobInfo()[0]
    if kind in {libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED}:
        raise DomainBusy(domain=domain.name, holder="a job of libvirt, such as a migration, a save or a dump")


def _prepare(domain: Domain, folder: Path) -> None:
    """Make the job's folder, empty and for QEMU's user alone."""
    with domain.translated("virDomainGetSecurityLabelList"):
        labels = domain.handle.securityLabelList()
    _remove(folder)
    try:
        folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        for label, _enforcing in labels or ():
            if found := _DAC_LABEL.fullmatch(label):
                os.chown(folder, int(found[1]), int(found[2]))
    except OSError as error:
        raise HypervisorError(operation="making the scratch folder", detail=str(error), code=0) from error
    reached("scratch_made")


def _backup_xml(info: DomainInfo, bases: Mapping[str, str | None], folder: Path, socket: Path) -> str:
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=str(socket))
    listed = ET.SubElement(root, "disks")
    for disk in info.disks:
        if disk.target not in bases:
            ET.SubElement(listed, "disk", name=disk.target, backup="no")
            continue
        base = bases[disk.target]
        one = ET.SubElement(listed, "disk", name=disk.target, backup="yes", type="file")
        one.set("backupmode", "full" if base is None else "incremental")
        if base is not None:
            one.set("incremental", base)
        ET.SubElement(one, "driver", type="qcow2")
        ET.SubElement(one, "scratch", file=str(_scratch_path(folder, disk.target)))
    return ET.tostring(root, encoding="unicode")


def _checkpoint_xml(info: DomainInfo, chosen: Collection[DiskInfo], name: str) -> str | None:
    """Return the new checkpoint's XML, None if no disk of the job could hold its bitmap."""
    holders = {disk.target for disk in chosen if disk.holds_bitmaps}
    if not holders:
        return None
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    listed = ET.SubElement(root, "disks")
    for disk in info.disks:
        ET.SubElement(listed, "disk", name=disk.target, checkpoint="bitmap" if disk.target in holders else "no")
    return ET.tostring(root, encoding="unicode")


def _scratch_path(folder: Path, target: str) -> Path:
    return folder / f"{target}.scratch"


# ---- ending --------------------------------------------------------------------------------------------------------------


def _abort(domain: Domain, socket_path: str, resume: Callable[[], object]) -> None:
    """End the job that serves `socket_path` and wait until it is gone; it is no error when it, or the domain, is not there.

    A guest that was stopped for want of room goes on (`resume`) as soon as QEMU was told: libvirt may hear of the end late.
    """
    deadline = time.monotonic() + _END_SECONDS_MAX
    asked = False
    while True:
        try:
            job = running_job(domain)
            if job is None or job.socket_path != socket_path:
                return
            if not asked:
                with domain.translated("virDomainAbortJob"):
                    domain.handle.abortJob()
                asked = True
            resume()
        except DomainNotFound:
            return
        except (
            LibvirtUnreachable
        ):  # a patient connection is a new one at the next look; nobody knows if the wish arrived
            asked = False
            if not domain.connection.patient:
                raise
        except HypervisorError as error:
            if code_of(error) != libvirt.VIR_ERR_OPERATION_INVALID:  # it ended between the look and the call
                raise
        if time.monotonic() >= deadline:
            raise HypervisorError(
                operation="virDomainAbortJob",
                domain=domain.name,
                detail=f"still there after {_END_SECONDS_MAX} s",
                code=0,
            )
        time.sleep(_POLL_SECONDS)


def _resume_io_error(domain: Domain) -> bool:
    """Let a guest go on that was stopped for want of room; it repeats the write that failed. True if it was stopped."""
    try:
        if not is_active(domain) or not stopped_by_io_error(domain):
            return False
        with domain.translated("virDomainResume"):
            domain.handle.resume()
    except HypervisorError:
        if is_active(domain):
            raise
        return False
    log.warning("the guest was stopped by a write error and goes on domain=%s", domain.name)
    return True


def _remove(folder: Path) -> bool:
    """Remove a job's folder; True if it was there."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:  # QEMU and libvirt remove their files too
        there = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        return there
    except OSError as error:
        raise HypervisorError(operation="removing scratch files", detail=str(error), code=0) from error
    return True
