"""A TCP proxy on loopback that misbehaves on demand: cuts, stalls or vanishes, at once or after so many bytes, delays, refuses.

    with Proxy(server.port) as proxy:
        config = replace(server.config(path), port=proxy.port)
        proxy.cut_after(3 * MIB)         # the next 3 MiB go up, then the connection is reset

One thread runs an event loop; every method may be called from any thread and has taken effect when it returns.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

Direction: TypeAlias = Literal["up", "down"]  # up: from the client to the server
_CHUNK_BYTES = 64 * 1024
_QUEUE_MAX = 64  # chunks held back by a delay; beyond them the sender feels it


class Proxy:
    """Forwards connections to `target_port` on 127.0.0.1; `port` is its own, on `host`.

    It also listens on each of `same_ports`, which it forwards to the same port on 127.0.0.1, for protocols that name ports
    themselves; `host` then is another address of loopback.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1", same_ports: Sequence[int] = ()) -> None:
        self.port = 0
        self.host = host
        self.connections = 0  # accepted so far
        self.peers: set[str] = set()  # addresses that these came from
        self.bytes: dict[Direction, int] = {"up": 0, "down": 0}  # forwarded so far
        self.ends: list[int] = []  # what `bytes["up"]` was after each chunk: where requests end
        self._target_ports = (target_port, *same_ports)
        self._limits: dict[Direction, int | None] = {"up": None, "down": None}
        self._at_limit: Callable[[], object] = self._reset
        self._each: tuple[int, Direction] | None = None
        self._delay_seconds = 0.0
        self._refusing = False
        self._flowing: asyncio.Event
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._vanished: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def cut_after(self, byte_count: int, direction: Direction = "up") -> None:
        """Reset the connection when `byte_count` more bytes have gone in `direction`; once."""
        self._call(lambda: self._limit(byte_count, direction, self._reset))

    def die_after(self, byte_count: int, direction: Direction = "up") -> None:
        """Do as `cut_after` does, and reset each new connection then, until `refuse(on=False)`."""

        def die() -> None:
            self._refusing = True
            self._reset()

        self._call(lambda: self._limit(byte_count, direction, die))

    def cut_each_after(self, byte_count: int, direction: Direction = "up") -> None:
        """Reset every connection made from now on when `byte_count` bytes of it have gone in `direction`; 0 ends that."""

        def change() -> None:
            self._each = (byte_count, direction) if byte_count else None
            self._limits = {"up": None, "down": None}

        self._call(change)

    def stall_after(self, byte_count: int, direction: Direction = "up") -> None:
        """Stall when `byte_count` more bytes have gone in `direction`; once. What comes then waits for `resume`."""
        self._call(lambda: self._limit(byte_count, direction, self._flowing.clear))

    def vanish_after(self, byte_count: int, direction: Direction = "up") -> None:
        """Do as `vanish` does when `byte_count` more bytes have gone in `direction`; once."""
        self._call(lambda: self._limit(byte_count, direction, self._vanish))

    def vanish(self) -> None:
        """Leave both ends of every connection that is open now without the other, unknowing: what they send is taken and dropped.

        As when a machine in between lost what it knew of them. New connections are as good as ever.
        """
        self._call(self._vanish)

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    def cut(self) -> None:
        """Reset every connection now."""
        self._call(self._reset)

    def refuse(self, *, on: bool = True) -> None:
        """Reset each new connection as soon as it is made."""
        self._call(lambda: setattr(self, "_refusing", on))

    def stall(self) -> None:
        """Forward nothing more, in both directions, but keep every connection open."""
        self._call(lambda: self._flowing.clear())

    def resume(self) -> None:
        """Forward what was held back, and all that follows; a stall that did not come about yet is forgotten."""
        self._call(self._resume)

    def delay(self, seconds: float) -> None:
        """Deliver every byte `seconds` later from now on, in both directions: latency, not a lower rate."""
        self._call(lambda: setattr(self, "_delay_seconds", seconds))

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- inner; all of it runs in the loop ------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        for target in self._target_ports:
            own = 0 if target == self._target_ports[0] else target
            serve = partial(self._serve, target)
            self._servers.append(await asyncio.start_server(serve, self.host, own, limit=_CHUNK_BYTES))
        self.port = self._servers[0].sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        self._reset()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.peers.add(str(writer.get_extra_info("peername")[0]))
        self._writers.add(writer)
        try:
            if self._refusing:
                return
            if self._each is not None:
                self._limit(*self._each, self._reset)
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target, limit=_CHUNK_BYTES)
            self._writers.add(far_writer)
            try:
                await asyncio.gather(self._pump("up", reader, far_writer), self._pump("down", far_reader, writer))
            finally:
                far_writer.transport.abort()
                self._forget(far_writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._forget(writer)

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction: a reader that stamps each chunk, and a writer that waits for its time."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_MAX)
        delivery = asyncio.create_task(self._deliver(direction, queue, writer))
        try:
            while True:
                await self._flowing.wait()
                chunk = await reader.read(_CHUNK_BYTES)
                if writer in self._vanished:
                    if not chunk:
                        return  # the other end never hears of it
                    continue
                await queue.put((self._loop.time() + self._delay_seconds, chunk))
                if not chunk:
                    await delivery
                    return
        finally:
            delivery.cancel()

    async def _deliver(
        self, direction: Direction, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, chunk = await queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._flowing.wait()
            if not chunk:
                if writer not in self._vanished:
                    with suppress(OSError):
                        writer.write_eof()
                return
            while chunk and writer not in self._vanished:
                await self._flowing.wait()
                limit = self._limits[direction]
                passed, chunk = (chunk, b"") if limit is None else (chunk[:limit], chunk[limit:])
                with suppress(OSError):  # the reading side notices a lost peer
                    writer.write(passed)
                    await writer.drain()
                self._count(direction, len(passed))

    def _count(self, direction: Direction, byte_count: int) -> None:
        """Note what was forwarded, and do what is to be done at the limit."""
        self.bytes[direction] += byte_count
        if direction == "up":
            self.ends.append(self.bytes[direction])
        limit = self._limits[direction]
        if limit is None:
            return
        self._limits[direction] = max(0, limit - byte_count)
        if self._limits[direction] == 0:
            self._limits[direction] = None
            self._at_limit()

    def _limit(self, byte_count: int, direction: Direction, action: Callable[[], object]) -> None:
        self._limits[direction], self._at_limit = byte_count, action

    def _vanish(self) -> None:
        self._vanished |= self._writers

    def _forget(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        self._vanished.discard(writer)

    def _resume(self) -> None:
        self._limits = {"up": None, "down": None}
        self._flowing.set()

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _call(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._run(act())

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
