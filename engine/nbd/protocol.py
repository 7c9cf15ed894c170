"""The NBD protocol's numbers and the shape of its messages. Pure: values in, bytes out, and back.

    handshake      S  NBDMAGIC IHAVEOPT flags
                   C  flags
                   C  IHAVEOPT option length data      S  magic option reply length data   … until NBD_REP_ACK or an error
    transmission   C  request (28 bytes) [data]        S  simple reply (16 bytes) [data]
                                                       S  chunk (20 bytes) payload, … , the last one with the flag DONE

All integers are big-endian. What comes from the wire is checked here, against the limits below; what breaks them raises
NbdProtocolError. Source: the protocol's description, `doc/proto.md` of the NetworkBlockDevice project.
"""

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import NbdProtocolError
from engine.storage.base import Buffer
from engine.units import KIB, MIB

# ---- limits on what a peer may send --------------------------------------------------------------------------------------

OPTION_REPLY_BYTES_MAX = 64 * KIB
OPTION_REPLIES_MAX = 4096  # more dirty bitmaps than any image can hold usefully
STRING_BYTES_MAX = 4096  # names and messages; source: "String values"
ERROR_CHUNK_BYTES_MAX = 14 + STRING_BYTES_MAX
BLOCK_EXTENTS_MAX = 1 << 20  # source: NBD_REPLY_TYPE_BLOCK_STATUS; QEMU stops at 1/8 of it
CHUNKS_PER_REPLY_MAX = 4096  # a 1 MiB read of alternating 512-byte sectors has 2048
EXPORT_BYTES_MAX = (1 << 63) - 1

# ---- handshake -----------------------------------------------------------------------------------------------------------

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
GREETING_BYTES = 18
OPTION_REPLY_BYTES = 20

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1

OPTION_ABORT = 2
OPTION_GO = 7
OPTION_STRUCTURED_REPLY = 8
OPTION_LIST_META_CONTEXT = 9
OPTION_SET_META_CONTEXT = 10

REPLY_ACK = 1
REPLY_INFO = 3
REPLY_META_CONTEXT = 4
REPLY_ERROR = 1 << 31  # every reply type with this bit is an error
REPLY_ERROR_UNSUPPORTED = REPLY_ERROR + 1
REPLY_ERROR_NAMES = {
    1: "unsupported",
    2: "forbidden by policy",
    3: "invalid",
    4: "unsupported on the server's platform",
    5: "TLS required",
    6: "unknown export",
    7: "the server is shutting down",
    8: "block size required",
    9: "too big",
}

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

EXPORT_READ_ONLY = 1 << 1
EXPORT_SEND_FLUSH = 1 << 2
EXPORT_SEND_TRIM = 1 << 5
EXPORT_SEND_WRITE_ZEROES = 1 << 6
EXPORT_MULTI_CONN = 1 << 8

CONTEXT_ALLOCATION = "base:allocation"
CONTEXT_BITMAP_PREFIX = "qemu:dirty-bitmap:"
STATE_HOLE = 1 << 0  # of base:allocation: not allocated; says nothing about what a read returns
STATE_ZERO = 1 << 1  # of base:allocation: reads as zeros
STATE_DIRTY = 1 << 0  # of qemu:dirty-bitmap:NAME

# ---- transmission --------------------------------------------------------------------------------------------------------

REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
SIMPLE_BYTES = 16
CHUNK_REST_BYTES = 4  # a chunk's header is a simple reply's 16 bytes and these
DATA_HEAD_BYTES = SIMPLE_BYTES + CHUNK_REST_BYTES + 8  # … and a data chunk's content begins with its place on the disk

COMMAND_READ = 0
COMMAND_WRITE = 1
COMMAND_DISCONNECT = 2
COMMAND_FLUSH = 3
COMMAND_TRIM = 4
COMMAND_WRITE_ZEROES = 6
COMMAND_BLOCK_STATUS = 7
COMMAND_NAMES = {0: "read", 1: "write", 2: "disconnect", 3: "flush", 4: "trim", 6: "write zeroes", 7: "block status"}
COMMAND_FLAG_NO_HOLE = 1 << 1

CHUNK_FLAG_DONE = 1 << 0
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR = 1 << 15  # every chunk type with this bit is an error

ERROR_NAMES = {
    errno.EPERM: "not permitted",
    errno.EIO: "input/output error",
    errno.ENOMEM: "out of memory",
    errno.EINVAL: "invalid argument",
    errno.ENOSPC: "no space left",
    errno.EOVERFLOW: "value too large",
    errno.ENOTSUP: "not supported",
    errno.ESHUTDOWN: "the server is shutting down",
}

_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_GREETING = struct.Struct(">8s8sH")
_EXPORT = struct.Struct(">QH")
_BLOCK_SIZE = struct.Struct(">III")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_DATA_HEAD = struct.Struct(">IHHQIQ")
_HOLE = struct.Struct(">QI")
_DESCRIPTOR = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class OptionReply:
    """The head of an answer to an option; `length` bytes of data follow."""

    option: int
    type: int
    length: int


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """What the server asks of requests, in bytes: multiples of `minimum`, data of at most `maximum`."""

    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 * MIB


@dataclass(frozen=True, slots=True)
class Reply:
    """The first 16 bytes of a reply. `simple` ones end there or with read data, of chunks four more bytes follow."""

    simple: bool
    cookie: int
    error: int = 0
    flags: int = 0
    type: int = 0

    @property
    def done(self) -> bool:
        return self.simple or bool(self.flags & CHUNK_FLAG_DONE)


def _require(condition: bool, operation: str, detail: str) -> None:
    if not condition:
        raise NbdProtocolError(operation=operation, detail=detail)


# ---- handshake messages --------------------------------------------------------------------------------------------------


def unpack_greeting(data: bytes) -> int:
    """Return the handshake flags of the server's first 18 bytes. Only the fixed newstyle handshake is spoken here."""
    init, option, flags = _GREETING.unpack(data)
    _require(init == INIT_MAGIC, "handshake", "the peer is no NBD server")
    _require(option == OPTION_MAGIC, "handshake", "the server speaks the oldstyle handshake")
    _require(bool(flags & FLAG_FIXED_NEWSTYLE), "handshake", "the server cannot do the fixed newstyle handshake")
    return int(flags)


def pack_option(option: int, data: bytes = b"") -> bytes:
    return _OPTION.pack(OPTION_MAGIC, option, len(data)) + data


def pack_go(export: str) -> bytes:
    """Return the data of NBD_OPT_GO for `export`, asking for its block sizes."""
    return _string(export) + struct.pack(">HH", 1, INFO_BLOCK_SIZE)


def pack_contexts(export: str, contexts: tuple[str, ...]) -> bytes:
    """Return the data of NBD_OPT_SET_META_CONTEXT or NBD_OPT_LIST_META_CONTEXT."""
    return _string(export) + struct.pack(">I", len(contexts)) + b"".join(_string(context) for context in contexts)


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) > STRING_BYTES_MAX:
        raise ValueError(f"NBD names have at most {STRING_BYTES_MAX} bytes")
    return struct.pack(">I", len(data)) + data


def unpack_option_reply(data: bytes, option: int) -> OptionReply:
    """Return the head of an answer, which has to be one to `option`."""
    magic, answered, kind, length = _OPTION_REPLY.unpack(data)
    _require(magic == OPTION_REPLY_MAGIC, "handshake", f"wrong magic {magic:#x} of an option reply")
    _require(answered == option, "handshake", f"a reply to option {answered}, option {option} was asked")
    _require(length <= OPTION_REPLY_BYTES_MAX, "handshake", f"an option reply of {length} bytes")
    return OptionReply(answered, kind, length)


def unpack_export(data: bytes) -> tuple[int, int]:
    """Return size in bytes and transmission flags from an NBD_INFO_EXPORT."""
    _require(len(data) == 2 + _EXPORT.size, "handshake", f"NBD_INFO_EXPORT of {len(data)} bytes")
    size, flags = _EXPORT.unpack_from(data, 2)
    _require(size <= EXPORT_BYTES_MAX, "handshake", f"an export of {size} bytes")
    return size, flags


def unpack_block_sizes(data: bytes) -> BlockSizes:
    """Return the block sizes from an NBD_INFO_BLOCK_SIZE. Source: "Size constraints"."""
    _require(len(data) == 2 + _BLOCK_SIZE.size, "handshake", f"NBD_INFO_BLOCK_SIZE of {len(data)} bytes")
    sizes = BlockSizes(*_BLOCK_SIZE.unpack_from(data, 2))
    for value in (sizes.minimum, sizes.preferred):
        _require(value > 0 and value & (value - 1) == 0, "handshake", f"block size {value} is no power of two")
    _require(sizes.minimum <= 64 * KIB, "handshake", f"minimum block size {sizes.minimum}")
    _require(sizes.maximum >= sizes.minimum, "handshake", f"maximum block size {sizes.maximum}")
    return sizes


def unpack_context(data: bytes) -> tuple[int, str]:
    """Return id and name from an NBD_REP_META_CONTEXT."""
    _require(4 < len(data) <= 4 + STRING_BYTES_MAX, "handshake", f"NBD_REP_META_CONTEXT of {len(data)} bytes")
    return int.from_bytes(data[:4], "big"), data[4:].decode(errors="replace")


# ---- transmission messages -----------------------------------------------------------------------------------------------


def pack_request(command: int, flags: int, cookie: int, start: int, length: int) -> bytes:
    return _REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, start, length)


def unpack_reply(data: bytes) -> Reply:
    """Return the first 16 bytes of any reply; they tell simple replies and chunks apart."""
    magic, word, cookie = _REPLY.unpack(data)
    if magic == SIMPLE_MAGIC:
        return Reply(simple=True, cookie=cookie, error=word)
    _require(magic == CHUNK_MAGIC, "reply", f"wrong magic {magic:#x}")
    return Reply(simple=False, cookie=cookie, flags=word >> 16, type=word & 0xFFFF)


def unpack_whole(data: bytes) -> tuple[int, int, int] | None:
    """Return cookie, start and length of a data chunk that ends its reply; None if `data` begins anything else."""
    if len(data) < DATA_HEAD_BYTES:
        return None
    magic, flags, kind, cookie, length, start = _DATA_HEAD.unpack(data)
    if magic != CHUNK_MAGIC or kind != CHUNK_OFFSET_DATA or flags != CHUNK_FLAG_DONE:
        return None
    return cookie, start, length - 8


def unpack_hole(data: bytes) -> tuple[int, int]:
    """Return start and length of a hole chunk."""
    start, length = _HOLE.unpack(data)
    return start, length


def unpack_error(data: bytes) -> tuple[int, str]:
    """Return the error number and a message from an error chunk's payload of 6 bytes or more."""
    number, length = struct.unpack_from(">IH", data)
    _require(number != 0, "reply", "an error chunk without an error")
    _require(length <= len(data) - 6, "reply", f"an error message of {length} bytes in a chunk of {len(data)}")
    text = data[6 : 6 + length].decode(errors="replace")
    return number, text or ERROR_NAMES.get(number, "unknown error")


def check_block_status(length: int) -> None:
    """Refuse a block status chunk whose payload of `length` bytes is none or too long."""
    count, rest = divmod(length - 4, _DESCRIPTOR.size)
    _require(rest == 0 and 0 < count <= BLOCK_EXTENTS_MAX, "block status", f"a chunk of {length} bytes")


def unpack_block_status(payload: Buffer) -> Iterator[tuple[int, int]]:
    """Yield (length, flags) of each extent of a block status payload without its context id; no length is zero."""
    for length, flags in _DESCRIPTOR.iter_unpack(payload):
        if not length:
            raise NbdProtocolError(operation="block status", detail="an extent of no length")
        yield length, flags
