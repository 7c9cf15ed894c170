"""Which domains this host has, always the newest word only.

    thread: connect ── list ──► event loop: Inventory.domains, `changed`
              ▲  wait for libvirt's events, for 1 s of quiet, at most 5 minutes; every 10 s ask who migrates
              └─ libvirtd away or hung: capabilities empty, tried again

libvirt's calls may block for as long as libvirtd likes. They stand in a thread of their own, so the agent never does.
"""

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from engine.hypervisor.connection import Connection
    from engine.hypervisor.domains import DomainInfo

log = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
REFRESH_SECONDS = 300.0  # what libvirt sends no event for: disks attached, a guest agent that comes up
MIGRATION_SECONDS = 10.0  # libvirt sends no event when a migration begins; the question costs 0.2 ms a domain
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 2.0, 60.0


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions such as "9.0.0", "" for what cannot be reached."""

    libvirt: str = ""
    qemu: str = ""


class Inventory:
    """Start it in the event loop; read it there."""

    def __init__(self, libvirt_uri: str, changed: asyncio.Event | None = None) -> None:
        self.changed = changed or asyncio.Event()
        self.versions = Versions()
        self.domains: tuple[DomainInfo, ...] | None = None  # None until libvirt has answered once
        self.version = 0  # grows with every change
        self._uri = libvirt_uri
        self._looked = asyncio.Event()
        self._stirred = threading.Event()
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._main, name="inventory", daemon=True).start()

    def stop(self) -> None:
        """Ask the thread to end; it is not waited for, since it may hang in libvirt."""
        self._stopping.set()
        self._stirred.set()

    async def first_look(self, seconds: float) -> None:
        """Wait until libvirt has answered, or could not be reached, for the first time; at most `seconds`."""
        try:
            await asyncio.wait_for(self._looked.wait(), seconds)
        except TimeoutError:
            log.warning("libvirt does not answer uri=%s", self._uri)

    # ---- in the event loop ---------------------------------------------------------------------------------------------

    def _take(self, versions: Versions, domains: "tuple[DomainInfo, ...] | None") -> None:
        self.versions = versions
        if domains is not None and domains != self.domains:
            self.domains = domains
            self.version += 1
        self._looked.set()
        self.changed.set()

    # ---- in the thread -------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        seconds = RETRY_SECONDS_MIN
        while not self._stopping.is_set():
            try:
                self._follow()
                seconds = RETRY_SECONDS_MIN
                continue
            except BackupManagerError as error:
                log.warning("no inventory uri=%s detail=%s", self._uri, error)
            except Exception:
                log.exception("the inventory failed")
            self._pass_on(Versions(), None)
            self._stopping.wait(seconds)
            seconds = min(2 * seconds, RETRY_SECONDS_MAX)

    def _follow(self) -> None:
        """Report until the connection is lost or the agent stops. Raises LibvirtUnreachable and others of ours."""
        # The first import of libvirt in this process: bm-agent --help needs none, and a host without it still answers.
        from engine.hypervisor.connection import open_connection
        from engine.hypervisor.domains import list_domains

        with open_connection(self._uri) as connection:
            self._lost.clear()
            versions = _versions(connection)
            end_watch = connection.watch_domains(lambda _: self._stirred.set(), self._on_lost)
            try:
                while not self._lost.is_set() and not self._stopping.is_set():
                    self._stirred.clear()
                    domains = list_domains(connection)
                    self._pass_on(versions, domains)
                    self._wait(connection, frozenset(one.uuid for one in domains if one.migrating))
            finally:
                end_watch()
        if self._lost.is_set():
            log.warning("lost the connection to libvirt uri=%s", self._uri)
            self._pass_on(Versions(), None)

    def _wait(self, connection: "Connection", known: frozenset[str]) -> None:
        """Wait until there may be something new: libvirt says so, a migration has begun or ended, or it was long enough."""
        from engine.hypervisor.domains import migrating

        until = time.monotonic() + REFRESH_SECONDS
        while time.monotonic() < until:
            if self._stirred.wait(MIGRATION_SECONDS):
                self._stopping.wait(QUIET_SECONDS)
                return
            if migrating(connection) != known:
                return

    def _on_lost(self) -> None:
        self._lost.set()
        self._stirred.set()

    def _pass_on(self, versions: Versions, domains: "tuple[DomainInfo, ...] | None") -> None:
        if self._loop is not None and not self._stopping.is_set():
            try:
                self._loop.call_soon_threadsafe(self._take, versions, domains)
            except RuntimeError:  # the loop has just been closed
                self._stopping.set()


def _versions(connection: "Connection") -> Versions:
    from engine.hypervisor.connection import translated

    with translated("virConnectGetVersion", uri=connection.uri):
        return Versions(_dotted(connection.handle.getLibVersion()), _dotted(connection.handle.getVersion()))


def _dotted(number: int) -> str:
    """Return libvirt's number of a version (major * 1,000,000 + minor * 1000 + release) as people write it."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
