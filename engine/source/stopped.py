"""The disks of a stopped domain, read from its images.

    qcow2   while it is exported nobody else can open it for writing (QEMU's image locks): the domain cannot start meanwhile
    raw     a read-only export keeps no writer out: the domain can start, and what is read from then on is torn
              ─► it is watched, and its start ends the backup before anything is committed

An image that is open already raises ImageBusy. The new tracking point is a bitmap that is added to each qcow2 image before it
is read.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping

from engine.errors import DomainStarted, HypervisorError, LibvirtUnreachable, NbdError
from engine.hypervisor.connection import Domain, DomainEvent
from engine.hypervisor.domains import DomainInfo, is_active
from engine.source.export import export_image
from engine.source.images import add_bitmap
from engine.source.nbd_disk import NbdDisk
from engine.source.running import Instant

WATCH_SECONDS = 1.0


@contextlib.contextmanager
def stopped_disks(
    domain: Domain, info: DomainInfo, bases: Mapping[str, str | None], checkpoint: str
) -> Iterator[Instant]:
    """Serve the disks of `bases` for the block; see `running_disks`.

    Raises ImageBusy, DiskUnsupported, HypervisorError, and DomainStarted from the block's end if the domain was started in it.
    """
    images = {disk.target: disk for disk in info.disks}
    disks: dict[str, NbdDisk] = {}
    with contextlib.ExitStack() as stack:
        if any(images[target].format != "qcow2" for target in bases):
            stack.enter_context(_watched(domain, disks))
        for target, base in bases.items():
            image = images[target]
            if checkpoint and image.holds_bitmaps:
                add_bitmap(image.path, checkpoint)
            bitmaps = [base] if base is not None else []
            export = stack.enter_context(export_image(image.path, image.format, bitmaps=bitmaps))
            disks[target] = NbdDisk(export.socket, export.name, base or "")
        yield Instant(disks, "offline")


@contextlib.contextmanager
def _watched(domain: Domain, disks: Mapping[str, NbdDisk]) -> Iterator[None]:
    """Interrupt the disks when the domain starts; DomainStarted then leaves the block, not its echo, and also from a block that was done.

    The event tells of a start that ended again at once, the look every second of one that was missed since libvirtd was
    restarted and its events with it.
    """
    started, ended = threading.Event(), threading.Event()

    def interrupt() -> None:
        started.set()
        for disk in list(disks.values()):
            disk.interrupt()

    def changed(event: DomainEvent) -> None:
        if event.change == "started":
            interrupt()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            try:
                if is_active(domain):
                    interrupt()
                    return
            except LibvirtUnreachable:  # it is being restarted
                continue
            except HypervisorError:  # the look at the end raises it once more
                return

    end = domain.connection.watch_domain(domain, changed)
    watcher = threading.Thread(target=watch, name="start-watch", daemon=True)
    watcher.start()
    try:
        yield
        if started.is_set() or is_active(domain):
            raise DomainStarted(domain=domain.name)
    except NbdError as error:
        if started.is_set() or is_active(domain):
            raise DomainStarted(domain=domain.name) from error
        raise
    finally:
        ended.set()
        watcher.join()
        end()
