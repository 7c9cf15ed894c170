"""Latency on the way to a server: a TCP proxy, a process of its own, that delivers every byte some time later, both ways.

    client ──► 127.0.0.2:PORT   each byte waits half of the round trip   ──► 127.0.0.1:PORT

It has the server's own port numbers on another address of loopback, so that FTP's data connections find it too. It holds so
much that it never is the limit: what it shows is who waits for answers before he goes on, not what windows of TCP do.
"""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

FAR = "127.0.0.2"
NEAR = "127.0.0.1"
_CHUNK_BYTES = 256 * 1024
_CHUNKS_MAX = 256  # 64 MiB a connection and direction: 50 ms of 1.3 GB/s


@contextmanager
def delayed(round_trip_seconds: float, ports: Sequence[int]) -> Iterator[str]:
    """Give the address where the servers on `ports` of 127.0.0.1 are so much farther away."""
    command = [sys.executable, "-m", "tests.bench.delay", str(round_trip_seconds / 2), *map(str, ports)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the delaying proxy does not start")
        yield FAR
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args()
    asyncio.run(_serve(options.seconds, options.ports))


async def _serve(seconds: float, ports: Sequence[int]) -> None:
    forwarders = [_Forwarder(seconds, port) for port in ports]
    servers = [await asyncio.start_server(one.serve, FAR, one.port, limit=_CHUNK_BYTES) for one in forwarders]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until who started us is gone
    for server in servers:
        server.close()


class _Forwarder:
    """Forwards the connections to one port until both sides have ended them. A reset, too, arrives behind what was sent before it.

    A client that has all it wanted often closes a connection while the server's last words are on their way, and so resets it.
    """

    def __init__(self, seconds: float, port: int) -> None:
        self.port = port
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself would forget them while they wait

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(NEAR, self.port, limit=_CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        await asyncio.gather(*pumps)
        for one in (writer, far_writer):
            one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction: a reader that says when each chunk is due, and a writer that waits for it."""
        queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_CHUNKS_MAX)
        delivery = asyncio.create_task(self._deliver(queue, writer))
        try:
            chunk: bytes | None = b"?"
            while chunk:
                try:
                    chunk = await reader.read(_CHUNK_BYTES)
                except OSError:
                    chunk = None  # a reset
                await queue.put((asyncio.get_running_loop().time() + self._seconds, chunk))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes | None]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, chunk = await queue.get()
            if (wait := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            if chunk is None:
                writer.transport.abort()
                return
            with suppress(OSError):  # the reading side notices a peer that is lost
                if not chunk:
                    writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()


if __name__ == "__main__":
    main()
