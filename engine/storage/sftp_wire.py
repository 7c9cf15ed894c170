"""SFTP version 3, as much of it as objects need, over one SSH channel that threads share.

    thread A ─ begin_write 7 ─┐                          ┌─ reply 7 ─► thread A, in settle(7)
    thread B ─ begin_read 8 ──┴─► channel ══► server ══►─┴─ reply 8 ─► thread B, in wait(8)
                                                 one receiving thread sorts the replies by request number

paramiko brings the channel; its own SFTP client is not used. As read in paramiko 5.1, `SFTPFile.close` throws away the
replies of pipelined writes that are still on their way, so that a write that failed near the end goes unnoticed;
statuses lose their number; the server's list of extensions is dropped; and threads cannot share a file.
Source: draft-ietf-secsh-filexfer-02; the extensions: OpenSSH's PROTOCOL, section 4.
"""

import itertools
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from engine.storage.base import Buffer
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from paramiko import Channel

VERSION = 3
REQUEST_BYTES_DEFAULT = 32 * KIB  # what every server takes
# OpenSSH takes 255 KiB. 250 KiB pieces measured 1.8 times the upload and 5 times the download speed of 32 KiB ones.
REQUEST_BYTES_MAX = 250 * KIB
REQUESTS_MAX = 64  # of one upload or one read under way: 16 MiB, what a link of 1 Gbit/s holds in 125 ms
PACKET_BYTES_MAX = 1 * MIB
FOLDER_ENTRIES_MAX = 1_000_000
# One SSH packet's worth: paramiko keeps 64 bytes of a packet of 32 KiB to itself, and copies what does not fit.
_SLICE_BYTES = 32 * KIB - 64
_RECEIVE_BYTES = 256 * KIB

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT = 1, 2, 3, 4, 5, 6, 7, 8
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _STAT, _RENAME = 11, 12, 13, 14, 15, 17, 18
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED, _EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201
READ, WRITE, CREATE_NEW = 0x01, 0x02, 0x02 | 0x08 | 0x20  # open flags: READ; WRITE; WRITE, CREAT and EXCL
_MODE_FILE, _MODE_FOLDER = 0o600, 0o700
_SIZE, _OWNER, _PERMISSIONS, _TIMES, _MORE = 0x01, 0x02, 0x04, 0x08, 0x80000000


class Code(IntEnum):
    """Status codes of version 3. Everything without a code of its own, a full disk too, is FAILURE."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4


class Refused(Exception):
    """The server answered a request with the status `code`; the session goes on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Lost(Exception):
    """The session is over: closed, cut, silent for too long, or speaking nonsense. What was under way has no known outcome."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """`mode` is 0 where the server does not say; `modified_time` is Unix seconds, 0 where unknown."""

    size: int
    mode: int
    modified_time: int


@dataclass(frozen=True, slots=True)
class Room:
    """A statvfs@openssh.com reply, in bytes; `read_only` is the mount's flag."""

    total_bytes: int
    available_bytes: int
    files: int
    available_files: int
    read_only: bool


class Wire:
    """One SFTP session. Any thread may call any method; raises Refused, and Lost once the session is over."""

    def __init__(self, channel: "Channel", stall_seconds: float, abort: Callable[[], None]) -> None:
        """Begin the session on an open channel; `abort` cuts the connection below it, whatever its threads are doing."""
        self.extensions: dict[str, bytes] = {}
        self.read_bytes_max = self.write_bytes_max = REQUEST_BYTES_DEFAULT
        self.users = 0  # uploads and readers bound to this session; kept by the connection that hands it out
        self._channel = channel
        self._abort = abort
        self._stall_seconds = stall_seconds
        self._sending = threading.Lock()
        self._state = threading.Condition()
        self._number = 0
        self._awaited: set[int] = set()
        self._replies: dict[int, tuple[int, memoryview]] = {}
        self._lost = ""
        self._heard_time = time.monotonic()
        self._received, self._position = b"", 0
        channel.settimeout(stall_seconds)
        self._shake_hands()
        threading.Thread(target=self._receive, name="sftp-receive", daemon=True).start()
        self._learn_limits()

    # ---- files ----------------------------------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> bytes:
        """Open a file with READ, WRITE or CREATE_NEW and return its handle."""
        attributes = struct.pack(">III", flags, _PERMISSIONS, _MODE_FILE)
        return self._call(_OPEN, _string(path) + attributes, _HANDLE).string()

    def close(self, handle: bytes) -> None:
        self._call(_CLOSE, _string(handle), _STATUS)

    def close_later(self, handle: bytes) -> None:
        """Send the close of a file that was only read; its reply is dropped."""
        self.forget(self._send(_CLOSE, _string(handle)))

    def begin_write(self, handle: bytes, offset: int, data: memoryview) -> int:
        """Send at most `write_bytes_max` bytes and return the request's number for `settle`. `data` may be reused at once."""
        return self._send(_WRITE, _string(handle) + struct.pack(">QI", offset, len(data)), data)

    def settle(self, number: int) -> None:
        """Wait for the end of a write."""
        self._take(number, _STATUS)

    def read(self, handle: bytes, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only if the file ends before.

        They are asked for in pieces of `read_bytes_max`, up to REQUESTS_MAX at a time, and put together in order.
        """
        starts = iter(range(offset, offset + length, self.read_bytes_max))
        asked: deque[tuple[int, int, int]] = deque()  # request, start, length
        pieces: list[memoryview] = []
        try:
            while True:
                for start in itertools.islice(starts, REQUESTS_MAX - len(asked)):
                    wanted = min(self.read_bytes_max, offset + length - start)
                    asked.append((self._begin_read(handle, start, wanted), start, wanted))
                if not asked:
                    return b"".join(pieces)
                number, start, wanted = asked.popleft()
                piece = self._data(number)
                pieces.append(piece[:wanted])
                if not piece:
                    return b"".join(pieces)
                if len(piece) < wanted:  # a server may answer with less than asked; the end it says by EOF
                    start, wanted = start + len(piece), wanted - len(piece)
                    asked.appendleft((self._begin_read(handle, start, wanted), start, wanted))
        finally:
            for number, _, _ in asked:
                self.forget(number)

    def answered(self, number: int) -> bool:
        """Tell whether waiting for `number` would return at once."""
        return number in self._replies or bool(self._lost)

    def forget(self, number: int) -> None:
        """Drop the reply to a request, whether it is here or still to come."""
        with self._state:
            self._awaited.discard(number)
            self._replies.pop(number, None)

    def fsync(self, handle: bytes, seconds: float) -> bool:
        """Make a file durable, waiting up to `seconds` without a sign of life; False if the server cannot."""
        if "fsync@openssh.com" not in self.extensions:
            return False
        number = self._send(_EXTENDED, _string(b"fsync@openssh.com") + _string(handle))
        self._take(number, _STATUS, seconds)
        return True

    # ---- names ----------------------------------------------------------------------------------------------------------

    def stat(self, path: bytes) -> Attributes:
        return self._call(_STAT, _string(path), _ATTRS).attributes()

    def lstat(self, path: bytes) -> Attributes:
        return self._call(_LSTAT, _string(path), _ATTRS).attributes()

    def fstat(self, handle: bytes) -> Attributes:
        return self._call(_FSTAT, _string(handle), _ATTRS).attributes()

    def remove(self, path: bytes) -> None:
        self._call(_REMOVE, _string(path), _STATUS)

    def rename(self, source: bytes, target: bytes) -> None:
        """Rename; a target that exists is refused (OpenSSH links and unlinks, so that this holds in a race too)."""
        self._call(_RENAME, _string(source) + _string(target), _STATUS)

    def mkdir(self, path: bytes) -> None:
        self._call(_MKDIR, _string(path) + struct.pack(">II", _PERMISSIONS, _MODE_FOLDER), _STATUS)

    def rmdir(self, path: bytes) -> None:
        self._call(_RMDIR, _string(path), _STATUS)

    def entries(self, path: bytes) -> list[tuple[bytes, Attributes]]:
        """Return a folder's entries without `.` and `..`; attributes are of a link, not of what it points to."""
        handle = self._call(_OPENDIR, _string(path), _HANDLE).string()
        found: list[tuple[bytes, Attributes]] = []
        try:
            for _ in range(FOLDER_ENTRIES_MAX):  # answers that name nothing count too
                if len(found) > FOLDER_ENTRIES_MAX:
                    break
                try:
                    fields = self._call(_READDIR, _string(handle), _NAME)
                except Refused as refused:
                    if refused.code == Code.EOF:
                        return found
                    raise
                for _ in range(fields.uint32()):
                    name = fields.string()
                    fields.string()  # the line of `ls -l`
                    attributes = fields.attributes()
                    if name not in {b".", b".."}:
                        found.append((name, attributes))
            raise Refused(Code.FAILURE, f"a folder with more than {FOLDER_ENTRIES_MAX} entries")
        finally:
            self.close_later(handle)

    def room(self, path: bytes) -> Room | None:
        """Return the room on the file system of `path`, or None where the server cannot tell."""
        if "statvfs@openssh.com" not in self.extensions:
            return None
        fields = self._call(_EXTENDED, _string(b"statvfs@openssh.com") + _string(path), _EXTENDED_REPLY)
        _, unit, blocks, _, available, files, _, available_files, _, flags, _ = (fields.uint64() for _ in range(11))
        return Room(blocks * unit, available * unit, files, available_files, bool(flags & 1))

    # ---- the session ----------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        return bool(self._lost)

    def end(self, reason: str) -> None:
        """End the session and its connection: whoever waits gets Lost with `reason`, unless an earlier one is known.

        The channel is not closed politely: that is a message, and would wait behind a stalled one.
        """
        with self._state:
            self._lost = self._lost or reason
            self._state.notify_all()
        self._abort()

    def _shake_hands(self) -> None:
        try:
            self._channel.sendall(struct.pack(">IBI", 5, _INIT, VERSION))
            packet = self._receive_packet()
        except (OSError, EOFError) as error:
            raise Lost(f"no SFTP on this server: {_reason(error)}") from error
        fields = _Fields(packet)
        if fields.uint8() != _VERSION or fields.uint32() != VERSION:
            raise Lost("not an SFTP server of version 3")
        while fields.left:
            name = fields.string().decode("ascii", "replace")
            self.extensions[name] = fields.string()

    def _learn_limits(self) -> None:
        """Ask how large requests may be; a 0 in the answer means that the server names no limit of its own."""
        if "limits@openssh.com" not in self.extensions:
            return
        try:
            fields = self._call(_EXTENDED, _string(b"limits@openssh.com"), _EXTENDED_REPLY)
        except Refused:
            return
        _, read, write, _ = (fields.uint64() for _ in range(4))
        self.read_bytes_max = min(read or REQUEST_BYTES_DEFAULT, REQUEST_BYTES_MAX)
        self.write_bytes_max = min(write or REQUEST_BYTES_DEFAULT, REQUEST_BYTES_MAX)

    def _begin_read(self, handle: bytes, offset: int, length: int) -> int:
        return self._send(_READ, _string(handle) + struct.pack(">QI", offset, length))

    def _data(self, number: int) -> memoryview:
        """Return a read's bytes, none at the end of the file."""
        try:
            return self._take(number, _DATA).view()
        except Refused as refused:
            if refused.code == Code.EOF:
                return memoryview(b"")
            raise

    def _call(self, kind: int, body: bytes, expected: int) -> "_Fields":
        return self._take(self._send(kind, body), expected)

    def _send(self, kind: int, body: bytes, data: Buffer = b"") -> int:
        with self._sending:
            with self._state:
                if self._lost:
                    raise Lost(self._lost)
                self._number = number = (self._number + 1) & 0xFFFFFFFF
                self._awaited.add(number)
            packet = b"".join((struct.pack(">IBI", 5 + len(body) + len(data), kind, number), body, data))
            try:
                position = 0
                while position < len(packet):
                    sent = self._channel.send(packet[position : position + _SLICE_BYTES])
                    if not sent:
                        raise EOFError("the server closed the session")
                    position += sent
            except Exception as error:  # paramiko raises its own, OSError and EOFError alike; all mean the same
                self.end(_reason(error))
                raise Lost(self._lost) from error
        return number

    def _take(self, number: int, expected: int, seconds: float = 0) -> "_Fields":
        """Wait for a reply, for as long as the server sends anything at all every `seconds`."""
        patience = seconds or self._stall_seconds
        begin = time.monotonic()
        with self._state:
            while number not in self._replies:
                silence = time.monotonic() - max(begin, self._heard_time)
                if not self._lost and silence >= patience:
                    self._lost = f"no answer for {patience:g} seconds"
                if self._lost:
                    raise Lost(self._lost)
                self._state.wait(patience - silence)
            self._awaited.discard(number)
            kind, body = self._replies.pop(number)
        fields = _Fields(body)
        if kind == _STATUS:
            code = fields.uint32()
            if code != Code.OK or expected != _STATUS:
                raise Refused(code, fields.string().decode("utf-8", "replace") if fields.left else "")
        elif kind != expected:
            self.end(f"reply {kind} where {expected} was expected")
            raise Lost(self._lost)
        return fields

    def _receive(self) -> None:
        reason = "the server ended the session"
        try:
            while True:
                fields = _Fields(self._receive_packet())
                kind, number = fields.uint8(), fields.uint32()
                with self._state:
                    self._heard_time = time.monotonic()
                    if number in self._awaited:
                        self._replies[number] = (kind, fields.view_rest())
                        self._state.notify_all()
        except Lost as error:
            reason = str(error)
        except (OSError, EOFError) as error:
            reason = _reason(error)
        finally:
            self.end(reason)

    def _receive_packet(self) -> memoryview:
        (length,) = struct.unpack(">I", self._receive_exactly(4))
        if not 5 <= length <= PACKET_BYTES_MAX:
            raise Lost(f"a packet of {length} bytes")
        return self._receive_exactly(length)

    def _receive_exactly(self, length: int) -> memoryview:
        """Return `length` bytes of the channel's stream; what came beyond them is kept for the next call."""
        pieces, missing = [], length - (len(self._received) - self._position)
        while missing > 0:
            try:
                piece = self._channel.recv(_RECEIVE_BYTES)
            except TimeoutError:
                if self._lost:
                    raise
                continue  # an idle session is no fault; whoever waits for a reply watches the time
            if not piece:
                raise EOFError("the server ended the session")
            pieces.append(piece)
            missing -= len(piece)
        if pieces:
            self._received, self._position = b"".join((self._received[self._position :], *pieces)), 0
        begin, self._position = self._position, self._position + length
        return memoryview(self._received)[begin : self._position]


class _Fields:
    """Reads a packet field by field. Raises Lost where the packet ends too early: then nothing after it can be trusted."""

    def __init__(self, packet: memoryview) -> None:
        self._packet = packet
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._packet) - self._position

    def uint8(self) -> int:
        return self._piece(1)[0]

    def uint32(self) -> int:
        return int.from_bytes(self._piece(4), "big")

    def uint64(self) -> int:
        return int.from_bytes(self._piece(8), "big")

    def string(self) -> bytes:
        return bytes(self.view())

    def view(self) -> memoryview:
        return self._piece(self.uint32())

    def view_rest(self) -> memoryview:
        return self._piece(self.left)

    def attributes(self) -> Attributes:
        flags = self.uint32()
        size = self.uint64() if flags & _SIZE else 0
        if flags & _OWNER:
            self._piece(8)
        mode = self.uint32() if flags & _PERMISSIONS else 0
        modified_time = 0
        if flags & _TIMES:
            self._piece(4)
            modified_time = self.uint32()
        if flags & _MORE:
            for _ in range(self.uint32()):
                self.view()
                self.view()
        return Attributes(size, mode, modified_time)

    def _piece(self, length: int) -> memoryview:
        end = self._position + length
        if end > len(self._packet):
            raise Lost("a reply that ends too early")
        piece = self._packet[self._position : end]
        self._position = end
        return piece


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _reason(error: BaseException) -> str:
    """Return the first line of what a library says about a lost connection."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
