"""What servicers are made of: the parts of a running controller, wired once in `main`."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from controller.agents.sessions import Sessions
from controller.changes import Changes
from controller.clock import Clock
from controller.courier import Courier
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.installation import Installation
from controller.limits import Limits
from controller.rules.targets import Network
from controller.security.authority import Authority

if TYPE_CHECKING:
    from grpc import aio

Context: TypeAlias = "aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts; each is shared by all servicers. `session_port` is the agents' port, known once it is open."""

    database: Database
    vault: Vault
    clock: Clock
    limits: Limits
    authority: Authority
    installation: Installation
    changes: Changes
    sessions: Sessions
    version: str
    courier: Courier
    webhook_networks: tuple[Network, ...]

    def now(self) -> datetime:
        return self.clock.now()
