"""The system log."""

from clients.gen.backupmanager.v1 import system_log_pb2, system_log_service_pb2_grpc
from clients.gen.backupmanager.v1 import system_log_service_pb2 as messages
from controller import system_log
from controller.services import check, convert, convert_events, paging
from controller.services.parts import Context, Parts
from controller.system_log import LogFilter


class SystemLogServicer(system_log_service_pb2_grpc.SystemLogServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListSystemLogEntries(
        self, request: messages.ListSystemLogEntriesRequest, context: Context
    ) -> messages.ListSystemLogEntriesResponse:
        levels = {convert.enum_word(system_log_pb2.LogLevel.DESCRIPTOR, one) for one in request.levels}
        sources = {convert.enum_word(system_log_pb2.LogSource.DESCRIPTOR, one) for one in request.sources}
        links = {
            name: check.identifier(name, text)
            for name in ("schedule_id", "storage_id", "hypervisor_id", "server_id", "batch_id", "job_id")
            if (text := getattr(request, name))
        }
        wanted = LogFilter(
            levels=tuple(sorted(levels - {""})),
            sources=tuple(sorted(sources - {""})),
            text=check.title("text", request.text),
            start_time=check.instant(request, "start_time"),
            end_time=check.instant(request, "end_time"),
            **links,
        )
        page = paging.page("system log", (wanted,), request.page_size, request.page_token, (int,))
        rows = await self._parts.database.run(system_log.list_entries, wanted, after=page.after, limit=page.size + 1)
        filled = paging.fill(page, rows, convert_events.system_log_entry, lambda row: (row.sequence,))
        return messages.ListSystemLogEntriesResponse(entries=filled.messages, next_page_token=filled.next_page_token)
