"""A stream socket to an NBD server: whole messages, a limit on silence, and an end from any other thread.

The socket stays blocking, and the kernel's own timeouts bound each wait: Python's would make the socket non-blocking, and
MSG_WAITALL would lose its meaning. With it a 1 MiB read is one or a few system calls (0.12 CPU seconds per GB, as cheap as
a client in C).
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import NoReturn, TypeAlias

from engine.errors import NbdDisconnected
from engine.storage.base import Buffer

Address: TypeAlias = str | tuple[str, int]  # the path of a unix socket, or host and port

SILENCE_SECONDS = (
    120.0  # QEMU answers within this even on a disk that is being rebuilt; a stuck one must not hold us for ever
)

_BACKLOG_POLL_SECONDS = 0.02


class Connection:
    """One thread sends and receives; `interrupt` is for every other thread. The owner calls `close`."""

    def __init__(self, peer: socket.socket, silence_seconds: float = SILENCE_SECONDS) -> None:
        """Take over a connected stream socket. A wait of more than `silence_seconds` without a byte ends it."""
        self.operation = "handshake"  # what the messages are for, named in errors
        self._socket = peer
        self._socket.settimeout(None)
        self._ahead = b""  # received, and not taken yet
        self._lock = threading.Lock()  # interrupt never shuts down a file descriptor that close has just given back
        self._end = ""  # why the connection is dead; empty while it lives
        self._closed = False
        self._set_silence(silence_seconds)

    @classmethod
    def open(cls, address: Address, silence_seconds: float = SILENCE_SECONDS) -> "Connection":
        """Connect to a unix socket or, with host and port, by TCP. Raises NbdDisconnected."""
        try:
            return cls(_connect(address, silence_seconds), silence_seconds)
        except OSError as error:
            raise NbdDisconnected(operation="connect", detail=f"{address}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def silence(self, seconds: float) -> Iterator[None]:
        """Allow another silence for the time of a `with` block."""
        usual = self._silence_seconds
        self._set_silence(seconds)
        try:
            yield
        finally:
            self._set_silence(usual)

    def check_alive(self) -> None:
        """Raise NbdDisconnected if the connection has ended or lost its place in the stream."""
        if self._end:
            raise NbdDisconnected(operation=self.operation, detail=self._end)

    def give_up(self, why: str) -> None:
        """Declare the connection dead: after a broken exchange nobody knows which byte comes next."""
        self._end = self._end or why

    def send(self, *buffers: Buffer) -> None:
        """Send all of the buffers, one after the other. Raises NbdDisconnected."""
        waiting = [memoryview(buffer).cast("B") for buffer in buffers]
        while waiting:
            try:
                sent = self._socket.sendmsg(waiting)
            except OSError as error:
                self._fail(error)
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            if sent:
                waiting[0] = waiting[0][sent:]

    def receive_into(self, view: memoryview) -> None:
        """Fill `view`. Raises NbdDisconnected when the stream ends or falls silent before."""
        if ahead := self._ahead[: len(view)]:
            view[: len(ahead)] = ahead
            self._ahead = self._ahead[len(ahead) :]
            view = view[len(ahead) :]
        while view:
            try:
                count = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
            except OSError as error:
                self._fail(error)
            if count == len(view):
                return
            if count == 0:
                self._fail(None)
            view = view[count:]

    def receive_some(self, least: int, most: int) -> bytes:
        """Return from `least` to `most` of the next bytes, as many as are there; what is too much goes back by `put_back`.

        One call of the system for a few bytes costs as much as for many: a reply's head comes at once, whatever its kind.
        """
        data, self._ahead = self._ahead[:most], self._ahead[most:]
        while len(data) < least:
            try:
                piece = self._socket.recv(most - len(data))
            except OSError as error:
                self._fail(error)
            if not piece:
                self._fail(None)
            data += piece
        return data

    def put_back(self, data: bytes) -> None:
        """Let `data` be received once more, before anything else."""
        self._ahead = data + self._ahead

    def receive(self, length: int) -> bytes:
        """Return the next `length` bytes; the caller has checked that the length is a sensible one."""
        data = bytearray(length)
        self.receive_into(memoryview(data))
        return bytes(data)

    def interrupt(self) -> None:
        """End a blocked send or receive at once with NbdDisconnected; any thread may call this, at any time."""
        with self._lock:
            self.give_up("interrupted")
            if not self._closed:
                with contextlib.suppress(OSError):  # the peer has closed already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        with self._lock:
            self.give_up("closed")
            if not self._closed:
                self._closed = True
                self._socket.close()

    def _set_silence(self, seconds: float) -> None:
        self._silence_seconds = seconds
        whole, rest = divmod(round(seconds * 1_000_000), 1_000_000)
        timeval = struct.pack("@ll", whole, rest)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def _fail(self, error: OSError | None) -> NoReturn:
        if isinstance(error, BlockingIOError):
            why = f"silent for {self._silence_seconds:g} seconds"
        else:
            why = "connection closed" if error is None else str(error.strerror or error)
        self.give_up(why)
        raise NbdDisconnected(operation=self.operation, detail=self._end) from error


def _connect(address: Address, timeout_seconds: float) -> socket.socket:
    if not isinstance(address, str):
        peer = socket.create_connection(address, timeout_seconds)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer
    peer = socket.socket(socket.AF_UNIX)
    try:
        _connect_unix(peer, address, time.monotonic() + timeout_seconds)
    except BaseException:
        peer.close()
        raise
    return peer


def _connect_unix(peer: socket.socket, path: str, deadline: float) -> None:
    """Connect, and wait while the server's backlog is full: with a timeout Python asks without blocking, and gets EAGAIN at once."""
    while True:
        peer.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            peer.connect(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BACKLOG_POLL_SECONDS)
        else:
            return
