"""The disks of a stopped domain, read from its images under QEMU's own image locks.

While an image is exported nobody else can open it for writing, so the domain cannot start meanwhile; an image that is open
already raises ImageBusy. The new tracking point is a bitmap that is added to each qcow2 image before it is read.
"""

import contextlib
from collections.abc import Iterator, Mapping

from engine.hypervisor.domains import DomainInfo
from engine.source.export import export_image
from engine.source.images import add_bitmap
from engine.source.nbd_disk import NbdDisk
from engine.source.running import Instant


@contextlib.contextmanager
def stopped_disks(info: DomainInfo, bases: Mapping[str, str | None], checkpoint: str) -> Iterator[Instant]:
    """Serve the disks of `bases` for the block; see `running_disks`. Raises ImageBusy, DiskUnsupported, HypervisorError."""
    images = {disk.target: disk for disk in info.disks}
    with contextlib.ExitStack() as stack:
        disks = {}
        for target, base in bases.items():
            image = images[target]
            if checkpoint and image.holds_bitmaps:
                add_bitmap(image.path, checkpoint)
            bitmaps = [base] if base is not None else []
            export = stack.enter_context(export_image(image.path, image.format, bitmaps=bitmaps))
            disks[target] = NbdDisk(export.socket, export.name, base or "")
        yield Instant(disks, "offline")
