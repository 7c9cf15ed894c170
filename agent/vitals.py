"""Signs of life: the host's load and the room for scratch files."""

import asyncio
import contextlib
import os
from pathlib import Path


def load_average() -> float:
    """Return the one-minute load average."""
    return os.getloadavg()[0]


class FreeRoom:
    """Bytes free where scratch files go. Asked in a thread: a file system that hangs must not hang the agent with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asking: asyncio.Task[int] | None = None
        self._bytes = 0

    async def look(self, seconds: float) -> None:
        """Wait for the first answer, at most `seconds`."""
        self.bytes()
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=seconds)

    def bytes(self) -> int:
        """Return the newest answer that is known, and ask again unless a question is open. Belongs to the event loop."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(_free_bytes, self._folder))
            self._asking.add_done_callback(self._note)
        return self._bytes

    def _note(self, answer: "asyncio.Task[int]") -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._bytes = answer.result()

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._asking


def _free_bytes(folder: Path) -> int:
    """Return the room at a folder, or where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
