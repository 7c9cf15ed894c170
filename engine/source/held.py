"""The disks of a running domain at an instant that a dead engine has made: its block job is still open in QEMU.

Data, bitmaps and the checkpoint of that instant are QEMU's, and last as long as the job. Whether a job is that very one is
told by the process that listens at its socket, by libvirt's word on the job's files, and by the checkpoint's note.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from engine.errors import NbdError
from engine.hypervisor import transient
from engine.hypervisor.backup_job import BackupJob, check_room, job_folder, running_job
from engine.hypervisor.checkpoints import is_noted
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import is_active, stopped_by_io_error
from engine.source.nbd_disk import NbdDisk
from engine.source.running import Held, Instant
from engine.source.scratch import RESERVE_BYTES
from engine.source.watch import watched
from engine.unfinished import Note, NotResumable, Peer
from engine.work import Work

CONNECT_SECONDS = 10.0
_CREDENTIALS = struct.Struct("=iii")  # struct ucred: pid, uid, gid


def peer_of(socket_path: str) -> Peer:
    """Return the process that listens at a unix socket. Raises OSError if none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_SECONDS)
        probe.connect(socket_path)
        pid, _, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        stat = Path(f"/proc/{pid}/stat").read_text()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Peer(pid, int(stat.rpartition(")")[2].split()[19]), boot_id)


def why_not_open(domain: Domain, note: Note, scratch_folder: Path) -> str:
    """Return "" if the job of `note` is open and good to read from, else in words why not. Raises HypervisorError."""
    if not is_active(domain):
        return "the domain was stopped"
    job = running_job(domain)
    if job is None:
        return "its block job has ended"
    if job.socket_path != note.socket_path or not job.belongs_to(job_folder(scratch_folder, domain.uuid)):
        return "the domain has another block job"
    try:
        peer = peer_of(note.socket_path)
    except OSError as error:
        return f"its socket does not answer: {error}"
    if peer != note.peer:
        return "QEMU was started anew"
    if stopped_by_io_error(domain):
        return "the guest was stopped because a write found no room"
    if note.checkpoint and not is_noted(domain, note.checkpoint):
        return "its checkpoint is gone"
    return ""


@contextlib.contextmanager
def held_disks(domain: Domain, note: Note, scratch_folder: Path, work: Work) -> Iterator[Instant]:
    """Hold the disks of a note's instant for the block, and end its job with it; see `running_disks`.

    Raises NotResumable when they cannot be reached any more; then too the job is ended.
    """
    job = BackupJob(
        domain,
        job_folder(scratch_folder, domain.uuid),
        Path(note.socket_path),
        {one.disk: None for one in note.disks},
    )
    exports = {one.disk: transient.Export(one.export, one.bitmap) for one in note.disks}
    disks: dict[str, NbdDisk] = {}
    with job:
        check_room(scratch_folder, RESERVE_BYTES)
        with watched(job, disks, scratch_folder, work.stop):
            try:
                disks |= {disk: NbdDisk(note.socket_path, one.name, one.bitmap) for disk, one in exports.items()}
            except NbdError as error:
                raise NotResumable(str(error)) from error
            yield Instant(
                disks, note.consistency, note.detail, note.quiesce_seconds, note.recorded, note.fault,
                Held(note.socket_path, exports),
            )  # fmt: skip
