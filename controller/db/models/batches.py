"""Batches, and whose turn it is to do what the clock demands."""

from peewee import BigIntegerField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class Batch(Table):
    """One firing over a hypervisor's servers; its jobs are the rows of `job` that carry its id.

    `wait` says what a deferred one waits for. `spec` is what it was made with: the settings as resolved at its start and,
    for a batch of chosen servers, their ids. `error_time` is when its being overdue was reported, which happens once.
    """

    batch_id = id_field()
    schedule_id = text_field()
    hypervisor_id = TextField(index=True)
    storage_id = text_field()
    origin = TextField()  # schedule, force or retry
    origin_batch_id = text_field()  # whose failed servers a retry takes
    state = TextField(index=True)
    wait = JsonField(null=True)
    spec = JsonField()
    requester = text_field()
    request_id = TextField(null=True, unique=True)
    request_hash = text_field()
    epoch = number_field()
    version = BigIntegerField(default=1)
    due_time = OptionalTimeField()
    create_time = TimeField()
    start_time = OptionalTimeField()
    accept_time = OptionalTimeField()
    close_time = OptionalTimeField()
    end_time = OptionalTimeField()
    cancel_time = OptionalTimeField()
    cancel_reason = text_field()
    error_time = OptionalTimeField()
    failure = JsonField(null=True)

    class Meta:
        indexes = ((("schedule_id", "create_time"), False),)


Batch.add_index(
    Batch.index(Batch.schedule_id, unique=True, name="batch_waiting_schedule").where(
        (Batch.state == "deferred") & (Batch.schedule_id != "")
    )
)


class Turn(Table):
    """Who does something that one controller at a time should do, until when on the database's own clock."""

    name = id_field()
    holder = TextField()
    expire_time = BigIntegerField()  # microseconds since 1970
