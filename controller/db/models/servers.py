"""Customers' virtual servers."""

from peewee import BigIntegerField, TextField

from controller.db.fields import OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, text_field


class Server(Table):
    """A customer's virtual server. `version` grows with each change (the etag)."""

    server_id = id_field()
    external_id = text_field()
    name = TextField(index=True)
    hypervisor_id = TextField(index=True)
    domain_uuid = TextField()
    create_time = TimeField()
    delete_time = OptionalTimeField()
    version = BigIntegerField(default=1)


# Among servers that live; the panel may use an id again after it deleted a server, and gets another server then (N1).
Server.add_index(
    Server.index(Server.external_id, unique=True, name="server_live_external_id").where(
        Server.delete_time.is_null() & (Server.external_id != "")
    )
)
Server.add_index(
    Server.index(Server.hypervisor_id, Server.domain_uuid, unique=True, name="server_live_domain").where(
        Server.delete_time.is_null() & (Server.hypervisor_id != "")
    )
)
