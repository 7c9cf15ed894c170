"""When settings that are not saved yet would run (D17): by the functions that dispatch what is saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import schedules, storages
from controller.rules.schedule import Run
from controller.rules.settings import Resolved


@dataclass(frozen=True, slots=True)
class Imagined:
    """Settings to see the next runs of: a schedule's own ("" for one that is to be made) but for what is given."""

    schedule: str
    storage: str
    time_zone: str | None
    overrides: Mapping[str, Any] | None
    count: int


def preview(asked: Imagined, now: datetime) -> tuple[list[Run], Resolved]:
    """Return the next runs of settings that may not be saved yet, and what these settings amount to (D17).

    Raises ScheduleNotFound, StorageNotFound, BindAddressUnsupported, InvalidField.
    """
    present = schedules.find(asked.schedule) if asked.schedule else None
    if present is not None and not asked.storage and asked.time_zone is None and asked.overrides is None:
        return schedules.next_runs(present, asked.count, now), present.resolved
    storage = storages.find(asked.storage or (present.storage_id if present else ""))
    kept_zone, kept = (present.own_time_zone, present.overrides) if present else ("", {})
    time_zone = kept_zone if asked.time_zone is None else asked.time_zone
    resolved = schedules.check_overrides(storage, kept if asked.overrides is None else asked.overrides, time_zone)
    due_time = schedules.due_after(present, resolved.interval_hours.value, now) if present is not None else None
    return schedules.runs_of(resolved, due_time or now, asked.count, now), resolved
