"""Schedules and global settings; what a storage gives to its jobs where no schedule says otherwise."""

from typing import Any

import peewee
from peewee import BigIntegerField, BooleanField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class GlobalSettings(Table):
    number = BigIntegerField(primary_key=True)
    chosen = TextField()
    update_time = BigIntegerField(null=True)
    version = BigIntegerField()


class Schedule(Table):
    schedule_id = TextField(primary_key=True)
    hypervisor_id = TextField(index=True)
    storage_id = TextField(index=True)
    enabled = BooleanField()
    default_access = TextField()
    time_zone = TextField()
    overrides = TextField()
    due_time = BigIntegerField(null=True, index=True)
    anchor_time = BigIntegerField(null=True)
    last_start_time = BigIntegerField(null=True)
    create_time = BigIntegerField()
    update_time = BigIntegerField()
    delete_time = BigIntegerField(null=True)
    version = BigIntegerField()


Schedule.add_index(
    Schedule.index(Schedule.hypervisor_id, unique=True, name="schedule_live_hypervisor").where(
        Schedule.delete_time.is_null()
    )
)

ALL = (GlobalSettings, Schedule)


def up(migrator: Any, db: Any) -> None:
    with db.bind_ctx(ALL):
        db.create_tables(ALL)
    migrator.migrate(migrator.add_column("storage", "defaults", TextField(null=True)))
