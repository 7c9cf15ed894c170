"""Refuses what sends a hypervisor's backups to a storage that it has no way to: seen when it is saved, not at the first run.

What a host has is kept from its agent's last hello, so that one which is offline is judged by what it had.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from controller.db import models
from controller.errors import StorageOutOfReach
from controller.rules import reach

if TYPE_CHECKING:
    from controller.storages import Storage


def check(storage: "Storage", hypervisor_ids: Collection[str]) -> None:
    """Raise StorageOutOfReach for the first of the hypervisors, by name, that cannot use the storage."""
    row = models.Hypervisor
    hosts = row.select(row.hypervisor_id, row.name, row.capabilities).where(row.hypervisor_id.in_(list(hypervisor_ids)))
    for host in hosts.order_by(row.name):
        problem = reach.problem_of(storage.type, storage.config, host.capabilities or {})
        if problem:
            raise StorageOutOfReach(hypervisor_id=host.name, storage_id=storage.name, problem=problem)


def check_change(storage: "Storage", config: Mapping[str, Any]) -> None:
    """Raise StorageOutOfReach for the first hypervisor, by name, whose enabled schedule could not use the storage as `config` has it.

    What was missing there already, before the change, is in nobody's way: that schedule fails today, and says so.
    """
    host, schedule = models.Hypervisor, models.Schedule
    uses = (schedule.storage_id == storage.storage_id) & schedule.delete_time.is_null() & schedule.enabled
    ids = schedule.select(schedule.hypervisor_id).where(uses)
    hosts = host.select(host.name, host.capabilities).where(host.hypervisor_id.in_(ids))
    for one in hosts.order_by(host.name):
        has = one.capabilities or {}
        problem = reach.problem_of(storage.type, config, has)
        if problem and problem != reach.problem_of(storage.type, storage.config, has):
            raise StorageOutOfReach(hypervisor_id=one.name, storage_id=storage.name, problem=problem)
