"""Objects on an SFTP server being read, for `SftpStorage`. A read whose connection is lost begins again on the next one."""

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from engine.errors import ObjectTruncated
from engine.storage.base import ObjectReader
from engine.storage.sftp_connect import Connection
from engine.storage.sftp_wire import READ, Lost, Wire

if TYPE_CHECKING:
    from engine.storage.sftp import SftpStorage


class SftpReader(ObjectReader):
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

        data = self._storage.attempt_bound("read", self._name, read, enduring=True)
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
