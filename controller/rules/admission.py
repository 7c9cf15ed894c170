"""What may be done at all, with a hypervisor, a storage and a server as they are now. Pure.

Asked when work is ordered, and again when it leaves the queue: what was allowed an hour ago may not be any more.
"""

from datetime import datetime
from typing import Protocol

from controller import hypervisors
from controller.errors import ServerConflict, ServerDeleted, ServerLocked, StorageDisabled, StorageReadOnly
from controller.hypervisors import Hypervisor
from controller.rules.access import Lock
from controller.storages import Storage

WRITING = frozenset(
    {"backup", "delete", "prune", "purge", "test", "bundle"}
)  # refused on a read-only storage (S21, S22)
TIMED = frozenset({"backup", "delete", "prune", "purge"})  # refused when the host's clock is wrong (N14)

MIGRATING = "migrating"  # a domain's state, as its agent reports it
MIGRATION = "its hypervisor reports that it is migrating; wait for the end of that"


class Machine(Protocol):
    """What is asked of a server before its machine is touched."""

    @property
    def server_id(self) -> str: ...

    @property
    def hypervisor_id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def lock(self) -> Lock | None: ...

    @property
    def domain_state(self) -> str: ...

    @property
    def conflict(self) -> bool: ...

    @property
    def rival_hypervisor_ids(self) -> tuple[str, ...]: ...


def check_storage(verb: str, storage: Storage) -> None:
    """Raise StorageDisabled or StorageReadOnly unless the storage allows it."""
    if not storage.enabled:
        raise StorageDisabled(storage_id=storage.storage_id)
    if storage.read_only and verb in WRITING:
        raise StorageReadOnly(storage_id=storage.storage_id)


def check_hypervisor(verb: str, hypervisor: Hypervisor) -> None:
    """Raise HypervisorBanned, HypervisorUnreachable or ClockSkew unless the hypervisor can do it now."""
    hypervisors.check_ready(hypervisor)
    if verb in TIMED:
        hypervisors.check_clock(hypervisor)


def check_server(verb: str, server: Machine, now: datetime, *, to_files: bool = False) -> None:
    """Raise ServerDeleted, ServerLocked or ServerConflict unless its machine may be read from or written to now.

    What leaves the machine alone (a restore to files, work on a storage) asks for nothing of that.
    """
    if verb not in {"backup", "restore"} or to_files:
        return
    if server.state == "deleted":
        raise ServerDeleted(server_id=server.server_id)
    if server.lock is not None and server.lock.holds(now):
        raise ServerLocked(server_id=server.server_id, lock_reason=server.lock.reason)
    if server.domain_state == MIGRATING:
        raise ServerLocked(server_id=server.server_id, lock_reason=MIGRATION)
    if server.conflict:
        claims = ", ".join([server.hypervisor_id, *server.rival_hypervisor_ids])
        raise ServerConflict(server_id=server.server_id, hypervisor_ids=claims)
