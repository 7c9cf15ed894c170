"""What a job on a storage goes by: the schedule's word, else the storage's, else the default (D5-D13). Pure.

    schedule.overrides ──has it?──► schedule
            └ no ──► storage ──has it?──► storage
                        └ no ──► default

A storage keeps these settings where they have always been (`limits`, `encryption_enabled`, its source address in `config`)
and the rest in `defaults`; a schedule keeps all it overrides in one dictionary, with the names and values of `DEFAULTS`.
Compression is a storage's alone (D13).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from controller.rules.retention import KEEP_LAST_DEFAULT
from controller.rules.schedule import Hours
from controller.rules.zones import find_zone

if TYPE_CHECKING:
    from controller.schedules import Schedule

T = TypeVar("T")
Origin: TypeAlias = Literal["schedule", "storage", "default"]
SCHEDULE: Origin = "schedule"
STORAGE: Origin = "storage"
DEFAULT: Origin = "default"


class Keeper(Protocol):
    """What a storage says, as a record or as a row."""

    @property
    def config(self) -> Any: ...

    @property
    def limits(self) -> Any: ...

    @property
    def defaults(self) -> Any: ...

    @property
    def encryption_enabled(self) -> Any: ...

    @property
    def retention(self) -> Any: ...

    @property
    def keep_last(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Silent:
    """A storage that says nothing: what is left of one that was forgotten."""

    config: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    encryption_enabled: bool = False
    retention: Mapping[str, Any] = field(default_factory=dict)
    keep_last: int = KEEP_LAST_DEFAULT


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value and who says so."""

    value: T
    origin: Origin


@dataclass(frozen=True, slots=True)
class Window:
    """Wall-clock times, to the minute, between which servers may begin; equal for no window."""

    start: time
    end: time


NO_WINDOW = Window(time(0), time(0))
EVERY_DAY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Resolved:
    """Every setting that a schedule can override, as it holds.

    Rates are bytes a second, 0 for no limit. `retention` is the JSON form of a policy, {} for none. `allowed_days` are ISO
    weekdays, none for all. `interval_hours` 0 means by hand only.
    """

    interval_hours: Setting[int]
    consistency: Setting[str]
    full_interval_days: Setting[int]
    retention: Setting[dict[str, Any]]
    keep_last: Setting[int]
    backup_concurrency: Setting[int]
    worker_threads: Setting[int]
    bandwidth_bytes_per_second: Setting[int]
    read_bytes_per_second: Setting[int]
    io_priority: Setting[str]
    cpu_priority: Setting[str]
    encryption: Setting[bool]
    bind_address: Setting[str]
    window: Setting[Window]
    allowed_days: Setting[frozenset[int]]
    time_zone: Setting[str]

    @property
    def hours(self) -> Hours:
        """When runs may start."""
        zone = find_zone("time_zone", self.time_zone.value)
        return Hours(zone, self.window.value.start, self.window.value.end, self.allowed_days.value)


DEFAULTS: dict[str, Any] = {
    "interval_hours": 24,
    "consistency": "freeze_or_pause",
    "full_interval_days": 7,
    "retention": {},
    "keep_last": KEEP_LAST_DEFAULT,
    "backup_concurrency": 1,
    "worker_threads": 4,
    "bandwidth_bytes_per_second": 0,
    "read_bytes_per_second": 0,
    "io_priority": "normal",
    "cpu_priority": "normal",
    "encryption": False,
    "bind_address": "",
    "window": NO_WINDOW,
    "allowed_days": EVERY_DAY,
}
"""Every setting that a schedule can override, with what holds where nobody says otherwise (R1, T5, P1-P9, D1)."""

IN_LIMITS = frozenset(
    {"worker_threads", "bandwidth_bytes_per_second", "read_bytes_per_second", "io_priority", "cpu_priority"}
)
"""Those that a storage keeps in its `limits`, the JSON form of StorageLimits, where 0 and "" mean not set."""
IN_DEFAULTS = frozenset(DEFAULTS) - IN_LIMITS - {"encryption", "bind_address", "retention", "keep_last"}
"""Those that a storage keeps in its `defaults`."""

_PRIORITY_PREFIX = "WORK_PRIORITY_"


def resolve(storage: Keeper, schedule: "Schedule | None" = None, zone: str = "UTC") -> Resolved:
    """Return what holds on a storage, with a schedule of it or without; `zone` is the installation's time zone."""
    overrides = {} if schedule is None else schedule.overrides
    return resolve_overrides(storage, overrides, "" if schedule is None else schedule.own_time_zone, zone)


def resolve_overrides(storage: Keeper, overrides: Mapping[str, Any], own_zone: str, zone: str) -> Resolved:
    """As `resolve`, for a schedule that is not saved yet: its overrides, and its own time zone ("" for none)."""
    given = storage_values(storage)
    found = {name: _pick(name, overrides, given) for name in DEFAULTS}
    time_zone = Setting(own_zone, SCHEDULE) if own_zone else Setting(zone, DEFAULT)
    return Resolved(**found, time_zone=time_zone)


def storage_values(storage: Keeper) -> dict[str, Any]:
    """Return what a storage itself says, by the names of `DEFAULTS`, in the form that overrides have."""
    given = {name: value for name, value in (storage.defaults or {}).items() if name in IN_DEFAULTS}
    for name in IN_LIMITS:
        value = storage.limits.get(name)
        if value not in {None, "", 0, "0", f"{_PRIORITY_PREFIX}UNSPECIFIED"}:
            given[name] = _from_limits(name, value)
    for name in ("retention", "keep_last"):
        value = getattr(storage, name)
        if value != DEFAULTS[name]:
            given[name] = value
    if storage.encryption_enabled:
        given["encryption"] = True
    if storage.config.get("bind_address"):
        given["bind_address"] = storage.config["bind_address"]
    return given


def to_value(name: str, stored: Any) -> Any:
    """Return a setting's value from the form in which overrides and defaults are kept, which is JSON."""
    parse = _PARSE.get(name)
    return stored if parse is None else parse(stored)


def to_stored(name: str, value: Any) -> Any:
    """The reverse of `to_value`."""
    if name == "window":
        return {"start": f"{value.start:%H:%M}", "end": f"{value.end:%H:%M}"}
    return sorted(value) if name == "allowed_days" else value


def origins(resolved: Resolved) -> dict[str, Origin]:
    """Return who says each setting."""
    return {name: getattr(resolved, name).origin for name in (*DEFAULTS, "time_zone")}


def limits_json(resolved: Resolved) -> dict[str, Any]:
    """Return the JSON form of StorageLimits that these settings amount to."""
    values = {name: getattr(resolved, name).value for name in IN_LIMITS}
    for name in ("io_priority", "cpu_priority"):
        values[name] = f"{_PRIORITY_PREFIX}{values[name].upper()}"
    return values


def _pick(name: str, overrides: Mapping[str, Any], given: Mapping[str, Any]) -> Setting[Any]:
    if name in overrides:
        return Setting(to_value(name, overrides[name]), SCHEDULE)
    if name in given:
        return Setting(to_value(name, given[name]), STORAGE)
    return Setting(DEFAULTS[name], DEFAULT)


def _from_limits(name: str, value: Any) -> Any:
    """Return a value of the JSON form of StorageLimits, which writes 64-bit numbers as text and enums in full."""
    return str(value).removeprefix(_PRIORITY_PREFIX).lower() if name.endswith("_priority") else int(value)


def _window(stored: Mapping[str, str]) -> Window:
    return Window(time.fromisoformat(stored["start"]), time.fromisoformat(stored["end"]))


_PARSE: dict[str, Callable[[Any], Any]] = {"window": _window, "allowed_days": frozenset}
