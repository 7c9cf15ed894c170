"""What people ask for: checked against things as they are, made into a job, and sent or queued, in one transaction.

    order ──► the same request_id before? that job ──► may it be done? is the server free? ──► job + leases ──► dispatch

Orders are in order_types.py; each has its plan: the checks of its verb, and what the job needs to know (order_plans.py). What
overwrites or deletes carries the signature of its preview (previews.py). Sync functions, run by `Database.run`.
"""

import hashlib
import json
from dataclasses import asdict
from datetime import datetime

import peewee

from controller import (
    access,
    health,
    installation,
    jobs,
    leases,
    proofs,
    reconciliation,
    removals,
)
from controller.context import Context
from controller.cycle import dispatch
from controller.db import models
from controller.errors import (
    JobCancelled,
    JobEnded,
    RequestIdReused,
    ServerBusy,
)
from controller.jobs import Job, NewJob
from controller.limits import Limits
from controller.order_plans import Plan, plan_of
from controller.order_types import Order
from controller.rules import admission
from controller.rules.exclusion import Outcome, Work, decide_all
from engine.ids import new_id


def start(order: Order, context: Context) -> str:
    """Make the job that is asked for and return its id; the same request_id with the same body returns the same job.

    Raises what the order's RPC documents.
    """
    known = _repeated(order)
    if known:
        return known
    plan = check(order, context)
    job_id = new_id(context.now)
    new = NewJob(
        job_id=job_id,
        type=plan.type,
        hypervisor_id=plan.hypervisor.hypervisor_id,
        server_id=plan.server_id,
        storage_id=plan.storage.storage_id,
        backup_id=plan.backup_id,
        spec=plan.spec,
        requester=context.requester,
        request_id=order.request_id,
        request_hash=_hash(order),
    )
    try:
        with models.proxy.atomic():
            jobs.insert(new, installation.get().epoch, context.now)
    except peewee.IntegrityError:  # another controller was asked the same at this moment
        return _repeated(order)
    _claim(plan, job_id)
    if plan.overridden:
        access.note_override(plan.server_id, job_id, context.requester, context.now)
    if plan.type == "health" and proofs.PROBE not in plan.spec:
        health.begin(plan.storage.storage_id, plan.hypervisor.hypervisor_id, job_id, context.now)
    dispatch.run(context.limits, context.now, plan.hypervisor.hypervisor_id)
    return job_id


def check(order: Order, context: Context) -> Plan:
    """Return what an order's job would be. Raises what keeps it from being made now; changes nothing."""
    plan = plan_of(order, context)
    admission.check_hypervisor(plan.type, plan.hypervisor)
    admission.check_storage(plan.type, plan.storage)
    removals.check_binding(plan.type, plan.storage, plan.hypervisor.hypervisor_id)
    reconciliation.check(plan.type, plan.storage, plan.hypervisor.hypervisor_id)
    _check_free(plan)
    return plan


def cancel(job_id: str, limits: Limits, now: datetime) -> Job:
    """Ask for a job's end and return it as it stands then. Raises JobNotFound, JobEnded."""
    job = jobs.get(job_id)
    if job.ended or not jobs.request_cancel(job, JobCancelled.reason, now):
        raise JobEnded(job_id=job_id, state=job.state)
    after = jobs.get(job_id)
    if after.ended:
        dispatch.after_end(after, limits, now)
    return after


def _repeated(order: Order) -> str:
    """Return the job that this request_id has made, "" for none. Raises RequestIdReused for another body."""
    known = jobs.find_request(order.request_id) if order.request_id else None
    if known is None:
        return ""
    job_id, digest = known
    if digest != _hash(order):
        raise RequestIdReused(request_id=order.request_id, job_id=job_id)
    return job_id


def _hash(order: Order) -> str:
    body = {**asdict(order), "request_id": ""}
    return hashlib.sha256(json.dumps([type(order).__name__, body], sort_keys=True).encode()).hexdigest()


def _check_free(plan: Plan) -> None:
    """Raise ServerBusy, naming the job, when the rules refuse the work beside what runs or waits for the server.

    Only work of the same server can refuse another: a chain is a server's own.
    """
    if not plan.server_id:
        return
    asked = Work(plan.type, plan.hypervisor.hypervisor_id, plan.server_id, plan.claimed | plan.shared)
    outcome, other = decide_all(asked, dispatch.works_of(jobs.live(server_id=plan.server_id)))
    if outcome is Outcome.BUSY and other is not None:
        raise ServerBusy(server_id=plan.server_id, job_id=other.job_id)


def _claim(plan: Plan, job_id: str) -> None:
    """Take what the job holds from now on, also while it waits. Raises ServerBusy when another was quicker."""
    wanted = [(leases.share, leases.chain_resource(chain_id)) for chain_id in sorted(plan.shared)]
    wanted += [(leases.claim, leases.chain_resource(chain_id)) for chain_id in sorted(plan.claimed)]
    if plan.takes_server:
        behind = plan.spec.get("during_batch") or _is_of_batch(plan.server_id)
        name = leases.next_resource if behind else leases.server_resource
        wanted.append((leases.claim, name(plan.server_id)))
    for take, resource in wanted:
        generation = take(resource, job_id)
        if generation is None:
            raise ServerBusy(server_id=plan.server_id, job_id=", ".join(leases.holders(resource)))
        jobs.set_generation(job_id, generation)


def _is_of_batch(server_id: str) -> bool:
    """Tell whether a batch has the server: then a single waits behind it, one at most (X2)."""
    found = (jobs.find(one) for one in leases.holders(leases.server_resource(server_id)))
    return any(job is not None and job.batch_id for job in found)
