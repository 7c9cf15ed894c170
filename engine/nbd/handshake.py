"""The first half of an NBD connection: which export, which metadata contexts, which kinds of replies.

    greeting → structured replies → metadata contexts (if any are wanted) → NBD_OPT_GO → transmission

Only the fixed newstyle handshake with NBD_OPT_GO is spoken: QEMU has had it since 2.10, nbdkit since 1.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.errors import NbdProtocolError, NbdRefused
from engine.nbd import protocol
from engine.nbd.connection import SILENCE_SECONDS, Address, Connection
from engine.nbd.protocol import BlockSizes


@dataclass(frozen=True, slots=True)
class Terms:
    """What client and server agreed on. `contexts` maps the ids of this connection to the names that were granted."""

    size_bytes: int
    flags: int
    block_sizes: BlockSizes
    structured: bool
    contexts: dict[int, str]


def negotiate(connection: Connection, export: str, contexts: Sequence[str] = ()) -> Terms:
    """Bring a fresh connection into transmission. Contexts that the server does not have are missing in the result.

    Raises NbdRefused, NbdProtocolError, NbdDisconnected; the connection is then of no more use.
    """
    _greet(connection)
    structured = _ask_structured(connection)
    granted: dict[int, str] = {}
    if contexts and structured:
        data = protocol.pack_contexts(export, tuple(contexts))
        granted = {
            number: name
            for number, name in _contexts(connection, protocol.OPTION_SET_META_CONTEXT, data)
            if name in contexts
        }
        if len(set(granted.values())) != len(granted):
            raise NbdProtocolError(operation="handshake", detail="a metadata context was granted twice")
    size_bytes, flags, block_sizes = _go(connection, export)
    return Terms(size_bytes, flags, block_sizes, structured, granted)


def list_contexts(
    address: Address, export: str, *queries: str, silence_seconds: float = SILENCE_SECONDS
) -> tuple[str, ...]:
    """Return the names of the metadata contexts of an export; a query such as `qemu:dirty-bitmap:` narrows them.

    Raises NbdRefused for an unknown export, NbdProtocolError, NbdDisconnected.
    """
    connection = Connection.open(address, silence_seconds)
    try:
        _greet(connection)
        if not _ask_structured(connection):
            return ()
        data = protocol.pack_contexts(export, queries)
        names = tuple(name for _, name in _contexts(connection, protocol.OPTION_LIST_META_CONTEXT, data))
        connection.send(protocol.pack_option(protocol.OPTION_ABORT))
        return names
    finally:
        connection.close()


def _greet(connection: Connection) -> None:
    flags = protocol.unpack_greeting(connection.receive(protocol.GREETING_BYTES))
    answer = protocol.FLAG_FIXED_NEWSTYLE | (flags & protocol.FLAG_NO_ZEROES)
    connection.send(answer.to_bytes(4, "big"))


def _ask_structured(connection: Connection) -> bool:
    """Ask for structured replies. A server without them can still be read, but has no metadata."""
    connection.send(protocol.pack_option(protocol.OPTION_STRUCTURED_REPLY))
    kind, data = _reply(connection, protocol.OPTION_STRUCTURED_REPLY)
    if kind == protocol.REPLY_ERROR_UNSUPPORTED:
        return False
    _expect_ack("structured replies", kind, data)
    return True


def _contexts(connection: Connection, option: int, data: bytes) -> Iterator[tuple[int, str]]:
    connection.send(protocol.pack_option(option, data))
    for kind, answer in _replies(connection, option):
        if kind == protocol.REPLY_META_CONTEXT:
            yield protocol.unpack_context(answer)
        else:
            _expect_ack("metadata contexts", kind, answer)


def _go(connection: Connection, export: str) -> tuple[int, int, BlockSizes]:
    connection.send(protocol.pack_option(protocol.OPTION_GO, protocol.pack_go(export)))
    size_flags: tuple[int, int] | None = None
    block_sizes = BlockSizes()
    for kind, data in _replies(connection, protocol.OPTION_GO):
        if kind != protocol.REPLY_INFO:
            _expect_ack(f"export {export!r}", kind, data)
        elif (info := int.from_bytes(data[:2], "big")) == protocol.INFO_EXPORT:
            size_flags = protocol.unpack_export(data)
        elif info == protocol.INFO_BLOCK_SIZE:
            block_sizes = protocol.unpack_block_sizes(data)
    if size_flags is None:
        raise NbdProtocolError(operation="handshake", detail="the server did not tell the export's size")
    return *size_flags, block_sizes


def _replies(connection: Connection, option: int) -> Iterator[tuple[int, bytes]]:
    """Yield the replies to an option up to the final one: an acknowledgement or an error."""
    for _ in range(protocol.OPTION_REPLIES_MAX):
        kind, data = _reply(connection, option)
        yield kind, data
        if kind == protocol.REPLY_ACK or kind & protocol.REPLY_ERROR:
            return
    raise NbdProtocolError(
        operation="handshake", detail=f"more than {protocol.OPTION_REPLIES_MAX} replies to an option"
    )


def _reply(connection: Connection, option: int) -> tuple[int, bytes]:
    head = protocol.unpack_option_reply(connection.receive(protocol.OPTION_REPLY_BYTES), option)
    return head.type, connection.receive(head.length)


def _expect_ack(subject: str, kind: int, data: bytes) -> None:
    if kind & protocol.REPLY_ERROR:
        name = protocol.REPLY_ERROR_NAMES.get(kind ^ protocol.REPLY_ERROR, f"error {kind:#x}")
        text = data[: protocol.STRING_BYTES_MAX].decode(errors="replace")
        raise NbdRefused(operation="handshake", detail=f"{subject}: {name}" + (f" ({text})" if text else ""))
    if kind != protocol.REPLY_ACK or data:
        raise NbdProtocolError(operation="handshake", detail=f"reply type {kind:#x} of {len(data)} bytes to {subject}")
