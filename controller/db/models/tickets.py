"""Restore tickets."""

from peewee import TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, text_field


class Ticket(Table):
    """A restore ticket that the job of its id has left on a hypervisor. `gone_time`: its agent said that it is of no use any more."""

    ticket_id = id_field()
    backup_id = text_field()
    server_id = TextField(default="", index=True)
    storage_id = TextField(default="", index=True)
    hypervisor_id = TextField(default="", index=True)
    path = text_field()
    disks = JsonField(default=list)
    requester = text_field()
    create_time = TimeField()
    expire_time = TimeField(index=True)
    revoke_time = OptionalTimeField()
    revoke_reason = text_field()
    revoker = text_field()
    gone_time = OptionalTimeField()
