"""Signs of life, written down for many hypervisors at once.

    heartbeat ──► the newest of each hypervisor ──► one transaction every WRITE_SECONDS, and none while nobody says anything

A thousand agents give a hundred signs a second; each alone would be a commit with an fsync. What is lost by a kill is half a second of
what the next sign tells anyway.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller import hypervisors
from controller.db.database import Database

log = logging.getLogger(__name__)

WRITE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Sign:
    """What a heartbeat says, and when it came."""

    time: datetime
    clock_offset: timedelta | None
    load: float
    scratch_free_bytes: int


class Pulse:
    """Takes signs of life and writes them. On the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._signs: dict[str, Sign] = {}
        self._task: asyncio.Task[None] | None = None

    def felt(self, hypervisor_id: str, sign: Sign) -> None:
        """Keep a sign; it is in the database WRITE_SECONDS later."""
        self._signs[hypervisor_id] = sign
        if self._task is None:
            self._task = asyncio.create_task(self._write_soon(), name="pulse")

    async def stop(self) -> None:
        """Write what is left."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._write()

    async def _write_soon(self) -> None:
        await asyncio.sleep(WRITE_SECONDS)
        self._task = None
        await self._write()

    async def _write(self) -> None:
        signs, self._signs = self._signs, {}
        if not signs:
            return
        try:
            await self._database.run(_keep, signs)
        except Exception:
            log.exception("signs of life could not be written; agents that are connected give new ones soon")


def _keep(signs: dict[str, Sign]) -> None:
    for hypervisor_id, sign in sorted(signs.items()):
        hypervisors.heard(hypervisor_id, sign.time, sign.clock_offset, sign.load, sign.scratch_free_bytes)
