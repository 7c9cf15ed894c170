"""Restore tickets as messages."""

from clients.gen.backupmanager.v1 import ticket_pb2
from controller.services import convert
from controller.tickets import Ticket


def ticket(record: Ticket) -> ticket_pb2.RestoreTicket:
    return ticket_pb2.RestoreTicket(
        ticket_id=record.ticket_id,
        state=convert.enum_number(ticket_pb2.RestoreTicketState.DESCRIPTOR, record.state),
        backup_id=record.backup_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        path=record.path,
        disks=record.disks,
        requester=record.requester,
        create_time=convert.time(record.create_time),
        expire_time=convert.time(record.expire_time),
        revoke_time=convert.time(record.revoke_time),
        revoke_reason=convert.enum_number(ticket_pb2.RestoreTicketRevokeReason.DESCRIPTOR, record.revoke_reason),
        revoker=record.revoker,
        gone_time=convert.time(record.gone_time),
    )
