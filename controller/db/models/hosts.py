"""Hypervisors, and what they report."""

import peewee
from peewee import BigIntegerField, BooleanField, DoubleField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class Hypervisor(Table):
    """A host that enrolled. `pending_serial` is a renewed certificate that was not used yet."""

    hypervisor_id = id_field()
    name = TextField(unique=True)
    create_time = TimeField()
    banned = BooleanField(default=False)
    certificate_serial = text_field()
    pending_serial = text_field()
    certificate_expire_time = OptionalTimeField()
    agent_version = text_field()
    protocol_version = number_field()
    boot_id = text_field()
    session_id = text_field()
    session_count = number_field()
    last_contact_time = OptionalTimeField()
    clock_offset_microseconds = BigIntegerField(null=True)
    capabilities = JsonField(null=True)
    scratch_free_bytes = number_field()
    greeted_epoch = number_field()  # in which it said Hello last; see controller/set_back.py
    load = DoubleField(default=0.0)
    inventory_time = OptionalTimeField()


class EnrollmentToken(Table):
    token_hash = id_field()
    hypervisor_id = TextField()
    name = TextField(index=True)
    renew = BooleanField()
    create_time = TimeField()
    expire_time = TimeField()
    use_time = OptionalTimeField()


class Domain(Table):
    """What a hypervisor last reported; replaced as a whole by each inventory."""

    hypervisor_id = TextField()
    domain_uuid = TextField()
    name = TextField()
    state = text_field()
    guest_agent = text_field()
    disks = JsonField()  # JSON forms of Disk

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "domain_uuid")
