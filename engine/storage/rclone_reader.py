"""An object of an rclone remote being read in ranges. Reads that follow each other share one request.

    the first read, or one elsewhere        a request for just that
    the next, where the last one ended      a request for all the rest, read as far as somebody asks

To rclone each request is a file that it looks for and opens; with some remotes it then begins to fetch more than it was asked for.
Of 128 MiB over its sftp, requests for 4 MiB took 1.1 s and one request 0.6 s, alone on the machine. What comes ahead waits in the
sockets, not in our memory. Threads that ask side by side are put in order (turns.py).
"""

from typing import TYPE_CHECKING

from engine.errors import ObjectNotFound
from engine.storage.rclone_errors import Kind, meaning
from engine.storage.rclone_wire import Lost, ReadStream, Refused, Wire
from engine.storage.turns import StreamReader
from engine.units import KIB

if TYPE_CHECKING:
    from engine.storage.rclone import RcloneStorage

_SKIP_BYTES_MAX = 256 * KIB  # cheaper than another request


class RcloneReader(StreamReader):
    """An object of `size_bytes`. Threads share it; one reads at a time."""

    def __init__(self, storage: "RcloneStorage", name: str, size_bytes: int) -> None:
        super().__init__(storage.label, name, size_bytes)
        self._storage = storage
        self._stream: ReadStream | None = None
        self._end = -1  # of the last read

    def close(self) -> None:
        with self._turns.between():
            self._drop()

    # ---- inner; all of it with the turn ---------------------------------------------------------------------------------

    def _read_in_turn(self, offset: int, target: memoryview) -> None:
        storage = self._storage
        storage.attempt(
            "read", self._name, lambda wire: self._read(wire, offset, target), storage.patience.reading_attempts
        )

    def _read(self, wire: Wire, offset: int, target: memoryview) -> None:
        """Read once. What is short, or was refused, is looked at: an object that has become shorter is told as that."""
        storage = self._storage
        failed: Refused | Lost
        try:
            self._fill(wire, offset, target)
            return
        except (Refused, Lost) as error:
            failed = error
            self._drop()
        if storage.interrupted or (isinstance(failed, Refused) and meaning(failed)[0] in {Kind.DENIED, Kind.LOGIN}):
            raise failed
        size = storage.size_of(storage.wire(), self._name)
        if size is None:
            raise ObjectNotFound(storage=storage.label, step="read", name=self._name) from failed
        if size < offset + len(target):
            raise self._truncated(size, offset + len(target)) from failed
        raise Lost(storage.told(str(failed))) from failed

    def _fill(self, wire: Wire, offset: int, target: memoryview) -> None:
        stream = self._seek(offset, len(target))
        if stream is None:
            length = self.size_bytes - offset if offset == self._end else len(target)
            stream = wire.stream(self._storage.fs, self._name, offset, length, self._storage.patience.answer_seconds)
        self._stream, self._end = stream, offset + len(target)
        stream.read_into(target)
        if stream.position == stream.end:
            stream.finish()
            self._stream = None

    def _seek(self, offset: int, length: int) -> ReadStream | None:
        """Return the stream if it has those bytes, standing there; else end it."""
        stream = self._stream
        if stream is None:
            return None
        ahead = offset - stream.position
        if not 0 <= ahead <= _SKIP_BYTES_MAX or offset + length > stream.end:
            self._drop()
            return None
        if ahead:
            stream.read_into(memoryview(bytearray(ahead)))
        return stream

    def _drop(self) -> None:
        """End the request that is under way."""
        if self._stream is not None:
            self._stream.abort()
            self._stream = None
