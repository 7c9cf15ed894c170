"""The disks of a running domain at one instant, through libvirt's pull-mode backup.

    room for scratch ─► freeze │ begin job + checkpoint │ thaw ─► read over NBD … ─► end job, scratch files gone
                               └──── the instant ──────┘        ▲ watched: is the job alive, is there room (watch.py)

Disks whose images hold no bitmaps (raw) take part in the same job; QEMU records their changes in its memory, see transient.py.
Whatever happens in the block, the guest is thawed (see quiesce.py) and the job is ended. The new checkpoint stays: whether
it is kept is decided by whoever commits the backup.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import QmpFailed
from engine.failpoint import reached
from engine.hypervisor import transient
from engine.hypervisor.backup_job import begin, check_room
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import DomainInfo
from engine.hypervisor.lock import DomainLock
from engine.hypervisor.quiesce import quiesce
from engine.source.nbd_disk import NbdDisk
from engine.source.scratch import needed_before
from engine.source.watch import watched
from engine.spec import Consistency
from engine.work import Work


@dataclass(frozen=True, slots=True)
class Instant:
    """A domain's disks at one instant; `consistency` is frozen, paused, crash or offline.

    `detail` says why it is not as asked, `fault` whether something failed that is there (see Quiesced). `recorded` are the
    disks whose changes QEMU keeps in memory from this instant on, their images being unable to.
    """

    disks: Mapping[str, NbdDisk]
    consistency: str
    detail: str = ""
    quiesce_seconds: float = 0.0
    recorded: Collection[str] = ()
    fault: bool = False
    held: "Held | None" = None


@dataclass(frozen=True, slots=True)
class Held:
    """How to reach an instant again after our death, for as long as its job is open: the exports of one socket, by disk."""

    socket_path: str
    exports: Mapping[str, transient.Export]


@contextlib.contextmanager
def running_disks(
    domain: Domain,
    info: DomainInfo,
    bases: Mapping[str, str | None],
    checkpoint: str,
    mode: Consistency,
    scratch_folder: Path,
    lock: tuple[Path, DomainLock],
    work: Work,
    copies: Collection[str] = (),
) -> Iterator[Instant]:
    """Hold the disks of `bases` at one instant for the block; `bases` has each disk's checkpoint to count from, None for a full.

    Those of `copies` get no new checkpoint. `lock` is the lock folder and this domain's lock, held. Raises what quiesce and begin raise, ScratchShort, and DomainGone if
    the domain stops while its disks are read.
    """
    sizes = {disk.target: disk.size_bytes for disk in info.disks}
    check_room(scratch_folder, needed_before(sizes[disk] for disk in bases))
    work.report.stage("freeze")
    nodes = transient.nodes_of(domain, info, bases)
    in_memory = {disk: base for disk, base in bases.items() if disk in nodes and base is not None}
    for_libvirt = {disk: None if disk in in_memory else base for disk, base in bases.items()}
    with contextlib.ExitStack() as stack:
        with quiesce(domain, mode, lock[0], lock_fd=lock[1].fd) as quiesced:
            reached("quiesced")
            chained = {disk: node for disk, node in nodes.items() if disk not in copies}
            recorded = _record(domain, chained, checkpoint, work)
            reached("recorded")
            job = stack.enter_context(begin(domain, for_libvirt, checkpoint, scratch_folder, info=info, copies=copies))
            reached("begun")
        reached("thawed")
        if not quiesced.thaw_confirmed:
            work.report.warn("the guest has not confirmed yet that its file systems are thawed; it is asked again")
        disks: dict[str, NbdDisk] = {}
        with watched(job, disks, scratch_folder, work.stop):
            changes = transient.export_changes(job, nodes, in_memory)
            reached("mapped")
            exports = {disk: transient.Export(disk, job.bitmap_name(disk)) for disk in bases} | changes
            disks |= {disk: NbdDisk(str(job.socket_path), one.name, one.bitmap) for disk, one in exports.items()}
            held = Held(str(job.socket_path), exports)
            yield Instant(disks, quiesced.reached, quiesced.detail, quiesced.seconds, recorded, quiesced.fault, held)


def _record(domain: Domain, nodes: Mapping[str, str], checkpoint: str, work: Work) -> Collection[str]:
    """Begin to record what changes on the nodes and return their disks. Without a record the next backup is a full, that is all."""
    if not checkpoint or not nodes:
        return ()
    try:
        transient.record(domain, nodes, checkpoint)
    except QmpFailed as error:
        work.report.warn(f"changes of disk {', '.join(sorted(nodes))} will not be known: {error}")
        return ()
    return tuple(nodes)
