"""Batches: one firing over a hypervisor's servers, and jobs that belong to one."""

from typing import Any

import peewee
from peewee import BigIntegerField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class Batch(Table):
    batch_id = TextField(primary_key=True)
    schedule_id = TextField()
    hypervisor_id = TextField(index=True)
    storage_id = TextField()
    origin = TextField()
    origin_batch_id = TextField()
    state = TextField(index=True)
    wait = TextField(null=True)
    spec = TextField()
    requester = TextField()
    request_id = TextField(null=True, unique=True)
    request_hash = TextField()
    epoch = BigIntegerField()
    version = BigIntegerField()
    due_time = BigIntegerField(null=True)
    create_time = BigIntegerField()
    start_time = BigIntegerField(null=True)
    accept_time = BigIntegerField(null=True)
    close_time = BigIntegerField(null=True)
    end_time = BigIntegerField(null=True)
    cancel_time = BigIntegerField(null=True)
    cancel_reason = TextField()
    error_time = BigIntegerField(null=True)
    failure = TextField(null=True)

    class Meta:
        indexes = ((("schedule_id", "create_time"), False),)


Batch.add_index(
    Batch.index(Batch.schedule_id, unique=True, name="batch_waiting_schedule").where(
        (Batch.state == "deferred") & (Batch.schedule_id != "")
    )
)


class Turn(Table):
    name = TextField(primary_key=True)
    holder = TextField()
    expire_time = BigIntegerField()


ALL = (Batch, Turn)


def up(migrator: Any, db: Any) -> None:
    with db.bind_ctx(ALL):
        db.create_tables(ALL)
    migrator.migrate(
        migrator.add_column("job", "batch_id", TextField(default="")),
        migrator.add_index("job", ("batch_id",)),
    )
