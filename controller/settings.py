"""The settings of the whole installation (G1-G13), as the database has them at this moment.

    chosen by somebody ──► that value          never chosen ──► the default that stands here

They are read where they are used, in the transaction of the work itself, so that a change holds from the next tick on and
for every controller of the database (X14). What a host needs before it can read a database stands in `config.py` instead.
"""

import math
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from controller import happenings
from controller.db import models
from controller.db.statements import find_row
from controller.errors import EtagMismatch, InvalidField
from controller.rules.zones import find_zone

Row = models.GlobalSettings
_DAYS_MAX = 36_500
_HOURS_MAX = 8_760


@dataclass(frozen=True, slots=True)
class Settings:
    """Every global setting. The docs of protos/backupmanager/v1/settings.proto say what each one does."""

    dispatch_paused: bool = False
    dispatch_concurrency: int = 50
    max_concurrent_batches: int | None = None  # None for no limit
    max_batch_hours: float = 48
    max_single_job_hours: float = 24
    max_purges_per_tick: int = 5
    purge_backoff_hours: int = 48
    purge_delay_days: int = 7
    prune_interval_hours: int = 12
    max_prune_storages_per_tick: int = 3
    max_prune_dispatches_per_tick: int = 20
    warning_window_days: int = 7
    health_check_minutes: int = 30
    unhealthy_recheck_minutes: int = 15
    job_retention_days: int = 120
    log_retention_days: int = 30
    event_retention_days: int = 30
    job_log_bytes_max: int = 1 << 20
    log_info_level: bool = False
    manual_backups: bool = True
    manual_restores: bool = True
    backup_cooldown_minutes: int = 60
    restore_cooldown_minutes: int = 60
    time_zone: str = "UTC"
    bundle_storage_id: str = ""

    @property
    def batch_time_max(self) -> timedelta:
        return timedelta(hours=self.max_batch_hours)

    @property
    def single_job_time_max(self) -> timedelta:
        return timedelta(hours=self.max_single_job_hours)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of schedules that name none (D14)."""
        return find_zone("time_zone", self.time_zone)


RANGES: dict[str, tuple[float, float]] = {
    "dispatch_concurrency": (1, 1000),
    "max_concurrent_batches": (1, 100_000),
    "max_batch_hours": (0, _HOURS_MAX),  # zero itself is refused: every batch would be stale at once
    "max_single_job_hours": (0, _HOURS_MAX),
    "max_purges_per_tick": (0, 1000),
    "purge_backoff_hours": (0, _HOURS_MAX),
    "purge_delay_days": (0, _DAYS_MAX),
    "prune_interval_hours": (1, _HOURS_MAX),
    "max_prune_storages_per_tick": (1, 1000),
    "max_prune_dispatches_per_tick": (1, 10_000),
    "warning_window_days": (1, 365),
    "health_check_minutes": (1, 10_080),
    "unhealthy_recheck_minutes": (1, 10_080),
    "job_retention_days": (1, _DAYS_MAX),
    "log_retention_days": (1, _DAYS_MAX),
    "event_retention_days": (1, _DAYS_MAX),
    "job_log_bytes_max": (4096, 16 << 20),
    "backup_cooldown_minutes": (0, 525_600),
    "restore_cooldown_minutes": (0, 525_600),
}
"""Least and most of each number."""

NAMES = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True, slots=True)
class Stored:
    """The settings with what an update needs to know of them. `update_time` is None while nobody has changed any."""

    settings: Settings
    update_time: datetime | None
    etag: str


def get() -> Settings:
    """Return the settings that hold now. Inside `Database.run`."""
    return read().settings


def read() -> Stored:
    """Return the settings with their etag. Inside `Database.run`."""
    row = find_row(Row.number, 1)
    if row is None:
        return Stored(Settings(), None, "0")
    known = {name: value for name, value in row.chosen.items() if name in NAMES}  # a newer version may have had more
    return Stored(Settings(**known), row.update_time, str(row.version))


def update(values: dict[str, Any], etag: str, now: datetime) -> Stored:
    """Choose settings by name and return all of them. Raises InvalidField, EtagMismatch."""
    for name, value in values.items():
        check(name, value)
    if values.get("bundle_storage_id"):
        values = {**values, "bundle_storage_id": _storage_id(values["bundle_storage_id"])}
    Row.insert(number=1, chosen={}, version=0).on_conflict_ignore().execute()
    row = Row.get_by_id(1)
    same = etag in {"", str(row.version)}
    changed = same and (
        Row.update(chosen={**row.chosen, **values}, update_time=now, version=Row.version + 1)
        .where((Row.number == 1) & (Row.version == row.version))
        .execute()
    )
    if not changed:
        raise EtagMismatch(etag=str(row.version))
    happenings.record("settings.updated", now, body={"changed": sorted(values)})
    return read()


def _storage_id(reference: str) -> str:
    """Return the id of a storage that is given by id or name. Raises InvalidField."""
    table = models.Storage
    row = find_row(table.storage_id, reference) or find_row(table.name, reference)
    if row is None:
        raise InvalidField(field="settings.bundle_storage_id", problem="names no storage")
    return str(row.storage_id)


def check(name: str, value: Any) -> None:
    """Raise InvalidField unless a setting may have this value."""
    field = f"settings.{name}"
    if name == "time_zone":
        find_zone(field, value)
    if name not in RANGES or (name == "max_concurrent_batches" and value is None):
        return
    least, most = RANGES[name]
    if not math.isfinite(value) or not least <= value <= most or (value == 0 and isinstance(value, float)):
        raise InvalidField(field=field, problem=f"must be from {least:g} to {most:g}" if least else _above(most, value))


def _above(most: float, value: Any) -> str:
    return f"must be above 0 and at most {most:g}" if isinstance(value, float) else f"must be from 0 to {most:g}"


def as_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings by name."""
    return asdict(settings)
