"""Restore tickets: which lie on hypervisors, and revoking one."""

from datetime import datetime

from clients.gen.backupmanager.v1 import ticket_service_pb2 as messages
from clients.gen.backupmanager.v1 import ticket_service_pb2_grpc
from controller import hypervisors, servers, storages, tickets
from controller.security.caller import current_caller
from controller.services import check, convert_tickets, paging
from controller.services.parts import Context, Parts
from controller.tickets import Ticket, TicketFilter


class TicketServicer(ticket_service_pb2_grpc.TicketServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListTickets(self, request: messages.ListTicketsRequest, context: Context) -> messages.ListTicketsResponse:
        server = check.reference("server_id", request.server_id, optional=True)
        storage = check.reference("storage_id", request.storage_id, optional=True)
        hypervisor = check.reference("hypervisor_id", request.hypervisor_id, optional=True)
        filters = (server, storage, hypervisor, request.include_ended)
        page = paging.page("tickets", filters, request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, *filters, self._parts.now(), page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_tickets.ticket, lambda row: (row.ticket_id,))
        return messages.ListTicketsResponse(tickets=filled.messages, next_page_token=filled.next_page_token)

    async def RevokeTicket(
        self, request: messages.RevokeTicketRequest, context: Context
    ) -> messages.RevokeTicketResponse:
        ticket_id = check.identifier("ticket_id", request.ticket_id)
        record = await self._parts.database.run(tickets.revoke, ticket_id, current_caller().name, self._parts.now())
        return messages.RevokeTicketResponse(ticket=convert_tickets.ticket(record))


def _list(
    server: str, storage: str, hypervisor: str, ended: bool, now: datetime, after: tuple[str] | None, limit: int
) -> list[Ticket]:
    """List what is wanted, each filter named by the caller's words."""
    wanted = TicketFilter(
        server_id=servers.find(server).server_id if server else "",
        storage_id=storages.find(storage).storage_id if storage else "",
        hypervisor_id=hypervisors.id_of(hypervisor) if hypervisor else "",
        ended=ended,
    )
    return tickets.list_tickets(wanted, now, after=after, limit=limit)
