"""What a schedule can override, as options of `bmctl schedule` and `bmctl storage update`, and how each value reads.

An option that is not given changes nothing; `inherit` drops an override, so that the storage's value holds again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from clients.cli import words
from clients.cli.failures import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from clients.gen.backupmanager.v1.schedule_pb2 import ResolvedSettings

INHERIT = "inherit"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)")

Interval: TypeAlias = Annotated[
    str,
    typer.Option("--interval", help="Hours from run to run: 24 is daily, 0 by hand only; or inherit, as all of these."),
]
Consistency: TypeAlias = Annotated[str, typer.Option("--consistency", help="freeze-or-pause, freeze, pause or none.")]
FullInterval: TypeAlias = Annotated[str, typer.Option("--full-interval", help="Days from full to full.")]
Retention: TypeAlias = Annotated[
    str, typer.Option("--retention", help="A retention preset such as gfs-3m; none keeps all.")
]
KeepLast: TypeAlias = Annotated[
    str, typer.Option("--keep-last", help="Chains beside the present one that stay anyway.")
]
Concurrency: TypeAlias = Annotated[str, typer.Option("--concurrency", help="Servers worked on at once.")]
Workers: TypeAlias = Annotated[str, typer.Option("--workers", help="Threads that read and send.")]
UploadLimit: TypeAlias = Annotated[str, typer.Option("--upload-limit", help="Bytes a second: 20M, 1G; 0 for none.")]
ReadLimit: TypeAlias = Annotated[str, typer.Option("--read-limit", help="Disk reads, bytes a second; 0 for none.")]
IoPriority: TypeAlias = Annotated[str, typer.Option("--io-priority", help="normal, low or idle.")]
CpuPriority: TypeAlias = Annotated[str, typer.Option("--cpu-priority", help="normal, low or idle.")]
Encryption: TypeAlias = Annotated[str, typer.Option("--encryption", help="on or off.")]
BindAddress: TypeAlias = Annotated[str, typer.Option("--bind-address", help="Source address, one of the hypervisor's.")]
Window: TypeAlias = Annotated[str, typer.Option("--window", help="When servers may begin: 22:00-06:00, or always.")]
Days: TypeAlias = Annotated[str, typer.Option("--days", help="On which days: mon,tue,fri; or all.")]


@dataclass(frozen=True, slots=True)
class Overrides:
    """The options as they were typed, "" where one was not given. The names are those of ScheduleOverrides."""

    interval_hours: str = ""
    consistency: str = ""
    full_interval_days: str = ""
    retention: str = ""
    keep_last: str = ""
    backup_concurrency: str = ""
    worker_threads: str = ""
    bandwidth_bytes_per_second: str = ""
    read_bytes_per_second: str = ""
    io_priority: str = ""
    cpu_priority: str = ""
    encryption: str = ""
    bind_address: str = ""
    window: str = ""
    allowed_days: str = ""

    def write(self, target: Any) -> list[str]:
        """Write what was given into ScheduleOverrides or StorageDefaults, and return the names. Raises Usage."""
        given = [name for name in self.__dataclass_fields__ if getattr(self, name)]
        for name in given:
            text = getattr(self, name)
            if text == INHERIT:
                target.ClearField(name)
                continue
            try:
                _WRITE.get(name, _number)(target, name, text)
            except ValueError as error:
                raise Usage(field=_OPTIONS.get(name, f"--{name.replace('_', '-')}"), problem=str(error)) from error
        return given


def shown(name: str, values: Any) -> str:
    """Return a setting's value for people."""
    value = getattr(values, name)
    if name == "interval_hours":
        return {0: "by hand only", 24: "daily", 168: "weekly"}.get(value, f"every {value} h")
    if name in {"consistency", "io_priority", "cpu_priority"}:
        return words.enum_label(values, name).replace("freeze or pause", "freeze, else pause")
    if name.endswith("_per_second"):
        return words.rate(value) if value else "no limit"
    return str(_SHOWN.get(name, str)(value))


def rows(resolved: ResolvedSettings) -> list[tuple[str, str, str]]:
    """Return setting, value and who says so, for each setting in the order of the interface."""
    origins = {one.setting: words.enum_label(one, "origin") for one in resolved.sources}
    names = [field.name for field in resolved.values.DESCRIPTOR.fields]
    found = [(title(name), shown(name, resolved.values), origins.get(name, "-")) for name in names]
    return [*found, ("time zone", resolved.time_zone, origins.get("time_zone", "-"))]


def title(name: str) -> str:
    """Return a setting's name for people: `bandwidth_bytes_per_second` is `upload limit`."""
    return _TITLES.get(name, name.replace("_", " "))


_OPTIONS = {
    "interval_hours": "--interval",
    "full_interval_days": "--full-interval",
    "backup_concurrency": "--concurrency",
    "worker_threads": "--workers",
    "bandwidth_bytes_per_second": "--upload-limit",
    "read_bytes_per_second": "--read-limit",
    "allowed_days": "--days",
}
_TITLES = {
    "interval_hours": "interval",
    "full_interval_days": "full interval",
    "bandwidth_bytes_per_second": "upload limit",
    "read_bytes_per_second": "read limit",
    "io_priority": "disk priority",
    "cpu_priority": "CPU priority",
    "allowed_days": "days",
}


# ---- one value each ----------------------------------------------------------------------------------------------------


def _number(target: Any, name: str, text: str) -> None:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ValueError(f"must be a whole number, or {INHERIT}")
    setattr(target, name, int(text))


def _rate(target: Any, name: str, text: str) -> None:
    setattr(target, name, words.parse_rate(text))


def _enum(target: Any, name: str, text: str) -> None:
    kind = target.DESCRIPTOR.fields_by_name[name].enum_type
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = kind.values_by_name.get(prefix + text.replace("-", "_").upper())
    if value is None or value.number == 0:
        known = [one.name.removeprefix(prefix).replace("_", "-").lower() for one in kind.values if one.number]
        raise ValueError(f"must be one of {', '.join(known)}, {INHERIT}")
    setattr(target, name, value.number)


def _switch(target: Any, name: str, text: str) -> None:
    if text not in {"on", "off"}:
        raise ValueError(f"must be on, off or {INHERIT}")
    setattr(target, name, text == "on")


def _text(target: Any, name: str, text: str) -> None:
    setattr(target, name, "" if text == "none" else text)


def _window(target: Any, _name: str, text: str) -> None:
    match = _WINDOW.fullmatch("00:00-00:00" if text == "always" else text)
    if match is None:
        raise ValueError("must be two times of day, such as 22:00-06:00, or always")
    target.window.start, target.window.end = match[1], match[2]


def _days(target: Any, _name: str, text: str) -> None:
    chosen = [] if text == "all" else [one.strip().lower()[:3] for one in text.split(",")]
    if not set(chosen) <= set(_DAYS):
        raise ValueError("must be days such as mon,tue,fri, or all")
    target.ClearField("allowed_days")
    target.allowed_days.SetInParent()
    target.allowed_days.days.extend(_DAYS.index(one) + 1 for one in chosen)


def _retention(target: Any, _name: str, text: str) -> None:
    target.ClearField("retention")
    target.retention.SetInParent()
    target.retention.preset = "" if text == "none" else text


_WRITE: dict[str, Callable[[Any, str, str], None]] = {
    "consistency": _enum,
    "io_priority": _enum,
    "cpu_priority": _enum,
    "bandwidth_bytes_per_second": _rate,
    "read_bytes_per_second": _rate,
    "encryption": _switch,
    "bind_address": _text,
    "window": _window,
    "allowed_days": _days,
    "retention": _retention,
}


def _shown_window(window: Any) -> str:
    return "at any time" if window.start == window.end else f"{window.start} to {window.end}"


def _shown_days(allowed: Any) -> str:
    return ", ".join(_DAYS[day - 1].title() for day in allowed.days) if 0 < len(allowed.days) < 7 else "every day"


def _shown_retention(policy: Any) -> str:
    if policy.preset:
        return str(policy.preset)
    given = [f"{value} {field.name}" for field, value in policy.ListFields() if field.name != "trim_tails"]
    return ", ".join(given) or "nothing is pruned"


_SHOWN: dict[str, Callable[[Any], str]] = {
    "full_interval_days": lambda days: words.plural(days, "day"),
    "encryption": lambda on: "on" if on else "off",
    "bind_address": lambda address: address or "any",
    "window": _shown_window,
    "allowed_days": _shown_days,
    "retention": _shown_retention,
}
