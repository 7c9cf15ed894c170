"""Schedules and presets over the wire: what is saved and shown, what is refused, and previews of what is not saved."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    disk_pb2,
    preset_service_pb2,
    retention_pb2,
    schedule_pb2,
    schedule_service_pb2,
    storage_pb2,
    storage_service_pb2,
)
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Station

M = schedule_service_pb2
OVERRIDES = schedule_pb2.ScheduleOverrides
NIGHT = storage_pb2.TimeWindow(start="22:00", end="06:00")


@pytest.fixture
async def host(controller: Controller) -> str:
    """The name of a hypervisor that has no schedule yet."""
    name = fresh("host")
    await Station.enroll(controller, name)
    return name


async def make(api: Api, host: str, storage: str = "", **fields: Any) -> schedule_pb2.Schedule:
    storage = storage or (await api.make_storage()).name
    return (
        await api.schedules.CreateSchedule(M.CreateScheduleRequest(hypervisor_id=host, storage_id=storage, **fields))
    ).schedule


async def update(api: Api, changed: schedule_pb2.Schedule, *paths: str) -> schedule_pb2.Schedule:
    request = M.UpdateScheduleRequest(schedule=changed, update_mask=FieldMask(paths=paths))
    return (await api.schedules.UpdateSchedule(request)).schedule


def origin(found: schedule_pb2.Schedule, name: str) -> str:
    number = {one.setting: one.origin for one in found.resolved.sources}[name]
    return schedule_pb2.SettingOrigin.Name(number).removeprefix("SETTING_ORIGIN_").lower()


@pytest.mark.feature("D1", "D5", "D12")
async def test_a_schedule_says_what_holds_and_who_says_so(api: Api, host: str) -> None:
    storage = await api.make_storage(
        limits=storage_pb2.StorageLimits(worker_threads=8),
        defaults=storage_pb2.StorageDefaults(interval_hours=6, window=NIGHT),
    )
    assert storage.defaults.interval_hours == 6
    overrides = OVERRIDES(
        bandwidth_bytes_per_second=0, keep_last=5, retention=retention_pb2.RetentionPolicy(preset="gfs-3m"),
        consistency=disk_pb2.CONSISTENCY_MODE_PAUSE,
        allowed_days=storage_pb2.AllowedDays(days=[storage_pb2.WEEKDAY_SUNDAY, storage_pb2.WEEKDAY_MONDAY]),
    )  # fmt: skip
    made = await make(api, host, storage.name, overrides=overrides, time_zone="Europe/Berlin")

    assert (made.enabled, made.storage_id) == (True, storage.storage_id)
    assert made.default_access == access_level_pb2.ACCESS_LEVEL_SCHEDULED_ONLY
    assert made.due_time == made.create_time
    values = made.resolved.values
    assert (values.worker_threads, origin(made, "worker_threads")) == (8, "storage")
    assert (values.interval_hours, origin(made, "interval_hours")) == (6, "storage")
    assert (values.window, origin(made, "window")) == (NIGHT, "storage")
    assert (values.bandwidth_bytes_per_second, origin(made, "bandwidth_bytes_per_second")) == (0, "schedule")
    assert (values.keep_last, origin(made, "keep_last")) == (5, "schedule")
    assert (values.retention.monthly, origin(made, "retention")) == (3, "schedule")
    assert list(values.allowed_days.days) == [1, 7]
    assert (made.resolved.time_zone, origin(made, "time_zone")) == ("Europe/Berlin", "schedule")
    assert (values.backup_concurrency, origin(made, "backup_concurrency")) == (1, "default")
    assert (await api.schedules.GetSchedule(M.GetScheduleRequest(schedule_id=host))).schedule == made


@pytest.mark.feature("D5", "D12")
async def test_an_update_touches_what_its_mask_names_and_drops_what_is_not_set(api: Api, host: str) -> None:
    made = await make(api, host, overrides=OVERRIDES(worker_threads=8, keep_last=5))

    changed = schedule_pb2.Schedule(schedule_id=host, overrides=OVERRIDES(worker_threads=2), etag=made.etag)
    after = await update(api, changed, "overrides.worker_threads", "overrides.bind_address")
    assert after.overrides == OVERRIDES(worker_threads=2, keep_last=5)
    assert await refused(update(api, changed, "overrides")) == "ETAG_MISMATCH"

    changed.etag = after.etag
    after = await update(api, changed, "overrides")
    assert after.overrides == OVERRIDES(worker_threads=2)
    assert (after.resolved.values.keep_last, origin(after, "keep_last")) == (2, "default")

    for paths in ((), ("hypervisor_id",), ("enabled",), ("overrides.nothing",)):
        assert await field_refused(update(api, changed, *paths)) == "update_mask"
    assert await field_refused(update(api, changed, "default_access")) == "schedule.default_access"


@pytest.mark.feature("D5", "D14", "D15", "D18", "S27")
@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (OVERRIDES(interval_hours=-1), "overrides.interval_hours"),
        (OVERRIDES(interval_hours=8761), "overrides.interval_hours"),
        (OVERRIDES(full_interval_days=0), "overrides.full_interval_days"),
        (OVERRIDES(keep_last=-1), "overrides.keep_last"),
        (OVERRIDES(backup_concurrency=0), "overrides.backup_concurrency"),
        (OVERRIDES(worker_threads=65), "overrides.worker_threads"),
        (OVERRIDES(bandwidth_bytes_per_second=1), "overrides.bandwidth_bytes_per_second"),
        (OVERRIDES(read_bytes_per_second=-5), "overrides.read_bytes_per_second"),
        (OVERRIDES(bind_address="eth0"), "overrides.bind_address"),
        (OVERRIDES(window=storage_pb2.TimeWindow(start="24:00", end="06:00")), "overrides.window.start"),
        (OVERRIDES(window=storage_pb2.TimeWindow(start="01:00")), "overrides.window.end"),
        (OVERRIDES(allowed_days=storage_pb2.AllowedDays(days=[storage_pb2.WEEKDAY_UNSPECIFIED])), "overrides.allowed_days.days"),
        (OVERRIDES(encryption=True), "overrides.encryption"),
        (OVERRIDES(retention=retention_pb2.RetentionPolicy(preset="for-ever")), "retention.preset"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_when_it_is_saved(
    api: Api, host: str, overrides: schedule_pb2.ScheduleOverrides, field: str
) -> None:
    assert await field_refused(make(api, host, overrides=overrides)) == field
    assert await field_refused(make(api, host, time_zone="Middle/Earth")) == "time_zone"
    assert await refused(api.schedules.GetSchedule(M.GetScheduleRequest(schedule_id=host))) == "SCHEDULE_NOT_FOUND"


@pytest.mark.feature("D19", "D2")
async def test_refusals_name_their_reason_and_facts(api: Api, host: str) -> None:
    found = await refusal(make(api, host, overrides=OVERRIDES(bind_address="192.0.2.7")))
    assert (found.reason, found.status, found.facts["type"]) == (
        "BIND_ADDRESS_UNSUPPORTED",
        "FAILED_PRECONDITION",
        "local",
    )
    made = await make(api, host)
    found = await refusal(make(api, host))
    assert (found.reason, found.status, found.facts["schedule_id"]) == (
        "SCHEDULE_EXISTS",
        "ALREADY_EXISTS",
        made.schedule_id,
    )
    assert await refused(make(api, "nobody")) == "HYPERVISOR_NOT_FOUND"
    storage = storage_service_pb2.DeleteStorageRequest(storage_id=made.storage_id)
    assert (await refusal(api.storages.DeleteStorage(storage))).facts["schedule_count"] == "1"


@pytest.mark.feature("D2", "D4", "D21", "D22", "D28")
async def test_off_on_deleted_listed_and_back(api: Api, controller: Controller, host: str) -> None:
    storage = (await api.make_storage()).name
    made = await make(api, host, storage, enabled=False, overrides=OVERRIDES(interval_hours=12))
    assert not made.HasField("due_time")
    on = (await api.schedules.EnableSchedule(M.EnableScheduleRequest(schedule_id=host))).schedule
    assert on.HasField("due_time")
    off = (await api.schedules.DisableSchedule(M.DisableScheduleRequest(schedule_id=host))).schedule
    assert not off.HasField("due_time")

    others = [fresh("host"), fresh("host")]
    for name in others:
        await Station.enroll(controller, name)
    request = M.CloneScheduleRequest(schedule_id=host, hypervisor_ids=[host, *others])
    cloned = await api.schedules.CloneSchedule(request)
    assert [one.overrides for one in cloned.schedules] == [made.overrides] * 2
    assert [one.schedule_id for one in cloned.passed_over] == [made.schedule_id]

    gone = (await api.schedules.DeleteSchedule(M.DeleteScheduleRequest(schedule_id=host))).schedule
    assert gone.HasField("delete_time")

    async def listed(**filters: Any) -> list[str]:
        ask = lambda token: api.schedules.ListSchedules(
            M.ListSchedulesRequest(page_size=1, page_token=token, storage_id=storage, **filters)
        )
        return [one.schedule_id for one in await all_pages(ask, "schedules")]

    assert await listed() == sorted(one.schedule_id for one in cloned.schedules)
    assert await listed(deleted=True) == [made.schedule_id]
    assert await listed(enabled=True) == []
    assert await listed(hypervisor_id=others[0]) == [cloned.schedules[0].schedule_id]
    back = await api.schedules.UndeleteSchedule(M.UndeleteScheduleRequest(schedule_id=made.schedule_id))
    assert not back.schedule.enabled
    assert not back.schedule.HasField("delete_time")


@pytest.mark.feature("D14", "D15", "D16", "D17", "D21")
async def test_next_runs_of_saved_and_unsaved_settings(api: Api, host: str) -> None:
    storage = (await api.make_storage()).name
    made = await make(api, host, storage, overrides=OVERRIDES(interval_hours=12))
    ask, request = api.schedules.PreviewNextRuns, M.PreviewNextRunsRequest

    saved = (await ask(request(schedule_id=host, count=3))).runs
    assert [one.due_time.seconds - saved[0].due_time.seconds for one in saved] == [0, 43200, 86400]
    assert saved[0].due_time == made.due_time
    assert not saved[0].HasField("close_time")

    sundays = storage_pb2.AllowedDays(days=[storage_pb2.WEEKDAY_SUNDAY])
    imagined = OVERRIDES(interval_hours=24, window=NIGHT, allowed_days=sundays)
    for asked in (
        request(schedule_id=host, overrides=imagined, time_zone="Asia/Tokyo"),
        request(storage_id=storage, overrides=imagined, time_zone="Asia/Tokyo"),
    ):
        shown = await ask(asked)
        assert len(shown.runs) == 10
        starts = [one.start_time.ToDatetime() for one in shown.runs]
        assert all((one.hour, one.weekday()) == (13, 6) for one in starts[1:]), "22:00 in Tokyo, on Sundays"
        assert shown.resolved.values.interval_hours == 24
        assert shown.runs[1].close_time.seconds - shown.runs[1].start_time.seconds == 8 * 3600
    assert (await api.schedules.GetSchedule(M.GetScheduleRequest(schedule_id=host))).schedule == made, (
        "nothing was saved"
    )

    assert not (await ask(request(storage_id=storage, overrides=OVERRIDES(interval_hours=0)))).runs
    assert await field_refused(ask(request())) == "storage_id"
    assert await field_refused(ask(request(schedule_id=host, count=101))) == "count"
    assert await field_refused(ask(request(schedule_id=host, time_zone="Nowhere"))) == "time_zone"


@pytest.mark.feature("P12", "P13", "P14", "D29")
async def test_presets_are_listed_and_applied_and_name_what_they_left_alone(api: Api, host: str) -> None:
    listed = (await api.presets.ListPresets(preset_service_pb2.ListPresetsRequest())).presets
    assert [one.name for one in listed] == ["fast-overnight", "low-impact", "metered-link"]
    low = listed[1]
    assert (low.settings.worker_threads, low.settings.read_bytes_per_second) == (2, 50_000_000)
    assert (low.settings.io_priority, low.settings.cpu_priority) == (3, 2)
    assert (low.compression_level, low.compression_threads) == (3, 1)
    assert list(low.cleared) == ["bandwidth_bytes_per_second"]
    assert {"window", "retention", "interval_hours"} < set(low.left_alone)

    made = await make(api, host, overrides=OVERRIDES(bandwidth_bytes_per_second=5000, keep_last=9))
    request = preset_service_pb2.ApplyPresetRequest(preset="low-impact", storage_id=made.storage_id, schedule_id=host)
    applied = await api.presets.ApplyPreset(request)
    assert applied.preset == low
    assert applied.storage.limits.read_bytes_per_second == 50_000_000
    assert applied.schedule.overrides.keep_last == 9
    assert not applied.schedule.overrides.HasField("bandwidth_bytes_per_second")
    request.preset = "warp"
    found = await refusal(api.presets.ApplyPreset(request))
    assert (found.reason, found.status) == ("PRESET_NOT_FOUND", "NOT_FOUND")
