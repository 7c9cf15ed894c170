"""A note in the domain's own definition that its disks were restored: why the next backup is a full.

    <metadata>
      <bm:restored xmlns:bm="urn:backup-manager:restored">
        <bm:disk name="vda" time="2026-11-23T04:30:42+00:00"/>

A restore gives up the bitmaps of the disks that it writes, so a full follows in any case; the note tells the owner of the
server why, and is one more guard should a bitmap have survived. A panel that writes definitions anew drops it: no harm.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from xml.etree import ElementTree as ET

import libvirt

from engine.errors import HypervisorError
from engine.hypervisor.connection import Domain, code_of
from engine.hypervisor.domains import parse

_SPACE = "urn:backup-manager:restored"
_KEY = "bm"


def note_restored(domain: Domain, disks: Iterable[str], now: datetime) -> None:
    """Note that these disks of a stopped domain are about to be written over; notes of others stay. `now` is aware."""
    _write(domain, {**restored_times(domain), **dict.fromkeys(disks, now)})


def _write(domain: Domain, times: Mapping[str, datetime]) -> None:
    root = ET.Element("restored")
    for disk, time in sorted(times.items()):
        ET.SubElement(root, "disk", name=disk, time=time.isoformat())
    text = ET.tostring(root, encoding="unicode")
    with domain.translated("virDomainSetMetadata"):
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        if domain.handle.isActive():
            flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
        domain.handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, _KEY, _SPACE, flags)


def settle_restored(domain: Domain, disks: Iterable[str], before: datetime) -> None:
    """Let no note claim that one of these disks was restored at `before` (aware) or later: a backup of then holds what was.

    Only a clock that jumped between a restore and the next backup makes such a note; it would make every backup a full.
    """
    times = restored_times(domain)
    wrong = [disk for disk in disks if disk in times and times[disk] >= before]
    if wrong:
        _write(domain, {**times, **dict.fromkeys(wrong, before - timedelta(milliseconds=1))})


def restored_times(domain: Domain) -> dict[str, datetime]:
    """Return when each disk was last restored, as far as it is noted. What is there and not ours to read counts as nothing."""
    try:
        with domain.translated("virDomainGetMetadata"):
            text = domain.handle.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, _SPACE)
    except HypervisorError as error:
        if code_of(error) == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return {}
        raise
    found = {}
    for disk in parse(text).iter():
        try:
            time = datetime.fromisoformat(disk.get("time", ""))
        except ValueError:
            continue
        if time.tzinfo is not None:
            found[disk.get("name", "")] = time
    return found
