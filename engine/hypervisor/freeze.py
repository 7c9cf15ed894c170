"""Freezing a guest's file systems through its agent, and making sure that they are thawed again.

A freeze that timed out may still happen later: the request lies in the guest's channel and is obeyed when the agent wakes
up (seen with limits of 2 s and 3 s, libvirt 9.0). So after any failure the only good answer is the guest's own word
`thawed`, asked again until it comes. A guest that stopped has nothing to thaw.
"""

import contextlib
import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import libvirt
import libvirt_qemu

from engine.errors import AgentUnavailable, HypervisorError, QuiesceFailed
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import is_active

_TRY_SECONDS = 2  # one try of thaw or status; a busy guest answers within 0.1 s
_PAUSE_SECONDS = 0.2  # between tries, when they fail at once
_RESPONSE_TIMEOUT_DEFAULT = (
    -2
)  # VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK; the limit sticks to the domain until it is put back
_WINDOWS_RESERVED = "System Reserved"  # what QEMU's agent calls a volume without a mount point
_NEVER_FROZEN = ("CDFS", "UDF")  # optical media in Windows: VSS refuses the whole set because of them


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system as the guest agent names it; `device` is such as sda1, dm-0, loop3 or a Windows volume."""

    mountpoint: str
    device: str
    type: str


def freeze(domain: Domain, timeout_seconds: int, exclude: Collection[str] = ()) -> int:
    """Freeze the guest's file systems and return how many; loop devices, Windows' reserved partitions and `exclude` stay out.

    `exclude` has mount points. Raises AgentUnavailable when the agent does not answer in `timeout_seconds`, QuiesceFailed
    when it refuses or nothing was frozen. After an error the caller must call `ensure_thawed`.
    """
    with _response_timeout(domain, timeout_seconds):
        mountpoints = _mountpoints(domain, exclude)
        if mountpoints is not None and not mountpoints:
            raise QuiesceFailed(domain=domain.name, detail="the guest has no file system that can be frozen")
        try:
            with domain.translated("virDomainFSFreeze"):
                count = int(domain.handle.fsFreeze(mountpoints))
        except AgentUnavailable:
            raise
        except HypervisorError as error:
            raise QuiesceFailed(domain=domain.name, detail=error.facts.get("detail", str(error))) from error
    if count == 0:
        raise QuiesceFailed(domain=domain.name, detail="the guest agent froze nothing")
    return count


def thaw(domain: Domain) -> int:
    """Thaw the guest's file systems once and return how many were frozen. Raises AgentUnavailable or HypervisorError."""
    with _response_timeout(domain, _TRY_SECONDS), domain.translated("virDomainFSThaw"):
        return int(domain.handle.fsThaw())


def freeze_status(domain: Domain) -> str:
    """Return `frozen` or `thawed`, the guest's own word. Raises AgentUnavailable or HypervisorError."""
    request = json.dumps({"execute": "guest-fsfreeze-status"})
    with _response_timeout(domain, _TRY_SECONDS), domain.translated("guest-fsfreeze-status"):
        return str(json.loads(libvirt_qemu.qemuAgentCommand(domain.handle, request, _TRY_SECONDS, 0))["return"])


def ensure_thawed(domain: Domain, seconds: float) -> bool:
    """Thaw until the guest says that it is thawed; False when that could not be learned in `seconds`: then try again later.

    True also for a domain that no longer runs. Safe to call at any time, and for a guest that was never frozen.
    """
    deadline = time.monotonic() + seconds
    while True:
        if not is_active(domain):
            return True
        with contextlib.suppress(HypervisorError):  # paused, hung, gone for the moment: the deadline decides
            thaw(domain)
            if freeze_status(domain) == "thawed":
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_SECONDS)


def freezable(file_systems: Iterable[FileSystem], exclude: Collection[str] = ()) -> list[str] | None:
    """Return the mount points to freeze, None if none of them has to be left out (then the agent chooses best by itself).

    A loop device's image lies on another of the guest's file systems: with that one frozen first, freezing the loop device
    waits for ever.
    """
    wanted: dict[str, str] = {}
    left_out = False
    for one in file_systems:
        if _stays_out(one) or one.mountpoint in exclude:
            left_out = True
        else:
            wanted.setdefault(one.device, one.mountpoint)  # a second mount of one device would be frozen twice
    return list(wanted.values()) if left_out else None


def _stays_out(one: FileSystem) -> bool:
    loop = one.device.removeprefix("/dev/").startswith("loop")
    return loop or one.mountpoint in {"", _WINDOWS_RESERVED} or one.type in _NEVER_FROZEN


def _mountpoints(domain: Domain, exclude: Collection[str]) -> list[str] | None:
    """Ask the guest what it has mounted; an agent without that command freezes all it finds."""
    try:
        with domain.translated("virDomainGetFSInfo"):
            listed = domain.handle.fsInfo()
    except AgentUnavailable:
        raise
    except HypervisorError:
        return None
    return freezable((FileSystem(one[0], one[1], one[2]) for one in listed), exclude)


@contextlib.contextmanager
def _response_timeout(domain: Domain, seconds: int) -> Iterator[None]:
    """Give the agent a firm limit for the block; without one, a hung agent was seen to block for as long as it hung.

    The limit stays with the domain, for everybody's calls, until it is put back to what a domain starts with.
    """
    with domain.translated("virDomainAgentSetResponseTimeout"):
        domain.handle.agentSetResponseTimeout(seconds)
    try:
        yield
    finally:
        with contextlib.suppress(HypervisorError), domain.translated("virDomainAgentSetResponseTimeout"):
            domain.handle.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
