"""A fleet of simulated agents in this event loop.

    seeded = seed(controller.state, url, Size(agents=1000))     # while the controller is down
    async with Fleet(seeded.hosts, [controller.agents], controller.authority_pem) as fleet:
        await fleet.connected()

One channel and one certificate for each agent, as thousands of hypervisors would have; each takes two file descriptors on this machine,
one here and one in the controller.
"""

import asyncio
import resource
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.fleet.agent import Plan, SimulatedAgent
from tests.fleet.seed import Host
from tests.waiting import wait_until_async

DIALS_MAX = 200  # at once, at the beginning: a thousand handshakes at one instant only make each other time out


class Fleet:
    """An `async with` block: the agents dial as it begins, and are gone after it."""

    def __init__(
        self, hosts: Sequence[Host], addresses: Sequence[str], authority: str, job_seconds: float = 0.0
    ) -> None:
        self.plan = Plan(job_seconds, tuple(addresses), authority)
        self._agents = [SimulatedAgent(host, self.plan, number) for number, host in enumerate(hosts)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        raise_file_limit(2 * len(self._agents) + 1000)
        for agent in self._agents:
            self._tasks.append(asyncio.create_task(agent.run()))
            await wait_until_async(self._room, 60, f"agents to connect, {self.plan.connected} have")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self.plan.faults, self.plan.faults[:3]

    async def _room(self) -> bool:
        return len(self._tasks) - self.plan.connected < DIALS_MAX or bool(self.plan.faults)

    async def connected(self, seconds: float = 60) -> None:
        """Wait until every agent has been welcomed and its session lasts."""

        async def all_there() -> bool:
            return self.plan.connected == len(self._agents)

        await wait_until_async(all_there, seconds, f"all sessions, {self.plan.connected} are there")


def raise_file_limit(wanted: int) -> None:
    """Let this process, and those that it starts, have so many file descriptors. Raises ValueError where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
