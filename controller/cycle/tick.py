"""The clock's hand: every so often, what is overdue is ended and what waits is looked at.

    tick ──► stale jobs, one transaction each ──► the queue
Every step finds its work in the database and leaves it there: killed anywhere, the next tick goes on.
"""

import asyncio
import logging

from controller.clock import Clock
from controller.cycle import dispatch, presence, stale
from controller.db.database import Database
from controller.limits import Limits

log = logging.getLogger(__name__)


class Tick:
    """Runs the cycle every `tick_seconds` from `start` to `stop`. On the event loop."""

    def __init__(self, database: Database, clock: Clock, limits: Limits, tick_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._seconds = tick_seconds
        self._listening_since = clock.now()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="tick")

    async def stop(self) -> None:
        """Let the running step end, and stop. Never started is no error."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def once(self) -> None:
        """Do one round at the clock's present time."""
        now, limits, since = self._clock.now(), self._limits, self._listening_since
        await self._database.run(stale.fail_earlier_epochs, limits, now)
        for job_id in await self._database.run(stale.candidates, limits, since, now):
            await self._database.run(stale.settle, job_id, limits, since, now)
        await self._database.run(dispatch.run, limits, now)
        await self._database.run(presence.run, limits, since, now)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.once()
            except Exception:
                log.exception("tick failed; the next one goes on")
            try:
                async with asyncio.timeout(self._seconds):
                    await self._stopping.wait()
            except TimeoutError:
                continue
