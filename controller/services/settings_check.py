"""What a schedule's overrides and a storage's defaults must look like before they are saved, and the form they are kept in.

Only what is set is kept; see `rules/settings.py` for the form.
"""

import re
from typing import Any, TypeAlias

from clients.gen.backupmanager.v1 import disk_pb2, schedule_pb2, storage_pb2
from controller.addresses import is_address
from controller.errors import InvalidField
from controller.rules.retention import KEEP_LAST_MAX
from controller.services import check, convert

RATE_MIN = 1 << 10  # bytes a second: below it, a job would not end in the time a job may take
RANGES: dict[str, tuple[int, int]] = {
    "interval_hours": (0, 8760),
    "full_interval_days": (1, 365),
    "keep_last": (0, KEEP_LAST_MAX),
    "backup_concurrency": (1, 64),
    "worker_threads": (1, 64),
}
_WALL = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_ENUMS = {
    "consistency": disk_pb2.ConsistencyMode.DESCRIPTOR,
    "io_priority": storage_pb2.WorkPriority.DESCRIPTOR,
    "cpu_priority": storage_pb2.WorkPriority.DESCRIPTOR,
}

Source: TypeAlias = schedule_pb2.ScheduleOverrides | storage_pb2.StorageDefaults


def settings(message: Source, place: str) -> dict[str, Any]:
    """Return what is set in a message, checked. `place` names it in a refusal. Raises InvalidField."""
    return {field.name: _stored(message, field.name, f"{place}.{field.name}") for field, _ in message.ListFields()}


def rate(field: str, value: int) -> int:
    """Return bytes a second: 0 for no limit, else at least RATE_MIN. Raises InvalidField."""
    if value != 0 and value < RATE_MIN:
        raise InvalidField(field=field, problem=f"must be 0 for none, or at least {RATE_MIN}")
    return value


def _stored(message: Any, name: str, field: str) -> Any:
    value = getattr(message, name)
    if name in RANGES:
        return check.number(field, value, *RANGES[name])
    if name in _ENUMS:
        return convert.enum_word(_ENUMS[name], value)
    if name.endswith("_per_second"):
        return rate(field, value)
    match name:
        case "window":
            return {"start": _wall(f"{field}.start", value.start), "end": _wall(f"{field}.end", value.end)}
        case "allowed_days":
            return sorted({check.number(f"{field}.days", day, 1, 7) for day in value.days})
        case "bind_address":
            return _address(field, value)
        case "retention":
            return convert.policy_json(value)
    return value


def _wall(field: str, text: str) -> str:
    if not _WALL.fullmatch(text):
        raise InvalidField(field=field, problem="must be a time of day, such as 01:30")
    return text


def _address(field: str, text: str) -> str:
    if text and not is_address(text):
        raise InvalidField(field=field, problem="is not an address")
    return text
