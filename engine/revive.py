"""Define a domain anew that is gone, from the definition in its backup (T25).

    no other domain names its disks ─► files absent, volumes present ─► defined, not started ─► empty images, NVRAM

Paths are used again: a panel that deleted a server may have given its image's name to the next one. Nothing that is there
already is written over, and what was made is taken away again if not all of it can be. The definition comes first: if this
process dies behind it, whoever runs the restore again finds a domain that lacks images, and never images without an owner.
"""

import base64
import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DiskNotFound, TargetError
from engine.failpoint import reached
from engine.format.manifest import Definition
from engine.hypervisor.domains import DefinedDisk, define, defined_disks, nvram_path, sources_in_use, undefine
from engine.source.images import create_image

if TYPE_CHECKING:
    from engine.hypervisor.connection import Connection, Domain

_DEVICES = Path("/dev")


def define_anew(
    connection: "Connection",
    definition: Definition,
    sizes: Mapping[str, int],
    undo: contextlib.ExitStack | None = None,
) -> "Domain":
    """Define the domain and make the empty images of `sizes` (bytes, by disk); the domain is left stopped.

    `undo` gets what takes all of it away again. Raises TargetError when another domain uses one of its disks, an image is
    there already or cannot be made, or a volume is not there; DiskNotFound when the definition lacks a disk; HypervisorError
    when libvirt refuses the definition.
    """
    disks = {disk.target: disk for disk in defined_disks(definition.domain_xml)}
    _refuse_used(connection, disks.values())
    wanted = [_Image.of(disks.get(target), target, size) for target, size in sizes.items()]
    with contextlib.ExitStack() as made:
        domain = define(connection, definition.domain_xml)
        made.callback(undefine, domain)
        reached("defined")
        for image in wanted:
            image.make(made)
        if nvram := _write_nvram(definition):
            made.callback(nvram.unlink, missing_ok=True)
        kept = made.pop_all()
    if undo is not None:
        undo.callback(kept.close)
    return domain


def make_missing_images(
    connection: "Connection", xml: str, sizes: Mapping[str, int], domain_uuid: str, undo: contextlib.ExitStack
) -> list[Path]:
    """Make the empty images of `sizes` that the definition `xml` of domain `domain_uuid` names and that are not there.

    Return those made; `undo` gets what takes them away again. Raises TargetError when another domain uses one of them, or it
    cannot be made.
    """
    absent = [disk for disk in defined_disks(xml) if disk.target in sizes and not os.path.lexists(disk.path)]
    if not absent:
        return []
    _refuse_used(connection, absent, domain_uuid)
    for disk in absent:
        _Image.of(disk, disk.target, sizes[disk.target]).make(undo)
    return [Path(disk.path) for disk in absent]


@dataclass(frozen=True, slots=True)
class _Image:
    """A disk that will be written; a volume (a block device) is made by whoever runs the host, never by us."""

    disk: DefinedDisk
    size_bytes: int
    is_volume: bool

    @classmethod
    def of(cls, disk: DefinedDisk | None, target: str, size_bytes: int) -> "_Image":
        """Return the disk's image after a look at what is there. Raises TargetError, DiskNotFound."""
        if disk is None:
            raise DiskNotFound(domain="the backup's definition", disk=target)
        path = Path(disk.path)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = 0
        except OSError as error:
            raise TargetError(target=path, detail=error.strerror) from error
        # /dev is memory: a file made there would take the disk's content until the host has none left.
        is_volume = disk.is_block or Path(os.path.realpath(path)).is_relative_to(_DEVICES)
        if is_volume and not stat.S_ISBLK(mode):
            raise TargetError(target=path, detail="the volume must exist before a deleted server is restored to it")
        if not is_volume and mode:
            raise TargetError(target=path, detail="is there already, and may belong to another server")
        return cls(disk, size_bytes, is_volume)

    def make(self, undo: contextlib.ExitStack) -> None:
        """Make the empty image, unless it is a volume; `undo` gets what takes it away again. Raises TargetError."""
        if not self.is_volume:
            create_image(self.disk.path, self.disk.format, self.size_bytes)
            undo.callback(Path(self.disk.path).unlink, missing_ok=True)
            reached("image_made")


def _refuse_used(connection: "Connection", disks: Iterable[DefinedDisk], but: str = "") -> None:
    """Raise TargetError if a domain that is defined, other than `but` (a UUID), names one of the disks' images in whatever way."""
    used = sources_in_use(connection, but)
    for disk in disks:
        if owner := used.get(os.path.realpath(disk.path)):
            raise TargetError(target=disk.path, detail=f"it is a disk of domain {owner}")


def _write_nvram(definition: Definition) -> Path | None:
    """Write the NVRAM file unless there is one; return its path if it was written. Raises TargetError."""
    path, data = nvram_path(definition.domain_xml), base64.b64decode(definition.nvram)
    if not path or not data:
        return None
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("xb") as file:
            file.write(data)
    except FileExistsError:
        return None
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
    return Path(path)
