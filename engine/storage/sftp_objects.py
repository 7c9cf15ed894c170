"""Objects on an SFTP server being read and written, for `SftpStorage`.

upload   ──►  <name>.<random>.part  ──pipelined writes, every reply checked──►  fsync, size as sent?, close
         ──►  rename to <name>, which an existing target refuses; a rename of unknown outcome is settled by looking
"""

import logging
import threading
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.errors import ObjectExists, ObjectTruncated, StorageError
from engine.storage.base import Buffer, part_name
from engine.storage.sftp_connect import Connection
from engine.storage.sftp_tree import exists, make_folders, remove_empty, suppress_code
from engine.storage.sftp_wire import CREATE_NEW, READ, REQUESTS_MAX, Code, Lost, Refused, Wire

if TYPE_CHECKING:
    from engine.storage.sftp import SftpStorage

log = logging.getLogger(__name__)

_RACE_TRIES = 10  # a folder we just made may be removed, still empty, by a delete beside us


class SftpReader:
    """A file open for reading. Threads share it: their requests travel side by side in one session."""

    def __init__(self, storage: "SftpStorage", name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._storage, self._name = storage, name
        self._lock = threading.Lock()
        self._bound: tuple[Connection, Wire, bytes] | None = None
        storage.attempt_bound("open", name, self._bind)

    def read_at(self, offset: int, length: int) -> bytes:
        def read(connection: Connection) -> bytes:
            wire, handle = self._bind(connection)
            return wire.read(handle, offset, length)

        data = self._storage.attempt_bound("read", self._name, read)
        if len(data) < length:
            end = min(self.size_bytes, offset + len(data))
            raise ObjectTruncated(
                storage=self._storage.label, step="read", name=self._name, end=end, wanted=offset + length
            )
        return data

    def close(self) -> None:
        with self._lock:
            if self._bound is not None:
                connection, wire, handle = self._bound
                self._bound = None
                connection.release(wire)
                with suppress(Lost):
                    wire.close_later(handle)

    def _bind(self, connection: Connection) -> tuple[Wire, bytes]:
        """Return this file's session and handle, opened again if the connection is another one than before."""
        with self._lock:
            if self._bound is None or self._bound[0] is not connection:
                wire = connection.acquire()
                try:
                    handle = wire.open(self._storage.path(self._name), READ)
                except BaseException:
                    connection.release(wire)
                    raise
                self._bound = (connection, wire, handle)
            return self._bound[1], self._bound[2]


class SftpUpload:
    """A file being written under its temporary name; the `with` block's end publishes or removes it.

    `_sent` counts what was sent and `_settled` what the server has acknowledged without a gap: from there an upload could
    be resumed on a new connection by opening the .part again, cutting it to that size and sending the rest.
    """

    def __init__(self, storage: "SftpStorage", name: str) -> None:
        self._storage, self._name = storage, name
        self._parents = name.split("/")[:-1]
        self._part = storage.path(part_name(name))
        self._begun = self._handle_open = False
        self._bound: tuple[Connection, Wire, bytes] | None = None
        self._small = bytearray()  # writes smaller than a request wait here for more
        self._under_way: deque[tuple[int, int]] = deque()  # request, length
        self._sent = self._settled = 0
        self._failed: StorageError | None = None

    def __enter__(self) -> Self:
        self._storage.attempt_bound("create", self._name, self._begin)
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        _, wire, _ = self._session()
        size = wire.write_bytes_max
        try:
            if self._small:
                room = size - len(self._small)
                self._small += view[:room]
                view = view[room:]
                if len(self._small) < size:
                    return
                self._send(memoryview(bytes(self._small)))
                self._small.clear()
            while len(view) >= size:
                self._send(view[:size])
                view = view[size:]
            self._small += view
        except (Refused, Lost) as error:
            raise self._error("write", error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published = False
        try:
            if kind is None:
                self._finish()
                self._publish()
                published = True
        finally:
            if not published:
                self._remove()
            self._release()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _begin(self, connection: Connection) -> None:
        wire = connection.acquire()
        try:
            final = self._storage.path(self._name)
            if exists(wire, final):
                raise ObjectExists(storage=self._storage.label, step="create", name=self._name)
            try:
                if self._begun:  # a try before this one may have made it, and the reply was lost
                    with suppress_code(Code.NO_SUCH_FILE):
                        wire.remove(self._part)
                self._begun = True
                self._bound = (connection, wire, self._open_part(wire))
                self._handle_open = True
            except Refused as refused:
                raise self._storage.failure(refused, "create", self._name, wire) from refused
        except BaseException:
            connection.release(wire)
            raise

    def _open_part(self, wire: Wire) -> bytes:
        for attempt in range(1, _RACE_TRIES + 1):
            try:
                return wire.open(self._part, CREATE_NEW)
            except Refused as refused:
                if refused.code != Code.NO_SUCH_FILE or attempt == _RACE_TRIES:
                    raise
            try:
                make_folders(wire, self._storage.root, self._parents)
            except Refused as refused:
                if refused.code != Code.NO_SUCH_FILE:
                    raise
        raise AssertionError("unreachable")

    def _session(self) -> tuple[Connection, Wire, bytes]:
        assert self._bound is not None, "written outside of the block"
        return self._bound

    def _send(self, piece: memoryview) -> None:
        """Send one request, and look at replies: at all that are here, and for the oldest when too many are missing."""
        _, wire, handle = self._session()
        self._under_way.append((wire.begin_write(handle, self._sent, piece), len(piece)))
        self._sent += len(piece)
        while self._under_way and (len(self._under_way) >= REQUESTS_MAX or wire.answered(self._under_way[0][0])):
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        number, length = self._under_way.popleft()
        self._session()[1].settle(number)
        self._settled += length

    def _finish(self) -> None:
        """Send the rest, wait for every reply, and make sure of what lies there: durable, and as long as what was sent."""
        _, wire, handle = self._session()
        if self._failed is not None:
            raise self._failed  # whoever swallows the error of a write gets no object
        try:
            if self._small:
                self._send(memoryview(bytes(self._small)))
            while self._under_way:
                self._settle_oldest()
            wire.fsync(handle, self._storage.patience.sync_seconds)
            size = wire.fstat(handle).size
            self._handle_open = False  # whatever comes of it: closed twice, the number may be another file's by then
            wire.close(handle)  # servers on network file systems report a full disk only here
        except (Refused, Lost) as error:
            raise self._error("write", error) from error
        if size != self._sent:
            raise StorageError(
                storage=self._storage.label,
                step=f"write {self._name}",
                detail=f"{size} bytes are there, {self._sent} were sent",
            )

    def _publish(self) -> None:
        """Rename, and where a reply was lost find out what became of it.

        Only our own rename takes our temporary name away. So: it is gone and the final name is there, then we did it.
        """
        final, tries = self._storage.path(self._name), 0

        def rename(wire: Wire) -> None:
            nonlocal tries
            tries += 1
            try:
                wire.rename(self._part, final)
            except Refused as refused:
                if tries > 1 and not exists(wire, self._part) and exists(wire, final):
                    return
                if exists(wire, final):
                    raise ObjectExists(storage=self._storage.label, step="create", name=self._name) from refused
                raise self._storage.failure(refused, "commit", self._name, wire) from refused

        self._storage.attempt("commit", self._name, rename)

    def _remove(self) -> None:
        """Remove what was written. With the connection lost there is one try on a new one, with it interrupted none."""
        if self._bound is None or self._storage.interrupted:
            return
        _, wire, handle = self._bound
        try:
            if wire.lost:
                wire = self._storage.connection().wire()
            elif self._handle_open:
                wire.close_later(handle)
            with suppress_code(Code.NO_SUCH_FILE):
                wire.remove(self._part)
            remove_empty(wire, self._storage.root, self._parents)
        except (Refused, Lost, StorageError) as error:
            log.warning("unfinished object stays storage=%s name=%s error=%s", self._storage.label, self._name, error)

    def _release(self) -> None:
        if self._bound is not None:
            connection, wire, _ = self._bound
            self._bound = None
            for number, _ in self._under_way:
                wire.forget(number)
            connection.release(wire)

    def _error(self, step: str, error: Refused | Lost) -> StorageError:
        if isinstance(error, Refused):
            self._failed = self._storage.failure(error, step, self._name, self._session()[1])
        else:
            self._failed = self._storage.unreachable(f"{step} {self._name}", error)
        return self._failed
