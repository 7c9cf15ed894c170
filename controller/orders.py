"""What people ask for: checked against things as they are, made into a job, and sent or queued, in one transaction.

    order ──► the same request_id before? that job ──► may it be done? is the server free? ──► job + leases ──► dispatch

Every order has its plan: the checks of its verb, and what the job needs to know. What overwrites or deletes carries the signature
of its preview (`previews.py`). Sync functions, run by `Database.run`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, TypeAlias

import peewee

from controller import (
    access,
    backups,
    batches,
    confirmations,
    health,
    hypervisors,
    installation,
    jobs,
    leases,
    previews,
    proofs,
    reconciliation,
    removals,
    schedules,
    servers,
    storages,
)
from controller.backups import Backup
from controller.batches import Batch
from controller.context import Context
from controller.cycle import dispatch
from controller.db import models
from controller.errors import (
    DiskNotFound,
    HypervisorNotFound,
    HypervisorUnreachable,
    InvalidField,
    JobCancelled,
    JobEnded,
    RequestIdReused,
    ServerBusy,
    StorageImmutable,
)
from controller.hypervisors import Hypervisor
from controller.jobs import Job, NewJob
from controller.limits import Limits
from controller.rules import admission, restoring, states
from controller.rules import health as rules
from controller.rules.exclusion import Outcome, Work, decide_all
from controller.rules.restoring import RestoreChoice
from controller.servers import Server
from controller.storages import Storage
from engine.ids import new_id


@dataclass(frozen=True, slots=True)
class BackupOrder:
    server_id: str
    storage_id: str
    type: str = ""
    consistency: str = ""
    disks: Sequence[str] = ()
    request_id: str = ""
    override_access: bool = False
    portal: bool = False  # an end user asked for it
    disk_types: Mapping[str, str] = field(default_factory=dict)  # where it is another than `type`


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    backup_id: str
    disks: Sequence[str] = ()
    target_folder: str = ""
    choice: RestoreChoice = restoring.NONE
    confirmation: str = ""
    request_id: str = ""
    override_access: bool = False
    portal: bool = False  # an end user asked for it
    during_batch: bool = False  # run between two servers of a batch at work, and not behind it (X2)


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    backup_id: str
    hypervisor_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class TicketOrder:
    """`hypervisor_id` "" takes the server's own, or the one where a local folder lies."""

    backup_id: str
    hypervisor_id: str
    lifetime_seconds: int
    disks: Sequence[str] = ()
    request_id: str = ""
    override_access: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOrder:
    """Backups, or all of a chain."""

    backup_ids: Sequence[str]
    confirmation: str
    hypervisor_id: str = ""
    request_id: str = ""
    chain: previews.Chain | None = None


@dataclass(frozen=True, slots=True)
class RemovalOrder:
    """What retention or a purge decided to delete: backups of one server on one storage that one hypervisor can reach."""

    type: str  # prune or purge
    server_id: str
    storage_id: str
    backup_ids: Sequence[str]
    maker_id: str
    request_id: str = ""
    purge_id: str = ""


@dataclass(frozen=True, slots=True)
class ReindexOrder:
    """`hypervisor_id` "" leaves the choice among those that use the storage."""

    storage_id: str
    hypervisor_id: str
    server_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class TestOrder:
    storage_id: str
    hypervisor_id: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class HealthOrder:
    """`hypervisor_id` "" leaves the choice to whose turn it is."""

    storage_id: str
    hypervisor_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """A look at another place of a storage. Its secrets are told apart by their fingerprints, so that none is in the order."""

    storage_id: str
    hypervisor_id: str
    kind: str
    config: Mapping[str, Any]
    secret_fingerprints: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""


Order: TypeAlias = (
    BackupOrder
    | RestoreOrder
    | VerifyOrder
    | TicketOrder
    | DeleteOrder
    | RemovalOrder
    | ReindexOrder
    | TestOrder
    | HealthOrder
    | ProbeOrder
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A job that may be made: `claimed` chains are wanted alone, `shared` ones with others."""

    type: str
    hypervisor: Hypervisor
    storage: Storage
    server_id: str = ""
    backup_id: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    takes_server: bool = False
    claimed: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    overridden: bool = False  # the server's level is Disabled, and the caller knows


# ---- starting and ending ------------------------------------------------------------------------------------------------


def start(order: Order, context: Context) -> str:
    """Make the job that is asked for and return its id; the same request_id with the same body returns the same job.

    Raises what the order's RPC documents.
    """
    known = _repeated(order)
    if known:
        return known
    plan = _plan(order, context)
    job_id = new_id(context.now)
    admission.check_hypervisor(plan.type, plan.hypervisor)
    admission.check_storage(plan.type, plan.storage)
    removals.check_binding(plan.type, plan.storage, plan.hypervisor.hypervisor_id)
    reconciliation.check(plan.type, plan.storage, plan.hypervisor.hypervisor_id)
    _check_free(plan)
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


def _check_free(plan: _Plan) -> None:
    """Raise ServerBusy, naming the job, when the rules refuse the work beside what runs or waits for the server.

    Only work of the same server can refuse another: a chain is a server's own.
    """
    if not plan.server_id:
        return
    asked = Work(plan.type, plan.hypervisor.hypervisor_id, plan.server_id, plan.claimed | plan.shared)
    outcome, other = decide_all(asked, dispatch.works_of(jobs.live(server_id=plan.server_id)))
    if outcome is Outcome.BUSY and other is not None:
        raise ServerBusy(server_id=plan.server_id, job_id=other.job_id)


def _claim(plan: _Plan, job_id: str) -> None:
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


# ---- plans --------------------------------------------------------------------------------------------------------------


def _plan(order: Order, context: Context) -> _Plan:
    match order:
        case BackupOrder():
            return _plan_backup(order, context)
        case RestoreOrder():
            return _plan_restore(order, context)
        case VerifyOrder():
            return _plan_verify(order, context)
        case TicketOrder():
            return _plan_ticket(order, context)
        case DeleteOrder():
            return _plan_delete(order, context)
        case RemovalOrder():
            return _plan_removal(order, context)
        case ReindexOrder():
            order = replace(order, hypervisor_id=_reader(order, context))
            return _plan_storage("reindex", order, context, server_id=order.server_id)
        case TestOrder():
            return _plan_storage("test", order, context)
        case HealthOrder():
            return _plan_storage("health", replace(order, hypervisor_id=_looker(order, context)), context)
        case ProbeOrder():
            return _plan_probe(order, context)


def _plan_backup(order: BackupOrder, context: Context) -> _Plan:
    server, storage = servers.find(order.server_id), storages.find(order.storage_id)
    admission.check_server("backup", server, context.now)
    settings = schedules.resolve(storage, server.hypervisor_id)
    present = {str(disk.get("disk", "")) for disk in server.disks}
    restoring.check_disk_types(server.name, order.disks, order.disk_types, present)
    spec = {
        "type": order.type or "incremental",
        "disk_types": dict(order.disk_types),
        "interval_seconds": _interval_seconds(server.hypervisor_id, storage.storage_id),
        "consistency": order.consistency or settings.consistency.value,
        "disks": list(order.disks),
        "domain_uuid": server.domain_uuid,
        "full_interval_days": settings.full_interval_days.value,
        "portal": order.portal,
    }
    return _Plan(
        type="backup",
        hypervisor=hypervisors.find(server.hypervisor_id, context.limits, context.now),
        storage=storage,
        server_id=server.server_id,
        backup_id=new_id(context.now),
        spec=spec,
        takes_server=True,
        shared=backups.active_chains(server.server_id, storage.storage_id),
        overridden=access.check_enabled(server, override=order.override_access),
    )


def _interval_seconds(hypervisor_id: str, storage_id: str) -> int:
    """Return how far apart the scheduled backups to a storage are, 0 if there are none: a full is due half of it early (T29)."""
    schedule = schedules.of_hypervisor(hypervisor_id)
    if schedule is None or not schedule.enabled or schedule.storage_id != storage_id:
        return 0
    return schedule.interval_hours * 3600


def _plan_restore(order: RestoreOrder, context: Context) -> _Plan:
    (backup, disks, _, chain), facts = previews.restore_facts(
        order.backup_id, "", order.disks, order.target_folder, context.now, order.choice
    )
    confirmations.check(context.vault, "restore", facts, order.confirmation)
    server = servers.find(backup.server_id)
    spec = {
        "disks": list(disks),
        "target_folder": order.target_folder,
        "domain_uuid": "" if order.target_folder or order.choice.targets else server.domain_uuid,
        "manifest_digest": backup.manifest_digest,
        "portal": order.portal,
        "during_batch": order.during_batch and bool(_batches_at_work(server)),
        **order.choice.json(),
    }
    return _Plan(
        type="restore",
        hypervisor=hypervisors.find(server.hypervisor_id, context.limits, context.now),
        storage=storages.find(backup.storage_id),
        server_id=server.server_id,
        backup_id=order.backup_id,
        spec=spec,
        takes_server=True,
        shared=backups.chains_of(chain),
        overridden=access.check_enabled(server, override=order.override_access),
    )


def _batches_at_work(server: Server) -> list[Batch]:
    return batches.live(hypervisor_id=server.hypervisor_id, within=states.BATCH_AT_WORK)


def _plan_verify(order: VerifyOrder, context: Context) -> _Plan:
    backup = backups.get(order.backup_id)
    storage = storages.find(backup.storage_id)
    return _Plan(
        type="verify",
        hypervisor=_worker(order.hypervisor_id, backup, storage, context),
        storage=storage,
        server_id=backup.server_id,
        backup_id=backup.backup_id,
    )


def _plan_ticket(order: TicketOrder, context: Context) -> _Plan:
    """Return the plan of a restore ticket, which is asked for what a restore to files is.

    It never goes to a hypervisor that nobody named: whoever has it can read the backup.
    """
    backup = backups.get(order.backup_id)
    missing = sorted(set(order.disks) - {one.disk for one in backup.disks})
    if missing:
        raise DiskNotFound(domain=f"backup {backup.backup_id}", disk=", ".join(missing))
    storage, server = storages.find(backup.storage_id), previews.server_or_none(backup.server_id)
    overridden = server is not None and access.check_enabled(server, override=order.override_access)
    home = backup.hypervisor_id if storage.type == "local" or server is None else server.hypervisor_id
    hypervisor = hypervisors.find(order.hypervisor_id or home, context.limits, context.now)
    if storage.type == "local" and hypervisor.hypervisor_id != backup.hypervisor_id:
        raise InvalidField(
            field="hypervisor_id",
            problem=f"the backup lies in a local folder of hypervisor {backup.hypervisor_id}, which no other one can read",
        )
    return _Plan(
        type="ticket",
        hypervisor=hypervisor,
        storage=storage,
        server_id=backup.server_id,
        backup_id=backup.backup_id,
        spec={
            "disks": list(order.disks),
            "lifetime_seconds": order.lifetime_seconds,
            "manifest_digest": backup.manifest_digest,
        },
        overridden=overridden,
    )


def _plan_delete(order: DeleteOrder, context: Context) -> _Plan:
    doomed, facts = previews.delete_facts(order.backup_ids, order.chain)
    confirmations.check(context.vault, "delete", facts, order.confirmation)
    first, storage = doomed[0], storages.find(doomed[0].storage_id)
    hypervisor = removals.choose(
        storage,
        first.server_id,
        first.hypervisor_id,
        context.limits,
        context.now,
        asked=order.hypervisor_id,
        by_hand=True,
    )
    return _removal("delete", hypervisor, storage, first.server_id, [one.backup_id for one in doomed])


def _plan_removal(order: RemovalOrder, context: Context) -> _Plan:
    storage = storages.find(order.storage_id)
    hypervisor = removals.choose(storage, order.server_id, order.maker_id, context.limits, context.now)
    return _removal(order.type, hypervisor, storage, order.server_id, order.backup_ids, order.purge_id)


def _removal(
    verb: str, hypervisor: Hypervisor, storage: Storage, server_id: str, chosen: Sequence[str], purge_id: str = ""
) -> _Plan:
    server = previews.server_or_none(server_id)
    home = server is not None and server.hypervisor_id == hypervisor.hypervisor_id
    return _Plan(
        type=verb,
        hypervisor=hypervisor,
        storage=storage,
        server_id=server_id,
        backup_id=chosen[0] if len(chosen) == 1 else "",
        spec={
            "backup_ids": list(chosen),
            "domain_uuid": server.domain_uuid if server is not None and home else "",
            **({"purge_id": purge_id} if purge_id else {}),
        },
        claimed=backups.chains_of(chosen),
    )


def _reader(order: ReindexOrder, context: Context) -> str:
    if order.hypervisor_id:
        return order.hypervisor_id
    chosen = reconciliation.reader(storages.find(order.storage_id), context.limits, context.now)
    if not chosen:
        raise HypervisorUnreachable(hypervisor_id="any", last_contact_time="unknown")
    return chosen


def _looker(order: HealthOrder, context: Context) -> str:
    """Return who looks at a storage: the one asked for, else the online user whose turn it is, else any online hypervisor."""
    if order.hypervisor_id:
        return order.hypervisor_id
    storage_id = storages.find(order.storage_id).storage_id
    online = hypervisors.online(context.limits, context.now)
    users = [one for one in health.users().get(storage_id, ()) if one in online]
    chosen = rules.whose_turn(health.checks_of(storage_id), users or sorted(online))
    if not chosen:
        raise HypervisorUnreachable(hypervisor_id="any", last_contact_time="unknown")
    return chosen


def _plan_storage(
    verb: str, order: ReindexOrder | TestOrder | HealthOrder, context: Context, server_id: str = ""
) -> _Plan:
    storage = storages.find(order.storage_id)
    hypervisor = hypervisors.find(order.hypervisor_id, context.limits, context.now)
    return _Plan(type=verb, hypervisor=hypervisor, storage=storage, server_id=server_id)


def _plan_probe(order: ProbeOrder, context: Context) -> _Plan:
    """Return the plan of a look at another place. Raises StorageImmutable for a place of another type."""
    storage = storages.find(order.storage_id)
    if storage.type != order.kind:
        raise StorageImmutable(field="config")
    hypervisor = hypervisors.find(order.hypervisor_id, context.limits, context.now)
    return _Plan(type="health", hypervisor=hypervisor, storage=storage, spec={proofs.PROBE: dict(order.config)})


def _worker(reference: str, backup: Backup, storage: Storage, context: Context) -> Hypervisor:
    """Return the hypervisor for reading a storage: the one asked for, else the server's, else any online.

    A local folder is only where the backup was made.
    """
    limits, now = context.limits, context.now
    if reference:
        return hypervisors.find(reference, limits, now)
    server = previews.server_or_none(backup.server_id)
    home = backup.hypervisor_id if storage.type == "local" or server is None else server.hypervisor_id
    try:
        own = hypervisors.find(home, limits, now)
    except HypervisorNotFound:
        own = None
    if own is not None and (own.state == "online" or storage.type == "local"):
        return own
    online = [one for one in hypervisors.list_hypervisors(limits, now, limit=1000) if one.state == "online"]
    if storage.type != "local" and online:
        return online[0]
    if own is not None:
        return own  # whose state says why it cannot be
    raise HypervisorUnreachable(hypervisor_id=home, last_contact_time="never")
