"""What may be done at all, with a hypervisor, a storage and a server as they are now. Pure.

Asked when work is ordered, and again when it leaves the queue: what was allowed an hour ago may not be any more.
"""

from controller import hypervisors
from controller.errors import ServerDeleted, StorageDisabled, StorageReadOnly
from controller.hypervisors import Hypervisor
from controller.servers import Server
from controller.storages import Storage

WRITING = frozenset({"backup", "delete", "test"})  # refused on a read-only storage (S21, S22)
TIMED = frozenset({"backup", "delete"})  # refused when the host's clock is wrong (N14)


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


def check_server(verb: str, server: Server, *, to_files: bool = False) -> None:
    """Raise ServerDeleted when there is no machine to read from or to write to."""
    if server.state == "deleted" and verb in {"backup", "restore"} and not to_files:
        raise ServerDeleted(server_id=server.server_id)
