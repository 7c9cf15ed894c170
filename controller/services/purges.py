"""Purges: what would go, ordering it as it was shown, and cancelling what has not begun."""

from clients.gen.backupmanager.v1 import purge_service_pb2 as messages
from clients.gen.backupmanager.v1 import purge_service_pb2_grpc
from controller import purge_orders, purges, servers
from controller.context import Context as OrderContext
from controller.errors import InvalidField
from controller.purge_orders import Target
from controller.purges import Purge
from controller.security.caller import current_caller
from controller.services import check, convert_retention, paging
from controller.services.backups import confirmation_of
from controller.services.parts import Context, Parts

_SHOWN_MAX = 1000


class PurgeServicer(purge_service_pb2_grpc.PurgeServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def PreviewPurge(
        self, request: messages.PreviewPurgeRequest, context: Context
    ) -> messages.PreviewPurgeResponse:
        preview = await self._parts.database.run(purge_orders.preview, _target(request.target), self._context())
        return messages.PreviewPurgeResponse(
            server_count=len({one.server_id for one in preview.shares}),
            backup_count=sum(one.backup_count for one in preview.shares),
            stored_bytes=sum(one.stored_bytes for one in preview.shares),
            shares=[
                messages.PurgeShare(
                    server_id=one.server_id,
                    storage_id=one.storage_id,
                    backup_count=one.backup_count,
                    stored_bytes=one.stored_bytes,
                )
                for one in preview.shares[:_SHOWN_MAX]
            ],
            confirmation=preview.confirmation,
        )

    async def StartPurge(self, request: messages.StartPurgeRequest, context: Context) -> messages.StartPurgeResponse:
        made = await self._parts.database.run(
            purge_orders.order,
            _target(request.target),
            confirmation_of(request.confirmation),
            check.request_id(request.request_id),
            self._context(),
        )
        shown = [convert_retention.purge(one) for one in made[:_SHOWN_MAX]]
        target_id = request.target.server_id or request.target.schedule_id
        return messages.StartPurgeResponse(purges=shown, purge_count=len(made), target_id=target_id)

    async def ListPurges(self, request: messages.ListPurgesRequest, context: Context) -> messages.ListPurgesResponse:
        server = check.reference("server_id", request.server_id, optional=True)
        filters = (server, request.include_ended)
        page = paging.page("purges", filters, request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, *filters, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_retention.purge, lambda row: (row.purge_id,))
        return messages.ListPurgesResponse(purges=filled.messages, next_page_token=filled.next_page_token)

    async def CancelPurge(self, request: messages.CancelPurgeRequest, context: Context) -> messages.CancelPurgeResponse:
        purge_id = check.identifier("purge_id", request.purge_id)
        record = await self._parts.database.run(purges.cancel, purge_id, self._parts.now())
        return messages.CancelPurgeResponse(purge=convert_retention.purge(record))

    def _context(self) -> OrderContext:
        return OrderContext(self._parts.limits, self._parts.vault, current_caller().name, self._parts.now())


def _list(server: str, ended: bool, after: tuple[str] | None, limit: int) -> list[Purge]:
    server_id = servers.find(server).server_id if server else ""
    return purges.list_purges(server_id=server_id, ended=ended, after=after, limit=limit)


def _target(message: messages.PurgeTarget) -> Target:
    target = Target(
        check.reference("target.server_id", message.server_id, optional=True),
        check.reference("target.schedule_id", message.schedule_id, optional=True),
        message.include_active,
    )
    if bool(target.server_id) == bool(target.schedule_id):
        raise InvalidField(field="target", problem="needs either a server or a schedule")
    return target
