"""Our checkpoints: the points in time from which changes are known, as libvirt notes and as bitmaps in the images.

    name      bm-<last 12 hex digits of the repository id>-<backup id>       foreign names are never touched
    libvirt   <domaincheckpoint>      ─ a note; may be lost with the host's state, may outlive its bitmap
    QEMU      dirty bitmap ─ the truth; one per disk, under the same name

libvirt's note covers the disks whose images hold bitmaps. The others (raw) have transient ones that only QEMU knows, see
transient.py. A checkpoint counts for a disk only if its bitmap is there, is consistent, has recorded all the time, and the disk still has
the size it had. When only the note is lost, it is written again from the bitmap.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree as ET

import libvirt

from engine.errors import CheckpointUnusable, HypervisorError
from engine.failpoint import reached
from engine.hypervisor.bitmaps import Bitmap, list_bitmaps, reaches, remove_bitmap
from engine.hypervisor.connection import Domain, code_of
from engine.hypervisor.domains import DiskInfo, DomainInfo, domain_info, parse
from engine.ids import is_id

REPOSITORY_DIGITS = 12
# How many repositories may have a record of a disk's changes: each costs the guest writes. More storages can follow a domain,
# but those used least recently get fulls.
REPOSITORIES_MAX = 2
_NAME = re.compile(r"bm-([0-9a-f]{12})-([0-9a-f-]{36})")

# Why a checkpoint does not count for a disk: the words that backups record as the reason of a full, and "" where it counts.
Fault: TypeAlias = Literal[
    "", "bitmap_lost", "bitmap_inconsistent", "disk_resized", "disk_replaced", "untracked", "foreign_checkpoint"
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One of our points in time: what libvirt's note covers, and the bitmaps that are there. Either may be empty."""

    name: str
    repository: str
    backup_id: str
    noted: tuple[str, ...]
    bitmaps: tuple[Bitmap, ...]

    @property
    def disks(self) -> tuple[str, ...]:
        """The disks that have a bitmap of this name, whatever its state."""
        return tuple(bitmap.disk for bitmap in self.bitmaps if bitmap.disk)


# ---- names (pure) --------------------------------------------------------------------------------------------------------


def repository_digits(repository_id: str) -> str:
    """Return the part of a repository's id that stands in names: its last digits, which are random; the first are its time."""
    return repository_id.replace("-", "")[-REPOSITORY_DIGITS:]


def checkpoint_name(repository_id: str, backup_id: str) -> str:
    """Return the name of the checkpoint (and of its bitmaps) that a backup leaves behind."""
    return f"bm-{repository_digits(repository_id)}-{backup_id}"


def parse_name(name: str) -> tuple[str, str] | None:
    """Return a name's (repository digits, backup id), None for a name that is not ours."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found is not None and is_id(found[2]) else None


# ---- looking -------------------------------------------------------------------------------------------------------------


def list_checkpoints(domain: Domain, info: DomainInfo | None = None) -> tuple[Checkpoint, ...]:
    """Return our checkpoints of all repositories, oldest backup first, whether note, bitmaps or both are left of them."""
    info = info or domain_info(domain)
    noted = {name: disks for name, disks in _notes(domain).items() if parse_name(name)}
    bitmaps = [bitmap for bitmap in list_bitmaps(domain, info) if parse_name(bitmap.name)]
    found = []
    for name in {*noted, *(bitmap.name for bitmap in bitmaps)}:
        repository, backup_id = parse_name(name) or ("", "")
        own = tuple(bitmap for bitmap in bitmaps if bitmap.name == name)
        found.append(Checkpoint(name, repository, backup_id, noted.get(name, ()), own))
    return tuple(sorted(found, key=lambda one: (one.backup_id, one.name)))


def is_noted(domain: Domain, name: str) -> bool:
    """Tell whether libvirt has a note of this checkpoint; also while a job hides the bitmaps."""
    return _find(domain, name) is not None


def checkpoint_usable(
    domain: Domain,
    name: str,
    sizes: Mapping[str, int],
    info: DomainInfo | None = None,
    paths: Mapping[str, str] | None = None,
) -> dict[str, Fault]:
    """Tell for each disk of `sizes` whether its changes since the checkpoint `name` are known, "" if so, else why not.

    `sizes` has each disk's size in bytes at that checkpoint, `paths` its image, as far as that is known. Of a running domain
    the note is written again where only that was lost, so that a backup from this checkpoint can begin at once.
    """
    info = info or domain_info(domain)
    every = list_bitmaps(domain, info)
    bitmaps = {bitmap.disk: bitmap for bitmap in every if bitmap.name == name}
    disks = {disk.target: disk for disk in info.disks}
    faults = {target: _fault(disks.get(target), size, bitmaps.get(target)) for target, size in sizes.items()}
    for target, fault in faults.items():
        if fault == "bitmap_inconsistent" and _gave_way(bitmaps[target], every):
            faults[target] = "foreign_checkpoint"
    for target, path in (paths or {}).items():
        # A snapshot's overlay has the name too, and counts only as long as what it lay on is below it.
        held = not faults[target] and disks[target].holds_bitmaps
        if path and held and not reaches(disks[target], name, path):
            faults[target] = "disk_replaced"
    good = [target for target, fault in faults.items() if not fault and disks[target].holds_bitmaps]
    if good and info.active and not set(good) <= set(_notes(domain).get(name, ())) and not _note(domain, name, good):
        faults.update(dict.fromkeys(good, "bitmap_inconsistent"))
    return faults


def _fault(disk: DiskInfo | None, size_bytes: int, bitmap: Bitmap | None) -> Fault:
    if disk is None:
        return "untracked"
    if bitmap is None or bitmap.overlaid:  # what was written before the snapshot stands in a layer below
        return "bitmap_lost"
    if not bitmap.consistent or not bitmap.recording or bitmap.busy:
        return "bitmap_inconsistent"
    return "" if disk.size_bytes == size_bytes else "disk_resized"


def _gave_way(own: Bitmap, every: Collection[Bitmap]) -> bool:
    """Tell whether a bitmap is whole and was switched off, while another tool's on the same disk records.

    Tools whose checkpoints build a chain switch the newest bitmap off when they add theirs: what is written is then known from
    the newer one alone, which is not ours to count from.
    """
    others = [one for one in every if one.disk == own.disk and parse_name(one.name) is None]
    return own.consistent and not own.recording and not own.busy and any(one.recording for one in others)


def displaced(domain: Domain, name: str, disk: str) -> bool:
    """Tell whether another tool has made a checkpoint of `disk` since ours called `name`: if ours is gone, it took its place."""
    ours = _creation_time(name)
    with domain.translated("virDomainListAllCheckpoints"):
        handles = domain.handle.listAllCheckpoints()
        texts = [one.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) for one in handles]
    return any(
        parse_name(root.findtext("name") or "") is None
        and disk in _covered(text)
        and int(root.findtext("creationTime") or 0) >= ours
        for text, root in ((text, parse(text)) for text in texts)
    )


def _notes(domain: Domain) -> dict[str, tuple[str, ...]]:
    """Return all of libvirt's checkpoints by name, each with the disks that it covers."""
    with domain.translated("virDomainListAllCheckpoints"):
        handles = domain.handle.listAllCheckpoints()
        texts = {handle.getName(): handle.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) for handle in handles}
    return {name: _covered(text) for name, text in texts.items()}


def _covered(text: str) -> tuple[str, ...]:
    disks = parse(text).iterfind("./disks/disk")
    return tuple(disk.get("name", "") for disk in disks if disk.get("checkpoint") == "bitmap")


def _note(domain: Domain, name: str, disks: Collection[str]) -> bool:
    """Write libvirt's note of existing bitmaps anew; False when libvirt, who looks at the bitmaps, does not accept them."""
    handle = _find(domain, name)
    created = 0
    if handle is not None:  # it covers other disks than have bitmaps now
        with domain.translated("virDomainCheckpointDelete"):
            created = int(parse(handle.getXMLDesc()).findtext("creationTime") or 0)
            handle.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "creationTime").text = str(created or _creation_time(name))
    listed = ET.SubElement(root, "disks")
    for target in disks:
        ET.SubElement(listed, "disk", name=target, checkpoint="bitmap", bitmap=name)
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    try:
        with domain.translated("virDomainCheckpointCreateXML"):
            domain.handle.checkpointCreateXML(ET.tostring(root, encoding="unicode"), flags)
    except CheckpointUnusable:
        return False
    return True


def _creation_time(name: str) -> int:
    """Return Unix seconds from the backup id in a name: a UUID of version 7 begins with its milliseconds."""
    _repository, backup_id = parse_name(name) or ("", "0")
    return max(1, int(backup_id.replace("-", "")[:12], 16) // 1000)


# ---- removing ------------------------------------------------------------------------------------------------------------


def delete_checkpoint(domain: Domain, name: str, info: DomainInfo | None = None) -> None:
    """Remove one of our checkpoints, note and bitmaps, whatever is left of it. One that is not there is no error.

    Raises ValueError for a foreign name, HypervisorError when a bitmap is in use or an image cannot be written.
    """
    if parse_name(name) is None:
        raise ValueError(name)
    info = info or domain_info(domain)
    handle = _find(domain, name)
    if handle is not None and info.active:
        # libvirt fails at the first bitmap that is not there; what is left then goes the direct way below
        try:
            with domain.translated("virDomainCheckpointDelete"):
                handle.delete(0)
            handle = None
        except HypervisorError as error:
            if code_of(error) not in {libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT}:
                raise
    for bitmap in list_bitmaps(domain, info):
        if bitmap.name == name:
            remove_bitmap(domain, info, bitmap)
            reached("bitmap_dropped")
    if handle is not None:
        with domain.translated("virDomainCheckpointDelete"):
            handle.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    reached("checkpoint_dropped")


def remove_stale_bitmaps(domain: Domain, repository_id: str, keep: Collection[str]) -> tuple[str, ...]:
    """Remove every checkpoint of one repository whose name is not in `keep`; return the names removed.

    Each costs the guest writes for as long as it is there.
    """
    info = domain_info(domain)
    digits = repository_digits(repository_id)
    stale = [one.name for one in list_checkpoints(domain, info) if one.repository == digits and one.name not in keep]
    for name in stale:
        delete_checkpoint(domain, name, info)
    return tuple(stale)


def forget_disks(domain: Domain, disks: Collection[str]) -> None:
    """Remove all our bitmaps of these disks of a stopped domain; other disks keep theirs, and go on from them.

    libvirt's note of a checkpoint that covers one of them goes as well: the next backup writes it again, from the bitmaps
    that are left (see `checkpoint_usable`). Raises HypervisorError when an image cannot be written.
    """
    info = domain_info(domain)
    for checkpoint in list_checkpoints(domain, info):
        if not set(disks) & ({*checkpoint.disks} | {*checkpoint.noted}):
            continue
        handle = _find(domain, checkpoint.name)
        if handle is not None:
            with domain.translated("virDomainCheckpointDelete"):
                handle.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        for bitmap in checkpoint.bitmaps:
            if bitmap.disk in disks:
                remove_bitmap(domain, info, bitmap)
                reached("bitmap_dropped")
        reached("checkpoint_dropped")


def surplus(checkpoints: Collection[Checkpoint], own: str) -> tuple[str, ...]:
    """Return the names of checkpoints that have to give way where a disk has records for too many repositories. Pure.

    `own` are the digits of the repository that was just used; of the others the one goes first whose last backup is the
    oldest. A checkpoint is one instant and goes as a whole, with its bitmaps of other disks.
    """
    names: set[str] = set()
    for disk in {disk for one in checkpoints for disk in one.disks if disk}:
        newest = last_backups(checkpoints, disk)
        ranked = sorted(newest, key=lambda repository: (repository == own, newest[repository]), reverse=True)
        gone = set(ranked[REPOSITORIES_MAX:])
        names |= {one.name for one in checkpoints if one.repository in gone and disk in one.disks}
    return tuple(sorted(names))


def last_backups(checkpoints: Collection[Checkpoint], disk: str) -> dict[str, str]:
    """Return for each repository (by its digits) that has a record of a disk's changes the id of its last such backup. Pure."""
    newest: dict[str, str] = {}
    for one in checkpoints:
        if disk in one.disks:
            newest[one.repository] = max(newest.get(one.repository, ""), one.backup_id)
    return newest


def remove_surplus(domain: Domain, repository_id: str) -> tuple[str, ...]:
    """Remove what `surplus` names after a backup to a repository; return the names removed."""
    info = domain_info(domain)
    names = surplus(list_checkpoints(domain, info), repository_digits(repository_id))
    for name in names:
        delete_checkpoint(domain, name, info)
    return names


def _find(domain: Domain, name: str) -> Any:
    """Return libvirt's checkpoint of this name, None if it has no note of it."""
    try:
        with domain.translated("virDomainCheckpointLookupByName"):
            return domain.handle.checkpointLookupByName(name)
    except CheckpointUnusable:
        return None
