"""Settings, and what resolves them: schedules, their runs and presets, as messages."""

from collections.abc import Mapping
from typing import Any

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    preset_pb2,
    retention_pb2,
    schedule_pb2,
    settings_pb2,
    storage_pb2,
)
from controller.rules.presets import Preset
from controller.rules.schedule import Run
from controller.rules.settings import DEFAULTS, Resolved, origins, to_value
from controller.schedules import Schedule
from controller.services import convert
from controller.settings import Stored
from controller.settings import as_dict as settings_by_name


def settings(record: Stored) -> settings_pb2.Settings:
    values = {name: value for name, value in settings_by_name(record.settings).items() if value is not None}
    return settings_pb2.Settings(**values, update_time=convert.time(record.update_time), etag=record.etag)


def overrides(values: Mapping[str, Any]) -> schedule_pb2.ScheduleOverrides:
    """Return settings by name, as they are kept, as a message."""
    made = schedule_pb2.ScheduleOverrides()
    for name, stored in values.items():
        _set(made, name, to_value(name, stored))
    return made


def defaults(values: Mapping[str, Any]) -> storage_pb2.StorageDefaults:
    made = storage_pb2.StorageDefaults()
    for name, stored in values.items():
        _set(made, name, to_value(name, stored))
    return made


def resolved(record: Resolved) -> schedule_pb2.ResolvedSettings:
    made = schedule_pb2.ResolvedSettings(time_zone=record.time_zone.value)
    for name in DEFAULTS:
        _set(made.values, name, getattr(record, name).value)
    for name, origin in origins(record).items():
        made.sources.add(setting=name, origin=_ORIGINS[origin])
    return made


_ORIGINS: dict[str, Any] = {
    "schedule": schedule_pb2.SETTING_ORIGIN_SCHEDULE,
    "storage": schedule_pb2.SETTING_ORIGIN_STORAGE,
    "default": schedule_pb2.SETTING_ORIGIN_DEFAULT,
}


def _set(message: Any, name: str, value: Any) -> None:
    """Set a field to a setting's value, in a way that shows that it is set."""
    match name:
        case "window":
            message.window.start, message.window.end = f"{value.start:%H:%M}", f"{value.end:%H:%M}"
        case "allowed_days":
            message.allowed_days.SetInParent()
            message.allowed_days.days.extend(sorted(value))
        case "retention":
            message.retention.SetInParent()
            message.retention.MergeFrom(convert.policy(value) or retention_pb2.RetentionPolicy())
        case "consistency" | "io_priority" | "cpu_priority":
            kind = message.DESCRIPTOR.fields_by_name[name].enum_type
            setattr(message, name, convert.enum_number(kind, value))
        case _:
            setattr(message, name, value)


def schedule(record: Schedule) -> schedule_pb2.Schedule:
    return schedule_pb2.Schedule(
        schedule_id=record.schedule_id,
        hypervisor_id=record.hypervisor_id,
        storage_id=record.storage_id,
        enabled=record.enabled,
        default_access=convert.enum_number(access_level_pb2.AccessLevel.DESCRIPTOR, record.default_access),
        time_zone=record.own_time_zone,
        overrides=overrides(record.overrides),
        resolved=resolved(record.resolved),
        due_time=convert.time(record.due_time),
        last_start_time=convert.time(record.last_start_time),
        create_time=convert.time(record.create_time),
        update_time=convert.time(record.update_time),
        delete_time=convert.time(record.delete_time),
        etag=record.etag,
    )


def scheduled_run(record: Run) -> schedule_pb2.ScheduledRun:
    return schedule_pb2.ScheduledRun(
        due_time=convert.time(record.due_time),
        start_time=convert.time(record.start_time),
        close_time=convert.time(record.close_time),
    )


def preset(record: Preset) -> preset_pb2.Preset:
    return preset_pb2.Preset(
        name=record.name,
        description=record.description,
        settings=overrides(record.settings),
        compression_level=record.compression_level,
        compression_threads=record.compression_threads,
        cleared=record.cleared,
        left_alone=record.left_alone,
    )
