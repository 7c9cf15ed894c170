"""What an order's job needs: the checks of its verb against things as they are, and what it takes hold of.

Sync functions, run by `Database.run`. Nothing is changed here.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from controller import (
    access,
    backups,
    batches,
    confirmations,
    health,
    hypervisors,
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
from controller.errors import (
    ControllerError,
    DiskNotFound,
    HypervisorNotFound,
    HypervisorUnreachable,
    InvalidField,
    StorageImmutable,
)
from controller.hypervisors import Hypervisor
from controller.order_types import (
    BackupOrder,
    BundleOrder,
    DeleteOrder,
    HealthOrder,
    Order,
    ProbeOrder,
    ReindexOrder,
    RemovalOrder,
    RestoreOrder,
    TestOrder,
    TicketOrder,
    VerifyOrder,
)
from controller.rules import admission, restoring, states
from controller.rules import health as rules
from controller.servers import Server
from controller.storages import Storage
from engine.ids import new_id

BUNDLES_KEPT = 10  # on a storage: a change that was a mistake can be gone behind


@dataclass(frozen=True, slots=True)
class Plan:
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


def plan_of(order: Order, context: Context) -> Plan:
    """Return what the job needs that is asked for. Raises what the order's RPC documents."""
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
        case BundleOrder():
            return _plan_bundle(order, context)


def _plan_backup(order: BackupOrder, context: Context) -> Plan:
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
    return Plan(
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


def _plan_restore(order: RestoreOrder, context: Context) -> Plan:
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
    return Plan(
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


def _plan_verify(order: VerifyOrder, context: Context) -> Plan:
    backup = backups.get(order.backup_id)
    storage = storages.find(backup.storage_id)
    return Plan(
        type="verify",
        hypervisor=_worker(order.hypervisor_id, backup, storage, context),
        storage=storage,
        server_id=backup.server_id,
        backup_id=backup.backup_id,
    )


def _plan_ticket(order: TicketOrder, context: Context) -> Plan:
    """Return the plan of a restore ticket, which is asked for what a restore to files is.

    It never goes to a hypervisor that nobody named: whoever has it can read the backup.
    """
    backup = backups.get(order.backup_id)
    missing = sorted(set(order.disks) - {one.disk for one in backup.disks})
    if missing:
        raise DiskNotFound(domain=f"backup {backup.backup_id}", disk=", ".join(missing))
    storage, server = storages.find(backup.storage_id), previews.server_or_none(backup.server_id)
    overridden = server is not None and access.check_enabled(server, override=order.override_access)
    home = backup.hypervisor_id if storage.per_hypervisor or server is None else server.hypervisor_id
    hypervisor = hypervisors.find(order.hypervisor_id or home, context.limits, context.now)
    if storage.per_hypervisor and hypervisor.hypervisor_id != backup.hypervisor_id:
        raise InvalidField(
            field="hypervisor_id",
            problem=f"the backup lies in a local folder of hypervisor {backup.hypervisor_id}, which no other one can read",
        )
    return Plan(
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


def _plan_delete(order: DeleteOrder, context: Context) -> Plan:
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


def _plan_removal(order: RemovalOrder, context: Context) -> Plan:
    storage = storages.find(order.storage_id)
    hypervisor = removals.choose(storage, order.server_id, order.maker_id, context.limits, context.now)
    return _removal(order.type, hypervisor, storage, order.server_id, order.backup_ids, order.purge_id)


def _removal(
    verb: str, hypervisor: Hypervisor, storage: Storage, server_id: str, chosen: Sequence[str], purge_id: str = ""
) -> Plan:
    server = previews.server_or_none(server_id)
    home = server is not None and server.hypervisor_id == hypervisor.hypervisor_id
    return Plan(
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
) -> Plan:
    storage = storages.find(order.storage_id)
    hypervisor = hypervisors.find(order.hypervisor_id, context.limits, context.now)
    return Plan(type=verb, hypervisor=hypervisor, storage=storage, server_id=server_id)


def _plan_probe(order: ProbeOrder, context: Context) -> Plan:
    """Return the plan of a look at another place. Raises StorageImmutable for a place of another type."""
    storage = storages.find(order.storage_id)
    if storage.type != order.kind:
        raise StorageImmutable(field="config")
    hypervisor = hypervisors.find(order.hypervisor_id, context.limits, context.now)
    return Plan(type="health", hypervisor=hypervisor, storage=storage, spec={proofs.PROBE: dict(order.config)})


def _plan_bundle(order: BundleOrder, context: Context) -> Plan:
    """Return the plan of writing a part; the last one removes old bundles, where backups could be deleted too (N11, N16)."""
    storage = storages.find(order.storage_id)
    spec = {"bundle_id": order.bundle_id, "number": order.number, "count": order.count, "keep": 0}
    if order.number == order.count:
        with contextlib.suppress(ControllerError):
            removals.check_binding("prune", storage, order.hypervisor_id)
            reconciliation.check("prune", storage, order.hypervisor_id)
            spec["keep"] = BUNDLES_KEPT
    hypervisor = hypervisors.find(order.hypervisor_id, context.limits, context.now)
    return Plan(type="bundle", hypervisor=hypervisor, storage=storage, spec=spec)


def _worker(reference: str, backup: Backup, storage: Storage, context: Context) -> Hypervisor:
    """Return the hypervisor for reading a storage: the one asked for, else the server's, else any online.

    A local folder is only where the backup was made.
    """
    limits, now = context.limits, context.now
    if reference:
        return hypervisors.find(reference, limits, now)
    server = previews.server_or_none(backup.server_id)
    home = backup.hypervisor_id if storage.per_hypervisor or server is None else server.hypervisor_id
    try:
        own = hypervisors.find(home, limits, now)
    except HypervisorNotFound:
        own = None
    if own is not None and (own.state == "online" or storage.per_hypervisor):
        return own
    online = [one for one in hypervisors.list_hypervisors(limits, now, limit=1000) if one.state == "online"]
    if not storage.per_hypervisor and online:
        return online[0]
    if own is not None:
        return own  # whose state says why it cannot be
    raise HypervisorUnreachable(hypervisor_id=home, last_contact_time="never")
