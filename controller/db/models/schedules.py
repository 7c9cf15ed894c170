"""Schedules, and the settings of the whole installation."""

from peewee import BigIntegerField, BooleanField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, text_field


class GlobalSettings(Table):
    """One row, or none yet: the global settings that somebody chose; the others are as `controller/settings.py` has them."""

    number = BigIntegerField(primary_key=True)  # always 1
    chosen = JsonField(default=dict)
    update_time = OptionalTimeField()
    version = BigIntegerField()


class Schedule(Table):
    """When a hypervisor's servers are backed up, and where to.

    `overrides` holds what differs from the storage (see `rules/settings.py`). `due_time` is NULL where nothing is ever due by
    itself. `anchor_time` is what the interval was counted from, NULL before the first run since the schedule was switched on.
    """

    schedule_id = id_field()
    hypervisor_id = TextField(index=True)
    storage_id = TextField(index=True)
    enabled = BooleanField()
    default_access = TextField()
    time_zone = text_field()  # "" for the global one
    overrides = JsonField(default=dict)
    due_time = OptionalTimeField(index=True)
    anchor_time = OptionalTimeField()
    last_start_time = OptionalTimeField()
    create_time = TimeField()
    update_time = TimeField()
    delete_time = OptionalTimeField()
    version = BigIntegerField(default=1)


Schedule.add_index(
    Schedule.index(Schedule.hypervisor_id, unique=True, name="schedule_live_hypervisor").where(
        Schedule.delete_time.is_null()
    )
)
