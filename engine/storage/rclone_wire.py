"""What is said to one running `rclone rcd`, over HTTP on loopback.

    call     POST /operations/list      JSON in, JSON out
    stream   GET  /[remote:path]/name   with a Range, whose answer is read as it is needed
    upload   POST /operations/uploadfile, a multipart form whose file has no known length: chunks as they come

Connections are kept and used again, one request at a time each. There is no repeating here: a request that got no answer is
Lost, and only who asked knows whether it may be asked again. A form that does not reach its end is an error to rclone, which
removes what it has written of it; the end of a pipe (`rclone rcat`) would be taken for the end of the object.
"""

import base64
import http.client
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

USER = "backup-manager"
CONNECT_SECONDS = 10.0  # to loopback
ANSWER_BYTES_MAX = 32 << 20  # some 130,000 names; as Python's values they take four times that
# rclone keeps a listing whole, some 400 bytes a name, before it answers: of one without an end it would take all there is.
GROWTH_BYTES_MAX = 256 << 20
_COLLECTING = frozenset({"operations/list"})
_WATCH_SECONDS = 0.5


class Lost(Exception):
    """The request got no answer: rclone ended, was interrupted, or said nothing for too long."""


class Refused(Exception):
    """rclone answered that the request failed. `status` is HTTP's, `text` rclone's own words, which may name anything."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Overlong(Exception):
    """The answer is longer than anybody should keep, and was given up."""


class Wire:
    """Connections to the rclone that listens on `port`, the process `pid`. Any thread may call any method."""

    def __init__(self, port: int, password: str, pid: int) -> None:
        self._port, self._pid = port, pid
        token = base64.b64encode(f"{USER}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}"}
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._cut = False
        self.reset = False  # a connection ended under a request: rclone may be about to end

    def call(self, command: str, seconds: float, /, **parameters: object) -> dict[str, Any]:
        """Return what a command of rclone's remote control answers. Raises Refused, Lost and Overlong, which ends the command."""
        body = json.dumps(parameters).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        with self._connection(seconds) as connection:
            connection.request("POST", f"/{command}", body, headers)
            if command in _COLLECTING:
                self._wait(connection.sock, seconds)
            response = connection.getresponse()
            data = response.read(ANSWER_BYTES_MAX + 1)
            if len(data) > ANSWER_BYTES_MAX:
                raise Overlong
            if response.status != http.client.OK:
                raise Refused(response.status, _error_text(data))
            answer: dict[str, Any] = json.loads(data)
            return answer

    def stream(self, fs: str, name: str, offset: int, length: int, seconds: float) -> "ReadStream":
        """Ask for `length` bytes of an object from `offset`, and wait for nothing. Raises Lost. `finish` or `abort` ends it."""
        headers = {**self._headers, "Range": f"bytes={offset}-{offset + length - 1}"}
        connection = self._take(seconds)
        try:
            connection.request("GET", f"/{quote(f'[{fs}]')}/{quote(name)}", headers=headers)
            return ReadStream(self, connection, offset, length)
        except (OSError, http.client.HTTPException) as error:
            self.drop(connection)
            raise self.lost(error) from error

    def read(self, fs: str, name: str, offset: int, length: int, seconds: float) -> bytes:
        """Return `length` bytes of an object from `offset`. Raises Refused, and Lost, also for an object that ends before."""
        stream = self.stream(fs, name, offset, length, seconds)
        try:
            target = bytearray(length)
            stream.read_into(memoryview(target))
            stream.finish()
            return bytes(target)
        except BaseException:
            stream.abort()
            raise

    def upload(self, fs: str, folder: str, base: str, options: Mapping[str, object], seconds: float) -> "UploadStream":
        """Begin to write the object `base` in `folder`. Raises Lost. The stream's `finish` or `abort` ends it."""
        connection = self._take(seconds)
        try:
            boundary = os.urandom(16).hex()
            query = urlencode({"fs": fs, "remote": folder, "_config": json.dumps(options)})
            connection.putrequest("POST", f"/operations/uploadfile?{query}")
            for key, value in self._headers.items():
                connection.putheader(key, value)
            connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            return UploadStream(self, connection, base, boundary)
        except OSError as error:
            self.drop(connection)
            raise Lost(reason_of(error)) from error

    def cut(self) -> None:
        """End every request that is under way, and let none begin: who waits for one gets Lost."""
        with self._lock:
            self._cut = True
            for connection in self._busy:
                shut(connection)

    def close(self) -> None:
        """Cut, and close what nobody uses."""
        self.cut()
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # ---- used by the streams below --------------------------------------------------------------------------------------

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            self._busy.discard(connection)
            if not self._cut and connection.sock is not None:  # None: closed by what was read last
                self._idle.append(connection)
                return
        connection.close()

    def lost(self, error: BaseException) -> Lost:
        """Return why a request got no answer, and remember what it says of rclone."""
        self.reset |= isinstance(error, ConnectionError)
        return Lost("interrupted" if self._cut else reason_of(error))

    def drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self, seconds: float) -> Iterator[http.client.HTTPConnection]:
        """Give a connection for one request, kept afterwards unless something was left unread or went wrong."""
        connection = self._take(seconds)
        kept = False
        try:
            yield connection
            kept = True
        except Refused:
            kept = True
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self.lost(error) from error
        finally:
            if kept:
                self.keep(connection)
            else:
                self.drop(connection)

    def _wait(self, sock: socket.socket, seconds: float) -> None:
        """Wait until an answer begins. Raises Overlong when rclone has grown too much since: then it collects one without an end."""
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        before, deadline = resident_bytes(self._pid), time.monotonic() + seconds
        while not waiting.poll(1000 * _WATCH_SECONDS):
            if resident_bytes(self._pid) > before + GROWTH_BYTES_MAX:
                raise Overlong
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")

    def _take(self, seconds: float) -> http.client.HTTPConnection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, CONNECT_SECONDS)
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock.settimeout(seconds)
        except OSError as error:
            raise Lost(reason_of(error)) from error
        with self._lock:
            if not self._cut:
                self._busy.add(connection)
                return connection
        connection.close()
        raise Lost("interrupted")


class ReadStream:
    """Bytes from `position` to `end` of an object, on their way. One thread at a time."""

    def __init__(self, wire: Wire, connection: http.client.HTTPConnection, offset: int, length: int) -> None:
        self.position, self.end = offset, offset + length
        self._wire, self._connection = wire, connection
        self._response: http.client.HTTPResponse | None = None

    def read_into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises Refused, and Lost, also for an object that ends before."""
        try:
            if self._response is None:
                self._response = self._connection.getresponse()
                if self._response.status != http.client.PARTIAL_CONTENT:
                    raise Refused(self._response.status, _error_text(self._response.read(64 << 10)))
                if self._response.length not in {None, self.end - self.position}:
                    raise Lost(f"{self._response.length} bytes where {self.end - self.position} were asked for")
            while target:
                count = self._response.readinto(target)
                if not count:
                    raise Lost("a read ended before its end")
                self.position += count
                target = target[count:]
        except (OSError, http.client.HTTPException) as error:
            raise self._wire.lost(error) from error

    def finish(self) -> None:
        """Let the next request have the connection, once all was read. Raises Lost if there is more."""
        try:
            if self._response is None or self._response.read(1):
                raise Lost("more was sent than was asked for")
        except (OSError, http.client.HTTPException) as error:
            raise self._wire.lost(error) from error
        self._wire.keep(self._connection)

    def abort(self) -> None:
        self._wire.drop(self._connection)


class UploadStream:
    """One object on its way through a form. One thread at a time."""

    def __init__(self, wire: Wire, connection: http.client.HTTPConnection, base: str, boundary: str) -> None:
        self._wire, self._connection, self._boundary = wire, connection, boundary.encode()
        self._ended = False
        disposition = f'Content-Disposition: form-data; name="file"; filename="{base}"'.encode()
        self.send(b"--%b\r\n%b\r\nContent-Type: application/octet-stream\r\n\r\n" % (self._boundary, disposition))

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send more of the object; waits while rclone takes nothing. Raises Refused when rclone has given up, and Lost."""
        if not data:
            return  # an empty chunk would be the end
        sock = self._connection.sock
        try:
            if select.select([sock], [], [], 0)[0]:  # an answer before the end can only be a refusal
                raise BrokenPipeError
            sock.sendall(b"%x\r\n" % len(data))
            sock.sendall(data)
            sock.sendall(b"\r\n")
        except TimeoutError as error:
            self._end()
            raise Lost("rclone has taken nothing for a long time") from error
        except (OSError, ValueError) as error:
            raise self._early_answer(error) from error

    def finish(self, seconds: float) -> None:
        """Send the form's end, and wait until rclone has the object where it belongs. Raises Refused and Lost."""
        self.send(b"\r\n--%b--\r\n" % self._boundary)
        try:
            self._connection.sock.sendall(b"0\r\n\r\n")
            self._connection.sock.settimeout(seconds)
            self._answer()
        except (OSError, http.client.HTTPException) as error:
            self._end()
            raise Lost(reason_of(error)) from error

    def abort(self, seconds: float) -> None:
        """End it without its end, and give rclone `seconds` to remove what it has written."""
        if self._ended:
            return
        with suppress(OSError, http.client.HTTPException, Refused):
            self._connection.sock.settimeout(seconds)
            self._connection.sock.shutdown(socket.SHUT_WR)
            self._connection.getresponse().read()
        self._end()

    def _answer(self) -> None:
        response = self._connection.getresponse()
        data = response.read()
        self._ended = True
        if response.status == http.client.OK:
            self._wire.keep(self._connection)
            return
        self._wire.drop(self._connection)  # what is left of the form would be taken for the next request
        raise Refused(response.status, _error_text(data))

    def _early_answer(self, error: BaseException) -> Refused | Lost:
        """Return why rclone took no more: what it said, where that can still be read."""
        try:
            self._answer()
        except Refused as refused:
            return refused
        except (OSError, http.client.HTTPException):
            self._wire.reset |= isinstance(error, ConnectionError)
            self._end()
            return Lost(reason_of(error))
        return Lost("rclone ended an upload before its end")

    def _end(self) -> None:
        self._ended = True
        self._wire.drop(self._connection)


def shut(connection: http.client.HTTPConnection) -> None:
    """Shut a connection down: the thread that waits on it wakes at once, and its number is not reused under it."""
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has now, 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def reason_of(error: BaseException) -> str:
    """Return the first line of what a library says."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _error_text(data: bytes) -> str:
    """Return the sentence in an error's answer: JSON from commands, a line of text from a read that failed to begin."""
    try:
        found = json.loads(data)
    except ValueError:
        return data.decode(errors="replace").strip()
    return str(found.get("error", "")) if isinstance(found, dict) else ""
