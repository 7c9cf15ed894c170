"""HTTP to one S3 server: connections that are kept, from an address of our choice, and that can all be ended at once.

    exchange ──► an idle connection, or: resolve ─► connect (from bind_address) ─► TLS
                 headers, body in pieces, each piece when the bucket grants it ──► answer, whole

`http.client` speaks the protocol; here stands who dials, how long a silence may last, and what a failure was. A connection
serves one exchange at a time; threads have as many as they need, and those that are idle wait for the next in a pool.
"""

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from engine.errors import InvalidSpec
from engine.units import KIB

if TYPE_CHECKING:
    from engine.storage.base import Bucket

Body: TypeAlias = bytes | memoryview
SEND_BYTES = 256 * KIB
PACED_BYTES = (
    64 * KIB
)  # beneath a limit: servers end connections that are silent for some 20 s, and several share the limit
IDLE_SECONDS_MAX = 20.0
IDLE_MAX = 16
LATE_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: for a connection, for any sign of life, for a finished upload, and how to try again."""

    connect_seconds: float = 15
    stall_seconds: float = 120
    complete_seconds: float = 900  # gateways put 32 GiB together before they answer
    attempts: int = 5
    pause_seconds: float = 0.5  # before the second attempt; doubles each time
    pause_seconds_max: float = 30
    # For an upload or a read that has come some way: a server that is being rebooted is back by then.
    enduring_attempts: int = 14
    enduring_seconds: float = 300


BRIEF = Patience(connect_seconds=4, stall_seconds=4, complete_seconds=4, attempts=1, enduring_attempts=1)


class Lost(Exception):
    """No answer: the connection could not be made or broke. `step` is what was being done; trying again may help."""

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(detail)
        self.step = step


class Oversized(Exception):
    """An answer longer than what was asked for can have: trying again does not help."""


class Untrusted(Exception):
    """TLS cannot be spoken with this server, or its certificate is not trusted: trying again does not help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    filled: bool = False  # the body is not here: it went where who asked wanted it, all that there was room for


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, from its URL."""

    secure: bool
    host: str
    port: int
    path: str  # what comes before a bucket, without a slash at its end

    @property
    def authority(self) -> str:
        """Return what the Host header says: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Return the address of `url`. Raises InvalidSpec."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidSpec(field="s3.endpoint", problem=f"is not a URL: {error}") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
            raise InvalidSpec(field="s3.endpoint", problem="must be a URL such as https://s3.example.com:9000")
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"))


class Wire:
    """Connections to `address`. Any thread may call any method."""

    def __init__(
        self, address: Address, host: str, patience: Patience, bind_address: str = "", ca_certificate: str = ""
    ) -> None:
        """`host` is the name to connect to: the address's own, or a bucket's below it."""
        self._address, self._host, self._patience, self._bind_address = address, host, patience, bind_address
        self._context = _context(ca_certificate) if address.secure else None
        self._lock = threading.Lock()
        self._idle: list[tuple[float, _Connection]] = []
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self.bucket: Bucket | None = None  # grants the bytes of bodies, where there is a limit

    def exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body = b"",
        *,
        answer_bytes_max: int,
        seconds: float = 0,
        into: memoryview | None = None,
    ) -> Answer:
        """Send a request and return its answer, whole. `seconds`: how long the answer may take, 0 for the stall limit.

        `into` takes the body of a success, if that is just as long.
        Raises Lost, also for an answer that ends early, Oversized for one of more than `answer_bytes_max`, and Untrusted.
        """
        while True:
            connection, used = self._take()
            try:
                answer, reusable = connection.exchange(method, target, headers, body, answer_bytes_max, seconds, into)
            except Lost as lost:
                self._drop(connection)
                if used and connection.silent and not self._closed:
                    continue  # it was closed while it lay idle: that says nothing of the server
                if (interrupted := self._interrupted()) is not None:
                    raise interrupted from lost
                raise  # as it is: what it was made from tells its cause
            except BaseException:
                self._drop(connection)
                raise
            if reusable:
                self._keep(connection)
            else:
                self._drop(connection)
            return answer

    def interrupt(self) -> None:
        """End every exchange at once, and every later one."""
        with self._lock:
            self._closed = True
            for sock in self._sockets:
                shut(sock)

    def close(self) -> None:
        self.interrupt()
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            self._drop(connection)

    # ---- used by the connections ----------------------------------------------------------------------------------------

    def dial(self) -> socket.socket:
        """Return a connected socket, with TLS where the address says so."""
        failure: OSError | None = None
        addresses = self._resolve()
        if self._bind_address:
            family = socket.AF_INET6 if ":" in self._bind_address else socket.AF_INET
            addresses = [one for one in addresses if one[0] == family]
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            with self._watched(sock):
                try:
                    self._prepare(sock)
                    sock.connect(address)
                except OSError as error:
                    sock.close()
                    failure = error
                    continue
                return self._secure(sock)
        detail = "no address" if failure is None else _reason(failure, self._patience.connect_seconds)
        raise Lost("connect", f"{self._host} port {self._address.port}: {detail}") from failure

    def live(self, sock: socket.socket) -> None:
        """Watch an open socket, so that an interrupt finds it. Raises Lost if there was one already."""
        with self._lock:
            self._sockets.add(sock)
            closed = self._closed
        if closed:
            raise Lost("connect", "interrupted")

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _take(self) -> "tuple[_Connection, bool]":
        while True:
            with self._lock:
                if self._closed:
                    raise Lost("connect", "interrupted")
                if not self._idle:
                    break
                since, connection = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS_MAX and not connection.readable:
                return connection, True
            self._drop(connection)
        return _Connection(self, self._host, self._address.port, self._patience.stall_seconds), False

    def _keep(self, connection: "_Connection") -> None:
        with self._lock:
            if not self._closed and len(self._idle) < IDLE_MAX:
                self._idle.append((time.monotonic(), connection))
                return
        self._drop(connection)

    def _drop(self, connection: "_Connection") -> None:
        if connection.dialed is not None:
            with self._lock:
                self._sockets.discard(connection.dialed)
        connection.close()

    def _interrupted(self) -> Lost | None:
        return Lost("connect", "interrupted") if self._closed else None

    @contextmanager
    def _watched(self, sock: socket.socket) -> Iterator[None]:
        """Let an interrupt find the socket while the block dials; close it unless the block returned it as it is."""
        try:
            self.live(sock)
            yield
        except BaseException:
            sock.close()
            raise
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def _resolve(self) -> list[tuple[Any, ...]]:
        """Look the host up in a thread of its own: the C library's resolver takes no time-out and no interrupt."""
        found: list[list[tuple[Any, ...]] | OSError] = []

        def look_up() -> None:
            try:
                found.append(list(socket.getaddrinfo(self._host, self._address.port, type=socket.SOCK_STREAM)))
            except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA refuses
                found.append(error if isinstance(error, OSError) else OSError(str(error)))

        thread = threading.Thread(target=look_up, name="s3-resolve", daemon=True)
        thread.start()
        thread.join(self._patience.connect_seconds)
        if not found:
            raise Lost("resolve", f"no answer for {self._host} in {self._patience.connect_seconds:g} seconds")
        if isinstance(found[0], OSError):
            raise Lost("resolve", f"{self._host}: {_reason(found[0], 0)}") from found[0]
        return found[0]

    def _prepare(self, sock: socket.socket) -> None:
        sock.settimeout(self._patience.connect_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # The kernel gives up on a peer that takes nothing for this long, a closed window included. Source: tcp(7).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._patience.stall_seconds * 1000))
        if self._bind_address:
            try:
                sock.bind((self._bind_address, 0))
            except OSError as error:
                detail = f"from {self._bind_address}: {_reason(error, 0)}"
                raise Lost("bind", detail) from error

    def _secure(self, sock: socket.socket) -> socket.socket:
        if self._context is None:
            return sock
        try:
            secured = self._context.wrap_socket(sock, server_hostname=self._host, do_handshake_on_connect=False)
            with self._watched(secured):
                secured.do_handshake()
            return secured
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(error.verify_message or "the certificate is not trusted") from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
            raise Lost("TLS handshake", "the connection was closed") from error
        except ssl.SSLError as error:
            raise Untrusted(f"no TLS: {error.reason or error}") from error
        except OSError as error:
            raise Lost("TLS handshake", _reason(error, self._patience.connect_seconds)) from error


class _Connection(http.client.HTTPConnection):
    """One connection. `silent` tells that the last exchange failed before the server said anything."""

    def __init__(self, wire: Wire, host: str, port: int, stall_seconds: float) -> None:
        super().__init__(host, port)
        self.silent = True
        self.dialed: socket.socket | None = None  # what `http.client` forgets when the server asks for the end
        self._wire, self._stall_seconds = wire, stall_seconds

    def connect(self) -> None:
        self.dialed = self.sock = self._wire.dial()
        self._wire.live(self.sock)
        self.sock.settimeout(self._stall_seconds)

    @property
    def readable(self) -> bool:
        """Tell whether the server has sent something, which on an idle connection is its end."""
        return self.sock is None or bool(select.select([self.sock], [], [], 0)[0])

    def exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        answer_bytes_max: int,
        seconds: float,
        into: memoryview | None,
    ) -> tuple[Answer, bool]:
        """Return the answer, and whether the connection may be used again."""
        self.silent = True
        step = "connect"
        try:
            self.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                self.putheader(name, value)
            if body or method in {"PUT", "POST"}:
                self.putheader("Content-Length", str(len(body)))
            step = "send"
            self.endheaders()
            sent = self._send(body)
            step = "answer"
            if seconds and sent:
                self._set_timeout(seconds)
            response = self.getresponse()
            self.silent = False
            if into is not None and response.status < 300 and response.length == len(into):
                answer = self._fill(response, into)
            else:
                answer = self._read(response, answer_bytes_max)
            if seconds:
                self._set_timeout(self._stall_seconds)
            return answer, sent and not response.will_close
        except (OSError, http.client.HTTPException) as error:
            raise Lost(step, _reason(error, seconds or self._stall_seconds)) from error

    def _send(self, body: Body) -> bool:
        """Send the body in pieces; False where the server ends that early, with an answer that is worth reading."""
        view = memoryview(body)
        bucket = self._wire.bucket
        done = 0
        try:
            if bucket is None:
                for start in range(0, len(view), SEND_BYTES):
                    self.send(view[start : start + SEND_BYTES])
                return True
            for count in bucket.portions(len(view), PACED_BYTES):
                self.send(view[done : done + count])
                done += count
            return True
        except (BrokenPipeError, ConnectionResetError):
            self._set_timeout(LATE_ANSWER_SECONDS)
            return False

    def _set_timeout(self, seconds: float) -> None:
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def _fill(self, response: http.client.HTTPResponse, into: memoryview) -> Answer:
        done = 0
        while done < len(into):
            count = response.readinto(into[done:])
            if not count:
                raise Lost("answer", f"the answer ended after {done} of {len(into)} bytes")
            done += count
        return Answer(response.status, _headers(response), b"", filled=True)

    def _read(self, response: http.client.HTTPResponse, bytes_max: int) -> Answer:
        length = response.length
        if length is not None and length > bytes_max:
            raise Oversized(f"the answer has {length} bytes, {bytes_max} were expected at most")
        body = response.read(bytes_max + 1 if length is None else length)
        if len(body) > bytes_max:
            raise Oversized(f"the answer has more than {bytes_max} bytes")
        if length is not None and len(body) < length and response.status != 304:
            raise Lost("answer", f"the answer ended after {len(body)} of {length} bytes")
        if length is None:
            response.read()
        return Answer(response.status, _headers(response), body)


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def shut(sock: socket.socket) -> None:
    """Shut a socket down: every thread blocked on it wakes at once, and its number is not reused under them."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which takes the session from under a reader


def _context(ca_certificate: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca_certificate or None)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidSpec(field="s3.ca_certificate", problem="must be certificates in PEM") from error


def _reason(error: BaseException, seconds: float) -> str:
    """Return what the system or the library says, in a few words."""
    if isinstance(error, TimeoutError):
        return f"no answer for {seconds:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [""])[0] or type(error).__name__
