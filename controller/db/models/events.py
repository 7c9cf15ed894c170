"""What happened, in order, and who is told of it."""

import peewee
from peewee import BigAutoField, BigIntegerField, BlobField, BooleanField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class Event(Table):
    """What happened, for those who watch (N6). Rows come from `event_pending` when a transaction commits, never otherwise."""

    sequence = BigAutoField()
    time = TimeField(index=True)
    kind = TextField()
    job_id = text_field()
    server_id = text_field()
    storage_id = text_field()
    hypervisor_id = text_field()
    body = JsonField(null=True)
    schedule_id = text_field()
    batch_id = text_field()


class EventPending(Table):
    """What the transactions now under way have recorded; empty to everybody else."""

    number = BigAutoField()
    time = TimeField()
    kind = TextField()
    job_id = text_field()
    server_id = text_field()
    storage_id = text_field()
    hypervisor_id = text_field()
    body = JsonField(null=True)
    schedule_id = text_field()
    batch_id = text_field()


class EventHorizon(Table):
    """One row: up to which sequence events have been removed."""

    number = BigIntegerField(primary_key=True)  # always 1
    removed_sequence = number_field()


class HypervisorPresence(Table):
    """Whether the last event of a hypervisor said that it is online."""

    hypervisor_id = id_field()
    online = BooleanField()
    change_time = TimeField()


class SystemLog(Table):
    """What the controller did of its own accord, in sentences (M9)."""

    sequence = BigAutoField()
    time = TimeField(index=True)
    level = TextField()  # info, warning, error
    source = TextField()
    message = TextField()
    schedule_id = text_field()
    storage_id = text_field()
    hypervisor_id = text_field()
    server_id = text_field()
    batch_id = text_field()
    job_id = text_field()


class Webhook(Table):
    """Where events are sent to. `cursor` is the last event that became a delivery or was of no interest."""

    webhook_id = id_field()
    name = TextField(unique=True)
    url = TextField()
    kinds = JsonField(default=list)
    ca_certificate = text_field()  # PEM
    enabled = BooleanField(default=True)
    cursor = number_field()
    delivered_count = number_field()
    missed_count = number_field()  # events that were removed before they could become deliveries
    success_time = OptionalTimeField()
    failure_time = OptionalTimeField()
    failure = text_field()
    hold_time = OptionalTimeField()  # nothing is sent before, as the receiver asked
    create_time = TimeField()
    update_time = TimeField()
    version = BigIntegerField(default=1)


class WebhookDelivery(Table):
    """One event on its way to one webhook, removed once it arrived. `body` is what is sent, whole: events go, letters stay."""

    delivery_id = id_field()
    webhook = peewee.ForeignKeyField(Webhook, on_delete="CASCADE", index=False)
    sequence = BigIntegerField()
    kind = TextField()
    body = BlobField()
    state = TextField()  # waiting, dead
    attempts = number_field()
    create_time = TimeField()
    due_time = TimeField()  # of a waiting one, when to try; of one under way, when to give its sender up
    attempt_time = OptionalTimeField()
    failure = text_field()

    class Meta:
        indexes = ((("webhook", "state", "due_time"), False),)
