"""Restore tickets that were left on hypervisors, and which of them were revoked."""

from typing import Any

import peewee
from peewee import BigIntegerField, TextField


class Ticket(peewee.Model):
    ticket_id = TextField(primary_key=True)
    backup_id = TextField(default="")
    server_id = TextField(default="", index=True)
    storage_id = TextField(default="", index=True)
    hypervisor_id = TextField(default="", index=True)
    path = TextField(default="")
    disks = TextField()
    requester = TextField(default="")
    create_time = BigIntegerField()
    expire_time = BigIntegerField(index=True)
    revoke_time = BigIntegerField(null=True)
    revoke_reason = TextField(default="")
    revoker = TextField(default="")
    gone_time = BigIntegerField(null=True)

    class Meta:
        legacy_table_names = False


def up(_migrator: Any, db: Any) -> None:
    with db.bind_ctx((Ticket,)):
        db.create_tables((Ticket,))
