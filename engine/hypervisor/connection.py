"""A connection to libvirt, the domains looked up through it, and what libvirt tells by itself.

    our code ── Connection, Domain ── libvirt ── socket ── libvirtd ── QEMU
                                        │
    one daemon thread per process: libvirt's event loop (keepalive, lifecycle events) ──► callbacks

Every call of libvirt stands in a `translated` block, so a libvirtError never leaves this folder: it becomes one of ours,
chosen by libvirt's code in `_translate` and nowhere else. libvirt's own printing of errors is silenced.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

import libvirt

from engine.errors import (
    AgentUnavailable,
    CheckpointUnusable,
    DomainBusy,
    DomainNotFound,
    HypervisorError,
    LibvirtUnreachable,
)

log = logging.getLogger(__name__)

_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 6  # libvirtd may be slow for some seconds while it starts domains; 30 s of silence is an end
RESTART_SECONDS = 30.0  # a restart takes 1-3 s; an update of the package may stand between stop and start for longer
_RETRY_SECONDS = 0.2

_AGENT = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED)
_CHECKPOINT = (
    libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT,
    libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT,
    libvirt.VIR_ERR_INVALID_DOMAIN_CHECKPOINT,
)
_TRANSPORT = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
_TRANSPORT_CODES = (
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_NO_CONNECT,
)

Change: TypeAlias = Literal[
    "defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "pmsuspended", "crashed"
]
_CHANGES: tuple[Change, ...] = get_args(Change)  # in the order of virDomainEventType


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """One change of a domain's life. `io_error` marks a suspension because a disk of the host failed or is full."""

    uuid: str
    name: str
    change: Change
    io_error: bool = False


class Domain:
    """A domain of a connection. Any thread may use it."""

    def __init__(self, connection: "Connection", uuid: str, name: str, handle: Any) -> None:
        self.connection = connection
        self.uuid = uuid
        self.name = name
        self._found = (connection.handle, handle)

    @property
    def handle(self) -> Any:
        """The object of libvirt, used in this folder alone; looked up anew if a patient connection was made anew meanwhile."""
        current = self.connection.renewed()
        of, handle = self._found
        if of is not current:
            handle = current.lookupByUUIDString(self.uuid)
            self._found = (current, handle)
        return handle

    @contextlib.contextmanager
    def translated(self, operation: str) -> Iterator[None]:
        """Turn a libvirtError of the block into ours, naming the operation and this domain."""
        with translated(operation, domain=self.name, uri=self.connection.uri):
            yield


@dataclass(frozen=True, slots=True, eq=False)
class _Watcher:
    changed: Callable[[DomainEvent], None]
    closed: Callable[[], None] | None


class Connection:
    """An open connection; close it with `close` or `with`. Any thread may use it. From `open_connection`."""

    def __init__(self, uri: str, handle: Any, patience_seconds: float = 0) -> None:
        self.uri = uri
        self.handle = handle
        self._patience_seconds = patience_seconds
        self._watchers: list[_Watcher] = []
        self._registered: int | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, its watches with it. A dead connection is no error."""
        with self._lock:
            number, self._registered = self._registered, None
        with contextlib.suppress(libvirt.libvirtError):
            if number is not None:  # else libvirt keeps the connection open for the sake of the callbacks
                self.handle.domainEventDeregisterAny(number)
                self.handle.unregisterCloseCallback()
        _close(self.handle)

    def alive(self) -> bool:
        """Tell whether libvirtd still answers on this connection."""
        try:
            return bool(self.handle.isAlive())
        except libvirt.libvirtError:
            return False

    @property
    def patient(self) -> bool:
        return self._patience_seconds > 0

    def renewed(self) -> Any:
        """Return libvirt's connection; a patient one is made anew if libvirtd went away. Raises libvirtError if it stays away."""
        if not self._patience_seconds or self.alive():
            return self.handle
        with self._lock:
            deadline = time.monotonic() + self._patience_seconds
            while not self.alive():
                try:
                    fresh = _open(self.uri)
                except libvirt.libvirtError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(_RETRY_SECONDS)
                    continue
                _close(self.handle)
                self.handle = fresh
                log.warning("libvirtd went away and is back uri=%s", self.uri)
            return self.handle

    def domain(self, uuid_or_name: str) -> Domain:
        """Look a domain up by its UUID, or by its name. Raises DomainNotFound."""
        with translated("virDomainLookup", domain=uuid_or_name, uri=self.uri):
            try:
                handle = self.handle.lookupByUUIDString(uuid_or_name)
            except libvirt.libvirtError as error:
                # A name is not a UUID (an invalid argument), or it looks like one and is none.
                if error.get_error_code() not in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG}:
                    raise
                handle = self.handle.lookupByName(uuid_or_name)
            return Domain(self, handle.UUIDString(), handle.name(), handle)

    def watch_domains(
        self, changed: Callable[[DomainEvent], None], closed: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `changed` for every change of every domain, and `closed` once when libvirtd goes away; return what ends it.

        The calls come in the event loop's thread: they must be short and must not call libvirt. An exception in them is
        logged and ends nothing.
        """
        watcher = _Watcher(changed, closed)
        with self._lock, translated("virConnectDomainEventRegisterAny", uri=self.uri):
            if self._registered is None:  # libvirt takes one callback of a kind per connection
                kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
                self._registered = self.handle.domainEventRegisterAny(None, kind, _on_lifecycle, self._watchers)
                self.handle.registerCloseCallback(_on_close, self._watchers)
            self._watchers.append(watcher)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._watchers.remove(watcher)

        return end

    def watch_domain(self, domain: Domain, changed: Callable[[DomainEvent], None]) -> Callable[[], None]:
        """As `watch_domains`, for the changes of one domain."""

        def filtered(event: DomainEvent) -> None:
            if event.uuid == domain.uuid:
                changed(event)

        return self.watch_domains(filtered)


def open_connection(uri: str = "qemu:///system", patience_seconds: float = 0) -> Connection:
    """Connect to libvirt. Raises LibvirtUnreachable.

    With patience a call through one of its domains that finds libvirtd gone waits so long for it to come back: work that
    QEMU does goes on while libvirtd is restarted. A call that is under way at that moment fails all the same.
    """
    _event_loop.start()
    try:
        handle = _open(uri)
    except libvirt.libvirtError as error:
        raise LibvirtUnreachable(uri=uri, detail=_text(error), code=error.get_error_code()) from error
    return Connection(uri, handle, patience_seconds)


def _open(uri: str) -> Any:
    handle = libvirt.open(uri)
    with contextlib.suppress(libvirt.libvirtError):  # a driver in our own process has nothing to keep alive
        handle.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
    return handle


def _close(handle: Any) -> None:
    with contextlib.suppress(libvirt.libvirtError):  # dead already
        handle.close()


@contextlib.contextmanager
def translated(operation: str, domain: str = "", uri: str = "") -> Iterator[None]:
    """Turn a libvirtError of the block into the error of ours that says what a caller can do about it."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _translate(error, operation, domain, uri) from error


def code_of(error: HypervisorError) -> int:
    """Return libvirt's error code of an error from `translated`, 0 if there was none."""
    return int(error.facts.get("code", "0"))


def _translate(error: Any, operation: str, domain: str, uri: str) -> HypervisorError:
    code, detail = error.get_error_code(), _text(error)
    facts = {"operation": operation, "domain": domain, "detail": detail, "code": code}
    if error.get_error_domain() in _TRANSPORT and code in _TRANSPORT_CODES:
        return LibvirtUnreachable(uri=uri, **facts)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainNotFound(**facts)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return DomainBusy(holder=detail, **facts)
    no_channel = code == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED and "agent" in detail.lower()
    if code in _AGENT or no_channel:
        return AgentUnavailable(**facts)
    if code in _CHECKPOINT:
        return CheckpointUnusable(**facts)
    return HypervisorError(**facts)


def _text(error: Any) -> str:
    return str(error.get_error_message() or error)


def _on_lifecycle(_connection: Any, handle: Any, number: int, detail: int, watchers: list[_Watcher]) -> None:
    if number >= len(_CHANGES):
        return
    io_error = number == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR
    event = DomainEvent(handle.UUIDString(), handle.name(), _CHANGES[number], io_error)
    for watcher in tuple(watchers):
        try:
            watcher.changed(event)
        except Exception:
            log.exception("a watcher of domains failed")


def _on_close(_connection: Any, _reason: int, watchers: list[_Watcher]) -> None:
    for watcher in tuple(watchers):
        try:
            if watcher.closed is not None:
                watcher.closed()
        except Exception:
            log.exception("a watcher of a connection failed")


class _EventLoop:
    """libvirt's default event loop in a daemon thread, one per process; it must be registered before the first connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = False

    def start(self) -> None:
        with self._lock:
            if self._running:
                return
            libvirt.registerErrorHandler(_silent, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=self._run, name="libvirt-events", daemon=True).start()
            self._running = True

    @staticmethod
    def _run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                log.warning("libvirt's event loop stumbled detail=%s", _text(error))


def _silent(_context: Any, _error: Any) -> None:
    """Take the place of libvirt's own printing to standard error."""


_event_loop = _EventLoop()
