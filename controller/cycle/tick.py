"""The clock's hand: every so often each step of the cycle looks for what is overdue, and does it.

    tick ──► our turn? ──► stale ──► schedules ──► queue ──► …      one after the other, each with its own try, time and log line
                no: another controller has it, and we look again

A step takes its time from the round and finds its work in the database, in transactions of its own: killed anywhere, the next
round goes on. One that fails or takes longer than STEP_SECONDS_MAX is left for the next round, and the steps behind it run.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

from controller.clock import Clock
from controller.cycle import turn
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.limits import Limits

log = logging.getLogger(__name__)

STEP_SECONDS_MAX = 30.0
LONG_SECONDS = 1.0  # a step that takes longer is worth a line in the log
KEEP_SECONDS = 10.0  # a turn lasts three times as long
STANDBY_SECONDS = 2.0  # between two looks at a turn that is another's, or at a database that does not answer
_NAME = "tick"


@dataclass(frozen=True, slots=True)
class Round:
    """What a step works with. `listening_since` is when this controller began to hear agents."""

    database: Database
    limits: Limits
    vault: Vault = field(repr=False)
    now: datetime
    listening_since: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the clock demands. `run` may be cancelled between two of its transactions."""

    name: str
    run: Callable[[Round], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Report:
    """How a step went: `error` is "", "timeout", or the name of what it raised."""

    name: str
    seconds: float
    error: str = ""


class Tick:
    """Runs the steps every `tick_seconds` from `start` to `stop`. On the event loop."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        clock: Clock,
        limits: Callable[[], Limits],
        tick_seconds: float,
        steps: Sequence[Step],
        *,
        step_seconds_max: float = STEP_SECONDS_MAX,
        standby_seconds: float = STANDBY_SECONDS,
    ) -> None:
        """`limits` is asked at the beginning of each round: what was set holds from the next one on (X14)."""
        self._database = database
        self._vault = vault
        self._clock = clock
        self._limits = limits
        self._seconds = tick_seconds
        self._steps = tuple(steps)
        self._step_seconds_max = step_seconds_max
        self._standby_seconds = standby_seconds
        self._holder = str(uuid4())
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
            await self._database.run(turn.give_back, _NAME, self._holder)

    async def once(self) -> list[Report]:
        """Do one round at the clock's present time, whoever's turn it is."""
        now = self._clock.now()
        around = Round(self._database, self._limits(), self._vault, now, self._listening_since)
        reports = []
        for step in self._steps:
            if self._stopping.is_set():
                break
            reports.append(await self._do(step, around))
        return reports

    async def _do(self, step: Step, around: Round) -> Report:
        begun, error = time.monotonic(), ""
        try:
            async with asyncio.timeout(self._step_seconds_max):
                await step.run(around)
        except TimeoutError:
            error = "timeout"
            log.error("a step took too long, the next round goes on with it step=%s", step.name)
        except Exception as fault:
            error = type(fault).__name__
            log.exception("a step failed, the next round tries again step=%s", step.name)
        seconds = time.monotonic() - begun
        log.log(logging.INFO if seconds > LONG_SECONDS else logging.DEBUG, "step=%s seconds=%.3f", step.name, seconds)
        return Report(step.name, seconds, error)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopping.is_set():
            ours = await self._ours()
            if ours and loop.time() >= due:
                due = loop.time() + self._seconds
                await self._round()
            wait = max(0.01, min(KEEP_SECONDS, due - loop.time())) if ours else self._standby_seconds
            try:
                async with asyncio.timeout(wait):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def _round(self) -> None:
        """Do a round, and keep our turn meanwhile."""
        keeper = asyncio.create_task(self._keep())
        try:
            await self.once()
        except Exception:
            log.exception("a round failed; the next one goes on")
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            await self._ours()

    async def _ours(self) -> bool:
        try:
            return await self._database.run(turn.take, _NAME, self._holder)
        except Exception:
            log.exception("cannot ask whose turn it is")
            return False
