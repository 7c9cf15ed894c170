"""Servers: the panel says which there are, whose they are and what is done with them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from clients.gen.backupmanager.v1 import access_level_pb2, server_pb2, server_service_pb2_grpc
from clients.gen.backupmanager.v1 import server_service_pb2 as messages
from controller import access, hypervisors, packages, servers
from controller.errors import InvalidField
from controller.limits import Limits
from controller.rules.access import Resolved
from controller.servers import NewServer, Server, ServerFilter
from controller.services import check, convert, convert_hosts, paging
from controller.services.parts import Context, Parts

_CHANGEABLE = ("name", "external_id", "hypervisor_id", "domain_uuid")
_LOCK_MIN, _LOCK_MAX = timedelta(seconds=1), timedelta(days=3653)
_SERVERS_MAX = 1000


class ServerServicer(server_service_pb2_grpc.ServerServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # ---- which there are -----------------------------------------------------------------------------------------------

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
            package_id=check.reference("package_id", request.package_id, optional=True),
            owner=check.title("owner", request.owner),
            commissioned=request.commissioned if request.HasField("commissioned") else True,
        )
        return messages.RegisterServerResponse(server=await self._server(servers.register, new, self._parts.now()))

    async def ListServers(self, request: messages.ListServersRequest, context: Context) -> messages.ListServersResponse:
        wanted = ServerFilter(
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            package_id=check.reference("package_id", request.package_id, optional=True),
            owner=check.title("owner", request.owner),
            commissioned=True if request.commissioned_only else None,
            include_deleted=request.include_deleted,
        )
        page = paging.page("servers", (wanted,), request.page_size, request.page_token, (str, str))
        now = self._parts.now()
        count, rows = await self._parts.database.run(_list, wanted, self._parts.limits, now, page.after, page.size + 1)
        filled = paging.fill(
            page, rows, lambda row: convert_hosts.server(*row, now), lambda row: (row[0].name, row[0].server_id)
        )
        return messages.ListServersResponse(
            servers=filled.messages, next_page_token=filled.next_page_token, total_count=count
        )

    async def GetServer(self, request: messages.GetServerRequest, context: Context) -> messages.GetServerResponse:
        reference = check.reference("server_id", request.server_id)
        return messages.GetServerResponse(server=await self._server(servers.find, reference))

    async def UpdateServer(
        self, request: messages.UpdateServerRequest, context: Context
    ) -> messages.UpdateServerResponse:
        reference = check.reference("server.server_id", request.server.server_id)
        etag = check.title("server.etag", request.server.etag)
        changes = _changes(request)
        server = await self._server(_update, reference, changes, etag, self._parts.limits, self._parts.now())
        return messages.UpdateServerResponse(server=server)

    async def DeleteServer(
        self, request: messages.DeleteServerRequest, context: Context
    ) -> messages.DeleteServerResponse:
        return messages.DeleteServerResponse(server=await self._panel_call(request.server_id, servers.delete))

    # ---- what is done with them ----------------------------------------------------------------------------------------

    async def CommissionServer(
        self, request: messages.CommissionServerRequest, context: Context
    ) -> messages.CommissionServerResponse:
        server = await self._panel_call(request.server_id, access.set_commissioned, commissioned=True)
        return messages.CommissionServerResponse(server=server)

    async def DecommissionServer(
        self, request: messages.DecommissionServerRequest, context: Context
    ) -> messages.DecommissionServerResponse:
        server = await self._panel_call(request.server_id, access.set_commissioned, commissioned=False)
        return messages.DecommissionServerResponse(server=server)

    async def SetServerLock(
        self, request: messages.SetServerLockRequest, context: Context
    ) -> messages.SetServerLockResponse:
        reason = check.title("reason", request.reason, optional=False)
        lifetime = check.span(request, "lifetime", None, _LOCK_MIN, _LOCK_MAX)
        end = None if lifetime is None else self._parts.now() + lifetime
        server = await self._panel_call(request.server_id, access.set_lock, reason=reason, expire_time=end)
        return messages.SetServerLockResponse(server=server)

    async def ClearServerLock(
        self, request: messages.ClearServerLockRequest, context: Context
    ) -> messages.ClearServerLockResponse:
        return messages.ClearServerLockResponse(server=await self._panel_call(request.server_id, access.clear_lock))

    async def SetServerOwner(
        self, request: messages.SetServerOwnerRequest, context: Context
    ) -> messages.SetServerOwnerResponse:
        server = await self._panel_call(
            request.server_id,
            access.set_owner,
            owner=check.title("owner", request.owner),
            keep_history=request.keep_history,
            etag=check.title("etag", request.etag),
        )
        return messages.SetServerOwnerResponse(server=server)

    async def SetServerPackage(
        self, request: messages.SetServerPackageRequest, context: Context
    ) -> messages.SetServerPackageResponse:
        server = await self._panel_call(
            request.server_id,
            access.set_package,
            package=check.reference("package_id", request.package_id, optional=True),
            etag=check.title("etag", request.etag),
        )
        return messages.SetServerPackageResponse(server=server)

    async def SetServerAccess(
        self, request: messages.SetServerAccessRequest, context: Context
    ) -> messages.SetServerAccessResponse:
        server = await self._panel_call(
            request.server_id,
            access.set_level,
            level=_level(request.level),
            etag=check.title("etag", request.etag),
        )
        return messages.SetServerAccessResponse(server=server)

    async def BulkSetServerAccess(
        self, request: messages.BulkSetServerAccessRequest, context: Context
    ) -> messages.BulkSetServerAccessResponse:
        if sum(map(bool, (request.server_ids, request.hypervisor_id, request.package_id))) != 1:
            raise InvalidField(field="server_ids", problem="or hypervisor_id, or package_id: exactly one is needed")
        if len(request.server_ids) > _SERVERS_MAX:
            raise InvalidField(field="server_ids", problem=f"has more than {_SERVERS_MAX} entries")
        group_id, count, changed = await self._parts.database.run(
            _bulk,
            [check.reference("server_ids", one) for one in request.server_ids],
            check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            check.reference("package_id", request.package_id, optional=True),
            _level(request.level),
            self._parts.limits,
            self._parts.now(),
        )
        return messages.BulkSetServerAccessResponse(server_count=count, changed_count=changed, group_id=group_id)

    # ---- inside --------------------------------------------------------------------------------------------------------

    async def _panel_call(self, server_id: str, function: Callable[..., Server], **values: Any) -> server_pb2.Server:
        """Do something with a server that is said without doubt: by its id or the panel's, never by a name."""
        return await self._server(
            _exactly, check.reference("server_id", server_id), function, self._parts.now(), values
        )

    async def _server(self, function: Callable[..., Server], *arguments: Any) -> server_pb2.Server:
        """Run a function that returns a server, and return that with its access level, as it stood then."""
        server, resolved = await self._parts.database.run(_shown, function, arguments)
        return convert_hosts.server(server, resolved, self._parts.now())


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


def _level(number: int) -> str:
    return convert.enum_word(access_level_pb2.AccessLevel.DESCRIPTOR, number)


def _shown(function: Callable[..., Server], arguments: tuple[Any, ...]) -> tuple[Server, Resolved]:
    server = function(*arguments)
    return server, access.of_servers([server])[server.server_id]


def _exactly(reference: str, function: Callable[..., Server], now: datetime, values: dict[str, Any]) -> Server:
    return function(servers.find_exact(reference).server_id, now=now, **values)


def _list(
    wanted: ServerFilter, limits: Limits, now: datetime, after: tuple[str, str] | None, limit: int
) -> tuple[int, list[tuple[Server, Resolved]]]:
    if wanted.hypervisor_id:
        wanted = replace(wanted, hypervisor_id=hypervisors.find(wanted.hypervisor_id, limits, now).hypervisor_id)
    if wanted.package_id:
        wanted = replace(wanted, package_id=packages.find(wanted.package_id).package_id)
    rows = servers.list_servers(wanted, after=after, limit=limit)
    levels = access.of_servers(rows)
    return servers.count_servers(wanted), [(row, levels[row.server_id]) for row in rows]


def _update(reference: str, changes: dict[str, str], etag: str, limits: Limits, now: datetime) -> Server:
    if "hypervisor_id" in changes:
        found = hypervisors.find(changes["hypervisor_id"], limits, now)
        changes = {**changes, "hypervisor_id": found.hypervisor_id}
    return servers.update(servers.find(reference).server_id, changes, etag, now)


def _bulk(
    server_ids: list[str], hypervisor: str, package: str, level: str, limits: Limits, now: datetime
) -> tuple[str, int, int]:
    """Return the id of the group, if any, how many servers were meant, and how many of them had another level."""
    group_id = ""
    if hypervisor:
        group_id = hypervisors.find(hypervisor, limits, now).hypervisor_id
        chosen = [one.server_id for one in access.commissioned(group_id)]
    elif package:
        group_id = packages.find(package).package_id
        chosen = servers.ids_of_package(group_id)
    else:
        chosen = sorted({servers.find_exact(one).server_id for one in server_ids})
    return group_id, len(chosen), access.set_levels(chosen, level, now)
