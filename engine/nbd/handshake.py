"""The first half of an NBD connection: which export, which metadata contexts, which kinds of replies.

    greeting → structured replies → metadata contexts (if any are wanted) → NBD_OPT_GO → transmission

The options of one connection are sent together, with the answer to the greeting, and their replies read one after the other. A
backup opens half a dozen connections before its first byte: with a round trip for each option they were a fifth of a small
incremental's time.

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
    contexts_data = protocol.pack_contexts(export, tuple(contexts)) if contexts else b""
    _greet(
        connection,
        protocol.pack_option(protocol.OPTION_STRUCTURED_REPLY),
        protocol.pack_option(protocol.OPTION_SET_META_CONTEXT, contexts_data) if contexts else b"",
        protocol.pack_option(protocol.OPTION_GO, protocol.pack_go(export)),
    )
    structured = _structured(connection)
    granted: dict[int, str] = {}
    if contexts and structured:
        granted = {
            number: name for number, name in _contexts(connection, protocol.OPTION_SET_META_CONTEXT) if name in contexts
        }
        if len(set(granted.values())) != len(granted):
            raise NbdProtocolError(operation="handshake", detail="a metadata context was granted twice")
    elif contexts:
        for _ in _replies(connection, protocol.OPTION_SET_META_CONTEXT):
            pass  # without structured replies there is no metadata, as the server just told
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
        _greet(
            connection,
            protocol.pack_option(protocol.OPTION_STRUCTURED_REPLY),
            protocol.pack_option(protocol.OPTION_LIST_META_CONTEXT, protocol.pack_contexts(export, queries)),
        )
        if not _structured(connection):
            return ()
        names = tuple(name for _, name in _contexts(connection, protocol.OPTION_LIST_META_CONTEXT))
        connection.send(protocol.pack_option(protocol.OPTION_ABORT))
        return names
    finally:
        connection.close()


def _greet(connection: Connection, *options: bytes) -> None:
    """Answer the server's greeting, and send the options."""
    flags = protocol.unpack_greeting(connection.receive(protocol.GREETING_BYTES))
    answer = protocol.FLAG_FIXED_NEWSTYLE | (flags & protocol.FLAG_NO_ZEROES)
    connection.send(answer.to_bytes(4, "big"), *filter(None, options))


def _structured(connection: Connection) -> bool:
    """Tell whether the server gives structured replies. One without them can still be read, but has no metadata."""
    kind, data = _reply(connection, protocol.OPTION_STRUCTURED_REPLY)
    if kind == protocol.REPLY_ERROR_UNSUPPORTED:
        return False
    _expect_ack("structured replies", kind, data)
    return True


def _contexts(connection: Connection, option: int) -> Iterator[tuple[int, str]]:
    for kind, answer in _replies(connection, option):
        if kind == protocol.REPLY_META_CONTEXT:
            yield protocol.unpack_context(answer)
        else:
            _expect_ack("metadata contexts", kind, answer)


def _go(connection: Connection, export: str) -> tuple[int, int, BlockSizes]:
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
