"""From an FTP storage's settings to connections that have proven themselves, and the pool that lends them.

    resolve ─► connect (from bind_address) ─► greeting ─► TLS, certificate as it must be? ─► login ─► settings ─► pool

Each arrow is a step with its own name in the error. Without TLS nothing is sent but on purpose (`tls_disabled`): a server that
knows none is an error, not a reason to go on in clear. A connection serves one command or transfer at a time, so the storage
keeps a few; those of idle readers are taken back when there would be too many.
"""

import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Protocol

from engine.errors import (
    EngineError,
    InvalidSpec,
    StorageError,
    StorageLoginFailed,
    StorageThrottled,
    StorageUnreachable,
    StorageUntrusted,
)
from engine.spec import FtpConfig
from engine.storage.ftp_wire import Control, Lost, NotTrusted, Refused, shut_raw
from engine.storage.sftp_connect import Patience, reason_of
from engine.storage.trouble import cause_of

log = logging.getLogger(__name__)

# Hosters allow some ten connections a user; an upload takes two while it lasts.
CONNECTIONS_MAX = 8
_FRESH_SECONDS = 20  # a connection unused for longer is asked whether it still lives
_KEEPALIVE_SECONDS = 30  # TCP's: a control connection is silent as long as a transfer takes, and firewalls forget it
_WANTS_TLS = re.compile(r"\b(tls|ssl|ftps|encrypt\w*|secure|cleartext|auth)\b", re.IGNORECASE)
_TOO_MANY = re.compile(r"too many|maximum|limit|connections|sessions|users", re.IGNORECASE)


class TooMany(StorageThrottled):
    """The server takes no further connection now; those that there are go on."""


class Lender(Protocol):
    """Who keeps a connection that it does not need just now."""

    def let_go(self) -> bool:
        """Give the connection back unless it is in use; tell whether it did. Never waits."""


def check(config: FtpConfig) -> None:
    """Raise InvalidSpec for what could never work, or would end up as another command."""
    for name in ("host", "username", "password", "path"):
        if any(character in getattr(config, name) for character in "\r\n\0"):
            raise InvalidSpec(field=f"ftp.{name}", problem="must have no line breaks and no NUL in it")
    if not config.host or not config.username:
        raise InvalidSpec(field="ftp.host" if not config.host else "ftp.username", problem="must be set")


def tls_context(config: FtpConfig) -> ssl.SSLContext | None:
    """Return how to shake hands, None for a storage without TLS. Raises InvalidSpec for a certificate that is none."""
    if config.tls_disabled:
        return None
    try:
        context = ssl.create_default_context(cadata=config.ca_certificate or None)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidSpec(field="ftp.ca_certificate", problem="must be one or more certificates in PEM") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.tls_version_max == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if config.skip_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Dialer:
    """Makes connections for one storage. `dial` may run in several threads at a time; `interrupt` comes from any other."""

    def __init__(self, config: FtpConfig, label: str, patience: Patience) -> None:
        check(config)
        self._config, self._label, self._patience = config, label, patience
        self._context = tls_context(config)
        self._interrupted = False
        self._open: set[socket.socket] = set()

    def dial(self) -> Control:
        """Return a new connection, logged in. Raises StorageUnreachable, StorageUntrusted or StorageLoginFailed."""
        addresses = self._resolve()
        sock = self._connect(addresses)
        control = Control(sock, self._config.host, self._context, self._connect_data, self._patience)
        late = threading.Event()
        timer = threading.Timer(self._patience.connect_seconds, _time_out, (control, late))
        timer.daemon = True
        timer.start()
        try:
            self._log_in(control, late)
        except BaseException:
            control.close()
            raise
        finally:
            timer.cancel()
            self._open.discard(sock)
        return control

    def interrupt(self) -> None:
        self._interrupted = True
        for sock in tuple(self._open):
            shut_raw(sock)

    # ---- steps ----------------------------------------------------------------------------------------------------------

    def _resolve(self) -> list[tuple[Any, ...]]:
        """Look the host up in a thread of its own: the C library's resolver takes no time-out and no interrupt."""
        self._check_interrupted("resolve")
        found: list[list[tuple[Any, ...]] | OSError] = []

        def look_up() -> None:
            try:
                found.append(list(socket.getaddrinfo(self._config.host, self._config.port, type=socket.SOCK_STREAM)))
            except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA refuses
                found.append(error if isinstance(error, OSError) else OSError(str(error)))

        thread = threading.Thread(target=look_up, name="ftp-resolve", daemon=True)
        thread.start()
        thread.join(self._patience.connect_seconds)
        if not found:
            raise self._unreachable("resolve", f"no answer for {self._patience.connect_seconds:g} seconds", "dns")
        if isinstance(found[0], OSError):
            raise self._unreachable("resolve", found[0].strerror or reason_of(found[0]), "dns") from None
        return found[0]

    def _connect(self, addresses: list[tuple[Any, ...]]) -> socket.socket:
        """Return a connected socket to the first address that answers."""
        failure: OSError | None = None
        if source := self._config.bind_address:
            wanted = socket.AF_INET6 if ":" in source else socket.AF_INET
            addresses = [one for one in addresses if one[0] == wanted]
        for family, _, _, _, address in addresses:
            self._check_interrupted("connect")
            try:
                return self._socket(family, address)
            except _BindFailed as error:
                raise self._unreachable(f"bind to {self._config.bind_address}", reason_of(error), "bind") from None
            except OSError as error:
                failure = error
        self._check_interrupted("connect")
        detail = "no address" if failure is None else failure.strerror or reason_of(failure)
        cause = "no_route" if failure is None else cause_of(failure)
        raise self._unreachable("connect", f"{self._config.host} port {self._config.port}: {detail}", cause)

    def _connect_data(self, host: str, port: int) -> socket.socket:
        """Return a connected socket for data: from the same source, to the host that the control connection is with."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._socket(family, (host, port))
        self._open.discard(sock)  # the control connection looks after it from here on
        return sock

    def _socket(self, family: int, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._patience.connect_seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The kernel gives up on a peer that takes nothing for this long, a closed window included. Source: tcp(7).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._patience.stall_seconds * 1000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)
            if self._config.bind_address:
                try:
                    sock.bind((self._config.bind_address, 0))
                except OSError as error:
                    raise _BindFailed(error.errno, error.strerror) from error
            self._open.add(sock)
            sock.connect(address)
        except BaseException:
            self._open.discard(sock)
            sock.close()
            raise
        return sock

    def _log_in(self, control: Control, late: threading.Event) -> None:
        step = "greeting"
        try:
            self._check_interrupted(step)
            control.greet()
            if self._context is not None:
                step = "TLS"
                control.secure()
            step = "login"
            control.log_in(self._config.username, self._config.password)
            step = "settings"
            control.prepare()
            self._check_interrupted(step)
        except NotTrusted as error:
            raise StorageUntrusted(storage=self._label, step="TLS", detail=str(error), cause=error.cause) from None
        except Refused as refused:
            self._refused(step, refused)
        except Lost as lost:
            if late.is_set():
                step, detail, cause = (
                    f"{step} (not done within {self._patience.connect_seconds:g} seconds)",
                    "timed out",
                    "timed_out",
                )
            else:
                detail, cause = str(lost), "lost"
            if _TOO_MANY.search(detail) and detail.startswith("421"):
                raise TooMany(storage=self._label, step=step, detail=detail) from None
            raise self._unreachable(step, detail, cause) from None

    def _refused(self, step: str, refused: Refused) -> NoReturn:
        """Raise what a refused step before the first real command means; `from None`: the server may quote what it was sent."""
        text = str(refused)
        if step == "TLS" or (self._context is not None and refused.code in {522, 534, 536}):
            detail = f"the server has no TLS: {text}"
            raise StorageUntrusted(storage=self._label, step=step, detail=detail, cause="protocol") from None
        if self._context is None and (refused.code == 522 or _WANTS_TLS.search(refused.text)):
            detail = f"the server takes no login without TLS, and TLS is disabled for this storage: {text}"
            raise StorageUntrusted(storage=self._label, step=step, detail=detail, cause="protocol") from None
        if step == "login" and refused.code in {530, 331, 332, 430, 532}:
            if _TOO_MANY.search(refused.text):
                raise TooMany(storage=self._label, step=step, detail=text) from None
            detail = f"the server does not accept this password for user {self._config.username}: {text}"
            raise StorageLoginFailed(storage=self._label, detail=detail, cause="password") from None
        raise self._unreachable(step, text, "lost") from None

    def _check_interrupted(self, step: str) -> None:
        if self._interrupted:
            raise self._unreachable(step, "interrupted", "")

    def _unreachable(self, step: str, detail: str, cause: str) -> StorageUnreachable:
        detail = "interrupted" if self._interrupted else detail
        return StorageUnreachable(storage=self._label, step=step, detail=detail, cause=cause)


def _time_out(control: Control, late: threading.Event) -> None:
    late.set()
    control.cut()


class _BindFailed(OSError):
    """The source address cannot be used."""


class Pool:
    """The connections of one storage. All methods may be called from any thread."""

    def __init__(self, dial: Callable[[], Control], label: str, patience: Patience) -> None:
        self._dial, self._label, self._patience = dial, label, patience
        self._state = threading.Condition()
        self._free: list[Control] = []
        self._lent: set[Control] = set()
        self._dialing = 0
        self._max = CONNECTIONS_MAX
        self._lenders: list[Lender] = []
        self._interrupted = False

    @contextmanager
    def lease(self) -> Iterator[Control]:
        """Lend a connection for the block; one that may be in the middle of something when it ends is closed."""
        control = self.acquire()
        try:
            yield control
        except (Refused, EngineError):
            raise
        except BaseException:
            control.broken = True
            raise
        finally:
            self.release(control)

    def acquire(self) -> Control:
        """Return a connection that lives as far as can be told, a new one if need be; `release` gives it back.

        Waits while there are too many, for as long as making one may take, then raises TooMany.
        """
        deadline = time.monotonic() + self._patience.connect_seconds
        while True:
            control = self._take()
            if control is not None:
                return control
            if self._ask_back():
                continue
            with self._state:
                if self._interrupted:
                    continue
                if time.monotonic() > deadline:
                    detail = f"all of {len(self._lent)} connections are in use, and the server allows no more"
                    raise TooMany(storage=self._label, step="connect", detail=detail)
                self._state.wait(0.1)

    def try_acquire(self) -> Control | None:
        """Return a connection if there is one, or one can be made without waiting for others; else None, for whatever reason."""
        try:
            return self._take()
        except StorageError as error:
            log.debug("no second connection storage=%s reason=%s", self._label, error)
            return None

    def take_free(self) -> Control | None:
        """Return a connection that nobody uses and that lives as far as can be told, None if there is none."""
        while True:
            with self._state:
                if self._interrupted or not self._free:
                    return None
                control = self._free.pop()
                self._lent.add(control)
            if self._lives(control):
                return control
            control.broken = True
            self.release(control)

    def release(self, control: Control) -> None:
        with self._state:
            self._lent.discard(control)
            if not control.broken and not self._interrupted:
                self._free.append(control)
            self._state.notify()
        if control.broken or self._interrupted:
            control.close()

    def distrust(self) -> None:
        """Hang up the connections that nobody uses: one was lost, and asking each of the others may take minutes."""
        with self._state:
            free, self._free = self._free, []
        for control in free:
            control.close()

    def lends(self, lender: Lender) -> None:
        """Note who has a connection that could be asked back; the last one to be noted is the last one to be asked."""
        with self._state:
            if lender in self._lenders:
                self._lenders.remove(lender)
            self._lenders.append(lender)

    def forget(self, lender: Lender) -> None:
        with self._state, suppress(ValueError):
            self._lenders.remove(lender)

    def interrupt(self) -> None:
        with self._state:
            self._interrupted = True
            for control in (*self._free, *self._lent):
                control.cut()
            self._state.notify_all()

    def close(self) -> None:
        """Hang up all connections that are not lent; those end when they are given back."""
        with self._state:
            self._interrupted = True
            free, self._free = self._free, []
        for control in free:
            control.close()

    def _take(self) -> Control | None:
        control = self.take_free()
        if control is not None:
            return control
        with self._state:
            if self._interrupted:
                raise StorageUnreachable(storage=self._label, step="connect", detail="interrupted")
            if len(self._lent) + self._dialing >= self._max:
                return None
            self._dialing += 1
        return self._dial_one()

    def _dial_one(self) -> Control | None:
        control = None
        try:
            control = self._dial()
        except TooMany as error:
            with self._state:
                others = len(self._lent)
                if not others and not self._free:
                    raise
                self._max = max(1, others)
            log.info("the server allows few connections storage=%s count=%d reason=%s", self._label, others, error)
            return None
        finally:
            with self._state:
                self._dialing -= 1
                if control is not None:
                    self._lent.add(control)
                    if self._interrupted:  # it came between the dial and our keeping the result
                        control.cut()
        return control

    def _lives(self, control: Control) -> bool:
        if control.reply_waits():  # it has said goodbye, or hung up
            return False
        if time.monotonic() - control.idle_since > _FRESH_SECONDS:
            try:
                control.command("NOOP", self._patience.connect_seconds)
            except (Lost, Refused):
                return False
        return True

    def _ask_back(self) -> bool:
        with self._state:
            lenders = tuple(self._lenders)
        return any(lender.let_go() for lender in lenders)


def url_host(host: str) -> str:
    """Return a host as it stands in a URL."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return f"[{host}]"
    return host
