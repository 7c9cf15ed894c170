"""Retention: the policy of a storage, who deletes there, what is to be pruned and purged."""

from typing import Any

import peewee
from peewee import BigIntegerField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class PruneRound(Table):
    storage_id = TextField(primary_key=True)
    evaluate_time = BigIntegerField(null=True)
    cursor = TextField()


class PruneCandidate(Table):
    key = TextField(primary_key=True)
    storage_id = TextField()
    server_id = TextField()
    look_time = BigIntegerField(index=True)


class Purge(Table):
    purge_id = TextField(primary_key=True)
    server_id = TextField(index=True)
    storage_id = TextField()
    schedule_id = TextField()
    kind = TextField()
    state = TextField(index=True)
    requester = TextField()
    request_id = TextField(index=True)
    request_hash = TextField()
    create_time = BigIntegerField()
    due_time = BigIntegerField()
    bound_time = BigIntegerField(null=True)
    retry_time = BigIntegerField(null=True)
    end_time = BigIntegerField(null=True)
    failure_count = BigIntegerField()
    failure = TextField(null=True)
    job_ids = TextField()


ALL = (PruneRound, PruneCandidate, Purge)


def up(migrator: Any, db: Any) -> None:
    migrator.migrate(
        migrator.add_column("storage", "retention", TextField(default="{}")),
        migrator.add_column("storage", "keep_last", BigIntegerField(default=2)),
        migrator.add_column("storage", "delete_hypervisor_id", TextField(default="")),
    )
    with db.bind_ctx(ALL):
        db.create_tables(ALL)
