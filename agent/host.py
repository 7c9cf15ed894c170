"""What every part of a running agent shares."""

from dataclasses import dataclass
from typing import Protocol

from agent.clock import Clock
from agent.config import Config
from agent.journal import Journal
from agent.records import Operation
from agent.telemetry import Feed


class Leases(Protocol):
    """Who can tell whether a job still holds its lease: the session, while there is one."""

    async def check_lease(self, operation: Operation) -> bool | None:
        """Ask the controller; None when it cannot be asked, or does not answer in time."""


@dataclass(frozen=True, slots=True)
class Host:
    """`boot_id` is the kernel's; `name` is this host's name, for the manifests."""

    config: Config
    clock: Clock
    journal: Journal
    feed: Feed
    boot_id: str
    name: str
