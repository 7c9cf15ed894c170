"""`bmctl schedule …`: when a hypervisor's servers are backed up, and where to. A schedule goes by its hypervisor's name."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from clients.cli import ask, overrides, purges, words
from clients.cli.failures import Usage
from clients.cli.names import Names
from clients.cli.options import Output, RequestId, StorageFilter, Yes, group
from clients.cli.output import Column, Screen, card, heading, plain, state, styled
from clients.cli.overrides import (
    BindAddress,
    Concurrency,
    Consistency,
    CpuPriority,
    Days,
    Encryption,
    FullInterval,
    Interval,
    IoPriority,
    KeepLast,
    Overrides,
    ReadLimit,
    Retention,
    UploadLimit,
    Window,
    Workers,
)
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.schedule_pb2 import Schedule

Level: TypeAlias = Literal["disabled", "scheduled-only", "view-and-restore", "full-access", "manual-only"]
Reference: TypeAlias = Annotated[
    str, typer.Argument(metavar="HYPERVISOR", help="The hypervisor's name or id, or the schedule's id.")
]
Storage: TypeAlias = Annotated[str, typer.Option("--storage", help="Where backups go: id or name.")]
Access: TypeAlias = Annotated[Level | None, typer.Option("--access", help="Level of servers that inherit theirs.")]
Zone: TypeAlias = Annotated[
    str, typer.Option("--time-zone", help="Such as Europe/Berlin; inherit takes the global one.")
]

app = group()
app.command("purge-deleted")(purges.purge_deleted)
app.command("purge-all")(purges.purge_all)

_NONE = "No schedules yet. `bmctl schedule add HYPERVISOR --storage STORAGE` makes one."
_KINDS = ("hypervisors", "storages")


@app.command("list")
def list_schedules(
    storage: StorageFilter = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="The deleted ones.")] = False,
    output: Output = "table",
) -> None:
    """List schedules."""
    from clients.gen.backupmanager.v1.schedule_service_pb2 import ListSchedulesRequest

    request = ListSchedulesRequest(storage_id=storage, deleted=deleted)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.schedules.ListSchedules, request, "schedules")
        names = Names() if screen.json else await Names.load(controller, *_KINDS)
        screen.show_list(reply, "schedules", _columns(screen, names), empty="None is deleted." if deleted else _NONE)

    run(work)


@app.command()
def show(schedule: Reference, output: Output = "table") -> None:
    """Show a schedule.

    Each setting with its value, and whether the schedule, its storage or nobody says so.
    """

    async def work(controller: Controller) -> None:
        await _show(controller, Screen(output), await find(controller, schedule))

    run(work)


@app.command()
def add(
    hypervisor: Annotated[str, typer.Argument(metavar="HYPERVISOR", help="Id or name.")],
    storage: Storage,
    disabled: Annotated[bool, typer.Option("--disabled", help="Switched off for now.")] = False,
    access: Access = None,
    time_zone: Zone = "",
    interval: Interval = "",
    window: Window = "",
    days: Days = "",
    consistency: Consistency = "",
    full_interval: FullInterval = "",
    retention: Retention = "",
    keep_last: KeepLast = "",
    concurrency: Concurrency = "",
    workers: Workers = "",
    upload_limit: UploadLimit = "",
    read_limit: ReadLimit = "",
    io_priority: IoPriority = "",
    cpu_priority: CpuPriority = "",
    encryption: Encryption = "",
    bind_address: BindAddress = "",
    output: Output = "table",
) -> None:
    """Make a schedule for a hypervisor.

    Its first run is due at once. What is not given is as the storage has it.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import CreateScheduleRequest

    request = CreateScheduleRequest(
        hypervisor_id=hypervisor,
        storage_id=storage,
        enabled=not disabled,
        default_access=_level(access),
        time_zone="" if time_zone == overrides.INHERIT else time_zone,
    )
    Overrides(
        interval, consistency, full_interval, retention, keep_last, concurrency, workers, upload_limit, read_limit,
        io_priority, cpu_priority, encryption, bind_address, window, days,
    ).write(request.overrides)  # fmt: skip

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.schedules.CreateSchedule, request)
        await _show(controller, screen, reply.schedule)
        screen.note(f"See when it runs with `bmctl schedule next-runs {hypervisor}`.")

    run(work)


@app.command("set")
def set_schedule(
    schedule: Reference,
    storage: Storage = "",
    access: Access = None,
    time_zone: Zone = "",
    interval: Interval = "",
    window: Window = "",
    days: Days = "",
    consistency: Consistency = "",
    full_interval: FullInterval = "",
    retention: Retention = "",
    keep_last: KeepLast = "",
    concurrency: Concurrency = "",
    workers: Workers = "",
    upload_limit: UploadLimit = "",
    read_limit: ReadLimit = "",
    io_priority: IoPriority = "",
    cpu_priority: CpuPriority = "",
    encryption: Encryption = "",
    bind_address: BindAddress = "",
    output: Output = "table",
) -> None:
    """Change a schedule.

    What is not given stays as it is; `inherit` drops an override.
    """
    from clients.gen.backupmanager.v1.schedule_pb2 import ScheduleOverrides
    from clients.gen.backupmanager.v1.schedule_service_pb2 import UpdateScheduleRequest

    wanted = ScheduleOverrides()
    given = Overrides(
        interval, consistency, full_interval, retention, keep_last, concurrency, workers, upload_limit, read_limit,
        io_priority, cpu_priority, encryption, bind_address, window, days,
    ).write(wanted)  # fmt: skip

    async def work(controller: Controller) -> None:
        present = await find(controller, schedule)
        request = UpdateScheduleRequest()
        changed, paths = request.schedule, [f"overrides.{name}" for name in given]
        changed.schedule_id, changed.etag = present.schedule_id, present.etag
        changed.overrides.CopyFrom(wanted)
        if storage:
            changed.storage_id = storage
            paths.append("storage_id")
        if access:
            changed.default_access = _level(access)
            paths.append("default_access")
        if time_zone:
            changed.time_zone = "" if time_zone == overrides.INHERIT else time_zone
            paths.append("time_zone")
        if not paths:
            raise Usage(field="schedule set", problem="nothing to change was given")
        request.update_mask.paths.extend(paths)
        reply = await controller.call(controller.schedules.UpdateSchedule, request)
        await _show(controller, Screen(output), reply.schedule)

    run(work)


@app.command()
def clone(
    schedule: Reference,
    hypervisors: Annotated[
        list[str], typer.Argument(metavar="TO…", help="Hypervisors that get the same: ids or names.")
    ],
    output: Output = "table",
) -> None:
    """Give other hypervisors the same schedule.

    All get one, or none; those that have a schedule already are left out and named. A bind address is not copied.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import CloneScheduleRequest

    request = CloneScheduleRequest(schedule_id=schedule, hypervisor_ids=hypervisors)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.schedules.CloneSchedule, request)
        names = Names() if screen.json else await Names.load(controller, *_KINDS)
        columns = _columns(screen, names)
        screen.show(reply, lambda: screen.table(reply.schedules, columns, empty="No schedule was made."))
        for one in reply.passed_over:
            screen.note(f"{names[one.hypervisor_id]} has a schedule already, and was left out.")
        if reply.bind_address_left_out:
            screen.note(f"The bind address {reply.bind_address_left_out} was left out: set each host's own.")

    run(work)


@app.command()
def enable(schedule: Reference, output: Output = "table") -> None:
    """Switch a schedule on.

    Its next run is due at once.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import EnableScheduleRequest

    async def work(controller: Controller) -> None:
        request = EnableScheduleRequest(schedule_id=schedule)
        reply = await controller.call(controller.schedules.EnableSchedule, request)
        await _show(controller, Screen(output), reply.schedule)

    run(work)


@app.command("run")
def run_now(
    schedule: Reference,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the batch until it has ended.")] = False,
    request_id: RequestId = "",
    output: Output = "table",
) -> None:
    """Run a schedule now, whatever its window and its due time."""
    from clients.cli.batches import start

    start(schedule, wait=wait, request_id=request_id, output=output)


@app.command()
def disable(schedule: Reference, output: Output = "table") -> None:
    """Switch a schedule off.

    What runs goes on, and backups by hand are still made.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import DisableScheduleRequest

    async def work(controller: Controller) -> None:
        request = DisableScheduleRequest(schedule_id=schedule)
        reply = await controller.call(controller.schedules.DisableSchedule, request)
        await _show(controller, Screen(output), reply.schedule)

    run(work)


@app.command()
def delete(schedule: Reference, yes: Yes = False, output: Output = "table") -> None:
    """Delete a schedule; its backups stay.

    `bmctl schedule list --deleted` still has it.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import DeleteScheduleRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        found = await find(controller, schedule)
        names = await Names.load(controller, *_KINDS)
        ask.confirm(f"Delete the schedule of {names[found.hypervisor_id]}? Its backups stay.", yes=yes)
        request = DeleteScheduleRequest(schedule_id=found.schedule_id)
        reply = await controller.call(controller.schedules.DeleteSchedule, request)
        said = f"The schedule of {names[found.hypervisor_id]} is deleted. `bmctl schedule undelete {found.schedule_id}`"
        screen.show({"schedule": plain(reply.schedule)}, lambda: f"{said} brings it back.")

    run(work)


@app.command()
def undelete(
    schedule: Annotated[str, typer.Argument(metavar="SCHEDULE", help="Id.")], output: Output = "table"
) -> None:
    """Bring a deleted schedule back.

    It is switched off until it is enabled.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import UndeleteScheduleRequest

    async def work(controller: Controller) -> None:
        request = UndeleteScheduleRequest(schedule_id=schedule)
        reply = await controller.call(controller.schedules.UndeleteSchedule, request)
        await _show(controller, Screen(output), reply.schedule)

    run(work)


@app.command("next-runs")
def next_runs(
    schedule: Annotated[
        str, typer.Argument(metavar="[HYPERVISOR]", help="Whose schedule; none for one that is to be made.")
    ] = "",
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many.")] = 10,
    storage: Storage = "",
    time_zone: Zone = "",
    interval: Interval = "",
    window: Window = "",
    days: Days = "",
    output: Output = "table",
) -> None:
    """Show when a schedule runs next.

    With options: when it would, if they were saved.
    """
    from clients.gen.backupmanager.v1.schedule_service_pb2 import PreviewNextRunsRequest

    request = PreviewNextRunsRequest(schedule_id=schedule, storage_id=storage, count=count)
    if time_zone:
        request.time_zone = "" if time_zone == overrides.INHERIT else time_zone
    wanted = Overrides(interval_hours=interval, window=window, allowed_days=days)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        if interval or window or days:
            if schedule:
                request.overrides.CopyFrom((await find(controller, schedule)).overrides)
            request.overrides.SetInParent()
            wanted.write(request.overrides)
        reply = await controller.call(controller.schedules.PreviewNextRuns, request)
        screen.show(reply, lambda: screen.table(reply.runs, _run_columns(screen, reply.resolved), empty=_NEVER))

    run(work)


async def find(controller: Controller, schedule: str) -> "Schedule":
    """Return a schedule by its id or its hypervisor's name. Raises CallRefused."""
    from clients.gen.backupmanager.v1.schedule_service_pb2 import GetScheduleRequest

    return (await controller.call(controller.schedules.GetSchedule, GetScheduleRequest(schedule_id=schedule))).schedule


_NEVER = "It never runs by itself: the interval is 0, or window and days never meet."


def _level(access: Level | None) -> Any:
    from clients.gen.backupmanager.v1.access_level_pb2 import AccessLevel

    return words.enum_value(AccessLevel, "ACCESS_LEVEL_", access) if access else 0


def _state(schedule: "Schedule") -> "Text":
    return state("deleted" if schedule.HasField("delete_time") else "enabled" if schedule.enabled else "disabled")


def _due(screen: Screen, schedule: "Schedule") -> str:
    return words.short_time(words.set_time(schedule, "due_time"), screen.now)


def _columns(screen: Screen, names: Names) -> tuple[Column, ...]:
    value = overrides.shown
    return (
        Column("Hypervisor", lambda one: names[one.hypervisor_id]),
        Column("State", _state),
        Column("Storage", lambda one: names[one.storage_id]),
        Column("Interval", lambda one: value("interval_hours", one.resolved.values)),
        Column("Due", lambda one: _due(screen, one)),
        Column("Window", lambda one: value("window", one.resolved.values), rank=1),
        Column("Days", lambda one: value("allowed_days", one.resolved.values), rank=2),
        Column("Last run", lambda one: words.short_time(words.set_time(one, "last_start_time"), screen.now), rank=1),
        Column("Schedule", lambda one: one.schedule_id, rank=3, whole=True),
    )


def _run_columns(screen: Screen, resolved: Any) -> tuple[Column, ...]:
    from zoneinfo import ZoneInfo

    try:
        zone = ZoneInfo(resolved.time_zone)
    except (KeyError, ValueError, OSError):  # this machine knows fewer zones than the controller
        zone = ZoneInfo("UTC")

    def local(run: Any, field: str) -> str:
        stamp = words.set_time(run, field)
        return f"{stamp.ToDatetime(tzinfo=screen.now.tzinfo).astimezone(zone):%a %Y-%m-%d %H:%M %Z}" if stamp else "-"

    return (
        Column("Starts", lambda run: local(run, "start_time")),
        Column("In", lambda run: words.age(run.start_time.ToDatetime(tzinfo=screen.now.tzinfo), screen.now), rank=1),
        Column("Servers begin until", lambda run: local(run, "close_time")),
        Column("Due", lambda run: local(run, "due_time"), rank=2),
    )


async def _show(controller: Controller, screen: Screen, schedule: "Schedule") -> None:
    names = Names() if screen.json else await Names.load(controller, *_KINDS)
    screen.show({"schedule": plain(schedule)}, lambda: _card(screen, names, schedule))


def _card(screen: Screen, names: Names, schedule: "Schedule") -> "RenderableType":
    now = screen.now
    facts = (
        ("Schedule", schedule.schedule_id),
        ("Storage", names[schedule.storage_id]),
        ("Next due", words.long_time(words.set_time(schedule, "due_time"), now)),
        ("Last run", words.long_time(words.set_time(schedule, "last_start_time"), now)),
        ("Access", words.enum_label(schedule, "default_access")),
        ("Made", words.long_time(words.set_time(schedule, "create_time"), now)),
        ("Changed", words.long_time(words.set_time(schedule, "update_time"), now)),
        ("Deleted", words.long_time(words.set_time(schedule, "delete_time"), now)),
    )
    columns = (
        Column("Setting", lambda row: row[0]),
        Column("Value", lambda row: row[1]),
        Column("Said by", lambda row: row[2] if row[2] == "schedule" else styled(row[2], "dim")),
    )
    settings = screen.table(overrides.rows(schedule.resolved), columns)
    return card(heading(names[schedule.hypervisor_id], _state(schedule)), facts, settings)
