"""Applying a preset to a storage, and to a schedule of it, in one transaction (D29)."""

from datetime import datetime

from controller import schedules, storages
from controller.db.secrets import Vault
from controller.errors import InvalidField
from controller.rules import presets as rules
from controller.rules.presets import Preset
from controller.schedules import Schedule, ScheduleChange
from controller.storages import Storage


def apply(
    name: str, storage: str, schedule: str, etags: tuple[str, str], vault: Vault, now: datetime
) -> tuple[Preset, Storage, Schedule | None]:
    """Apply a preset; `schedule` is "" for the storage alone, `etags` are of storage and schedule.

    Raises PresetNotFound, StorageNotFound, ScheduleNotFound, ScheduleDeleted, EtagMismatch; InvalidField for a schedule of another
    storage.
    """
    preset, target = rules.find(name), storages.find(storage)
    follower = schedules.find(schedule) if schedule else None
    if follower is not None and follower.storage_id != target.storage_id:
        raise InvalidField(field="schedule_id", problem=f"is a schedule of storage {follower.storage_id}")
    storages.update(target.storage_id, rules.storage_change(preset, target), None, etags[0], vault, now)
    schedules.storage_changed(target.storage_id, now)
    changed = None
    if follower is not None:
        change = ScheduleChange(overrides=rules.overrides_change(preset))
        changed = schedules.update(follower.schedule_id, change, etags[1], now)
    return preset, storages.find(target.storage_id), changed
