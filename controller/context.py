"""Who asks, and when: what every decision about work is given."""

from dataclasses import dataclass, field
from datetime import datetime

from controller.db.secrets import Vault
from controller.limits import Limits


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks, when, under which limits."""

    limits: Limits
    vault: Vault = field(repr=False)
    requester: str
    now: datetime
