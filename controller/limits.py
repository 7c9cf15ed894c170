"""The numbers that rules go by, as the settings give them."""

from dataclasses import dataclass
from datetime import timedelta

HEARTBEATS_MISSED = 3  # a hypervisor that missed so many is offline
CLOCK_OFFSET_MAX = timedelta(seconds=300)  # beyond it, backups and deletes are refused (N14)
CLOCK_OFFSET_WARNED = timedelta(seconds=60)
CANCEL_GRACE = timedelta(seconds=60)  # from SIGTERM to SIGKILL on the hypervisor
STALE_GRACE = timedelta(minutes=10)  # for a cancelled stale job to tidy up and report, before it is given up
FULL_INTERVAL_DAYS = 7


@dataclass(frozen=True, slots=True)
class Limits:
    """What an installation may set."""

    heartbeat_seconds: float = 10
    command_accept_seconds: float = 120
    max_single_job_hours: float = 24
    backup_concurrency: int = 1

    @property
    def silence_max(self) -> timedelta:
        """How long a hypervisor may be silent before it counts as offline."""
        return timedelta(seconds=self.heartbeat_seconds * HEARTBEATS_MISSED)

    @property
    def accept_time_max(self) -> timedelta:
        return timedelta(seconds=self.command_accept_seconds)

    @property
    def run_time_max(self) -> timedelta:
        return timedelta(hours=self.max_single_job_hours)
