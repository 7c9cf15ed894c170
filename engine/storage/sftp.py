"""Objects as files on an SFTP server.

    create  ──►  <name>.<random>.part  ──pipelined writes, every reply checked──►  fsync, size as sent?, close
            ──►  rename to <name>, which an existing target refuses; a rename of unknown outcome is settled by looking

Connections come and go, the storage stays: what may be repeated (looking, reading, listing, deleting) is repeated on a new
connection after a pause; an upload whose connection is lost fails, since nobody knows what of it arrived.
Version 3 has one status, "Failure", for a full disk, a taken name and all the rest: what it meant is found by asking.
"""

import logging
import random
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from engine.errors import (
    ObjectExists,
    ObjectNotFound,
    ObjectTruncated,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from engine.spec import SftpConfig
from engine.storage.base import Abilities, Buffer, Entry, Storage, Usage, check_name, is_name, part_name
from engine.storage.sftp_connect import Connection, Dialer, Patience, reason_of
from engine.storage.sftp_wire import CREATE_NEW, READ, Attributes, Code, Lost, Refused, Wire
from engine.units import MIB

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUESTS_MAX = 64  # of one upload or one read under way: 16 MiB, what a link of 1 Gbit/s holds in 125 ms
_RACE_TRIES = 10  # a folder we just made may be removed, still empty, by a delete beside us
_ROOM_BYTES_MIN = 1 * MIB  # with less than this left, a "Failure" of a write means: full


class SftpStorage(Storage):
    """A storage in the folder `config.path` of an SFTP server; the folder is made if its parent exists.

    `sleep` waits between attempts; a test may pass its own.
    """

    abilities = Abilities(atomic_rename=True, exclusive_create=True, resume=False, usage=True, bind_address=True)

    def __init__(
        self, config: SftpConfig, patience: Patience | None = None, sleep: Callable[[float], None] | None = None
    ) -> None:
        self.label = f"sftp://{config.username}@{config.host}:{config.port}{config.path}"
        self.patience = patience or Patience()
        self._interrupted = threading.Event()
        self._sleep: Callable[[float], object] = sleep or self._interrupted.wait
        self._root = config.path.rstrip("/").encode()
        self._dialer = Dialer(config, self.label, self.patience)
        self._dialing = threading.Lock()
        self._connection: Connection | None = None
        try:
            self._make_root(self.connection().wire())
        except Lost as error:
            self.close()
            raise self.unreachable("open folder", error) from error
        except BaseException:
            self.close()
            raise
        self.host_key = self._dialer.host_key

    def create(self, name: str) -> "_SftpUpload":
        return _SftpUpload(self, check_name(name))

    def open(self, name: str) -> "_SftpReader":
        return _SftpReader(self, name, self.size(name))

    def size(self, name: str) -> int:
        path = self.path(check_name(name))
        attributes = self.attempt("look at", name, lambda wire: wire.lstat(path))
        if not _is_file(attributes):
            raise ObjectNotFound(storage=self.label, step="look at", name=name)
        return attributes.size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        waiting = [prefix and check_name(prefix)]
        while waiting:
            folder = waiting.pop()
            for raw, attributes in self.attempt("list", folder or "the folder", self._lister(folder)):
                path = f"{folder}/{raw.decode('ascii', 'replace')}".lstrip("/")
                if not is_name(path):
                    continue
                if stat.S_ISDIR(attributes.mode):
                    waiting.append(path)
                elif _is_file(attributes):
                    yield Entry(path, attributes.size, float(attributes.modified_time))

    def folders(self, prefix: str = "") -> Iterator[str]:
        folder = prefix and check_name(prefix)
        for raw, attributes in self.attempt("list", folder or "the folder", self._lister(folder)):
            name = raw.decode("ascii", "replace")
            if stat.S_ISDIR(attributes.mode) and is_name(name):
                yield name

    def delete(self, name: str) -> None:
        check_name(name)

        def remove(wire: Wire) -> None:
            with suppress_code(Code.NO_SUCH_FILE):
                wire.remove(self.path(name))
            self.remove_empty(wire, name.split("/")[:-1])

        self.attempt("delete", name, remove)

    def sweep(self, prefix: str) -> None:
        path = self.path(check_name(prefix))

        def remove(wire: Wire) -> None:
            _sweep(wire, path)
            self.remove_empty(wire, prefix.split("/")[:-1])

        self.attempt("sweep", prefix, remove)

    def usage(self) -> Usage | None:
        room = self.attempt("usage", "the folder", lambda wire: wire.room(self._root or b"/"))
        return Usage(room.total_bytes, room.available_bytes) if room else None

    def interrupt(self) -> None:
        self._interrupted.set()
        self._dialer.interrupt()
        if (connection := self._connection) is not None:
            connection.cut()

    def close(self) -> None:
        self._interrupted.set()
        with self._dialing:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ---- used by the readers and uploads below --------------------------------------------------------------------------

    def path(self, name: str) -> bytes:
        return self._root + b"/" + name.encode()

    def connection(self) -> Connection:
        """Return the live connection, or make one. Raises StorageUnreachable, StorageLoginFailed, StorageHostKeyChanged."""
        with self._dialing:
            if self._connection is not None and not self._connection.alive:
                self._connection.close()
                self._connection = None
            if self._interrupted.is_set():
                raise StorageUnreachable(storage=self.label, step="connect", detail="interrupted")
            if self._connection is None:
                self._connection = self._dialer.dial()
                if self._interrupted.is_set():  # it came between the dial and our keeping the result
                    self._connection.cut()
            return self._connection

    def attempt(self, step: str, name: str, work: Callable[[Wire], T]) -> T:
        """Return `work(session)`; repeat it, which must be harmless, on a new connection while the old one is lost."""
        return self.attempt_bound(step, name, lambda connection: work(connection.wire()))

    def attempt_bound(self, step: str, name: str, work: Callable[[Connection], T]) -> T:
        """Like `attempt`, for work that binds a session to itself."""
        pause = self.patience.pause_seconds
        for number in range(1, self.patience.attempts + 1):
            try:
                connection = self.connection()
                try:
                    return work(connection)
                except Refused as refused:
                    raise self.failure(refused, step, name, connection.wire()) from refused
            except (Lost, StorageUnreachable) as error:
                if number == self.patience.attempts or self._interrupted.is_set():
                    raise self.unreachable(step, error) from error
                log.warning(
                    "storage lost, trying again storage=%s step=%s attempt=%d reason=%s",
                    self.label,
                    step,
                    number,
                    reason_of(error),
                )
            self._sleep(pause * random.uniform(0.75, 1.25))
            pause *= 2
        raise AssertionError("unreachable")

    def unreachable(self, step: str, error: BaseException) -> StorageUnreachable:
        """Return a lost connection as our error."""
        if isinstance(error, StorageUnreachable):
            return error
        detail = "interrupted" if self._interrupted.is_set() else reason_of(error)
        return StorageUnreachable(storage=self.label, step=step, detail=detail)

    def failure(self, refused: Refused, step: str, name: str, wire: Wire) -> StorageError:
        """Return a refused request as our error; what a Failure meant is told by the room that `wire` reports."""
        if refused.code == Code.NO_SUCH_FILE:
            return ObjectNotFound(storage=self.label, step=step, name=name)
        if refused.code == Code.PERMISSION_DENIED:
            return StorageDenied(storage=self.label, step=step, name=name)
        room = None
        with suppress(Refused, Lost):
            room = wire.room(self._root or b"/")
        if room is not None and room.read_only:
            return StorageDenied(storage=self.label, step=step, name=name)
        if room is not None and (room.available_bytes < _ROOM_BYTES_MIN or (room.files and not room.available_files)):
            return StorageFull(storage=self.label, step=step, name=name)
        return StorageError(storage=self.label, step=f"{step} {name}", detail=refused.text or f"status {refused.code}")

    def make_folders(self, wire: Wire, parts: Sequence[str]) -> None:
        """Make the folder `parts` and those above it; which of them exist is known by trying, from the innermost."""
        for depth in range(len(parts), 0, -1):
            if _is_folder(wire, self.path("/".join(parts[:depth]))):
                parts_missing = range(depth + 1, len(parts) + 1)
                break
        else:
            parts_missing = range(1, len(parts) + 1)
        for depth in parts_missing:
            _make_folder(wire, self.path("/".join(parts[:depth])))

    def remove_empty(self, wire: Wire, parts: Sequence[str]) -> None:
        """Remove the folder `parts` and those above it, up to the first that holds something; never the root."""
        for depth in range(len(parts), 0, -1):
            try:
                wire.rmdir(self.path("/".join(parts[:depth])))
            except Refused as refused:
                if refused.code != Code.NO_SUCH_FILE:
                    return

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _make_root(self, wire: Wire) -> None:
        root = self._root or b"/"
        try:
            if stat.S_ISDIR(wire.stat(root).mode):  # stat, not lstat: the root itself may be a link
                return
            raise StorageError(storage=self.label, step="open folder", detail="it is not a folder")
        except Refused as refused:
            if refused.code != Code.NO_SUCH_FILE:
                raise self.failure(refused, "open", "the folder", wire) from refused
        try:
            _make_folder(wire, root)
        except Refused as refused:
            if refused.code == Code.NO_SUCH_FILE:
                raise StorageError(
                    storage=self.label, step="make folder", detail="the folder above it does not exist"
                ) from refused
            raise self.failure(refused, "make", "the folder", wire) from refused

    def _lister(self, folder: str) -> Callable[[Wire], Sequence[tuple[bytes, Attributes]]]:
        path = self.path(folder) if folder else self._root or b"/"

        def entries(wire: Wire) -> Sequence[tuple[bytes, Attributes]]:
            with suppress_code(Code.NO_SUCH_FILE):
                return wire.entries(path)
            return []

        return entries


class _SftpReader:
    """A file open for reading. Threads share it: their requests travel side by side in one session."""

    def __init__(self, storage: SftpStorage, name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._storage, self._name = storage, name
        self._lock = threading.Lock()
        self._bound: tuple[Connection, Wire, bytes] | None = None
        storage.attempt_bound("open", name, self._bind)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._storage.attempt_bound(
            "read", self._name, lambda connection: self._read(*self._bind(connection), offset, length)
        )

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

    def _read(self, wire: Wire, handle: bytes, offset: int, length: int) -> bytes:
        """Ask for the range in pieces, up to REQUESTS_MAX at a time, and put the answers together in order."""
        step = wire.read_bytes_max
        ahead = iter(range(offset, offset + length, step))
        asked: deque[tuple[int, int, int]] = deque()  # request, start, length
        pieces: list[memoryview] = []
        try:
            while True:
                for start in ahead:
                    wanted = min(step, offset + length - start)
                    asked.append((wire.begin_read(handle, start, wanted), start, wanted))
                    if len(asked) == REQUESTS_MAX:
                        break
                if not asked:
                    return b"".join(pieces)
                number, start, wanted = asked.popleft()
                data = self._piece(wire, number, start, offset + length)
                pieces.append(data)
                if len(data) < wanted:  # the server may answer with less than asked
                    number = wire.begin_read(handle, start + len(data), wanted - len(data))
                    asked.appendleft((number, start + len(data), wanted - len(data)))
        finally:
            for number, _, _ in asked:
                wire.forget(number)

    def _piece(self, wire: Wire, number: int, start: int, wanted_end: int) -> memoryview:
        try:
            data = wire.data(number)
        except Refused as refused:
            if refused.code != Code.EOF:
                raise
            data = memoryview(b"")
        if not data:
            raise ObjectTruncated(
                storage=self._storage.label,
                step="read",
                name=self._name,
                end=min(start, self.size_bytes),
                wanted=wanted_end,
            )
        return data


class _SftpUpload:
    """A file being written under its temporary name; the `with` block's end publishes or removes it.

    `_sent` counts what was sent and `_settled` what the server has acknowledged without a gap: from there an upload could
    be resumed on a new connection by opening the .part again, cutting it to that size and sending the rest.
    """

    def __init__(self, storage: SftpStorage, name: str) -> None:
        self._storage, self._name = storage, name
        self._parents = name.split("/")[:-1]
        self._part = storage.path(part_name(name))
        self._begun = False
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
            if _exists(wire, final):
                raise ObjectExists(storage=self._storage.label, step="create", name=self._name)
            try:
                if self._begun:  # a try before this one may have made it, and the reply was lost
                    with suppress_code(Code.NO_SUCH_FILE):
                        wire.remove(self._part)
                self._begun = True
                self._bound = (connection, wire, self._open_part(wire))
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
                self._storage.make_folders(wire, self._parents)
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
                if tries > 1 and not _exists(wire, self._part) and _exists(wire, final):
                    return
                if _exists(wire, final):
                    raise ObjectExists(storage=self._storage.label, step="create", name=self._name) from refused
                raise self._storage.failure(refused, "commit", self._name, wire) from refused

        self._storage.attempt("commit", self._name, rename)

    def _remove(self) -> None:
        """Remove what was written. With the connection lost there is one try on a new one, with it interrupted none."""
        if self._bound is None or self._storage.interrupted:
            return
        _, wire, handle = self._bound
        try:
            if not wire.lost:
                wire.close_later(handle)
            else:
                wire = self._storage.connection().wire()
            with suppress_code(Code.NO_SUCH_FILE):
                wire.remove(self._part)
            self._storage.remove_empty(wire, self._parents)
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


# ---- small things -------------------------------------------------------------------------------------------------------


class suppress_code:  # noqa: N801 -- reads like contextlib.suppress
    """Suppress a request that was refused with the status `code`."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, Refused) and error.code == self._code


def _is_file(attributes: Attributes) -> bool:
    return stat.S_ISREG(attributes.mode)


def _exists(wire: Wire, path: bytes) -> bool:
    with suppress_code(Code.NO_SUCH_FILE):
        wire.lstat(path)
        return True
    return False


def _is_folder(wire: Wire, path: bytes) -> bool:
    with suppress_code(Code.NO_SUCH_FILE):
        return stat.S_ISDIR(wire.lstat(path).mode)
    return False


def _make_folder(wire: Wire, path: bytes) -> None:
    """Make a folder; one that is already there, or that someone makes at the same moment, is fine."""
    try:
        wire.mkdir(path)
    except Refused as refused:
        if refused.code == Code.NO_SUCH_FILE or not _is_folder(wire, path):
            raise


def _sweep(wire: Wire, folder: bytes) -> None:
    with suppress_code(Code.NO_SUCH_FILE):
        for name, attributes in wire.entries(folder):
            if b"/" in name or b"\0" in name:  # a hostile server; the folder then does not become empty
                continue
            path = folder + b"/" + name
            if stat.S_ISDIR(attributes.mode):
                _sweep(wire, path)
            else:
                with suppress_code(Code.NO_SUCH_FILE):
                    wire.remove(path)
        wire.rmdir(folder)
