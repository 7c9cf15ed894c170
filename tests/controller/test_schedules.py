"""Schedules in the database: one for a hypervisor, when each is due, what a clone gets, what deleting keeps."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from controller import presets, schedule_clones, schedules, settings, storages
from controller.agents import commands, outbox
from controller.errors import (
    BindAddressUnsupported,
    EncryptionImmutable,
    EtagMismatch,
    HypervisorNotFound,
    InvalidField,
    ScheduleDeleted,
    ScheduleExists,
    ScheduleNotFound,
    StorageInUse,
    StorageNotFound,
)
from controller.rules.presets import PRESETS
from controller.rules.settings import DEFAULTS
from controller.schedules import NewSchedule, Schedule, ScheduleChange
from tests.controller.world import World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _things(world: World) -> None:
    world.enroll("h1")
    world.storage("nas")


def make(world: World, hypervisor: str = "h1", storage: str = "nas", **values: Any) -> Schedule:
    overrides = values.pop("overrides", {})
    new = NewSchedule(hypervisor, storage, "scheduled_only", overrides=overrides, **values)
    return world.run(schedules.create, new, world.now())


def change(world: World, schedule: Schedule, **values: Any) -> Schedule:
    etag = values.pop("etag", "")
    return world.run(schedules.update, schedule.schedule_id, ScheduleChange(**values), etag, world.now())


def due(world: World) -> list[str]:
    return [one.schedule_id for one in world.run(schedules.due, world.now())]


def start(world: World, schedule: Schedule) -> Schedule:
    return started(world, schedule.schedule_id, world.now())


def started(world: World, schedule_id: str, now: datetime) -> Schedule:
    """Have a run of it started now; return what became of it."""
    world.run(lambda: schedules.started(schedules.get(schedule_id), now))
    return world.run(schedules.get, schedule_id)


def again(world: World, schedule: Schedule) -> Schedule:
    return world.run(schedules.get, schedule.schedule_id)


# ---- when it is due ----------------------------------------------------------------------------------------------------


@pytest.mark.feature("D1", "D28")
def test_a_new_schedule_is_due_at_once_and_then_an_interval_after_it_was_due(world: World) -> None:
    made = make(world, overrides={"interval_hours": 6})
    assert due(world) == [made.schedule_id]

    world.clock.advance(120)  # the tick that noticed
    ran = start(world, made)
    assert made.due_time is not None
    assert ran.due_time == made.due_time + 6 * HOUR, "from when it was due, not from the tick"
    assert due(world) == []

    world.clock.advance(6 * 3600)
    assert due(world) == [made.schedule_id]
    world.clock.advance(50 * 3600)  # a batch, a pause: eight firings were missed
    late = start(world, made)
    assert late.due_time is not None
    assert late.last_start_time is not None
    assert late.due_time == late.last_start_time + 6 * HOUR, "one run stands for all, and the interval counts from it"
    assert due(world) == []


@pytest.mark.feature("D14", "D17", "D28")
def test_the_dispatcher_starts_exactly_the_runs_that_the_preview_has_shown_over_both_clock_changes(
    world: World,
) -> None:
    """Walk a year's end of summer time and its beginning by ticks of ten minutes, and compare with one preview from before."""
    for begin in (datetime(2026, 10, 22, tzinfo=UTC), datetime(2027, 3, 25, tzinfo=UTC)):
        world.clock.time = begin
        overrides = {
            "interval_hours": 5,
            "window": {"start": "22:30", "end": "03:10"},
            "allowed_days": [1, 2, 4, 5, 6, 7],
        }
        made = make(world, time_zone="Europe/Berlin", overrides=overrides)
        shown = world.run(schedules.next_runs, made, 12, made.due_time or begin)

        starts: list[datetime] = []
        while len(starts) < len(shown):
            world.clock.time += timedelta(minutes=10)
            now = world.clock.time
            if world.run(schedules.due, now):
                started(world, made.schedule_id, now)
                starts.append(now)

        late = [real - run.start_time for real, run in zip(starts, shown, strict=True)]
        # A waited-for run counts from its real start, so ticks of ten minutes may add up, and never bring one forward.
        assert all(timedelta(0) <= one < timedelta(minutes=10 * (number + 2)) for number, one in enumerate(late)), late
        world.run(schedules.delete, made.schedule_id, world.now())


@pytest.mark.feature("D28")
def test_a_daily_run_without_a_window_keeps_its_instant_over_a_clock_change(world: World) -> None:
    world.clock.time = datetime(2026, 10, 24, 1, 0, tzinfo=UTC)  # the night before clocks go back in Berlin
    made = make(world, time_zone="Europe/Berlin")

    first, second, third = (run.due_time for run in world.run(schedules.next_runs, made, 3, made.create_time))

    assert second - first == third - second == DAY
    berlin = ZoneInfo("Europe/Berlin")
    assert first.astimezone(berlin).hour == 3
    assert second.astimezone(berlin).hour == 2, "elapsed hours, so the wall clock shows one less"


@pytest.mark.feature("D14", "D15", "D16")
def test_a_due_run_waits_for_window_and_day_together(world: World) -> None:
    world.clock.time = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # a Friday
    overrides = {"window": {"start": "23:00", "end": "02:00"}, "allowed_days": [7]}
    made = make(world, time_zone="UTC", overrides=overrides)

    for moment, opens in (
        (datetime(2026, 11, 20, 23, 30, tzinfo=UTC), False),
        (datetime(2026, 11, 22, 1, 0, tzinfo=UTC), False),  # of Saturday's window, on Sunday
        (datetime(2026, 11, 22, 22, 59, tzinfo=UTC), False),
        (datetime(2026, 11, 22, 23, 0, tzinfo=UTC), True),
        (datetime(2026, 11, 23, 1, 59, tzinfo=UTC), True),  # a Monday, in the window that opened on Sunday
        (datetime(2026, 11, 23, 2, 0, tzinfo=UTC), False),
    ):
        assert bool(world.run(schedules.due, moment)) is opens, moment
    assert again(world, made).due_time == made.due_time, "looking changes nothing"


@pytest.mark.feature("D21")
def test_interval_0_is_never_due_until_it_has_one(world: World) -> None:
    made = make(world, overrides={"interval_hours": 0})
    world.clock.advance(10 * 86_400)
    assert due(world) == []
    assert made.due_time is None
    assert world.run(schedules.next_runs, made, 5, world.now()) == []

    assert start(world, made).due_time is None, "forced, and still by hand only"
    change(world, made, overrides={"interval_hours": 4})
    assert due(world) == [made.schedule_id]


@pytest.mark.feature("D28", "D5")
def test_another_interval_counts_from_where_the_old_one_did(world: World) -> None:
    made = make(world, overrides={"interval_hours": 24})
    ran = start(world, made)
    assert ran.due_time is not None
    assert change(world, made, overrides={"interval_hours": 6}).due_time == ran.due_time - 18 * HOUR
    assert change(world, made, overrides={"interval_hours": None}).due_time == ran.due_time, (
        "the default is daily again"
    )

    nas = world.run(storages.find, "nas")
    world.change_storage(nas, defaults={"interval_hours": 48})
    world.run(schedules.storage_changed, nas.storage_id, world.now())
    assert again(world, made).due_time == ran.due_time + DAY, "and it follows its storage"


@pytest.mark.feature("D26", "D28")
def test_a_run_that_is_forced_before_it_is_due_leaves_the_rhythm_alone(world: World) -> None:
    made = make(world)
    ran = start(world, made)
    world.clock.advance(3600)

    forced = start(world, made)

    assert forced.due_time == ran.due_time
    assert ran.last_start_time is not None
    assert forced.last_start_time is not None
    assert forced.last_start_time > ran.last_start_time


@pytest.mark.feature("D28", "D22")
def test_off_and_on_again_makes_it_due_at_once_and_on_twice_changes_nothing(world: World) -> None:
    made = make(world, enabled=False)
    assert due(world) == []
    on = world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=True)
    assert due(world) == [made.schedule_id]
    assert world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=True) == on

    start(world, made)
    world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=False)
    world.clock.advance(48 * 3600)
    assert due(world) == []
    world.run(schedules.set_enabled, made.schedule_id, world.now(), enabled=True)
    assert due(world) == [made.schedule_id]


@pytest.mark.feature("D14")
def test_the_longest_overdue_comes_first_and_a_schedule_nobody_can_read_does_not_stop_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    from controller.db import models

    made = [make(world, world.enroll(name).hypervisor_id) for name in ("a", "b", "c")]
    assert due(world) == [one.schedule_id for one in made]

    broken = models.Schedule.update(time_zone="Gone/Away").where(models.Schedule.schedule_id == made[1].schedule_id)
    world.run(broken.execute)

    assert due(world) == [made[0].schedule_id, made[2].schedule_id]
    assert made[1].schedule_id in caplog.text


# ---- which there can be ------------------------------------------------------------------------------------------------


@pytest.mark.feature("D2", "D22", "D23")
def test_a_hypervisor_has_one_and_a_deleted_one_comes_back_disabled(world: World) -> None:
    first = make(world)
    with pytest.raises(ScheduleExists) as refused:
        make(world)
    assert refused.value.facts["schedule_id"] == first.schedule_id

    gone = world.run(schedules.delete, first.schedule_id, world.now())
    assert gone.delete_time is not None
    assert due(world) == []
    assert world.run(schedules.of_hypervisor, first.hypervisor_id) is None
    assert world.run(schedules.list_schedules) == []
    assert world.run(schedules.list_schedules, deleted=True) == [gone]
    with pytest.raises(ScheduleDeleted):
        change(world, first, time_zone="UTC")
    with pytest.raises(ScheduleDeleted):
        world.run(schedules.delete, first.schedule_id, world.now())

    second = make(world)
    with pytest.raises(ScheduleExists):
        world.run(schedules.undelete, first.schedule_id, world.now())
    world.run(schedules.delete, second.schedule_id, world.now())
    back = world.run(schedules.undelete, first.schedule_id, world.now())
    assert (back.enabled, back.live, back.due_time) == (False, True, None)
    assert back.overrides == first.overrides
    assert world.run(schedules.undelete, first.schedule_id, world.now()) == back


@pytest.mark.feature("S0", "D2")
def test_a_storage_is_not_forgotten_while_a_schedule_uses_it(world: World) -> None:
    made = make(world)
    with pytest.raises(StorageInUse) as refused:
        world.run(storages.delete, made.storage_id, world.now())
    assert refused.value.facts["schedule_count"] == "1"

    world.run(schedules.delete, made.schedule_id, world.now())
    world.run(storages.delete, made.storage_id, world.now())
    assert again(world, made).resolved.worker_threads.value == 4, "it can still be looked at"
    with pytest.raises(StorageNotFound):
        world.run(schedules.undelete, made.schedule_id, world.now())


def test_it_is_found_by_its_id_or_its_hypervisor(world: World) -> None:
    made = make(world)
    for reference in (made.schedule_id, made.hypervisor_id, "h1"):
        assert world.run(schedules.find, reference) == made
    for reference in ("", "h2", "nas"):
        with pytest.raises(ScheduleNotFound):
            world.run(schedules.find, reference)
    with pytest.raises(HypervisorNotFound):
        make(world, "h2")
    with pytest.raises(StorageNotFound):
        make(world, storage="attic")


def test_a_change_of_an_older_version_is_refused(world: World) -> None:
    made = make(world)
    newer = change(world, made, time_zone="Asia/Tokyo", etag=made.etag)
    with pytest.raises(EtagMismatch):
        change(world, made, time_zone="UTC", etag=made.etag)
    assert again(world, made) == newer


@pytest.mark.feature("D4")
def test_a_clone_is_the_same_but_for_the_hosts_own_address(world: World) -> None:
    overrides = {"interval_hours": 6, "bind_address": "192.0.2.7", "worker_threads": 8, "keep_last": 5}
    source = make(world, overrides=overrides, time_zone="Asia/Tokyo", enabled=False)
    taken = make(world, world.enroll("h2").hypervisor_id)
    third, fourth = world.enroll("h3"), world.enroll("h4")

    cloned = world.run(schedule_clones.clone, source.schedule_id, ["h2", "h3", third.hypervisor_id, "h4"], world.now())

    assert [one.hypervisor_id for one in cloned.schedules] == [third.hypervisor_id, fourth.hypervisor_id]
    assert cloned.passed_over == ((taken.hypervisor_id, taken.schedule_id),)
    assert cloned.bind_address == "192.0.2.7"
    del overrides["bind_address"]
    for one in cloned.schedules:
        assert (one.overrides, one.own_time_zone, one.enabled) == (overrides, "Asia/Tokyo", False)
        assert (one.storage_id, one.default_access) == (source.storage_id, source.default_access)

    with pytest.raises(HypervisorNotFound):
        world.run(schedule_clones.clone, source.schedule_id, [world.enroll("h5").hypervisor_id, "nobody"], world.now())
    assert len(world.run(schedules.list_schedules)) == 4, "all are cloned, or none"


# ---- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.feature("D18", "D19")
def test_a_bind_address_is_refused_where_the_storage_has_no_connections(world: World) -> None:
    world.storage("folder", type="local", config={"path": "/srv"}, secrets={})
    made = make(world, overrides={"bind_address": "192.0.2.7"})
    with pytest.raises(BindAddressUnsupported):
        change(world, made, storage="folder")
    with pytest.raises(BindAddressUnsupported):
        make(world, world.enroll("h2").hypervisor_id, "folder", overrides={"bind_address": "192.0.2.7"})
    assert change(world, made, storage="folder", overrides={"bind_address": None}).overrides == {}


@pytest.mark.feature("S25")
def test_encryption_needs_a_key_and_stays_while_the_hypervisors_backups_lie_there(world: World) -> None:
    agent = world.enroll("h2")
    made = make(world, agent.hypervisor_id)
    with pytest.raises(InvalidField) as refused:
        change(world, made, overrides={"encryption": True})
    assert refused.value.facts["field"] == "overrides.encryption"

    key = storages.make_key("correct horse", world.now())
    nas = world.run(storages.find, "nas")
    enabled = storages.StorageChange(encryption_enabled=True)
    world.run(storages.update, nas.storage_id, enabled, key, "", world.vault, world.now())
    change(world, made, overrides={"encryption": False})
    job = world.backup(world.server(agent, "web"), nas)
    (pending,) = world.run(outbox.pending, agent.hypervisor_id)
    command = world.run(commands.build, pending, job, world.vault, world.limits, world.now())
    assert command.run.storage.key_id == "", "the schedule switched it off"

    with pytest.raises(EncryptionImmutable):
        change(world, made, overrides={"encryption": None})
    make(world, "h1", overrides={"encryption": True})  # nothing of this hypervisor lies there


@pytest.mark.feature("D5", "D12", "D18", "P1", "P2", "P3", "P4", "P8", "P9", "S27", "T5", "T17")
def test_work_goes_by_the_schedule_of_its_hypervisor_if_it_is_for_that_storage(world: World) -> None:
    overrides = {
        "worker_threads": 2, "bandwidth_bytes_per_second": 5000, "read_bytes_per_second": 0, "io_priority": "idle",
        "cpu_priority": "low", "bind_address": "192.0.2.7", "consistency": "pause", "full_interval_days": 30,
        "backup_concurrency": 2,
    }  # fmt: skip
    agent = world.enroll("h2")
    limits = {"worker_threads": 16, "read_bytes_per_second": "7000"}
    nas = world.change_storage(world.run(storages.find, "nas"), limits=limits)
    make(world, agent.hypervisor_id, overrides=overrides)
    other = world.storage("other")
    one, two, three = (world.server(agent, name) for name in ("one", "two", "three"))

    first, second, third = (world.backup(server, nas) for server in (one, two, three))
    assert [job.state for job in (first, second, third)] == ["dispatched", "dispatched", "queued"]
    assert (first.spec["consistency"], first.spec["full_interval_days"]) == ("pause", 30)
    pending = world.run(outbox.pending, agent.hypervisor_id)[0]
    run = world.run(commands.build, pending, first, world.vault, world.limits, world.now()).run
    assert (run.limits.worker_threads, run.limits.bandwidth_bytes_per_second, run.limits.read_bytes_per_second) == (
        2,
        5000,
        0,
    )
    assert (run.limits.io_priority, run.limits.cpu_priority) == (3, 2)
    assert run.storage.sftp.bind_address == "192.0.2.7"

    resolved = world.run(schedules.resolve, other, agent.hypervisor_id)
    assert resolved.worker_threads.value == 4, "it says nothing of another storage"
    assert world.run(schedules.resolve, nas).worker_threads.value == 16


@pytest.mark.feature("X14", "D14")
def test_the_global_time_zone_holds_where_a_schedule_names_none(world: World) -> None:
    made, own = make(world), make(world, world.enroll("h2").hypervisor_id, time_zone="Asia/Tokyo")
    assert made.time_zone == "UTC"

    world.run(settings.update, {"time_zone": "America/New_York"}, "", world.now())

    assert again(world, made).time_zone == "America/New_York"
    assert again(world, made).resolved.time_zone.origin == "default"
    assert again(world, own).time_zone == "Asia/Tokyo"


# ---- presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("P12", "P13", "P14", "D29", "D13")
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_lists_clears_other_limits_and_is_idempotent(world: World, name: str) -> None:
    preset = PRESETS[name]
    before = {"bandwidth_bytes_per_second": 9999, "read_bytes_per_second": 8888, "keep_last": 9, "consistency": "none"}
    limits = {"bandwidth_bytes_per_second": "7777", "read_bytes_per_second": "6666"}
    world.change_storage(world.run(storages.find, "nas"), limits=limits, defaults={"interval_hours": 3})
    made = make(world, overrides=before)

    def apply() -> tuple[storages.Storage, Schedule]:
        _, storage, schedule = world.run(presets.apply, name, "nas", "h1", ("", ""), world.vault, world.now())
        assert schedule is not None
        return storage, schedule

    storage, schedule = apply()
    for listed, value in preset.settings.items():
        assert schedule.overrides[listed] == value
    alone = world.run(schedules.resolve, storage)
    for resolved in (alone, schedule.resolved):
        for cleared in preset.cleared:
            assert getattr(resolved, cleared).value == 0
        assert resolved.interval_hours.value == 3
    assert (schedule.resolved.keep_last.value, schedule.resolved.consistency.value) == (9, "none")
    assert storage.compression == {
        "enabled": True, "level": preset.compression_level, "threads": preset.compression_threads,
    }  # fmt: skip
    assert set(preset.left_alone) | set(preset.cleared) | set(preset.settings) == {*DEFAULTS, "time_zone"}

    twice_storage, twice_schedule = apply()
    assert (twice_storage.limits, twice_storage.defaults) == (storage.limits, storage.defaults)
    assert twice_schedule.overrides == schedule.overrides
    assert again(world, made).due_time == made.due_time


@pytest.mark.feature("D29")
def test_a_preset_is_for_a_schedule_of_that_storage_and_all_or_nothing(world: World) -> None:
    other = world.storage("other")
    make(world)
    with pytest.raises(InvalidField) as refused:
        world.run(presets.apply, "low-impact", "other", "h1", ("", ""), world.vault, world.now())
    assert refused.value.facts["field"] == "schedule_id"
    with pytest.raises(EtagMismatch):
        world.run(presets.apply, "low-impact", "nas", "h1", ("", "99"), world.vault, world.now())
    assert world.run(storages.find, "nas").limits == {}
    assert world.run(storages.find, "other") == other
