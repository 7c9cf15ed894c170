"""What libvirt knows of a domain: its disks, which of them can be backed up, its guest agent and its definition.

The definition that goes into a backup is the one the domain will have at its next start (the inactive XML, with its
secrets) and the NVRAM's bytes: enough to define the domain anew on another hypervisor.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from xml.etree import ElementTree as ET

import libvirt

from engine.errors import DomainNotFound, HypervisorError
from engine.hypervisor.connection import Connection, Domain, translated
from engine.units import MIB

if TYPE_CHECKING:  # it brings all settings along, which a thaw guard would wait for
    from engine.work import Stop

AGENT_CHANNEL = "org.qemu.guest_agent.0"
NVRAM_BYTES_MAX = 64 * MIB  # OVMF's is 64 KiB to 4 MiB; anything of this size is a mistake in the definition
STORPOOL_FOLDER = "/dev/storpool/"
_POLL_SECONDS = 0.1
_START_SECONDS_MAX = 60.0  # of a domain with much memory or many devices

State: TypeAlias = Literal["running", "paused", "stopping", "stopped", "crashed", "suspended", "unknown"]
GuestAgent: TypeAlias = Literal["absent", "configured", "connected"]
_STATES: dict[int, State] = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "stopping",
    libvirt.VIR_DOMAIN_SHUTOFF: "stopped",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}

_MIGRATIONS = {libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT}


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """One disk of a domain. `target` (such as vda) is its name everywhere in this product.

    `size_bytes` is what the guest sees, `allocation_bytes` what the image takes on the host; both 0 where unsupported.
    `unsupported` says in words why the disk cannot be backed up, "" if it can. `holds_bitmaps` says whether QEMU can keep
    a record of changes in the image (qcow2 of version 3): without it the record lasts only as long as the domain runs.
    """

    target: str
    path: str
    format: str
    size_bytes: int
    allocation_bytes: int
    device: str
    bus: str
    serial: str
    readonly: bool
    shareable: bool
    removable: bool
    unsupported: str
    holds_bitmaps: bool
    alias: str  # QEMU's name of the device, "" while the domain does not run
    io_thread: bool = False  # QEMU serves it in a thread of its own, see io_threads.py


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """A domain as it is now."""

    uuid: str
    name: str
    state: State
    persistent: bool
    disks: tuple[DiskInfo, ...]
    guest_agent: GuestAgent
    migrating: bool = False  # to another hypervisor, or from one

    @property
    def active(self) -> bool:
        """True while a QEMU process stands behind the domain: then its disks are read through libvirt."""
        return self.state not in {"stopped", "crashed"}

    @property
    def eligible_disks(self) -> tuple[DiskInfo, ...]:
        return tuple(disk for disk in self.disks if not disk.unsupported)


# ---- looking -----------------------------------------------------------------------------------------------------------


def list_domains(connection: Connection) -> tuple[DomainInfo, ...]:
    """Return all domains of the hypervisor, sorted by name; one that vanishes meanwhile is left out."""
    with translated("virConnectListAllDomains", uri=connection.uri):
        handles = connection.handle.listAllDomains()
        domains = [Domain(connection, handle.UUIDString(), handle.name(), handle) for handle in handles]
    found = []
    for domain in sorted(domains, key=lambda one: one.name):
        with contextlib.suppress(DomainNotFound):
            found.append(domain_info(domain))
    return tuple(found)


def get_domain(connection: Connection, uuid_or_name: str) -> DomainInfo:
    """Return one domain. Raises DomainNotFound."""
    return domain_info(connection.domain(uuid_or_name))


def domain_info(domain: Domain) -> DomainInfo:
    """Return what libvirt tells of a domain now: of a running one its live definition, else the one for its next start."""
    with domain.translated("virDomainGetXMLDesc"):
        state = _STATES.get(domain.handle.state()[0], "unknown")
        persistent = bool(domain.handle.isPersistent())
        root = parse(domain.handle.XMLDesc())
    disks = tuple(_disk(domain, element, root) for element in root.iterfind("./devices/disk"))
    return DomainInfo(domain.uuid, domain.name, state, persistent, disks, _guest_agent(root), is_migrating(domain))


def is_migrating(domain: Domain) -> bool:
    """Tell whether a migration of the domain goes on, on either side of it. Raises DomainNotFound."""
    if not is_active(domain):
        return False
    try:
        with domain.translated("virDomainGetJobStats"):
            if domain.handle.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
                return False
            return domain.handle.jobStats().get(libvirt.VIR_DOMAIN_JOB_OPERATION) in _MIGRATIONS
    except DomainNotFound:
        raise
    except HypervisorError:  # it stopped a moment ago, or its job ended between the two questions
        return False


def migrating(connection: Connection) -> frozenset[str]:
    """Return the UUIDs of the domains that migrate now."""
    with translated("virConnectListAllDomains", uri=connection.uri):
        handles = connection.handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        domains = [Domain(connection, handle.UUIDString(), handle.name(), handle) for handle in handles]
    found = set()
    for domain in domains:
        with contextlib.suppress(DomainNotFound):
            if is_migrating(domain):
                found.add(domain.uuid)
    return frozenset(found)


def state_of(domain: Domain) -> State:
    with domain.translated("virDomainGetState"):
        return _STATES.get(domain.handle.state()[0], "unknown")


def stopped_by_io_error(domain: Domain) -> bool:
    """Tell whether QEMU paused the guest because a write failed on the host, as when a scratch file found no room."""
    with domain.translated("virDomainGetState"):
        state, reason = domain.handle.state()
    return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)


def guest_agent_of(domain: Domain) -> GuestAgent:
    with domain.translated("virDomainGetXMLDesc"):
        return _guest_agent(parse(domain.handle.XMLDesc()))


def is_active(domain: Domain) -> bool:
    """Tell whether a QEMU process stands behind the domain; False also for one that is no longer there."""
    try:
        with domain.translated("virDomainIsActive"):
            return bool(domain.handle.isActive())
    except DomainNotFound:
        return False


def has_managed_save(domain: Domain) -> bool:
    """Tell whether the domain was saved with its memory: its next start goes on from there, and its guest never shut down."""
    with domain.translated("virDomainHasManagedSaveImage"):
        return bool(domain.handle.hasManagedSaveImage())


def drop_managed_save(domain: Domain) -> bool:
    """Drop the memory that a stopped domain was saved with, so that its next start is a boot; True if there was any."""
    if not has_managed_save(domain):
        return False
    with domain.translated("virDomainManagedSaveRemove"):
        domain.handle.managedSaveRemove()
    return True


def definition(domain: Domain, *, live: bool = False) -> str:
    """Return the XML that defines the domain anew, with its secrets (VNC passwords): store it sealed, never log it.

    It is the one for the next start; `live` is the one of now, with what was plugged into the running domain alone.
    """
    flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE if live else libvirt.VIR_DOMAIN_XML_INACTIVE
    with domain.translated("virDomainGetXMLDesc"):
        return str(domain.handle.XMLDesc(flags | libvirt.VIR_DOMAIN_XML_SECURE))


def disk_names(xml: str) -> set[str]:
    """Return the targets of a definition's disks."""
    return {target.get("dev", "") for target in parse(xml).iterfind("./devices/disk/target")}


def nvram(domain: Domain) -> bytes | None:
    """Return the bytes of the domain's NVRAM file, None if the definition has none or it was never started.

    Raises HypervisorError when the file is there and cannot be read.
    """
    path = nvram_path(definition(domain))
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            data = file.read(NVRAM_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HypervisorError(operation="reading NVRAM", detail=error.strerror, path=path, code=0) from error
    if len(data) > NVRAM_BYTES_MAX:
        raise HypervisorError(
            operation="reading NVRAM", detail=f"{path} is larger than {NVRAM_BYTES_MAX} bytes", code=0
        )
    return data


def nvram_path(xml: str) -> str:
    """Return the path of the NVRAM file of a definition, "" if it has none."""
    element = parse(xml).find("./os/nvram")
    if element is None:
        return ""
    source = element.find("source")
    return (source.get("file", "") if source is not None else "") or (element.text or "").strip()


def parse(xml: str) -> ET.Element:
    """Return a definition's root element. Raises HypervisorError for what is no XML, or brings its own entities along."""
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:  # libvirt writes neither; entities can grow without bound
        raise HypervisorError(operation="reading a definition", detail="it declares a document type", code=0)
    try:
        return ET.fromstring(xml)  # noqa: S314  the danger named by the rule is refused above
    except ET.ParseError as error:
        raise HypervisorError(operation="reading a definition", detail=str(error), code=0) from error


@dataclass(frozen=True, slots=True)
class DefinedDisk:
    """A disk that a definition lets its domain write to; whether its image exists is not asked."""

    target: str
    path: str
    format: str
    is_block: bool


def defined_disks(xml: str) -> tuple[DefinedDisk, ...]:
    """Return the disks of a definition that have a path and belong to this domain alone. Raises HypervisorError."""
    found = []
    for element in parse(xml).iterfind("./devices/disk"):
        source, driver, target = element.find("source"), element.find("driver"), element.find("target")
        path = "" if source is None else source.get("file") or source.get("dev") or ""
        shared = any(element.find(mark) is not None for mark in ("readonly", "shareable"))
        if path and target is not None and element.get("device", "disk") == "disk" and not shared:
            image_format = "raw" if driver is None else driver.get("type", "raw")
            found.append(DefinedDisk(target.get("dev", ""), path, image_format, element.get("type") == "block"))
    return tuple(found)


def sources_in_use(connection: Connection, but: str = "") -> dict[str, str]:
    """Return the real path of every image that a domain names, now or for its next start, with the domain's name.

    `but` is the UUID of a domain that does not count.
    """
    used: dict[str, str] = {}
    with translated("virConnectListAllDomains", uri=connection.uri):
        handles = connection.handle.listAllDomains()
    for handle in handles:
        with contextlib.suppress(DomainNotFound), translated("virDomainGetXMLDesc", uri=connection.uri):
            if handle.UUIDString() == but:
                continue
            for xml in (handle.XMLDesc(), handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)):
                for source in parse(xml).iterfind("./devices/disk//source"):
                    if path := source.get("file") or source.get("dev"):
                        used.setdefault(os.path.realpath(path), handle.name())
    return used


# ---- one disk ----------------------------------------------------------------------------------------------------------


def _disk(domain: Domain, element: ET.Element, root: ET.Element) -> DiskInfo:
    kind, device = element.get("type", "file"), element.get("device", "disk")
    target, driver, source = element.find("target"), element.find("driver"), element.find("source")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    image_format = "" if driver is None else driver.get("type", "raw")
    unsupported = _unsupported(element, kind, device, image_format, path)
    name = "" if target is None else target.get("dev", "")
    size, allocation = (0, 0) if unsupported else _sizes(domain, name)
    alias = element.find("alias")
    return DiskInfo(
        target=name,
        path=path,
        format=image_format,
        size_bytes=size,
        allocation_bytes=allocation,
        device=device,
        bus="" if target is None else target.get("bus", ""),
        serial=(element.findtext("serial") or "").strip(),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        removable=target is not None and target.get("removable") == "on",
        unsupported=unsupported,
        holds_bitmaps=not unsupported and image_format == "qcow2" and _qcow2_version(path) >= 3,
        alias="" if alias is None else alias.get("name", ""),
        io_thread=_has_io_thread(element, root),
    )


def _has_io_thread(element: ET.Element, root: ET.Element) -> bool:
    """Tell whether a disk, or the SCSI controller that it hangs on, has an I/O thread."""
    address = element.find("address")
    index = "" if address is None else address.get("controller", "")
    places = [element.find("driver")]
    places += [
        controller.find("driver")
        for controller in root.iterfind("./devices/controller[@type='scsi']")
        if address is not None and address.get("type") == "drive" and controller.get("index") == index
    ]
    return any(one is not None and ("iothread" in one.attrib or one.find("iothreads") is not None) for one in places)


def _unsupported(element: ET.Element, kind: str, device: str, image_format: str, path: str) -> str:
    """Say why a disk cannot be backed up, "" if it can."""
    if device != "disk":
        return f"a {device} is not backed up"
    if element.find("readonly") is not None:
        return "the disk is read-only"
    if element.find("shareable") is not None:
        return "the disk is shared with other domains, who may write to it at the same instant"
    if (target := element.find("target")) is not None and target.get("removable") == "on":
        return "the disk is removable"
    if element.find("transient") is not None:
        return "the disk is transient: what is written to it is dropped when the domain stops"
    if kind == "network":
        source = element.find("source")
        return f"the source is on the network ({source.get('protocol', '?') if source is not None else '?'})"
    if kind not in {"file", "block"}:
        return f"a source of type {kind} is not supported"
    if not path:
        return "the disk has no source"
    if path.startswith(STORPOOL_FOLDER):
        return "StorPool volumes are not supported"
    if image_format not in {"qcow2", "raw"}:
        return f"images of format {image_format} are not supported"
    if element.find("encryption") is not None or element.find("./source/encryption") is not None:
        return "the image is encrypted by the hypervisor"
    return ""


def _sizes(domain: Domain, target: str) -> tuple[int, int]:
    """Return virtual size and allocation in bytes; zeros for an image that cannot be opened, as of a stopped domain."""
    try:
        with domain.translated("virDomainGetBlockInfo"):
            capacity, allocation, _physical = domain.handle.blockInfo(target)
    except DomainNotFound:
        raise
    except HypervisorError:
        return 0, 0
    return capacity, allocation


def _qcow2_version(path: str) -> int:
    """Return the version in a qcow2 image's header, 0 if it is none. 2 is "compat=0.10", which cannot store bitmaps."""
    try:
        with Path(path).open("rb") as file:
            header = file.read(8)
    except OSError:
        return 0
    return int.from_bytes(header[4:8], "big") if header[:4] == b"QFI\xfb" else 0


def _guest_agent(root: ET.Element) -> GuestAgent:
    for target in root.iterfind("./devices/channel/target"):
        if target.get("name") == AGENT_CHANNEL:
            return "connected" if target.get("state") == "connected" else "configured"
    return "absent"


# ---- stopping, starting, defining --------------------------------------------------------------------------------------


def shut_down(domain: Domain, grace_seconds: float, stop: "Stop | None" = None) -> bool:
    """Stop a domain: ask the guest, and after `grace_seconds` without success end it. True if the guest did it itself.

    A paused guest cannot hear the wish and is ended at once. A stopped domain is no error, one that vanishes neither.
    Raises Cancelled as soon as `stop` is set; a guest that was asked may then still shut down.
    """
    from engine.work import Stop

    stop = stop or Stop()
    if not is_active(domain):
        return True
    asked = state_of(domain) == "running" and grace_seconds > 0 and _asked(domain)
    if asked and _wait_stopped(domain, grace_seconds, stop):
        return True
    try:
        with domain.translated("virDomainDestroy"):
            domain.handle.destroy()
    except HypervisorError:
        if is_active(domain):
            raise
    return False


def start(domain: Domain) -> None:
    """Start a stopped domain; one that runs already is no error."""
    if is_active(domain):
        return
    with domain.translated("virDomainCreate"):
        domain.handle.create()


def wait_settled(domain: Domain, stop: "Stop") -> None:
    """Wait until a start that is under way is over, one way or the other, for a minute at most, or until `stop` is set.

    Meanwhile libvirt calls the domain stopped, and QEMU has its images already. Raises nothing: what the domain is then
    shows at the next call.
    """
    deadline = time.monotonic() + _START_SECONDS_MAX
    with contextlib.suppress(HypervisorError):
        while is_active(domain) and state_of(domain) in {"stopped", "crashed"}:
            if time.monotonic() >= deadline or stop.event.wait(_POLL_SECONDS):
                return


def define(connection: Connection, xml: str) -> Domain:
    """Define a persistent domain (or change its definition) and return it. Raises HypervisorError for XML that does not do."""
    with translated("virDomainDefineXML", uri=connection.uri):
        handle = connection.handle.defineXML(xml)
        return Domain(connection, handle.UUIDString(), handle.name(), handle)


def undefine(domain: Domain) -> None:
    """Take back `define`: forget a stopped domain's definition; its images and NVRAM stay where they are."""
    flags = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    with domain.translated("virDomainUndefine"):
        domain.handle.undefineFlags(flags)


def _asked(domain: Domain) -> bool:
    try:
        with domain.translated("virDomainShutdown"):
            domain.handle.shutdown()
    except HypervisorError:  # no agent and no ACPI, or the agent hangs: then the domain is ended
        return False
    return True


def _wait_stopped(domain: Domain, seconds: float, stop: "Stop") -> bool:
    deadline = time.monotonic() + seconds
    while is_active(domain):
        stop.check()
        if time.monotonic() >= deadline:
            return False
        stop.event.wait(_POLL_SECONDS)
    return True
