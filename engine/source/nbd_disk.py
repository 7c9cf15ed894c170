"""A disk behind an NBD export on a unix socket: QEMU's pull-mode export, or our own of a stopped domain's image.

    full          |base:allocation of the whole disk|                     zero → zero extent, the rest → data
    incremental   |qemu:dirty-bitmap:NAME|, its dirty parts cut by |base:allocation|   dirty and zero → zero extent

Extents are asked for window by window while they are consumed, so that a 4 TiB disk costs no more memory than a small one.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from weakref import WeakSet

from engine.errors import NbdDisconnected, NbdRefused
from engine.extents import Extent, cut_by
from engine.nbd.client import STATUS_RANGES_MAX, Client
from engine.nbd.connection import SILENCE_SECONDS, Address, Connection
from engine.nbd.protocol import CONTEXT_ALLOCATION, CONTEXT_BITMAP_PREFIX, STATE_DIRTY, STATE_ZERO
from engine.source.regrown import Look, Regrown, last_data, regrown
from engine.units import MIB

# The allocation between two dirty extents is asked for and thrown away, if they are this near: at most 32 clusters of 64 KiB,
# no dearer than one more question in the same round trip. On a disk in use for long there are many (153 blocks scattered over it
# took 7.5 ms of CPU time, and 9.6 with 8 MiB here).
GAP_BYTES_MAX = 2 * MIB
GROUP_EXTENTS_MAX = 4096  # bounds memory where all of a large disk is dirty here and there


class NbdDisk:
    """A `Disk` (see disk.py). It holds no connection of its own: each reader and each run of `extents` opens one."""

    def __init__(
        self, address: Address, export: str, bitmap: str = "", silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        """Look at `export`; with the name of a dirty `bitmap`, `extents` yields only what that bitmap has recorded.

        Raises NbdRefused if the export or its bitmap is not there, NbdDisconnected, NbdProtocolError.
        """
        self._address = address
        self._export = export
        self._dirty_context = CONTEXT_BITMAP_PREFIX + bitmap if bitmap else ""
        self._silence_seconds = silence_seconds
        self._lock = threading.Condition()
        self._opening = 0  # connections that have not finished their handshake
        self._live: WeakSet[Connection] = WeakSet()  # closed ones may linger; interrupting them does nothing
        self._interrupted = False
        with self._open(self._dirty_context) as client:
            self.size_bytes = client.size_bytes

    def extents(self) -> Iterator[Extent]:
        """Yield what a backup has to hold, ascending and disjoint; see `Disk.extents`. Close the generator if you leave early.

        A server that does not know base:allocation is taken to hold data everywhere. The calls may come from changing
        threads, one at a time.
        """
        if not self._dirty_context:
            with self._open(CONTEXT_ALLOCATION) as client:
                yield from _allocation(client, [Extent(0, self.size_bytes)])
            return
        with self._open(self._dirty_context) as bitmap, self._open(CONTEXT_ALLOCATION) as client:
            for groups in _batches(_neighbours(self._dirty(bitmap))):
                around = [Extent(group[0].start, group[-1].end - group[0].start) for group in groups]
                yield from cut_by(chain.from_iterable(groups), _borders(client, around))

    def recorded_bytes(self) -> int:
        """Return how many bytes the bitmap has recorded as written, the whole disk's without one. Quick: no allocation is asked for."""
        if not self._dirty_context:
            return self.size_bytes
        with self._open(self._dirty_context) as bitmap:
            return sum(extent.length for extent in self._dirty(bitmap))

    def regrown(self, end: int, *, exact: bool) -> Regrown:
        """Look for what was cut off and grown back since the bitmap was made; see regrown.py. Nothing without a bitmap."""
        if not self._dirty_context:
            return Regrown((), end)
        with self._look() as look:
            return regrown(look, min(end, self.size_bytes), exact=exact)

    def last_data(self, end: int) -> int | None:
        """Return where the disk's data ends, if not behind `end`; None if a long part of it has to be read for that."""
        with self._look() as look:
            return last_data(look, end)

    @contextlib.contextmanager
    def _look(self) -> Iterator[Look]:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(self._open(CONTEXT_ALLOCATION))
            bitmap = stack.enter_context(self._open(self._dirty_context)) if self._dirty_context else None

            def is_zero(start: int, length: int) -> bool:
                found = bytearray(length)
                client.read_into((Extent(start, length),), memoryview(found))
                return not any(found)

            yield Look(
                lambda start, length: _allocation(client, [Extent(start, length)]),
                lambda start, length: self._dirty(bitmap, start, length) if bitmap else (),
                is_zero,
            )

    def connect(self) -> Client:
        """Open one more connection for one thread; the caller closes it."""
        return self._open("")

    def interrupt(self) -> None:
        """Make every blocked read end at once with NbdDisconnected, and every later `connect`. Any thread may call this."""
        with self._lock:
            self._interrupted = True
            live = list(self._live)
        for connection in live:
            connection.interrupt()

    def settle(self, seconds: float) -> bool:
        """After `interrupt`: wait until no connection is in its handshake; False if one still is. Then the server may be stopped.

        QEMU 7.2 that is told to stop its NBD server waits for a client in its handshake without ever listening to it: its main
        loop stands still for good, and so does the guest.
        """
        with self._lock:
            return self._lock.wait_for(lambda: self._opening == 0, seconds)

    def _dirty(self, client: Client, start: int = 0, length: int = -1) -> Iterator[Extent]:
        for status in client.block_status(start, self.size_bytes if length < 0 else length, self._dirty_context):
            if status.flags & STATE_DIRTY:
                yield Extent(status.start, status.length)

    def _open(self, context: str) -> Client:
        """Connect; a connection can be interrupted from its first byte on, the handshake included."""
        with self._lock:
            if self._interrupted:
                raise NbdDisconnected(operation="connect", detail="interrupted")
            self._opening += 1
        try:
            client = self._shake_hands(context)
        finally:
            with self._lock:
                self._opening -= 1
                self._lock.notify_all()
        if context and context != CONTEXT_ALLOCATION and context not in client.contexts:
            client.close()
            raise NbdRefused(operation="handshake", detail=f"export {self._export!r} has no {context}")
        return client

    def _shake_hands(self, context: str) -> Client:
        connection = Connection.open(self._address, self._silence_seconds)
        with self._lock:
            self._live.add(connection)
            interrupted = self._interrupted
        if interrupted:
            connection.close()
            raise NbdDisconnected(operation="connect", detail="interrupted")
        return Client(connection, self._export, [context] if context else [])


def _neighbours(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    """Group ascending extents that lie close together, so that one question serves them all."""
    group: list[Extent] = []
    for extent in extents:
        if group and (extent.start - group[-1].end > GAP_BYTES_MAX or len(group) == GROUP_EXTENTS_MAX):
            yield group
            group = []
        group.append(extent)
    if group:
        yield group


def _batches(groups: Iterable[list[Extent]]) -> Iterator[list[list[Extent]]]:
    """Bring together what one round trip asks about."""
    batch: list[list[Extent]] = []
    for group in groups:
        batch.append(group)
        if len(batch) == STATUS_RANGES_MAX or sum(map(len, batch)) >= GROUP_EXTENTS_MAX:
            yield batch
            batch = []
    if batch:
        yield batch


def _allocation(client: Client, ranges: list[Extent]) -> Iterator[Extent]:
    """Yield data and zero extents of parts of the disk. A hole that does not promise zeros is data."""
    if CONTEXT_ALLOCATION not in client.contexts:
        yield from ranges
        return
    for status in client.block_statuses(ranges, CONTEXT_ALLOCATION):
        yield Extent(status.start, status.length, zero=bool(status.flags & STATE_ZERO))


def _borders(client: Client, ranges: list[Extent]) -> Iterator[tuple[int, bool]]:
    """Yield the same as the end of each extent and whether it is zero, for `cut_by`."""
    if CONTEXT_ALLOCATION not in client.contexts:
        yield from ((one.end, False) for one in ranges)
        return
    for start, length, flags in client.block_statuses(ranges, CONTEXT_ALLOCATION):
        yield start + length, bool(flags & STATE_ZERO)
