"""Objects on an FTP server being read, for `FtpStorage`: one RETR that stays open as long as reads follow each other.

    read_at(0, n) ──► REST 0, RETR ──► n bytes        read_at(n, m) ──► m bytes more of the same
    read_at far ahead, or back ──► the data connection is closed, the server's complaint dropped ──► REST, RETR

Threads that ask side by side are put in order (turns.py). A short way ahead is read and dropped where that is quicker than
beginning anew, as the connection itself has shown. A reader that is not reading keeps its connection only until somebody needs one.
"""

import time
from typing import TYPE_CHECKING

from engine.storage import ftp_tree
from engine.storage.ftp_wire import Control, Lost, Refused, Transfer
from engine.storage.sftp_connect import reason_of
from engine.storage.turns import StreamReader
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from engine.storage.ftp import FtpStorage

_SKIP_BYTES_MIN = 64 * KIB  # less than this is in the buffers anyway
_SKIP_BYTES_MAX = 16 * MIB
_PIECE_BYTES = 1 * MIB


class FtpReader(StreamReader):
    """A file open for reading. Threads share it; one reads at a time."""

    def __init__(self, storage: "FtpStorage", name: str, size_bytes: int) -> None:
        super().__init__(storage.label, name, size_bytes)
        self._storage = storage
        self._path = storage.path(name)
        self._control: Control | None = None
        self._transfer: Transfer | None = None
        self._position = 0
        self._open_seconds = 0.0  # what the last RETR took to begin
        self._rate = 0.0  # bytes a second of the last long read

    def close(self) -> None:
        with self._turns.between():
            self._end()

    def let_go(self) -> bool:
        with self._turns.between(wait=False) as free:
            if not free:
                return False
            held = self._control is not None
            self._end()
            return held

    # ---- inner; all of it with the turn ---------------------------------------------------------------------------------

    def _read_in_turn(self, offset: int, target: memoryview) -> None:
        self._storage.attempt_bound("read", self._name, lambda: self._read(offset, target), enduring=True)
        if self._transfer is not None and self._position < self.size_bytes:
            self._storage.pool.lends(self)
        else:
            self._end()

    def _read(self, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset`. Raises Lost, Refused, ObjectTruncated; the stream is then closed."""
        try:
            self._seek(offset)
            begin = time.monotonic()
            self._fill(target)
            if len(target) >= _PIECE_BYTES:
                self._rate = len(target) / max(time.monotonic() - begin, 1e-6)
        except BaseException:
            self._break()
            raise

    def _seek(self, offset: int) -> None:
        """Make the stream stand at `offset`."""
        ahead = offset - self._position
        if self._transfer is not None and 0 <= ahead <= self._skip_max():
            scrap = bytearray(min(ahead, _PIECE_BYTES))
            while self._position < offset:
                self._fill(memoryview(scrap)[: offset - self._position])
            return
        self._stop()
        if self._control is None:
            self._control = self._storage.pool.acquire()
        begin = time.monotonic()
        try:
            self._transfer = self._control.transfer(f"RETR {self._path}", offset)
        except Refused:
            self._check_end(self._control, offset)
            raise
        self._position, self._open_seconds = offset, time.monotonic() - begin

    def _skip_max(self) -> int:
        return max(_SKIP_BYTES_MIN, min(_SKIP_BYTES_MAX, int(self._rate * self._open_seconds)))

    def _fill(self, target: memoryview) -> None:
        """Read exactly as much as `target` holds."""
        assert self._transfer is not None
        assert self._control is not None
        while target:
            try:
                count = self._transfer.sock.recv_into(target)
            except (OSError, ValueError) as error:
                raise Lost(reason_of(error)) from error
            if not count:
                self._transfer.finish()
                self._check_end(self._control, self._position)
                raise Lost("the data connection ended too early")
            self._position += count
            target = target[count:]

    def _check_end(self, control: Control, position: int) -> None:
        """Raise ObjectTruncated if the file really ends at `position` or before."""
        size = ftp_tree.size(control, self._path)
        if size is not None and size <= position and size < self.size_bytes:
            raise self._truncated(size, position + 1)

    def _stop(self) -> None:
        """End the transfer, if there is one, before its end."""
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            transfer.abandon()

    def _end(self) -> None:
        """Give the connection back."""
        self._storage.pool.forget(self)
        try:
            if self._control is not None and not self._control.broken:
                self._stop()
        except Lost:
            pass
        finally:
            self._transfer = None
            control, self._control = self._control, None
            if control is not None:
                self._storage.pool.release(control)

    def _break(self) -> None:
        """Give the connection back as one that nobody can use any more."""
        if self._control is not None:
            self._control.broken = True
            control, self._control = self._control, None
            self._transfer = None
            self._storage.pool.forget(self)
            self._storage.pool.release(control)
