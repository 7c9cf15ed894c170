"""Requests and their answers on a negotiated connection: several in flight, answered in any order, each byte checked.

    send     request 1, request 2, …            at most 1 MiB and 16 requests unanswered; small ones several in one call
    receive  chunk of 2, chunk of 1, hole of 1 (done), chunk of 2 (done)

More in flight is a trap: with four requests of 4 MiB QEMU needs twice the CPU (its buffers leave the cache), with one it
waits for us. 1 MiB x 4 was the fastest on a local socket, and sixteen 64 KiB pieces are what a scattered incremental needs.

A read counts only if its content chunks cover the request exactly, without overlap: a byte of the buffer that nobody wrote
would be a byte of an older frame.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import NbdError, NbdProtocolError, NbdReadFailed
from engine.nbd import protocol
from engine.nbd.connection import Connection
from engine.nbd.protocol import Reply
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from engine.storage.base import Buffer

REQUEST_BYTES = 512 * KIB
BYTES_IN_FLIGHT = 1 * MIB
REQUESTS_IN_FLIGHT = 16

_ZEROS = bytes(REQUEST_BYTES)


@dataclass(slots=True)
class Request:
    """A request, and what has been answered so far. `view` is where read data goes, or what is written."""

    command: int
    start: int
    length: int
    view: memoryview | None = None
    flags: int = 0
    statuses: dict[int, bytes] = field(default_factory=dict)  # block status payloads by context id
    covered: list[tuple[int, int]] = field(default_factory=list)  # start and length of the content chunks of a read
    chunks: int = 0
    error: tuple[int, str] | None = None

    @property
    def weight(self) -> int:
        """How many bytes it has on the wire or in the server's hands; what answers a block status is small, whatever it covers."""
        return 0 if self.command == protocol.COMMAND_BLOCK_STATUS else self.length

    def fail(self, number: int, detail: str) -> None:
        """Remember the first error of this request."""
        self.error = self.error or (number, detail)

    def failure(self) -> NbdReadFailed | None:
        if self.error is None:
            return None
        number, detail = self.error
        return failure(self.command, self.start, self.length, number, detail)


def failure(command: int, start: int, length: int, number: int, detail: str) -> NbdReadFailed:
    """Return the error for a request that failed with an error `number` of the protocol."""
    name = protocol.COMMAND_NAMES[command]
    return NbdReadFailed(operation=name, start=start, length=length, detail=detail, errno=number)


class Exchange:
    """What goes over one connection after the handshake. One thread at a time."""

    def __init__(self, connection: Connection, *, structured: bool) -> None:
        self._connection = connection
        self._structured = structured
        self._cookie = 0
        self._pending: dict[int, Request] = {}
        self._bytes_pending = 0
        self._unsent: list[Buffer] = []  # empty whenever an answer is awaited
        self._errors: list[NbdReadFailed] = []

    def run(self, requests: Iterable[Request]) -> None:
        """Send `requests` with several in flight, and return when all are answered.

        After an error reply nothing more is sent, the outstanding answers are awaited, and NbdReadFailed is raised; the
        connection lives on. Any other exception leaves it dead.
        """
        self._connection.check_alive()
        self._errors = []
        try:
            self._run(requests)
        except NbdError as error:
            self._connection.give_up(str(error))
            if self._errors:
                raise self._errors[0] from error  # the cause: the server hung up because of it
            raise
        except BaseException:
            self._connection.give_up("a request was broken off")
            raise
        if self._errors:
            raise self._errors[0]

    def _run(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if self._pending and not self._room(request):
                self._send()
                while self._pending and not (self._room(request) and self._half_empty()):
                    self._receive()
            if self._errors:
                break
            self._queue(request)
        self._send()
        while self._pending:
            self._receive()

    def _room(self, request: Request) -> bool:
        return len(self._pending) < REQUESTS_IN_FLIGHT and self._bytes_pending + request.weight <= BYTES_IN_FLIGHT

    def _half_empty(self) -> bool:
        """Tell whether it is time to send again: small requests go several at a time."""
        return len(self._pending) <= REQUESTS_IN_FLIGHT // 2 and self._bytes_pending <= BYTES_IN_FLIGHT // 2

    def _queue(self, request: Request) -> None:
        self._cookie += 1
        self._pending[self._cookie] = request
        self._bytes_pending += request.weight
        self._connection.operation = protocol.COMMAND_NAMES[request.command]
        head = protocol.pack_request(request.command, request.flags, self._cookie, request.start, request.length)
        self._unsent.append(head)
        if request.command == protocol.COMMAND_WRITE and request.view is not None:
            self._unsent.append(request.view)

    def _send(self) -> None:
        """Send what is queued, in one call: each wakes the server, which costs more than many a request (0.3 ms on a busy host)."""
        if self._unsent:
            self._connection.send(*self._unsent)
            self._unsent.clear()

    # ---- one reply ---------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take one simple reply or one chunk from the stream."""
        if self._structured:
            head = self._connection.receive_some(protocol.SIMPLE_BYTES, protocol.DATA_HEAD_BYTES)
            if self._take_whole(head):
                return
            self._connection.put_back(head)
        reply = protocol.unpack_reply(self._connection.receive(protocol.SIMPLE_BYTES))
        request = self._pending.get(reply.cookie)
        if request is None:
            raise self._broken(f"a reply to request {reply.cookie}, which is not in flight")
        self._connection.operation = protocol.COMMAND_NAMES[request.command]
        if reply.simple:
            self._take_simple(request, reply)
        else:
            self._take_chunk(request, reply)
        if reply.done:
            del self._pending[reply.cookie]
            self._bytes_pending -= request.weight
            self._finish(request)

    def _take_whole(self, head: bytes) -> bool:
        """Take what nearly all replies are, a chunk that is all of a read's data; False if `head` begins something else.

        The long way does the same, and everything else, in four receives instead of two; a scattered incremental is made of
        small replies, and half of what reading them costs is the number of calls.
        """
        whole = protocol.unpack_whole(head)
        if whole is None:
            return False
        cookie, start, length = whole
        request = self._pending.get(cookie)
        if request is None or request.view is None or request.command != protocol.COMMAND_READ or request.chunks:
            return False
        if start != request.start or length != request.length:
            return False
        self._connection.operation = protocol.COMMAND_NAMES[protocol.COMMAND_READ]
        self._connection.receive_into(request.view)
        del self._pending[cookie]
        self._bytes_pending -= length
        return True

    def _take_simple(self, request: Request, reply: Reply) -> None:
        if self._structured and request.command == protocol.COMMAND_READ:
            raise self._broken("a simple reply to a read after structured replies were agreed on")
        if reply.error:
            request.fail(reply.error, protocol.ERROR_NAMES.get(reply.error, "unknown error"))
        elif request.command == protocol.COMMAND_READ and request.view is not None:
            self._connection.receive_into(request.view)
            request.covered.append((request.start, request.length))

    def _take_chunk(self, request: Request, reply: Reply) -> None:
        length = int.from_bytes(self._connection.receive(protocol.CHUNK_REST_BYTES), "big")
        request.chunks += 1
        if not self._structured:
            raise self._broken("a chunk although structured replies were not agreed on")
        if request.chunks > protocol.CHUNKS_PER_REPLY_MAX:
            raise self._broken(f"more than {protocol.CHUNKS_PER_REPLY_MAX} chunks in one reply")
        if reply.type & protocol.CHUNK_ERROR:
            self._take_error(request, length)
        elif reply.type == protocol.CHUNK_OFFSET_DATA:
            self._take_data(request, length)
        elif reply.type == protocol.CHUNK_OFFSET_HOLE:
            self._take_hole(request, length)
        elif reply.type == protocol.CHUNK_BLOCK_STATUS:
            self._take_status(request, length)
        elif reply.type != protocol.CHUNK_NONE or length or not reply.done:
            raise self._broken(f"a chunk of type {reply.type} and {length} bytes")

    def _take_error(self, request: Request, length: int) -> None:
        if not 6 <= length <= protocol.ERROR_CHUNK_BYTES_MAX:
            raise self._broken(f"an error chunk of {length} bytes")
        request.fail(*protocol.unpack_error(self._connection.receive(length)))

    def _take_data(self, request: Request, length: int) -> None:
        if length < 9:
            raise self._broken(f"a data chunk of {length} bytes")
        start = int.from_bytes(self._connection.receive(8), "big")
        self._connection.receive_into(self._place(request, start, length - 8))

    def _take_hole(self, request: Request, length: int) -> None:
        if length != 12:
            raise self._broken(f"a hole chunk of {length} bytes")
        start, hole_bytes = protocol.unpack_hole(self._connection.receive(length))
        self._place(request, start, hole_bytes)[:] = memoryview(_ZEROS)[:hole_bytes]

    def _place(self, request: Request, start: int, length: int) -> memoryview:
        """Return the part of the request's buffer that a content chunk fills; it has to lie inside what was asked."""
        if request.command != protocol.COMMAND_READ or request.view is None:
            raise self._broken("read data, but no read was asked")
        if not (length > 0 and request.start <= start and start + length <= request.start + request.length):
            raise self._broken(f"content at {start}+{length}, asked was {request.start}+{request.length}")
        request.covered.append((start, length))
        offset = start - request.start
        return request.view[offset : offset + length]

    def _take_status(self, request: Request, length: int) -> None:
        if request.command != protocol.COMMAND_BLOCK_STATUS:
            raise self._broken("extents, but no block status was asked")
        protocol.check_block_status(length)
        payload = self._connection.receive(length)
        context = int.from_bytes(payload[:4], "big")
        if context in request.statuses:
            raise self._broken(f"metadata context {context} twice in one reply")
        request.statuses[context] = payload[4:]

    def _finish(self, request: Request) -> None:
        """Note the request's error, or check that its answer is whole."""
        error = request.failure()
        if error is not None:
            self._errors.append(error)
        elif request.command == protocol.COMMAND_READ and not _covers(request):
            raise self._broken(f"content does not cover {request.start}+{request.length} exactly once")

    def _broken(self, detail: str) -> NbdProtocolError:
        return NbdProtocolError(operation=self._connection.operation, detail=detail)


def _covers(request: Request) -> bool:
    """Tell whether the content chunks cover the request without gap or overlap."""
    position = request.start
    for start, length in sorted(request.covered):
        if start != position:
            return False
        position += length
    return position == request.start + request.length
