"""Whose sessions they are: of several controllers on one database, only the one that serves an agent now sends to it.

    session_owner   hypervisor ── session ── owner ──► turn "sessions:<owner>", 30 s on the database's clock, renewed every 10 s

An owner is one controller for as long as it keeps its turn. One that hung for longer, or had no database, may have been given up
by its agents meanwhile: it comes back as another owner, and its earlier sessions end when they next look for something to send.
So each session costs one row when it begins and nothing while it lasts.
"""

import asyncio
import logging
from uuid import uuid4

from controller.cycle import turn
from controller.db.database import Database
from controller.db.statements import statement
from controller.errors import StaleGeneration

log = logging.getLogger(__name__)

KEEP_SECONDS = 10.0  # a turn lasts three times as long
RETRY_SECONDS = 1.0
_BEGIN = """
    INSERT INTO session_owner (hypervisor_id, session_id, owner) VALUES (?, ?, ?)
    ON CONFLICT (hypervisor_id) DO UPDATE SET session_id = excluded.session_id, owner = excluded.owner
"""
_FIND = """
    SELECT h.session_id, h.session_count, o.owner
    FROM hypervisor h LEFT JOIN session_owner o ON o.hypervisor_id = h.hypervisor_id AND o.session_id = h.session_id
    WHERE h.hypervisor_id = ?
"""


class Ownership:
    """A controller's claim to the sessions that it serves, from `start` to `stop`. On the event loop."""

    def __init__(self, database: Database, keep_seconds: float = KEEP_SECONDS) -> None:
        self._database = database
        self._seconds = keep_seconds
        self._task: asyncio.Task[None] | None = None
        self.owner = ""

    async def start(self) -> None:
        await self._claim()
        self._task = asyncio.create_task(self._keep(), name="ownership")

    async def stop(self) -> None:
        """Give the claim up at once. Never started is no error."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._database.run(turn.give_back, _turn(self.owner), self.owner)

    async def _claim(self) -> None:
        owner = str(uuid4())
        await self._database.run(turn.clear, all_turns=False)
        await self._database.run(turn.take, _turn(owner), owner)
        self.owner = owner

    async def _keep(self) -> None:
        seconds = self._seconds
        while True:
            await asyncio.sleep(seconds)
            seconds = self._seconds
            try:
                if not await self._database.run(turn.keep, _turn(self.owner), self.owner):
                    log.error("hung for too long, sessions begin anew")
                    await self._claim()
            except Exception:
                log.exception("the claim to sessions could not be renewed")
                seconds = min(seconds, RETRY_SECONDS)


def begin(hypervisor_id: str, session_id: str, owner: str) -> None:
    """Make a session its owner's; the hypervisor's earlier one is nobody's any more. In the transaction of Hello."""
    statement(_BEGIN, hypervisor_id, session_id, owner)


def check(hypervisor_id: str, session_id: str) -> None:
    """Raise StaleGeneration unless this is the hypervisor's newest session, and its owner's turn lasts."""
    found = statement(_FIND, hypervisor_id)
    current, count, owner = found[0] if found else ("", 0, None)
    if current != session_id:
        raise StaleGeneration(problem="a newer session of this hypervisor has begun", generation=count)
    if owner is None or not turn.lasts(_turn(owner), owner):
        raise StaleGeneration(problem="the controller that served this session lost its claim to it", generation=count)


def _turn(owner: str) -> str:
    return f"sessions:{owner}"
