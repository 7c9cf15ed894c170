"""What a session sends next: pending commands made into messages, those dropped that have lost their meaning."""

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from clients.gen.backupmanager.agent.v1 import command_pb2
from controller import jobs
from controller.agents import outbox, ownership
from controller.agents.commands import Maker
from controller.agents.outbox import Pending
from controller.cycle import dispatch
from controller.db.secrets import BoxDamaged, Vault
from controller.jobs import End, Failure, Job
from controller.limits import Limits
from engine.errors import BackupManagerError

log = logging.getLogger(__name__)

COMMANDS_MAX = 100


@dataclass(frozen=True, slots=True)
class Taken:
    """What a session sends next, and whether there may be more behind it."""

    commands: list[command_pb2.Command] = field(repr=False)
    more: bool


def take(
    hypervisor_id: str, session_id: str, sent: AbstractSet[str], vault: Vault, limits: Limits, now: datetime
) -> Taken:
    """Return the next commands for a session that has sent `sent`, and remember that they may leave us.

    Raises StaleGeneration when a newer session of the hypervisor has begun: only its owner sends.
    """
    ownership.check(hypervisor_id, session_id)
    waiting = [one for one in outbox.pending(hypervisor_id) if one.command_id not in sent]
    maker = Maker(vault, limits, now)
    messages: list[command_pb2.Command] = []
    while waiting and not messages:  # those that have lost their meaning do not keep others waiting
        part, waiting = waiting[:COMMANDS_MAX], waiting[COMMANDS_MAX:]
        known = jobs.find_all([one.stamp.job_id for one in part])
        for pending in part:
            job = known.get(pending.stamp.job_id)
            if job is None or _is_over(pending, job):
                outbox.withdraw(pending.command_id, now)
            elif message := _build(maker, pending, job, limits, now):
                messages.append(message)
    outbox.mark_sent([one.command_id for one in messages], now)
    return Taken(messages, bool(waiting))


def _is_over(pending: Pending, job: Job) -> bool:
    """Tell whether a run command would begin what is not to be begun (any more). A cancel is never in vain."""
    return pending.kind == "run" and (job.state != jobs.DISPATCHED or job.stamp != pending.stamp)


def _build(maker: Maker, pending: Pending, job: Job, limits: Limits, now: datetime) -> command_pb2.Command | None:
    try:
        return maker.build(pending, job)
    except BackupManagerError as error:
        failure = Failure.of(error)
    except BoxDamaged:
        log.exception("a secret cannot be opened job_id=%s", job.job_id)
        failure = Failure("INTERNAL", "a secret of the storage cannot be opened with the controller's master key")
    if jobs.end(job.job_id, End(jobs.FAILED, failure), now):
        dispatch.after_end(job, limits, now)
    return None
