"""`bmctl schedule`, `preset` and `settings` against the real controller."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from clients.cli.failures import Usage
from clients.cli.overrides import Overrides
from clients.gen.backupmanager.v1.schedule_pb2 import ScheduleOverrides
from tests.clients.bmctl import Bmctl
from tests.servers.controller import Controller
from tests.servers.station import Station


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """A controller with three hypervisors."""
    with Controller(tmp_path_factory.mktemp("controller") / "c") as running:
        for name in ("hv1", "hv2", "hv3"):
            asyncio.run(_enroll(running, name))
        yield running


async def _enroll(controller: Controller, name: str) -> None:
    await Station.enroll(controller, name)


@pytest.fixture(scope="module")
def bmctl(tmp_path_factory: pytest.TempPathFactory, controller: Controller) -> Bmctl:
    runner = Bmctl(tmp_path_factory.mktemp("bmctl"))
    runner.log_in(controller.api, controller.authority_pem, controller.admin_token)
    assert runner("storage", "add", "local", "nas", "--path", "/srv/nas", "--allow-local").code == 0
    return runner


@pytest.mark.feature("D1", "D4", "D5", "D12", "D17", "D21", "D22")
def test_the_life_of_a_schedule(bmctl: Bmctl) -> None:
    options = (
        "--interval",
        "6",
        "--window",
        "22:00-06:00",
        "--days",
        "sat,sun",
        "--workers",
        "8",
        "--retention",
        "gfs-3m",
    )
    added = bmctl("schedule", "add", "hv1", "--storage", "nas", "--time-zone", "Europe/Berlin", *options)
    assert added.code == 0, added
    assert "hv1" in added.out
    for line in ("every 6 h", "22:00 to 06:00", "Sat, Sun", "gfs-3m", "Europe/Berlin"):
        assert line in added.out, line
    assert "next-runs hv1" in added.err

    runs = bmctl("schedule", "next-runs", "hv1", "-n", "3", "-o", "json").json["runs"]
    assert len(runs) == 3
    far = (
        datetime.now(ZoneInfo("Europe/Berlin")) + timedelta(hours=12)
    ).hour  # in a window that is open now runs begin now
    begin, end = f"{far:02}:30", f"{(far + 1) % 24:02}:30"
    imagined = bmctl("schedule", "next-runs", "hv1", "--interval", "24", "--days", "all", "--window", f"{begin}-{end}")
    assert imagined.out.count(f" {begin} ") >= 9
    assert imagined.out.count(f" {end} ") >= 9
    unsaved = ("schedule", "next-runs", "--storage", "nas", "--interval", "12", "-o", "json")
    assert len(bmctl(*unsaved).json["runs"]) == 10

    arguments = ("--workers", "inherit", "--interval", "0", "--access", "full-access", "--upload-limit", "20M")
    after = bmctl("schedule", "set", "hv1", *arguments, "-o", "json").json["schedule"]
    assert "worker_threads" not in after["overrides"]
    assert after["resolved"]["values"]["worker_threads"] == 4
    assert after["overrides"]["bandwidth_bytes_per_second"] == 20 << 20
    assert (after["default_access"], after["due_time"]) == ("ACCESS_LEVEL_FULL_ACCESS", None)

    cloned = bmctl("schedule", "clone", "hv1", "hv1", "hv2")
    assert "hv2" in cloned.out
    assert "hv1 has a schedule already" in cloned.err
    listed = bmctl("schedule", "list").out
    assert listed.count("by hand only") == 2

    assert "● disabled" in bmctl("schedule", "disable", "hv2").out
    assert "● enabled" in bmctl("schedule", "enable", "hv2").out
    assert bmctl("schedule", "delete", "hv1").code == 2, "it asks first"
    deleted = bmctl("schedule", "delete", "hv1", "--yes", "-o", "json").json["schedule"]
    assert deleted["delete_time"]
    assert deleted["schedule_id"] in bmctl("schedule", "list", "--deleted").out
    assert bmctl("schedule", "show", "hv1").code == 3
    back = bmctl("schedule", "undelete", deleted["schedule_id"])
    assert "● disabled" in back.out
    assert "said by" in bmctl("schedule", "show", "hv1").out.lower()


@pytest.mark.feature("D5")
@pytest.mark.parametrize(
    ("name", "text", "option", "problem"),
    [
        ("window", "22-6", "--window", "22:00-06:00"),
        ("allowed_days", "someday", "--days", "mon,tue,fri"),
        ("worker_threads", "many", "--workers", "whole number"),
        ("interval_hours", "-1", "--interval", "whole number"),
        ("io_priority", "high", "--io-priority", "normal, low, idle"),
        ("consistency", "unspecified", "--consistency", "freeze-or-pause"),
        ("bandwidth_bytes_per_second", "fast", "--upload-limit", "20M"),
        ("encryption", "maybe", "--encryption", "on, off"),
    ],
)
def test_what_does_not_fit_names_the_option_and_says_what_would(
    name: str, text: str, option: str, problem: str
) -> None:
    with pytest.raises(Usage) as refused:
        Overrides(**{name: text}).write(ScheduleOverrides())
    assert refused.value.facts["field"] == option
    assert problem in refused.value.facts["problem"]


@pytest.mark.feature("D19")
def test_a_bind_address_where_there_is_none_says_what_helps(bmctl: Bmctl) -> None:
    refused = bmctl("schedule", "add", "hv3", "--storage", "nas", "--bind-address", "192.0.2.7")
    assert (refused.code, "BIND_ADDRESS_UNSUPPORTED" in refused.err) == (4, True)
    assert "--bind-address" in refused.err


@pytest.mark.feature("P12", "D29", "D13")
def test_presets(bmctl: Bmctl) -> None:
    assert bmctl("schedule", "add", "hv3", "--storage", "nas", "--upload-limit", "5M").code == 0
    assert "metered-link" in bmctl("preset", "list").out
    applied = bmctl("preset", "apply", "low-impact", "--storage", "nas", "--schedule", "hv3").out
    for words in ("disk priority idle", "compression level 3", "Cleared", "upload limit", "retention"):
        assert words in applied
    assert bmctl("preset", "apply", "warp", "--storage", "nas").code == 3

    defaults = (
        "--interval",
        "12",
        "--concurrency",
        "2",
        "--window",
        "01:00-05:00",
        "--days",
        "mon",
        "--full-interval",
        "14",
    )
    card = bmctl("storage", "update", "nas", *defaults).out
    for words in ("every 12 h", "01:00 to 05:00", "Mon", "14 days"):
        assert words in card


@pytest.mark.feature("G1", "G2", "G10", "X14")
def test_global_settings(bmctl: Bmctl) -> None:
    shown = bmctl("settings", "show").out
    assert "max-concurrent-batches" in shown
    assert "no limit" in shown

    changed = ("max-concurrent-batches=7", "max-batch-hours=36.5", "manual-backups=off", "time-zone=Europe/Berlin")
    after = bmctl("settings", "set", *changed, "-o", "json").json["settings"]
    assert (after["max_concurrent_batches"], after["max_batch_hours"]) == (7, 36.5)
    assert (after["manual_backups"], after["time_zone"]) == (False, "Europe/Berlin")
    assert "no limit" in bmctl("settings", "set", "max_concurrent_batches=").out

    refused = bmctl("settings", "set", "max-batch-hours=0")
    assert (refused.code, "max_batch_hours" in refused.err) == (2, True)
    for wrong in ("warp=9", "purge-delay-days", "manual-backups=maybe"):
        assert bmctl("settings", "set", wrong).code == 2, wrong
