"""The dirty bitmaps of a domain's disks, seen and removed past libvirt: in a running QEMU by QMP, in a stopped domain's images by qemu-img.

    qcow2 (version 3)    persistent: kept in the image, over restarts
    raw, old qcow2       transient: kept by the QEMU that runs, and gone with it

libvirt's checkpoint is a note that says "there is a bitmap of this name". The bitmap is the truth, and the two part ways:
a QEMU that dies leaves bitmaps that are inconsistent or missing, a host that loses libvirt's state loses the notes.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import HypervisorError
from engine.hypervisor import qmp
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import DiskInfo, DomainInfo

_QEMU_IMG_SECONDS_MAX = 120  # loading many bitmaps of a large image from a slow disk


@dataclass(frozen=True, slots=True)
class Bitmap:
    """One dirty bitmap of one disk: persistent where the image can hold it, else transient.

    `disk` is "" for a transient one on a node that no disk shows to the guest now, such as a raw image below a snapshot.
    `consistent` is False after a crash of QEMU: its content means nothing. `recording` is False when somebody disabled it,
    so that writes have been missed. `busy` means that a job uses it now. `overlaid` means that an image below, of a stopped
    domain, has one of the same name: libvirt puts it into each snapshot's overlay, where it knows only what came after the
    snapshot. Of a running domain libvirt adds up the bitmaps of the layers.
    """

    disk: str
    name: str
    node: str  # QEMU's node that holds it, "" for a stopped domain
    granularity_bytes: int
    consistent: bool
    recording: bool
    busy: bool
    overlaid: bool = False
    dirty_bytes: int = -1  # recorded as written; -1 for a stopped domain, whose image does not say


def list_bitmaps(domain: Domain, info: DomainInfo) -> tuple[Bitmap, ...]:
    """Return the bitmaps of all disks that are backed up, ours and foreign ones alike: of each disk of the kind that lasts longest.

    Raises HypervisorError when an image cannot be read.
    """
    if info.active:
        return tuple(_of_running(domain, info))
    return tuple(bitmap for disk in info.eligible_disks if disk.holds_bitmaps for bitmap in _of_image(disk))


def bitmap_names(domain: Domain, info: DomainInfo) -> dict[str, frozenset[str]]:
    """Return the names of the bitmaps that each disk has, whatever their state. Raises HypervisorError."""
    found: dict[str, set[str]] = {}
    for bitmap in list_bitmaps(domain, info):
        found.setdefault(bitmap.disk, set()).add(bitmap.name)
    return {disk: frozenset(names) for disk, names in found.items()}


def remove_bitmap(domain: Domain, info: DomainInfo, bitmap: Bitmap) -> None:
    """Remove one bitmap from its disk, from a running QEMU and the image behind it at once.

    Raises QmpFailed while a job uses it, HypervisorError when the image cannot be written.
    """
    if info.active:
        qmp.execute(domain, "block-dirty-bitmap-remove", node=bitmap.node, name=bitmap.name)
        return
    path = next(disk.path for disk in info.disks if disk.target == bitmap.disk)
    _qemu_img("bitmap", "--remove", "-f", "qcow2", "--", path, bitmap.name)


def device_nodes(domain: Domain, info: DomainInfo) -> dict[str, dict[str, Any]]:
    """Return for each disk of a running domain what QMP tells of the node that its device shows to the guest.

    Found by the device: node names change with snapshots, files may be opened twice.
    """
    devices = [one for one in qmp.execute(domain, "query-block") if "inserted" in one]
    found = {}
    for disk in info.eligible_disks:
        for device in devices:
            if _is_device(device, disk.alias):
                found[disk.target] = device["inserted"]
    return found


def _of_running(domain: Domain, info: DomainInfo) -> Iterator[Bitmap]:
    shown = device_nodes(domain, info)
    for disk in info.eligible_disks:
        node = shown.get(disk.target, {})
        for bitmap in _named(node):
            if bitmap["persistent"] == disk.holds_bitmaps:
                yield _bitmap(disk.target, node["node-name"], bitmap)
    names = {node["node-name"] for node in shown.values()}
    for node in qmp.execute(domain, "query-named-block-nodes", flat=True):
        if node["node-name"] not in names:
            yield from (_bitmap("", node["node-name"], bitmap) for bitmap in _named(node) if not bitmap["persistent"])


def _named(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a node's bitmaps but for the nameless ones of QEMU's own jobs."""
    return (bitmap for bitmap in node.get("dirty-bitmaps", ()) if bitmap.get("name"))


def _bitmap(disk: str, node: str, bitmap: dict[str, Any]) -> Bitmap:
    return Bitmap(
        disk=disk,
        name=bitmap["name"],
        node=node,
        granularity_bytes=bitmap["granularity"],
        consistent=not bitmap.get("inconsistent", False),
        recording=bitmap.get("recording", False),
        busy=bitmap.get("busy", False),
        dirty_bytes=bitmap.get("count", -1),
    )


def _is_device(block: dict[str, Any], alias: str) -> bool:
    """`qdev` is a path such as /machine/peripheral/virtio-disk0/virtio-backend, or the alias alone (IDE, SCSI)."""
    return bool(alias) and alias in block.get("qdev", "").split("/")


def _of_image(disk: DiskInfo) -> Iterator[Bitmap]:
    top, *below = _chain(disk)
    names_below = {bitmap["name"] for layer in below for bitmap in _bitmaps_in(layer)}
    for bitmap in _bitmaps_in(top):
        flags = bitmap["flags"]
        yield Bitmap(
            disk=disk.target,
            name=bitmap["name"],
            node="",
            granularity_bytes=bitmap["granularity"],
            consistent="in-use" not in flags,
            recording="auto" in flags,  # stored so, QEMU goes on recording as soon as it opens the image
            busy=False,
            overlaid=bitmap["name"] in names_below,
        )


def reaches(disk: DiskInfo, name: str, path: str) -> bool:
    """Tell whether the image at `path` is the disk's own or lies below it, with a good bitmap `name` in each layer down to it.

    Then everything since that bitmap was made in that image is recorded. The own image's bitmap is taken to be good: of a
    running domain only QEMU knows. Raises HypervisorError when an image cannot be read.
    """
    wanted = os.path.realpath(path)
    for number, layer in enumerate(_chain(disk)):
        good = {bitmap["name"] for bitmap in _bitmaps_in(layer) if "in-use" not in bitmap["flags"]}
        if number and name not in good:
            return False
        place = disk.path if number == 0 else layer["filename"]
        if os.path.realpath(place) == wanted:
            return True
    return False


def _chain(disk: DiskInfo) -> list[dict[str, Any]]:
    """Return what the headers say of the disk's image and of those below it, the own one first."""
    # -U: only headers are read, so a domain that starts at this moment does no harm
    found: list[dict[str, Any]] = json.loads(
        _qemu_img("info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", "--", disk.path)
    )
    return found


def _bitmaps_in(layer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(layer.get("format-specific", {}).get("data", {}).get("bitmaps", ()))


def _qemu_img(*arguments: str) -> str:
    command = ["qemu-img", *arguments]
    operation = f"qemu-img {arguments[0]}"
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_QEMU_IMG_SECONDS_MAX)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HypervisorError(operation=operation, detail=str(error), code=0) from error
    if done.returncode != 0:
        raise HypervisorError(operation=operation, detail=done.stderr.strip(), path=Path(arguments[-1]), code=0)
    return done.stdout
