"""Global settings over the wire: what they are at first, what is refused, and that a change holds for the next tick."""

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import settings_pb2, settings_service_pb2
from controller.settings import NAMES, RANGES, Settings, as_dict
from tests.controller.services.api import Api, field_refused, refusal
from tests.servers.controller import Controller

MANUAL = Path(__file__).parents[3] / "docs" / "schedules.md"
GET, UPDATE = settings_service_pb2.GetSettingsRequest, settings_service_pb2.UpdateSettingsRequest
INFINITE = float("inf")


async def read(api: Api) -> settings_pb2.Settings:
    return (await api.settings.GetSettings(GET())).settings


async def change(api: Api, *paths: str, **values: Any) -> settings_pb2.Settings:
    mask = FieldMask(paths=paths or [name for name in values if name != "etag"])
    request = UPDATE(settings=settings_pb2.Settings(**values), update_mask=mask)
    return (await api.settings.UpdateSettings(request)).settings


@pytest.mark.feature("G1", "G2", "G3", "G4", "G5", "G7", "G8", "G9", "G10", "G11", "G12", "G13")
async def test_they_are_at_first_what_the_feature_list_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Controller(tmp_path_factory.mktemp("fresh") / "c") as controller:
        async with controller.channel() as channel:
            found = await read(Api(channel))
    assert not found.HasField("max_concurrent_batches"), "unlimited"
    assert not found.HasField("update_time"), "nobody has changed anything yet"
    found.ClearField("etag")
    assert found == settings_pb2.Settings(
        dispatch_concurrency=50,
        max_batch_hours=48, max_single_job_hours=24,
        max_purges_per_tick=5, purge_backoff_hours=48, purge_delay_days=7,
        prune_interval_hours=12, max_prune_storages_per_tick=3, max_prune_dispatches_per_tick=20, warning_window_days=7,
        health_check_minutes=30, unhealthy_recheck_minutes=15,
        job_retention_days=120, log_retention_days=30, event_retention_days=30, job_log_bytes_max=1 << 20,
        manual_backups=True, manual_restores=True, backup_cooldown_minutes=60, restore_cooldown_minutes=60,
        time_zone="UTC",
    )  # fmt: skip


@pytest.mark.feature("G1", "G2")
async def test_only_what_the_mask_names_is_changed_and_a_limit_can_be_taken_away(api: Api) -> None:
    before = await read(api)
    after = await change(
        api,
        "max_concurrent_batches",
        "max_batch_hours",
        max_concurrent_batches=7,
        max_batch_hours=0.5,
        warning_window_days=99,
    )
    assert (after.max_concurrent_batches, after.max_batch_hours) == (7, 0.5)
    assert after.warning_window_days == before.warning_window_days
    assert after.etag != before.etag
    assert after.HasField("update_time")

    assert not (await change(api, "max_concurrent_batches")).HasField("max_concurrent_batches")


async def test_a_change_of_an_older_version_is_refused(api: Api) -> None:
    before = await read(api)
    after = await change(api, warning_window_days=8, etag=before.etag)

    found = await refusal(change(api, warning_window_days=9, etag=before.etag))

    assert (found.reason, found.status, found.facts) == ("ETAG_MISMATCH", "ABORTED", {"etag": after.etag})
    assert (await read(api)).warning_window_days == 8


@pytest.mark.parametrize("name", sorted(RANGES))
async def test_every_number_has_a_least_and_a_most(api: Api, name: str) -> None:
    least, most = RANGES[name]
    before = await read(api)
    for value in (least - 1, most + 1):
        assert await field_refused(change(api, **{name: int(value)})) == f"settings.{name}"
    assert (await read(api)) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_hours", 0.0),
        ("max_batch_hours", INFINITE),
        ("max_single_job_hours", float("nan")),
        ("max_single_job_hours", 0.0),
        ("time_zone", ""),
        ("time_zone", "Mars/Olympus"),
        ("time_zone", "../../etc/passwd"),
        ("time_zone", "Europe"),
        ("time_zone", "localtime"),
    ],
)
async def test_what_makes_no_sense_is_refused(api: Api, name: str, value: Any) -> None:
    assert await field_refused(change(api, name, **{name: value})) == f"settings.{name}"


async def test_a_mask_of_nothing_or_of_something_else_is_refused(api: Api) -> None:
    assert await field_refused(api.settings.UpdateSettings(UPDATE())) == "update_mask"
    assert await field_refused(change(api, "etag")) == "update_mask"


def test_the_manual_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \| .*? \|$", MANUAL.read_text(), re.MULTILINE))
    words = {True: "on", False: "off", None: "no limit"}
    wanted = {
        name.replace("_", "-"): words[value] if value is None or isinstance(value, bool) else str(value) or "none"
        for name, value in as_dict(Settings()).items()
    }
    assert rows == wanted
    fields = {field.name for field in settings_pb2.Settings.DESCRIPTOR.fields}
    assert fields - {"update_time", "etag"} == set(NAMES)
