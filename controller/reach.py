"""Refuses what sends a hypervisor's backups to a storage that it has no way to: seen when it is saved, not at the first run.

What a host has is kept from its agent's last hello, so that one which is offline is judged by what it had.
"""

from collections.abc import Collection

from controller.db import models
from controller.errors import StorageOutOfReach
from controller.rules import reach
from controller.storages import Storage


def check(storage: Storage, hypervisor_ids: Collection[str]) -> None:
    """Raise StorageOutOfReach for the first of the hypervisors, by name, that cannot use the storage."""
    row = models.Hypervisor
    hosts = row.select(row.hypervisor_id, row.name, row.capabilities).where(row.hypervisor_id.in_(list(hypervisor_ids)))
    for host in hosts.order_by(row.name):
        problem = reach.problem_of(storage.type, storage.config, host.capabilities or {})
        if problem:
            raise StorageOutOfReach(hypervisor_id=host.name, storage_id=storage.name, problem=problem)
