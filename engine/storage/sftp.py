"""Objects as files on an SFTP server; `sftp_reader` and `sftp_upload` read and write them, `sftp_connect` opens the connection.

Connections come and go, the storage stays: what may be repeated (looking, reading, listing, deleting) is repeated on a new
connection after a pause, and an upload goes on behind the last byte that the server has acknowledged.
Version 3 has one status, "Failure", for a full disk, a taken name and all the rest: what it meant is found by asking.
"""

import logging
import random
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from engine.errors import (
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StoragePathInvalid,
    StorageUnreachable,
)
from engine.spec import SftpConfig
from engine.storage.base import Abilities, Entry, Storage, Usage, check_name, is_name, is_own_part
from engine.storage.sftp_connect import Connection, Dialer, Patience, reason_of
from engine.storage.sftp_reader import SftpReader
from engine.storage.sftp_tree import is_file, make_folder, remove_empty, suppress_code, sweep
from engine.storage.sftp_upload import SftpUpload
from engine.storage.sftp_wire import Attributes, Code, Lost, Refused, Wire
from engine.storage.trouble import cause_of
from engine.storage.walk import Walk
from engine.units import MIB

log = logging.getLogger(__name__)
T = TypeVar("T")

_ROOM_BYTES_MIN = 1 * MIB  # with less than this left, a "Failure" of a write means: full


class SftpStorage(Storage):
    """A storage in the folder `config.path` of an SFTP server; the folder is made if its parent exists and `make` says so.

    `sleep` waits between attempts; a test may pass its own.
    """

    abilities = Abilities(atomic_rename=True, exclusive_create=True, resume=True, usage=True, bind_address=True)

    def __init__(
        self,
        config: SftpConfig,
        patience: Patience | None = None,
        sleep: Callable[[float], None] | None = None,
        *,
        make: bool = True,
    ) -> None:
        self.label = f"sftp://{config.username}@{config.host}:{config.port}{config.path}"
        self.patience = patience or Patience()
        self._interrupted = threading.Event()
        self._sleep: Callable[[float], object] = sleep or self._interrupted.wait
        self.root = config.path.rstrip("/").encode()
        self._dialer = Dialer(config, self.label, self.patience)
        self._dialing = threading.Lock()
        self._connection: Connection | None = None
        try:
            self._find_root(self.connection().wire(), make=make)
        except Lost as error:
            self.close()
            raise self.unreachable("open folder", error) from error
        except BaseException:
            self.close()
            raise
        self.host_key = self._dialer.host_key

    def create(self, name: str, size_hint: int = 0) -> SftpUpload:  # noqa: ARG002  # a file needs no plan
        return SftpUpload(self, check_name(name))

    def open(self, name: str) -> SftpReader:
        return SftpReader(self, name, self.size(name))

    def size(self, name: str) -> int:
        path = self.path(check_name(name))
        attributes = self.attempt("look at", name, lambda wire: wire.lstat(path))
        if not is_file(attributes):
            raise ObjectNotFound(storage=self.label, step="look at", name=name)
        return attributes.size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        walk = Walk(self.label, prefix and check_name(prefix))
        for folder in walk:
            for raw, attributes in self.attempt("list", folder or "the folder", self._lister(folder)):
                path = f"{folder}/{raw.decode('ascii', 'replace')}".lstrip("/")
                if not is_name(path):
                    continue
                if stat.S_ISDIR(attributes.mode):
                    walk.add(path)
                elif is_file(attributes):
                    walk.found()
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
            remove_empty(wire, self.root, name.split("/")[:-1])

        self.attempt("delete", name, remove)

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        path = self.path(check_name(prefix))
        kept = {self.path(check_name(name)) for name in keep}

        def remove(wire: Wire) -> None:
            sweep(wire, path, kept)
            remove_empty(wire, self.root, prefix.split("/")[:-1])

        self.attempt("sweep", prefix, remove)

    def usage(self) -> Usage | None:
        room = self.attempt("usage", "the folder", lambda wire: wire.room(self.root or b"/"))
        return Usage(room.total_bytes, room.available_bytes) if room else None

    def parts(self, folder: str) -> Sequence[Entry]:
        listed = self.attempt("list", folder or "the folder", self._lister(folder))
        named = [(raw.decode("ascii", "replace"), one) for raw, one in listed if is_file(one)]
        return [
            Entry(f"{folder}/{name}".lstrip("/"), one.size, float(one.modified_time))
            for name, one in named
            if is_own_part(name)
        ]

    def remove_part(self, name: str) -> None:
        def remove(wire: Wire) -> None:
            with suppress_code(Code.NO_SUCH_FILE):
                wire.remove(self.path(name))

        self.attempt("remove", name, remove)

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
        return self.root + b"/" + name.encode()

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

    def attempt_bound(self, step: str, name: str, work: Callable[[Connection], T], *, enduring: bool = False) -> T:
        """Like `attempt`, for work that binds a session to itself. `enduring`: try for minutes, since much would be lost."""
        patience = self.patience
        deadline = time.monotonic() + patience.enduring_seconds
        pause = patience.pause_seconds
        attempts = patience.enduring_attempts if enduring else patience.attempts
        for number in range(1, attempts + 1):
            try:
                connection = self.connection()
                try:
                    return work(connection)
                except Refused as refused:
                    raise self.failure(refused, step, name, connection.wire()) from refused
            except (Lost, StorageUnreachable) as error:
                late = enduring and time.monotonic() + pause > deadline
                if number == attempts or late or self._interrupted.is_set():
                    raise self.unreachable(step, error) from error
                log.warning(
                    "storage lost, trying again storage=%s step=%s attempt=%d reason=%s",
                    self.label, step, number, reason_of(error),
                )  # fmt: skip
            self._sleep(pause * random.uniform(0.75, 1.25))
            pause = min(2 * pause, patience.pause_seconds_max)
        raise AssertionError("unreachable")

    def unreachable(self, step: str, error: BaseException) -> StorageUnreachable:
        """Return a lost connection as our error."""
        if isinstance(error, StorageUnreachable):
            return error
        if self._interrupted.is_set():
            return StorageUnreachable(storage=self.label, step=step, detail="interrupted")
        return StorageUnreachable(
            storage=self.label, step=step, detail=reason_of(error), cause=cause_of(error) or "lost"
        )

    def failure(self, refused: Refused, step: str, name: str, wire: Wire) -> StorageError:
        """Return a refused request as our error; what a Failure meant is told by the room that `wire` reports."""
        if refused.code == Code.NO_SUCH_FILE:
            return ObjectNotFound(storage=self.label, step=step, name=name)
        if refused.code == Code.PERMISSION_DENIED:
            return StorageDenied(storage=self.label, step=step, name=name)
        room = None
        with suppress(Refused, Lost):
            room = wire.room(self.root or b"/")
        if room is not None and room.read_only:
            return StorageDenied(storage=self.label, step=step, name=name, cause="read_only")
        if room is not None and room.available_bytes < _ROOM_BYTES_MIN:
            return StorageFull(storage=self.label, step=step, name=name)
        if room is not None and room.files and not room.available_files:
            return StorageFull(storage=self.label, step=step, name=name, cause="files")
        return StorageError(storage=self.label, step=f"{step} {name}", detail=refused.text or f"status {refused.code}")

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _find_root(self, wire: Wire, *, make: bool) -> None:
        root = self.root or b"/"
        try:
            if stat.S_ISDIR(wire.stat(root).mode):  # stat, not lstat: the root itself may be a link
                return
            raise StoragePathInvalid(
                storage=self.label, step="open folder", detail="it is not a folder", cause="not_a_folder"
            )
        except Refused as refused:
            if refused.code != Code.NO_SUCH_FILE or not make:
                raise self.failure(refused, "open", "the folder", wire) from refused
        try:
            make_folder(wire, root)
        except Refused as refused:
            if refused.code == Code.NO_SUCH_FILE:
                raise StoragePathInvalid(
                    storage=self.label, step="make folder", detail="the folder above it does not exist", cause="missing"
                ) from refused
            raise self.failure(refused, "make", "the folder", wire) from refused

    def _lister(self, folder: str) -> Callable[[Wire], Sequence[tuple[bytes, Attributes]]]:
        path = self.path(folder) if folder else self.root or b"/"

        def entries(wire: Wire) -> Sequence[tuple[bytes, Attributes]]:
            with suppress_code(Code.NO_SUCH_FILE):
                return wire.entries(path)
            return []

        return entries
