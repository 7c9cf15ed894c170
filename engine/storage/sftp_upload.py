"""An object on an SFTP server being written, for `SftpStorage`; a lost connection is replaced, and the upload goes on.

    <name>.<random>.part  ◄── pipelined writes ── kept until acknowledged, 4 MiB at most ◄── write
         │                         └── connection lost: a new one, the .part opened again, what was kept is sent again
         └──► fsync, size as sent?, close ──► rename to <name>, which an existing target refuses

A byte's place in the file never changes, so a write that a half-dead session still carries out late does no harm. For the
same reason the .part is never cut: a late cut would make a hole. A rename of unknown outcome is settled by looking.
"""

import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.errors import ObjectExists, StorageError
from engine.storage.base import Buffer, part_name
from engine.storage.sftp_connect import Connection, reason_of
from engine.storage.sftp_tree import exists, make_folders, remove_empty, suppress_code
from engine.storage.sftp_wire import CREATE_NEW, REQUESTS_MAX, WRITE, Code, Lost, Refused, Wire
from engine.units import MIB

if TYPE_CHECKING:
    from engine.storage.sftp import SftpStorage

log = logging.getLogger(__name__)

_RACE_TRIES = 10  # a folder we just made may be removed, still empty, by a delete beside us
# What is kept for a resume, and so the most that is under way. OpenSSH lets a session have 2 MiB under way, whatever we keep.
KEPT_BYTES_MAX = 4 * MIB
RESUMES_MAX = 1000  # of one object
_REMOVE_TRIES = 3  # our own session, one that others lost without noticing, a new one
STUCK_MAX = 5  # resumes in a row that brought nothing forward: then it is the upload that kills the connection


@dataclass(slots=True)
class _Write:
    """A write that the server has not acknowledged yet, with its request's number in the present session."""

    offset: int
    data: bytes
    number: int = 0


class SftpUpload:
    """A file being written under its temporary name; the `with` block's end publishes or removes it."""

    def __init__(self, storage: "SftpStorage", name: str) -> None:
        self._storage, self._name = storage, name
        self._parents = name.split("/")[:-1]
        self._part = storage.path(part_name(name))
        self._begun = self._handle_open = False
        self._bound: tuple[Connection, Wire, bytes] | None = None
        self._small = bytearray()  # writes smaller than a request wait here for more
        self._kept: deque[_Write] = deque()
        self._sent = self._settled = 0  # bytes sent, and acknowledged without a gap
        self.resent_bytes = 0  # sent again after a lost connection; ThrottledStorage counts them too
        self._resumes = self._stuck = 0
        self._settled_before = -1  # at the last resume
        self._failed: StorageError | None = None

    def __enter__(self) -> Self:
        self._storage.attempt_bound("create", self._name, self._begin)
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        size = self._session()[1].write_bytes_max
        try:
            if self._small:
                room = size - len(self._small)
                self._small += view[:room]
                view = view[room:]
                if len(self._small) < size:
                    return
                self._send(bytes(self._small))
                self._small.clear()
            while len(view) >= size:
                self._send(bytes(view[:size]))
                view = view[size:]
            self._small += view
        except Refused as refused:
            raise self._refused(refused) from refused

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

    # ---- beginning ------------------------------------------------------------------------------------------------------

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

    # ---- writing --------------------------------------------------------------------------------------------------------

    def _session(self) -> tuple[Connection, Wire, bytes]:
        assert self._bound is not None, "written outside of the block"
        return self._bound

    def _send(self, data: bytes) -> None:
        """Send one request, and look at replies: at all that are here, and for the oldest when too much is missing."""
        if self._failed is not None:
            raise self._failed
        one = _Write(self._sent, data)
        self._kept.append(one)
        self._sent += len(data)
        try:
            self._request(one)
        except Lost as lost:
            self._resume(lost)
        while self._kept and (self._full or self._session()[1].answered(self._kept[0].number)):
            try:
                self._settle_oldest()
            except Lost as lost:
                self._resume(lost)

    @property
    def _full(self) -> bool:
        return len(self._kept) >= REQUESTS_MAX or self._sent - self._settled >= KEPT_BYTES_MAX

    def _request(self, one: _Write) -> None:
        _, wire, handle = self._session()
        one.number = wire.begin_write(handle, one.offset, memoryview(one.data))

    def _settle_oldest(self) -> None:
        self._session()[1].settle(self._kept[0].number)
        self._settled += len(self._kept.popleft().data)

    # ---- a lost connection ----------------------------------------------------------------------------------------------

    def _resume(self, lost: Lost) -> None:
        """Go on with a new connection; when this returns, all that was sent is on its way again, or acknowledged.

        Raises StorageUnreachable when that takes too long or does not help, and what else the server answers.
        """
        connection, wire, _ = self._session()
        wire.end(reason_of(lost))  # it may be we who gave it up: then nobody else should wait for it
        self._handle_open = False
        self._resumes += 1
        self._stuck = self._stuck + 1 if self._settled == self._settled_before else 1
        self._settled_before = self._settled
        try:
            if self._stuck > STUCK_MAX or self._resumes > RESUMES_MAX:
                raise self._storage.unreachable(f"write {self._name}", lost) from lost
            self._storage.attempt_bound("write", self._name, self._take_up, enduring=True)
        except StorageError as error:
            self._failed = error
            raise
        finally:
            connection.release(wire)
        log.warning(
            "an upload goes on after a lost connection storage=%s name=%s at=%d reason=%s",
            self._storage.label, self._name, self._settled, reason_of(lost),
        )  # fmt: skip

    def _take_up(self, connection: Connection) -> None:
        """Open the .part again and send what was kept, one after the other, so that a weak link gets somewhere too."""
        wire = connection.acquire()
        try:
            handle = self._open_again(wire)
            size = wire.fstat(handle).size
            if not self._settled <= size <= self._sent:
                detail = f"{size} bytes are there, {self._settled} were acknowledged and {self._sent} sent"
                raise StorageError(storage=self._storage.label, step=f"resume {self._name}", detail=detail)
            before = self._settled
            self._bound, self._handle_open = (connection, wire, handle), True
            try:
                for one in list(self._kept):
                    self._request(one)
                    self.resent_bytes += len(one.data)
                    self._settle_oldest()
            except Lost:
                if self._settled == before:
                    raise
                # It brought us forward: not a failed try. Whoever uses it next notices that it is lost.
        except BaseException:
            connection.release(wire)
            raise

    def _open_again(self, wire: Wire) -> bytes:
        try:
            return wire.open(self._part, WRITE)
        except Refused as refused:
            if refused.code != Code.NO_SUCH_FILE:
                raise
            if self._settled:
                detail = "what was uploaded of it is gone"
                raise StorageError(storage=self._storage.label, step=f"resume {self._name}", detail=detail) from refused
        return self._open_part(wire)

    # ---- the end --------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Send the rest, wait for every reply, and make sure of what lies there: durable, and as long as what was sent."""
        if self._failed is not None:
            raise self._failed  # whoever swallows the error of a write gets no object
        size: int | None = None
        try:
            if self._small:
                self._send(bytes(self._small))
            while size is None:
                try:
                    size = self._seal()
                except Lost as lost:
                    self._resume(lost)
        except Refused as refused:
            raise self._refused(refused) from refused
        if size != self._sent:
            detail = f"{size} bytes are there, {self._sent} were sent"
            raise StorageError(storage=self._storage.label, step=f"write {self._name}", detail=detail)

    def _seal(self) -> int:
        """Return the file's size when everything is acknowledged, durable, and closed."""
        while self._kept:
            self._settle_oldest()
        _, wire, handle = self._session()
        wire.fsync(handle, self._storage.patience.sync_seconds)
        size = wire.fstat(handle).size
        self._handle_open = False  # whatever comes of it: closed twice, the number may be another file's by then
        wire.close(handle)  # servers on network file systems report a full disk only here
        return size

    def _publish(self) -> None:
        """Rename, and where a reply was lost find out what became of it.

        Only our own rename takes our temporary name away. So: it is gone and the final name is there, then we did it.
        """
        final, tries = self._storage.path(self._name), 0

        def rename(connection: Connection) -> None:
            nonlocal tries
            wire = connection.wire()
            tries += 1
            try:
                wire.rename(self._part, final)
            except Refused as refused:
                if tries > 1 and not exists(wire, self._part) and exists(wire, final):
                    return
                if exists(wire, final):
                    raise ObjectExists(storage=self._storage.label, step="create", name=self._name) from refused
                raise self._storage.failure(refused, "commit", self._name, wire) from refused

        self._storage.attempt_bound("commit", self._name, rename, enduring=True)

    def _remove(self) -> None:
        """Remove what was written. A lost connection is replaced, but not waited for; of an interrupted one nothing is left."""
        if self._bound is None or self._storage.interrupted:
            return
        _, wire, handle = self._bound
        if self._handle_open and not wire.lost:
            with suppress(Lost):
                wire.close_later(handle)
        try:
            for tries_left in reversed(range(_REMOVE_TRIES)):
                try:
                    self._remove_on(wire if not wire.lost else self._storage.connection().wire())
                    return
                except Lost:  # a session that ended is only known to be lost when it is used
                    if not tries_left:
                        raise
        except (Refused, Lost, StorageError) as error:
            log.warning("unfinished object stays storage=%s name=%s error=%s", self._storage.label, self._name, error)

    def _remove_on(self, wire: Wire) -> None:
        with suppress_code(Code.NO_SUCH_FILE):
            wire.remove(self._part)
        remove_empty(wire, self._storage.root, self._parents)

    def _release(self) -> None:
        if self._bound is not None:
            connection, wire, _ = self._bound
            self._bound = None
            for one in self._kept:
                wire.forget(one.number)
            self._kept.clear()
            connection.release(wire)

    def _refused(self, refused: Refused) -> StorageError:
        self._failed = self._storage.failure(refused, "write", self._name, self._session()[1])
        return self._failed
