"""Settings: the schedule's word, else the storage's, else the default; for every setting and every origin."""

from datetime import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.gen.backupmanager.v1 import schedule_pb2, storage_pb2
from controller.rules.settings import (
    DEFAULTS,
    IN_DEFAULTS,
    IN_LIMITS,
    Silent,
    limits_json,
    origins,
    resolve_overrides,
    to_stored,
    to_value,
)
from controller.services import convert, convert_schedules, settings_check

PRIORITIES = st.sampled_from(["normal", "low", "idle"])
WALL = st.times().map(lambda one: f"{one:%H:%M}")
RATES = st.just(0) | st.integers(1024, 1 << 50)
# What each override may hold, in the form in which it is kept.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "interval_hours": st.integers(0, 8760),
    "consistency": st.sampled_from(["freeze_or_pause", "freeze", "pause", "none"]),
    "full_interval_days": st.integers(1, 365),
    "retention": st.sampled_from([{}, {"preset": "gfs-3m"}, {"daily": 7, "weekly": 4}]),
    "keep_last": st.integers(0, 1000),
    "backup_concurrency": st.integers(1, 64),
    "worker_threads": st.integers(1, 64),
    "bandwidth_bytes_per_second": RATES,
    "read_bytes_per_second": RATES,
    "io_priority": PRIORITIES,
    "cpu_priority": PRIORITIES,
    "encryption": st.booleans(),
    "bind_address": st.sampled_from(["", "192.0.2.7", "2001:db8::7"]),
    "window": st.builds(lambda start, end: {"start": start, "end": end}, WALL, WALL),
    "allowed_days": st.sets(st.integers(1, 7)).map(sorted),
}
OVERRIDES = st.fixed_dictionaries({}, optional=VALUES)


def storage_of(said: dict[str, Any]) -> Silent:
    """Return a storage that says this, each setting kept where a storage keeps it."""
    limits = {
        name: f"WORK_PRIORITY_{value.upper()}" if name.endswith("_priority") else str(value)
        for name, value in said.items()
        if name in IN_LIMITS
    }
    return Silent(
        config={"bind_address": said["bind_address"]} if "bind_address" in said else {},
        limits=limits,
        defaults={name: value for name, value in said.items() if name in IN_DEFAULTS},
        encryption_enabled=said.get("encryption", False),
        retention=said.get("retention", {}),
        keep_last=said.get("keep_last", DEFAULTS["keep_last"]),
    )


def test_the_table_has_every_setting() -> None:
    assert set(VALUES) == set(DEFAULTS)
    assert set(DEFAULTS) == {field.name for field in schedule_pb2.ScheduleOverrides.DESCRIPTOR.fields}
    assert {field.name for field in storage_pb2.StorageDefaults.DESCRIPTOR.fields} == IN_DEFAULTS


@pytest.mark.feature("D5", "D6", "D7", "D8", "D9", "D10", "D11", "D12", "D13", "R1", "R12")
@given(said=OVERRIDES, overrides=OVERRIDES, own_zone=st.sampled_from(["", "Asia/Tokyo"]))
def test_every_setting_comes_from_the_first_who_says_it(
    said: dict[str, Any], overrides: dict[str, Any], own_zone: str
) -> None:
    resolved = resolve_overrides(storage_of(said), overrides, own_zone, "Europe/Berlin")

    for name in DEFAULTS:
        found = getattr(resolved, name)
        if name in overrides:
            assert (found.value, found.origin) == (to_value(name, overrides[name]), "schedule")
        elif name in said and (name in IN_DEFAULTS or to_value(name, said[name]) != DEFAULTS[name]):
            assert (found.value, found.origin) == (to_value(name, said[name]), "storage")
        elif found.origin == "storage":  # an explicit value that happens to be the default
            assert name in said
            assert found.value == to_value(name, said[name]) == DEFAULTS[name]
        else:
            assert (found.value, found.origin) == (DEFAULTS[name], "default")
    assert (resolved.time_zone.value, resolved.time_zone.origin) == (
        ("Asia/Tokyo", "schedule") if own_zone else ("Europe/Berlin", "default")
    )
    assert set(origins(resolved)) == {*DEFAULTS, "time_zone"}


@pytest.mark.feature("D12")
@given(overrides=OVERRIDES)
def test_what_is_kept_is_what_was_said_and_what_is_shown(overrides: dict[str, Any]) -> None:
    message = convert_schedules.overrides(overrides)
    assert settings_check.settings(message, "overrides") == overrides, "also zeros and empty lists are something said"
    for name, stored in overrides.items():
        assert to_stored(name, to_value(name, stored)) == stored
    shown = convert_schedules.resolved(resolve_overrides(Silent(), overrides, "", "UTC"))
    assert settings_check.settings(shown.values, "values").keys() == DEFAULTS.keys(), "each is set"
    assert {one.setting for one in shown.sources if one.origin == schedule_pb2.SETTING_ORIGIN_SCHEDULE} == set(
        overrides
    )


@given(said=OVERRIDES, overrides=OVERRIDES)
def test_an_agent_gets_every_limit_filled_in(said: dict[str, Any], overrides: dict[str, Any]) -> None:
    resolved = resolve_overrides(storage_of(said), overrides, "", "UTC")
    limits = convert.from_json(storage_pb2.StorageLimits, limits_json(resolved))
    assert limits.worker_threads == resolved.worker_threads.value >= 1
    assert limits.bandwidth_bytes_per_second == resolved.bandwidth_bytes_per_second.value
    assert limits.read_bytes_per_second == resolved.read_bytes_per_second.value
    assert storage_pb2.WorkPriority.Name(limits.io_priority) == f"WORK_PRIORITY_{resolved.io_priority.value.upper()}"
    assert storage_pb2.WorkPriority.Name(limits.cpu_priority) == f"WORK_PRIORITY_{resolved.cpu_priority.value.upper()}"


def test_a_schedule_can_open_what_its_storage_closes() -> None:
    storage = Silent(defaults={"window": {"start": "01:00", "end": "06:00"}, "allowed_days": [6]})
    overrides = {"window": {"start": "00:00", "end": "00:00"}, "allowed_days": []}
    assert not resolve_overrides(storage, {}, "", "UTC").hours.always
    assert resolve_overrides(storage, {}, "", "UTC").hours.start == time(1)
    assert resolve_overrides(storage, overrides, "", "UTC").hours.always
