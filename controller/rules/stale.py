"""When the clock ends a job: not accepted in time (X16), or at work for too long (X8). Pure.

queued, pending ──► waits for as long as it takes: the hours count the work, not the queue
dispatched ──accept seconds (not counted while the controller was away)──► not accepted
running ──max hours since it was accepted──► cancel ──grace──► give up

The hours of a batch's jobs are the batch's and count from its acceptance (X7); the agent has accepted what it confirmed to
have, and begins it when its turn comes. So it is with a restore that waits on the hypervisor for servers in progress (X2).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from controller.limits import STALE_GRACE, Limits


class Verdict(Enum):
    GO_ON = "go on"
    NOT_ACCEPTED = "not accepted"
    CANCEL = "cancel"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Ages:
    """What of a job the clock looks at.

    `patient`: the agent confirmed to have it, and its turn there comes later. `work_time` is when the hours began, if that
    is not the job's own start.
    """

    state: str
    create_time: datetime
    dispatch_time: datetime | None
    start_time: datetime | None
    cancel_time: datetime | None
    patient: bool = False
    work_time: datetime | None = None


def judge(job: Ages, limits: Limits, time_max: timedelta, listening_since: datetime, now: datetime) -> Verdict:
    """Return what becomes of a live job that may work for `time_max`. `listening_since` is when this controller began to hear agents."""
    if job.state in {"queued", "pending"}:
        return Verdict.GO_ON
    if job.state == "dispatched" and not job.patient:
        asked = max(job.dispatch_time or job.create_time, listening_since)
        return Verdict.NOT_ACCEPTED if now - asked > limits.accept_time_max else Verdict.GO_ON
    overdue = now - (job.work_time or job.start_time or job.dispatch_time or job.create_time) - time_max
    if overdue.total_seconds() <= 0:
        return Verdict.GO_ON
    told = job.cancel_time is not None and now - job.cancel_time > STALE_GRACE
    return Verdict.GIVE_UP if told and overdue > STALE_GRACE else Verdict.CANCEL
