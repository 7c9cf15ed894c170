"""An NBD client: reads, writes and asks for extents of one export over one connection.

    Client.connect("/run/…/backup.sock", "vda", [CONTEXT_ALLOCATION])
      read_into     extents ─► one buffer          block_status   what is zero, what is dirty
      write_from    one buffer ─► extents          flush          … and on stable storage

Large calls are split into requests of 1 MiB, several of them in flight (see exchange.py). After an error reply the client
can be used on. After anything else (a broken protocol, a lost peer, silence, `interrupt`) it is dead, and every call raises
NbdDisconnected.
"""

import contextlib
import errno
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from engine.errors import NbdError, NbdProtocolError, NbdRefused
from engine.extents import Extent
from engine.nbd import protocol
from engine.nbd.connection import SILENCE_SECONDS, Address, Connection
from engine.nbd.exchange import REQUEST_BYTES, Exchange, Request, failure
from engine.nbd.handshake import negotiate
from engine.nbd.protocol import BlockSizes
from engine.storage.base import Buffer
from engine.units import GIB, MIB

ZERO_REQUEST_BYTES = 128 * MIB  # where zeros have to be written out, one request still ends within the allowed silence
STATUS_REQUEST_BYTES = 1 * GIB  # 16384 clusters of 64 KiB: an answer of at most 128 KiB
# Asked together: a round trip takes 0.1-0.2 ms, and a bitmap's dirty clusters may lie far apart. Answers stay below 1 MiB.
STATUS_RANGES_MAX = 16
STATUS_BATCH_BYTES = 4 * GIB
STATUS_STEP_BYTES = 512  # with less progress than this per answer a disk could be asked about for ever
FLUSH_SILENCE_SECONDS = 3600.0  # a flush waits for whatever the page cache still holds
FAREWELL_SECONDS = 1.0


class Status(NamedTuple):
    """`flags` of one metadata context for `length` bytes from `start`. A tuple, since there may be thousands for one block."""

    start: int
    length: int
    flags: int


class Client:
    """An open export. One thread at a time, but for `interrupt`. Use it in a `with` block, or call `close`."""

    def __init__(self, connection: Connection, export: str = "", contexts: Sequence[str] = ()) -> None:
        """Negotiate over a fresh connection, which is closed with the client (and if this fails).

        Of the metadata `contexts`, those that the server has are found in `self.contexts`.
        Raises NbdRefused, NbdProtocolError, NbdDisconnected.
        """
        self._connection = connection
        try:
            self._terms = negotiate(connection, export, contexts)
        except BaseException:
            connection.close()
            raise
        self._exchange = Exchange(connection, structured=self._terms.structured)
        largest = min(REQUEST_BYTES, self._terms.block_sizes.maximum)
        self._request_bytes = largest - largest % self._terms.block_sizes.minimum

    @classmethod
    def connect(
        cls, address: Address, export: str = "", contexts: Sequence[str] = (), silence_seconds: float = SILENCE_SECONDS
    ) -> Self:
        """Open `export` at the path of a unix socket, or at (host, port)."""
        return cls(Connection.open(address, silence_seconds), export, contexts)

    @property
    def size_bytes(self) -> int:
        return self._terms.size_bytes

    @property
    def block_sizes(self) -> BlockSizes:
        """What the server advertises. Large calls are split to fit, but what is asked has to be aligned already."""
        return self._terms.block_sizes

    @property
    def contexts(self) -> tuple[str, ...]:
        """The metadata contexts that the server granted."""
        return tuple(self._terms.contexts.values())

    @property
    def read_only(self) -> bool:
        return self._can(protocol.EXPORT_READ_ONLY)

    @property
    def multi_conn(self) -> bool:
        """Whether a flush on one connection covers what others wrote before."""
        return self._can(protocol.EXPORT_MULTI_CONN)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read_into(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `extents`, one after the other; their lengths sum to `len(buffer)` exactly.

        Raises NbdReadFailed for an error reply, NbdDisconnected, NbdProtocolError. The buffer's content is then undefined.
        """
        self._transfer(protocol.COMMAND_READ, extents, buffer)

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`; for small reads."""
        data = bytearray(length)
        self.read_into((Extent(start, length),), memoryview(data))
        return bytes(data)

    def block_status(self, start: int, length: int, context: str) -> Iterator[Status]:
        """Yield the extents of one metadata context, ascending, without gaps, exactly from `start` to `start + length`.

        Asks as it is consumed, so a huge disk costs no memory; other calls may come in between. Raises NbdRefused if the
        context was not granted, NbdReadFailed, NbdProtocolError, NbdDisconnected.
        """
        return self.block_statuses([Extent(start, length)], context)

    def block_statuses(self, ranges: Iterable[Extent], context: str) -> Iterator[Status]:
        """Yield what `block_status` tells of each of `ranges`, one after the other; many are asked about in one round trip."""
        number = next((one for one, name in self._terms.contexts.items() if name == context), None)
        if number is None:
            raise NbdRefused(operation="block status", detail=f"the server has no metadata context {context!r}")
        for batch in _batches(ranges):
            for one in batch:
                self._check_range(protocol.COMMAND_BLOCK_STATUS, one.start, one.length)
            requests = [Request(protocol.COMMAND_BLOCK_STATUS, one.start, one.length) for one in batch]
            self._exchange.run(requests)
            for request in requests:
                yield from self._statuses(number, request)

    def _statuses(self, number: int, request: Request) -> Iterator[Status]:
        """Yield what the answered `request` tells; where the answer ends before what was asked, the rest is asked for."""
        end = request.start + request.length
        while True:
            start = request.start
            for status in self._told(number, request):
                yield status
                start = status.start + status.length
            if start >= end:
                return
            if start - request.start < STATUS_STEP_BYTES:
                raise self._broken(f"an answer describes only {start - request.start} bytes")
            request = Request(protocol.COMMAND_BLOCK_STATUS, start, end - start)
            self._exchange.run([request])

    def _told(self, number: int, request: Request) -> Iterator[Status]:
        """Yield what one answer tells; it may end before all that was asked."""
        payload = request.statuses.get(number)
        if payload is None:
            raise self._broken("an answer without the metadata context that was agreed on")
        start, end = request.start, request.start + request.length
        for length, flags in protocol.unpack_block_status(payload):
            if start >= end:
                raise self._broken("extents beyond what was asked")
            yield Status(start, min(length, end - start), flags)  # only the last extent may say more than was asked
            start += length

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write_from(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        """Write `buffer` to `extents`, one after the other; the mirror of `read_into`. Not durable before `flush`.

        Raises NbdReadFailed (its operation is "write") for an error reply; how much was written is then unknown.
        """
        self._transfer(protocol.COMMAND_WRITE, extents, buffer)

    def write(self, start: int, buffer: Buffer) -> None:
        """Write all of `buffer` at `start`. Not durable before `flush`."""
        view = memoryview(buffer).cast("B")
        self.write_from((Extent(start, len(view)),), view)

    def write_zeroes(self, start: int, length: int, *, no_hole: bool = False) -> None:
        """Make `length` bytes from `start` read as zeros; the server may punch a hole unless `no_hole`.

        A server that does not know this command is sent zeros.
        """
        if self._can(protocol.EXPORT_SEND_WRITE_ZEROES):
            flags = protocol.COMMAND_FLAG_NO_HOLE if no_hole else 0
            self._command(protocol.COMMAND_WRITE_ZEROES, start, length, flags)
            return
        self._check_range(protocol.COMMAND_WRITE, start, length)
        zeros = memoryview(bytes(self._request_bytes))
        self._exchange.run(
            Request(protocol.COMMAND_WRITE, at, count, zeros[:count])
            for at, count in _split(start, length, self._request_bytes)
        )

    def trim(self, start: int, length: int) -> None:
        """Tell the server that nobody needs these bytes, which read as anything from now on. A hint: it may do nothing."""
        if self._can(protocol.EXPORT_SEND_TRIM):
            self._command(protocol.COMMAND_TRIM, start, length)

    def flush(self) -> None:
        """Return when everything written (see `multi_conn`) is on stable storage.

        Raises NbdRefused if the server cannot do this, NbdReadFailed (its operation is "flush"), NbdDisconnected.
        """
        if not self._can(protocol.EXPORT_SEND_FLUSH):
            raise NbdRefused(operation="flush", detail="the server cannot flush")
        with self._connection.silence(FLUSH_SILENCE_SECONDS):
            self._exchange.run([Request(protocol.COMMAND_FLUSH, 0, 0)])

    # ---- the end -----------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Make a blocked call end at once with NbdDisconnected. Any thread may call this, at any time; `close` stays due."""
        self._connection.interrupt()

    def close(self) -> None:
        """Say goodbye and close the connection; a second call does nothing."""
        with contextlib.suppress(NbdError):  # the peer may be gone, and nothing depends on the farewell
            self._connection.check_alive()
            with self._connection.silence(FAREWELL_SECONDS):
                self._connection.send(protocol.pack_request(protocol.COMMAND_DISCONNECT, 0, 0, 0, 0))
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _can(self, flag: int) -> bool:
        return bool(self._terms.flags & flag)

    def _transfer(self, command: int, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        if sum(extent.length for extent in extents) != len(buffer):
            raise ValueError("the extents and the buffer differ in length")
        for extent in extents:
            self._check_range(command, extent.start, extent.length)
        self._exchange.run(self._cut(command, extents, buffer))

    def _cut(self, command: int, extents: tuple[Extent, ...], buffer: memoryview) -> Iterator[Request]:
        position = 0
        for extent in extents:
            for start, length in _split(extent.start, extent.length, self._request_bytes):
                yield Request(command, start, length, buffer[position : position + length])
                position += length

    def _command(self, command: int, start: int, length: int, flags: int = 0) -> None:
        """Run a command that carries no data over any length."""
        self._check_range(command, start, length)
        pieces = _split(start, length, ZERO_REQUEST_BYTES)
        self._exchange.run(Request(command, at, count, flags=flags) for at, count in pieces)

    def _check_range(self, command: int, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.size_bytes:
            raise failure(command, start, length, errno.EINVAL, f"the export has {self.size_bytes} bytes")

    def _broken(self, detail: str) -> NbdProtocolError:
        error = NbdProtocolError(operation="block status", detail=detail)
        self._connection.give_up(str(error))
        return error


def _batches(ranges: Iterable[Extent]) -> Iterator[list[Extent]]:
    """Cut ranges to what one request may ask, and group what is asked together."""
    batch: list[Extent] = []
    batch_bytes = 0
    for one in ranges:
        for start, length in _split(one.start, one.length, STATUS_REQUEST_BYTES):
            if len(batch) == STATUS_RANGES_MAX or batch_bytes + length > STATUS_BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
            batch.append(Extent(start, length))
            batch_bytes += length
    if batch:
        yield batch


def _split(start: int, length: int, limit: int) -> Iterator[tuple[int, int]]:
    """Cut `length` bytes from `start` into pieces of at most `limit`, as (start, length)."""
    for offset in range(0, length, limit):
        yield start + offset, min(limit, length - offset)
