"""What the next backup of a domain would read, without making one (C4).

    full          the bytes that the image takes on the host
    incremental   the bytes that QEMU has recorded as written since a repository's newest checkpoint

Of a running domain QEMU counts them; of a stopped one the bitmap is read from its image, which is opened for reading only.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import HypervisorError

if TYPE_CHECKING:
    from engine.hypervisor.bitmaps import Bitmap
    from engine.hypervisor.connection import Domain
    from engine.hypervisor.domains import DiskInfo, DomainInfo


@dataclass(frozen=True, slots=True)
class Dirty:
    """What was written since a backup. `repository`: the first digits of its id; `detail` says why `dirty_bytes` is -1."""

    repository: str
    backup_id: str
    dirty_bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """One disk. `unsupported` says why it would be left out, "" if it would not."""

    disk: str
    size_bytes: int
    full_bytes: int
    since: list[Dirty]
    unsupported: str = ""


def estimate(domain: "Domain") -> list[DiskEstimate]:
    """Return an estimate for every disk of the domain. Raises HypervisorError."""
    from engine.hypervisor.bitmaps import list_bitmaps
    from engine.hypervisor.domains import domain_info

    info = domain_info(domain)
    bitmaps = list_bitmaps(domain, info)
    return [
        DiskEstimate(
            disk.target,
            disk.size_bytes,
            min(disk.allocation_bytes, disk.size_bytes) if disk.format == "qcow2" else disk.allocation_bytes,
            _since(info, disk, bitmaps),
            disk.unsupported,
        )
        for disk in info.disks
        if disk.device == "disk"
    ]


def _since(info: "DomainInfo", disk: "DiskInfo", bitmaps: "tuple[Bitmap, ...]") -> list[Dirty]:
    """Return what was written since the newest checkpoint of each repository."""
    from engine.hypervisor.checkpoints import parse_name

    newest: dict[str, tuple[str, Bitmap]] = {}
    for bitmap in bitmaps:
        parsed = parse_name(bitmap.name)
        if parsed is None or bitmap.disk != disk.target:
            continue
        repository, backup_id = parsed
        if repository not in newest or backup_id > newest[repository][0]:
            newest[repository] = (backup_id, bitmap)
    return [_dirty(info, disk, one, *found) for one, found in sorted(newest.items())]


def _dirty(info: "DomainInfo", disk: "DiskInfo", repository: str, backup_id: str, bitmap: "Bitmap") -> Dirty:
    if not bitmap.consistent or not bitmap.recording:
        return Dirty(repository, backup_id, -1, "the record is broken: the next backup is a full")
    if info.active:
        return Dirty(repository, backup_id, bitmap.dirty_bytes)
    from engine.source.export import export_image
    from engine.source.nbd_disk import NbdDisk

    try:
        with export_image(disk.path, disk.format, bitmaps=[bitmap.name], shared=True) as export:
            found = NbdDisk(export.socket, export.name, bitmap.name).recorded_bytes()
    except HypervisorError as error:
        return Dirty(repository, backup_id, -1, str(error))
    return Dirty(repository, backup_id, found)
