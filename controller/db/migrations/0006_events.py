"""The event log with its order, the system log, and webhooks."""

from typing import Any

import peewee
from peewee import BigAutoField, BigIntegerField, BlobField, BooleanField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class EventPending(Table):
    number = BigAutoField()
    time = BigIntegerField()
    kind = TextField()
    job_id = TextField()
    server_id = TextField()
    storage_id = TextField()
    hypervisor_id = TextField()
    body = TextField(null=True)
    schedule_id = TextField()
    batch_id = TextField()


class EventHorizon(Table):
    number = BigIntegerField(primary_key=True)
    removed_sequence = BigIntegerField()


class HypervisorPresence(Table):
    hypervisor_id = TextField(primary_key=True)
    online = BooleanField()
    change_time = BigIntegerField()


class SystemLog(Table):
    sequence = BigAutoField()
    time = BigIntegerField(index=True)
    level = TextField()
    source = TextField()
    message = TextField()
    schedule_id = TextField()
    storage_id = TextField()
    hypervisor_id = TextField()
    server_id = TextField()
    batch_id = TextField()
    job_id = TextField()


class Webhook(Table):
    webhook_id = TextField(primary_key=True)
    name = TextField(unique=True)
    url = TextField()
    kinds = TextField()
    ca_certificate = TextField()
    enabled = BooleanField()
    cursor = BigIntegerField()
    delivered_count = BigIntegerField()
    missed_count = BigIntegerField()
    success_time = BigIntegerField(null=True)
    failure_time = BigIntegerField(null=True)
    failure = TextField()
    create_time = BigIntegerField()
    update_time = BigIntegerField()
    version = BigIntegerField()


class WebhookDelivery(Table):
    delivery_id = TextField(primary_key=True)
    webhook = peewee.ForeignKeyField(Webhook, on_delete="CASCADE", index=False)
    sequence = BigIntegerField()
    kind = TextField()
    body = BlobField()
    state = TextField()
    attempts = BigIntegerField()
    create_time = BigIntegerField()
    due_time = BigIntegerField()
    attempt_time = BigIntegerField(null=True)
    failure = TextField()

    class Meta:
        indexes = ((("webhook", "state", "due_time"), False),)


ALL = (EventPending, EventHorizon, HypervisorPresence, SystemLog, Webhook, WebhookDelivery)


def up(migrator: Any, db: Any) -> None:
    with db.bind_ctx(ALL):
        db.create_tables(ALL)
        EventHorizon.insert(number=1, removed_sequence=0).execute()
    migrator.migrate(
        migrator.add_column("event", "schedule_id", TextField(default="")),
        migrator.add_column("event", "batch_id", TextField(default="")),
        migrator.add_index("backup", ("job_id",)),
    )
