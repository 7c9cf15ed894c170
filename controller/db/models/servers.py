"""Customers' virtual servers, the packages they were sold as, and who claims to have them."""

import peewee
from peewee import BigIntegerField, BooleanField, TextField

from controller.db.fields import OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, text_field


class Package(Table):
    """What servers are sold as. `default_level` is "" where the schedule's counts."""

    package_id = id_field()
    name = TextField(unique=True)
    default_level = text_field()
    create_time = TimeField()
    update_time = TimeField()
    version = BigIntegerField(default=1)


class Server(Table):
    """A customer's virtual server. `version` grows with each change (the etag).

    `place_state` is what its hypervisor last said of the domain: "present", "gone", or "" before it was ever seen there.
    Backups older than `history_time` are not the owner's to see; portal tokens older than `owner_time` are another owner's.
    """

    server_id = id_field()
    external_id = text_field()
    name = TextField(index=True)
    hypervisor_id = TextField(index=True)
    domain_uuid = TextField()
    create_time = TimeField()
    delete_time = OptionalTimeField()
    version = BigIntegerField(default=1)
    package_id = text_field()
    access_override = text_field()
    commissioned = BooleanField(default=True)
    owner = text_field()
    owner_time = OptionalTimeField()
    history_time = OptionalTimeField()
    lock_reason = text_field()
    lock_time = OptionalTimeField()  # None: not locked
    lock_expire_time = OptionalTimeField()  # None: until it is taken away
    place_state = text_field()


Server.add_index(Server.index(Server.delete_time, name="server_deleted").where(Server.delete_time.is_null(False)))
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
Server.add_index(Server.index(Server.package_id, name="server_package_id"))
Server.add_index(
    Server.index(Server.server_id, name="server_lost").where(
        (Server.place_state == "gone") & Server.delete_time.is_null()
    )
)


class ServerClaim(Table):
    """A hypervisor that reports a server's domain though the server lives on another. `refused`: the panel decided against it."""

    server_id = TextField()
    hypervisor_id = TextField(index=True)
    refused = BooleanField(default=False)
    create_time = TimeField()

    class Meta:
        primary_key = peewee.CompositeKey("server_id", "hypervisor_id")
