"""The queue: which waiting job goes to its hypervisor now.

    queued, oldest first ──► may it still be done? ──► what runs there (rules/exclusion) ──► slot, leases ──► dispatched + command
                                 └ no: it fails             └ waits                            └ waits

Called in the transaction that made or ended a job, so that nothing waits for the next tick; the tick calls it too. A job gets
all that it wants or nothing. Jobs of an offline hypervisor wait for it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from controller import (
    auto_purge,
    backups,
    batches,
    hypervisors,
    jobs,
    leases,
    reconciliation,
    removals,
    retention,
    schedules,
    servers,
    storages,
)
from controller.cycle import batch_dispatch, batch_work
from controller.db import models
from controller.errors import BackupNotFound, HypervisorUnreachable
from controller.hypervisors import Hypervisor
from controller.jobs import End, Job
from controller.limits import Limits
from controller.rules import admission, states
from controller.rules import batch as rules
from controller.rules.exclusion import GROUPS, Group, Outcome, Work, decide_all
from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from controller.cycle.tick import Round


class _NotNow(Exception):
    """Something that a job wants is taken; what it took so far is given back."""


async def step(around: "Round") -> None:
    """Look at everything that waits."""
    await around.database.run(run, around.limits, around.now)


def run(limits: Limits, now: datetime, hypervisor_id: str = "") -> int:
    """Dispatch what can be, of one hypervisor or of all. Returns how many jobs left the queue."""
    left = 0
    for job in jobs.live(states=(jobs.QUEUED,), hypervisor_id=hypervisor_id):
        left += _consider(job, limits, now)
    return left


def after_end(ended: Job, limits: Limits, now: datetime) -> None:
    """Dispatch what may have waited for a job: at its hypervisor, and for a removal's chains anywhere."""
    if ended.batch_id:
        batch_work.look_after(ended.batch_id, now)
    run(limits, now, "" if GROUPS[ended.type] is Group.REMOVAL else ended.hypervisor_id)


def works_of(chosen: Sequence[Job]) -> list[Work]:
    """Return jobs as the rules see them, with the chains that they hold."""
    chains = leases.chains_of([job.job_id for job in chosen])
    return [
        Work("batch" if job.batch_id else job.type, job.hypervisor_id, job.server_id, chains[job.job_id], job.job_id)
        for job in chosen
    ]


def _consider(job: Job, limits: Limits, now: datetime) -> bool:
    hypervisor = hypervisors.find(job.hypervisor_id, limits, now)
    try:
        _check(job, hypervisor, now)
    except HypervisorUnreachable:
        return False
    except BackupManagerError as error:
        return jobs.end(job.job_id, End.failed(error), now)
    try:
        with models.proxy.atomic():
            generation = _claim(job, now)
    except _NotNow:
        return False
    try:
        _decide_anew(job, now)
    except BackupManagerError as error:
        return jobs.end(job.job_id, End.failed(error), now)
    jobs.set_generation(job.job_id, max(generation, 1))
    return jobs.dispatch(job.job_id, now)


def _check(job: Job, hypervisor: Hypervisor, now: datetime) -> None:
    """Raise what speaks against doing the job now."""
    admission.check_hypervisor(job.type, hypervisor)
    admission.check_storage(job.type, storages.find(job.storage_id))
    removals.check_binding(job.type, storages.find(job.storage_id), job.hypervisor_id)
    reconciliation.check(job.type, storages.find(job.storage_id), job.hypervisor_id)
    if job.type in {"backup", "restore"}:
        to_files = bool(job.spec.get("target_folder") or job.spec.get("targets"))
        admission.check_server(job.type, servers.find(job.server_id), now, to_files=to_files)
    if job.type in {"restore", "verify", "ticket"}:
        try:
            backups.get(job.backup_id)
        except BackupNotFound:
            raise BackupNotFound(backup_id=job.backup_id, server_id=job.server_id) from None


def _decide_anew(job: Job, now: datetime) -> None:
    """Raise what became of a decision that was made when the job was ordered, perhaps hours ago, and which deletes data."""
    if job.type == "prune":
        retention.check_going(job.server_id, job.storage_id, job.spec["backup_ids"], now)
    if job.type == "purge":
        auto_purge.check(job.spec["purge_id"])


def _claim(job: Job, now: datetime) -> int:
    """Take what a job still needs to run; return the highest generation among that. Raises _NotNow."""
    asked, *running = works_of([job, *jobs.live(states=jobs.SENT, hypervisor_id=job.hypervisor_id)])
    during_batch = bool(job.spec.get("during_batch"))
    outcome, _ = decide_all(asked, [one for one in running if not (during_batch and one.group is Group.BATCH)])
    if outcome.value >= Outcome.QUEUE.value:
        raise _NotNow
    if asked.group in {Group.TRANSFER, Group.REMOVAL} and not during_batch:
        _queue_behind_batch(job, now)
        _got(leases.share(leases.work_resource(job.hypervisor_id), job.job_id))
    server = _take_server(job) if asked.group is Group.TRANSFER and not during_batch else 0
    if asked.group is Group.TRANSFER and not leases.claim_slot(job.hypervisor_id, job.job_id, _cap(job)):
        raise _NotNow
    if asked.group is Group.REMOVAL:
        return _got(leases.claim(leases.removal_resource(job.hypervisor_id), job.job_id))
    chains = backups.chains_of(backups.needs(job.backup_id)) if job.type == "verify" else ()
    return max([server, *(_got(leases.share(leases.chain_resource(one), job.job_id)) for one in sorted(chains))])


def _queue_behind_batch(job: Job, now: datetime) -> None:
    """Let a batch go first that has waited long enough for the hypervisor's singles (X3). Raises _NotNow."""
    for batch in batches.live(hypervisor_id=job.hypervisor_id, within=(states.DEFERRED,)):
        wait = batch.wait or {}
        if wait.get("reason") == batch_dispatch.BUSY and rules.holds_back(
            datetime.fromisoformat(wait["since"]), job.create_time, now
        ):
            raise _NotNow


def _take_server(job: Job) -> int:
    """Take the server for a single that waited behind a batch, and so could not have it yet. Raises _NotNow."""
    resource = leases.server_resource(job.server_id)
    return 0 if job.job_id in leases.holders(resource) else _got(leases.claim(resource, job.job_id))


def _cap(job: Job) -> int:
    """Return how many servers the job's hypervisor may work on at once (P2)."""
    return schedules.resolve(storages.find(job.storage_id), job.hypervisor_id).backup_concurrency.value


def _got(generation: int | None) -> int:
    if generation is None:
        raise _NotNow
    return generation
