"""Who did what, for those who may know."""

from clients.gen.backupmanager.v1 import audit_service_pb2 as messages
from clients.gen.backupmanager.v1 import audit_service_pb2_grpc
from controller import audit_log
from controller.audit_log import AuditFilter
from controller.services import check, convert_events, paging
from controller.services.parts import Context, Parts


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListAuditEntries(
        self, request: messages.ListAuditEntriesRequest, context: Context
    ) -> messages.ListAuditEntriesResponse:
        wanted = AuditFilter(
            caller=check.title("caller", request.caller),
            method=check.title("method", request.method),
            resource=check.title("resource", request.resource),
            outcome=check.title("outcome", request.outcome),
            failed=request.failed,
            start_time=check.instant(request, "start_time"),
            end_time=check.instant(request, "end_time"),
        )
        page = paging.page("audit", (wanted,), request.page_size, request.page_token, (int,))
        rows = await self._parts.database.run(audit_log.list_entries, wanted, after=page.after, limit=page.size + 1)
        filled = paging.fill(page, rows, convert_events.audit_entry, lambda row: (row.sequence,))
        return messages.ListAuditEntriesResponse(entries=filled.messages, next_page_token=filled.next_page_token)
