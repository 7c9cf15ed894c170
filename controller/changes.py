"""Waking those who wait for a change: from the database's thread, after a commit, into the event loop.

    with changes.watch(job_id) as watch:        # first: from here on nothing is missed
        job = await database.run(jobs.get, …)   # then read
        await watch.wait(job.version, seconds)  # True once a later version is committed

A watch keeps the newest version that was told and nothing else, so a slow waiter costs no memory.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from controller.db.notes import Note

JOB, OUTBOX, EVENT = "job", "outbox", "event"


class Watch:
    """What one waiter knows of one job or log. Used on the event loop only."""

    def __init__(self, changes: "Changes") -> None:
        self._changes = changes
        self._event = asyncio.Event()
        self._newest = 0

    @property
    def newest(self) -> int:
        """The newest version that was told since the watch began; 0 before the first."""
        return self._newest

    async def wait(self, seen: int, seconds: float) -> bool:
        """Return True as soon as a version above `seen` is committed; False after `seconds`, or when the hub closes."""
        try:
            async with asyncio.timeout(seconds):
                while self._newest <= seen and not self._changes.closed:
                    self._event.clear()
                    await self._event.wait()
        except TimeoutError:
            return False
        return self._newest > seen

    def tell(self, version: int) -> None:
        self._newest = max(self._newest, version)
        self._event.set()


class Changes:
    """The hub. `publish` is for the database's thread; all else for the loop that it was made in."""

    def __init__(self) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._watches: dict[tuple[str, str], set[Watch]] = {}
        self._outboxes: dict[str, list[Callable[[], None]]] = {}

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Watch a job; versions are the job's."""
        with self._watching(JOB, job_id) as watch:
            yield watch

    @contextmanager
    def hear_outbox(self, hypervisor_id: str, heard: Callable[[], None]) -> Iterator[None]:
        """Have `heard` called whenever a hypervisor has a new command; it must be quick and not raise."""
        listeners = self._outboxes.setdefault(hypervisor_id, [])
        listeners.append(heard)
        try:
            yield
        finally:
            listeners.remove(heard)
            if not listeners:
                del self._outboxes[hypervisor_id]

    @contextmanager
    def watch_events(self) -> Iterator[Watch]:
        """Watch the log of events; versions are its sequences."""
        with self._watching(EVENT, "") as watch:
            yield watch

    def publish(self, notes: Sequence[Note]) -> None:
        """Tell the watches; any thread. After the loop's end there is nobody to tell."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, tuple(notes))
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def close(self) -> None:
        """Wake everybody for the last time."""
        self.closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.tell(0)

    @contextmanager
    def _watching(self, topic: str, key: str) -> Iterator[Watch]:
        watch = Watch(self)
        self._watches.setdefault((topic, key), set()).add(watch)
        try:
            yield watch
        finally:
            watches = self._watches[topic, key]
            watches.discard(watch)
            if not watches:
                del self._watches[topic, key]

    def _deliver(self, notes: Sequence[Note]) -> None:
        for one in notes:
            if one.topic == OUTBOX:
                for heard in list(self._outboxes.get(one.key, ())):
                    heard()
            for watch in self._watches.get((one.topic, one.key), ()):
                watch.tell(one.value)
