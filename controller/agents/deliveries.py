"""What a session sends next: pending commands made into messages, those dropped that have lost their meaning."""

import logging
from collections.abc import Set as AbstractSet
from datetime import datetime

from clients.gen.backupmanager.agent.v1 import command_pb2
from controller import jobs
from controller.agents import commands, outbox, ownership
from controller.agents.outbox import Pending
from controller.cycle import dispatch
from controller.db.secrets import BoxDamaged, Vault
from controller.jobs import End, Failure, Job
from controller.limits import Limits
from engine.errors import BackupManagerError

log = logging.getLogger(__name__)

COMMANDS_MAX = 100


def take(
    hypervisor_id: str, session_id: str, sent: AbstractSet[str], vault: Vault, limits: Limits, now: datetime
) -> list[command_pb2.Command]:
    """Return the next commands for a session that has sent `sent`, and remember that they may leave us.

    Raises StaleGeneration when a newer session of the hypervisor has begun: only its owner sends.
    """
    ownership.check(hypervisor_id, session_id)
    messages = []
    for pending in outbox.pending(hypervisor_id):
        if pending.command_id in sent:
            continue
        job = jobs.find(pending.stamp.job_id)
        if job is None or _is_over(pending, job):
            outbox.withdraw(pending.command_id, now)
            continue
        message = _build(pending, job, vault, limits, now)
        if message is not None:
            outbox.mark_sent(pending.command_id, now)
            messages.append(message)
        if len(messages) == COMMANDS_MAX:
            break
    return messages


def _is_over(pending: Pending, job: Job) -> bool:
    """Tell whether a run command would begin what is not to be begun (any more). A cancel is never in vain."""
    return pending.kind == "run" and (job.state != jobs.DISPATCHED or job.stamp != pending.stamp)


def _build(pending: Pending, job: Job, vault: Vault, limits: Limits, now: datetime) -> command_pb2.Command | None:
    try:
        return commands.build(pending, job, vault, limits, now)
    except BackupManagerError as error:
        failure = Failure.of(error)
    except BoxDamaged:
        log.exception("a secret cannot be opened job_id=%s", job.job_id)
        failure = Failure("INTERNAL", "a secret of the storage cannot be opened with the controller's master key")
    if jobs.end(job.job_id, End(jobs.FAILED, failure), now):
        dispatch.after_end(job, limits, now)
    return None
