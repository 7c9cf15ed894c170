"""What a session has to write, in order: several tasks put, one writes.

It is bounded for an agent that does not read, and made of as little as it can be: a controller has thousands of them, and most
are empty most of the time.
"""

import asyncio
from collections import deque

from clients.gen.backupmanager.agent.v1 import session_service_pb2

Response = session_service_pb2.SessionResponse
QUEUE_MAX = 64


class Outgoing:
    """A queue with one reader, of one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Response] = deque()
        self._closed = False
        self._news: asyncio.Future[None] | None = None  # what the reader waits for
        self._room: asyncio.Future[None] | None = None  # what those wait for who put

    async def put(self, response: Response) -> None:
        """Add a message once there is room."""
        while len(self._waiting) >= QUEUE_MAX:
            self._room = self._room or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)
        self._waiting.append(response)
        _wake(self._news)

    def close(self) -> None:
        """Let the reader come to an end when it has read what is here."""
        self._closed = True
        _wake(self._news)

    async def get(self) -> Response | None:
        """Return the next message; None when there is none and it is closed."""
        while not self._waiting:
            if self._closed:
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        response = self._waiting.popleft()
        room, self._room = self._room, None
        _wake(room)
        return response


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
