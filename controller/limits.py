"""The numbers that rules go by and that are the same for as long as a controller runs. What can be changed while it runs: `settings.py`."""

from dataclasses import dataclass
from datetime import datetime, timedelta

HEARTBEATS_MISSED = 3  # a hypervisor that missed so many is offline
CLOCK_OFFSET_MAX = timedelta(seconds=300)  # beyond it, backups and deletes are refused (N14)
CLOCK_OFFSET_WARNED = timedelta(seconds=60)
CANCEL_GRACE = timedelta(seconds=60)  # from SIGTERM to SIGKILL on the hypervisor
STALE_GRACE = timedelta(minutes=10)  # for a cancelled stale job to tidy up and report, before it is given up


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings of the process say."""

    heartbeat_seconds: float = 10
    command_accept_seconds: float = 120
    listening_since: datetime | None = None  # when this controller began to hear agents; None where it always did

    @property
    def silence_max(self) -> timedelta:
        """How long a hypervisor may be silent before it counts as offline."""
        return timedelta(seconds=self.heartbeat_seconds * HEARTBEATS_MISSED)

    @property
    def accept_time_max(self) -> timedelta:
        return timedelta(seconds=self.command_accept_seconds)
