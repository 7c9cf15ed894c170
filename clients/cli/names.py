"""Names in place of ids, for people: a table of backups says `web1`, not 36 digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.cli.session import Controller


class Names:
    """Names of servers, storages and hypervisors by id; an id that has none stands for itself."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __getitem__(self, resource_id: str) -> str:
        return self._names.get(resource_id, resource_id) or "-"

    @classmethod
    async def load(cls, controller: Controller, *kinds: str) -> Names:
        """Ask for the names of `kinds`: "packages", "servers", "storages", "hypervisors"."""
        names = cls()
        for kind in kinds:
            names._names.update(await _LOADERS[kind](controller))
        return names


async def _servers(controller: Controller) -> dict[str, str]:
    from clients.gen.backupmanager.v1.server_service_pb2 import ListServersRequest

    request = ListServersRequest(include_deleted=True)
    reply, _ = await controller.every(controller.servers.ListServers, request, "servers")
    return {one.server_id: one.name for one in reply.servers}


async def _storages(controller: Controller) -> dict[str, str]:
    from clients.gen.backupmanager.v1.storage_service_pb2 import ListStoragesRequest

    reply, _ = await controller.every(controller.storages.ListStorages, ListStoragesRequest(), "storages")
    return {one.storage_id: one.name for one in reply.storages}


async def _hypervisors(controller: Controller) -> dict[str, str]:
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import ListHypervisorsRequest

    reply, _ = await controller.every(controller.hypervisors.ListHypervisors, ListHypervisorsRequest(), "hypervisors")
    return {one.hypervisor_id: one.name for one in reply.hypervisors}


async def _packages(controller: Controller) -> dict[str, str]:
    from clients.gen.backupmanager.v1.package_service_pb2 import ListPackagesRequest

    reply, _ = await controller.every(controller.packages.ListPackages, ListPackagesRequest(), "packages")
    return {one.package_id: one.name for one in reply.packages}


_LOADERS = {"packages": _packages, "servers": _servers, "storages": _storages, "hypervisors": _hypervisors}
