"""Jobs, and who may work on what."""

import peewee
from peewee import BigIntegerField, BooleanField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class Job(Table):
    """One piece of work. `spec` is what was asked, without secrets; `batch_id` is "" for a single."""

    job_id = id_field()
    type = TextField()
    state = TextField()
    server_id = text_field()
    storage_id = text_field()
    hypervisor_id = TextField()
    backup_id = text_field()
    spec = JsonField()
    requester = text_field()
    request_id = TextField(null=True, unique=True)
    request_hash = text_field()
    attempt = BigIntegerField(default=1)
    generation = number_field()
    epoch = number_field()
    version = BigIntegerField(default=1)
    create_time = TimeField()
    dispatch_time = OptionalTimeField()
    start_time = OptionalTimeField()
    end_time = OptionalTimeField()
    cancel_time = OptionalTimeField()
    cancel_reason = text_field()
    progress = JsonField(null=True)
    failure = JsonField(null=True)
    warnings = JsonField(default=list)
    result = JsonField(null=True)
    log_bytes = number_field()
    batch_id = text_field()

    class Meta:
        # Lists are read newest first, and ids sort by time.
        indexes = (
            (("state", "hypervisor_id"), False),
            (("batch_id",), False),
            (("state", "job_id"), False),
            (("type", "job_id"), False),
            (("server_id", "job_id"), False),
            (("storage_id", "job_id"), False),
            (("hypervisor_id", "job_id"), False),
            (("state", "end_time"), False),
        )


class JobLog(Table):
    job = peewee.ForeignKeyField(Job, on_delete="CASCADE", index=False)
    attempt = BigIntegerField()
    sequence = BigIntegerField()
    time = TimeField()
    level = TextField()
    message = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("job", "attempt", "sequence")


class Lease(Table):
    """Who has a resource: one job for itself (`holder`), or `shared` jobs together. `generation` grows with each claim."""

    resource = id_field()
    holder = text_field()
    shared = number_field()
    generation = number_field()


class LeaseHold(Table):
    """Which job holds which lease, and how; the other side of `lease`, in the same transaction."""

    job_id = TextField()
    resource = TextField(index=True)
    exclusive = BooleanField()

    class Meta:
        primary_key = peewee.CompositeKey("job_id", "resource")


class Slot(Table):
    """A place to work at on a hypervisor; a cap is the number of its slots."""

    hypervisor_id = TextField()
    number = BigIntegerField()
    job_id = TextField(default="", index=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "number")
