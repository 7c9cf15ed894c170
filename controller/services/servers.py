"""Servers: the panel says which there are."""

from datetime import datetime

from clients.gen.backupmanager.v1 import server_service_pb2 as messages
from clients.gen.backupmanager.v1 import server_service_pb2_grpc
from controller import hypervisors, servers
from controller.errors import InvalidField
from controller.limits import Limits
from controller.servers import NewServer, Server
from controller.services import check, convert, paging
from controller.services.parts import Context, Parts

_CHANGEABLE = ("name", "external_id", "hypervisor_id", "domain_uuid")


class ServerServicer(server_service_pb2_grpc.ServerServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def RegisterServer(
        self, request: messages.RegisterServerRequest, context: Context
    ) -> messages.RegisterServerResponse:
        if not request.domain_uuid and not request.domain_name:
            raise InvalidField(field="domain_uuid", problem="or domain_name is needed")
        new = NewServer(
            external_id=check.title("external_id", request.external_id),
            name=check.title("name", request.name),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id),
            domain_uuid=check.identifier("domain_uuid", request.domain_uuid) if request.domain_uuid else "",
            domain_name=check.domain_name("domain_name", request.domain_name),
        )
        record = await self._parts.database.run(servers.register, new, self._parts.now())
        return messages.RegisterServerResponse(server=convert.server(record))

    async def ListServers(self, request: messages.ListServersRequest, context: Context) -> messages.ListServersResponse:
        reference = check.reference("hypervisor_id", request.hypervisor_id, optional=True)
        filters = (reference, request.include_deleted)
        page = paging.page("servers", filters, request.page_size, request.page_token, (str, str))
        rows = await self._parts.database.run(
            _list, reference, request.include_deleted, self._parts.limits, self._parts.now(), page.after, page.size + 1
        )
        filled = paging.fill(page, rows, convert.server, lambda row: (row.name, row.server_id))
        return messages.ListServersResponse(servers=filled.messages, next_page_token=filled.next_page_token)

    async def GetServer(self, request: messages.GetServerRequest, context: Context) -> messages.GetServerResponse:
        record = await self._parts.database.run(servers.find, check.reference("server_id", request.server_id))
        return messages.GetServerResponse(server=convert.server(record))

    async def UpdateServer(
        self, request: messages.UpdateServerRequest, context: Context
    ) -> messages.UpdateServerResponse:
        reference = check.reference("server.server_id", request.server.server_id)
        etag = check.title("server.etag", request.server.etag)
        changes = _changes(request)
        record = await self._parts.database.run(
            _update, reference, changes, etag, self._parts.limits, self._parts.now()
        )
        return messages.UpdateServerResponse(server=convert.server(record))

    async def DeleteServer(
        self, request: messages.DeleteServerRequest, context: Context
    ) -> messages.DeleteServerResponse:
        server_id = check.identifier("server_id", request.server_id)  # no name: what is deleted is said without doubt
        record = await self._parts.database.run(servers.delete, server_id, self._parts.now())
        return messages.DeleteServerResponse(server=convert.server(record))


def _changes(request: messages.UpdateServerRequest) -> dict[str, str]:
    """Return the new values that the update mask names, each checked as at registration."""
    checks = {
        "name": lambda field, text: check.title(field, text, optional=False),
        "external_id": check.title,
        "hypervisor_id": check.reference,
        "domain_uuid": check.identifier,
    }
    paths = check.mask(request.update_mask, _CHANGEABLE)
    return {path: checks[path](f"server.{path}", getattr(request.server, path)) for path in sorted(paths)}


def _list(
    reference: str, include_deleted: bool, limits: Limits, now: datetime, after: tuple[str, str] | None, limit: int
) -> list[Server]:
    hypervisor_id = hypervisors.find(reference, limits, now).hypervisor_id if reference else ""
    return servers.list_servers(hypervisor_id=hypervisor_id, include_deleted=include_deleted, after=after, limit=limit)


def _update(reference: str, changes: dict[str, str], etag: str, limits: Limits, now: datetime) -> Server:
    if "hypervisor_id" in changes:
        found = hypervisors.find(changes["hypervisor_id"], limits, now)
        changes = {**changes, "hypervisor_id": found.hypervisor_id}
    return servers.update(servers.find(reference).server_id, changes, etag, now)
