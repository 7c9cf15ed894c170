"""Presets: performance settings that go together, as data, and what applying one changes (P12-P14, D29). Pure.

listed              set, on the storage and on the schedule
a limit, not listed cleared: the storage has none, the schedule inherits that
anything else       left alone, and named
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.errors import PresetNotFound
from controller.rules.settings import DEFAULTS, IN_LIMITS
from controller.storages import Storage, StorageChange

_MEGABYTE = 1_000_000
LIMITS = ("bandwidth_bytes_per_second", "read_bytes_per_second")


@dataclass(frozen=True, slots=True)
class Preset:
    """`settings` are by the names and in the form of `rules/settings.py`; compression is a storage's alone."""

    name: str
    description: str
    settings: Mapping[str, Any]
    compression_level: int
    compression_threads: int

    @property
    def cleared(self) -> tuple[str, ...]:
        return tuple(name for name in LIMITS if name not in self.settings)

    @property
    def left_alone(self) -> tuple[str, ...]:
        """Every other setting that a schedule can override, and the time zone."""
        return (*(name for name in DEFAULTS if name not in self.settings and name not in LIMITS), "time_zone")


_ALL = (
    Preset(
        "fast-overnight",
        "Through quickly at night, when nobody is disturbed.",
        {
            "backup_concurrency": 3,
            "worker_threads": 4,
            "io_priority": "normal",
            "cpu_priority": "normal",
            "bandwidth_bytes_per_second": 0,
            "read_bytes_per_second": 0,
            "window": {"start": "01:00", "end": "06:00"},
        },
        compression_level=1,
        compression_threads=2,
    ),
    Preset(
        "low-impact",
        "By day, so that the customers' servers hardly notice.",
        {
            "backup_concurrency": 1,
            "worker_threads": 2,
            "io_priority": "idle",
            "cpu_priority": "low",
            "read_bytes_per_second": 50 * _MEGABYTE,
        },
        compression_level=3,
        compression_threads=1,
    ),
    Preset(
        "metered-link",
        "Over a line that is narrow, or paid by volume.",
        {
            "backup_concurrency": 1,
            "worker_threads": 4,
            "bandwidth_bytes_per_second": 25 * _MEGABYTE,
        },
        compression_level=6,
        compression_threads=2,
    ),
)
PRESETS: Mapping[str, Preset] = {one.name: one for one in _ALL}


def find(name: str) -> Preset:
    """Return a preset. Raises PresetNotFound."""
    if name not in PRESETS:
        raise PresetNotFound(preset=name, known=", ".join(PRESETS))
    return PRESETS[name]


def storage_change(preset: Preset, storage: Storage) -> StorageChange:
    """Return what a preset changes on a storage. A level of compression asks for compression."""
    limits = {name: value for name, value in storage.limits.items() if name not in preset.cleared}
    defaults = dict(storage.defaults)
    for name, value in preset.settings.items():
        if name not in IN_LIMITS:
            defaults[name] = value
        elif name.endswith("_priority"):
            limits[name] = f"WORK_PRIORITY_{value.upper()}"
        else:
            limits[name] = value
    compression = {"enabled": True, "level": preset.compression_level, "threads": preset.compression_threads}
    return StorageChange(limits=limits, compression=compression, defaults=defaults)


def overrides_change(preset: Preset) -> dict[str, Any]:
    """Return what a preset changes on a schedule, as `ScheduleChange.overrides`: None drops an override."""
    return {**preset.settings, **dict.fromkeys(preset.cleared)}
