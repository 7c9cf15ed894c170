"""`bmctl batch …`: what schedules did, running one now, ending one, and trying again what failed."""

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from clients.cli import options, words
from clients.cli.failures import Exit
from clients.cli.names import Names
from clients.cli.options import Limit, Output, RequestId, Since, Until, group, moment
from clients.cli.output import Column, Screen, card, heading, plain, state_of
from clients.cli.progress import percent
from clients.cli.results import took
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.batch_pb2 import Batch
    from clients.gen.backupmanager.v1.job_pb2 import Job


class State(StrEnum):  # typer takes a list of an enum, and none of a Literal
    DEFERRED = "deferred"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    COMPLETED = "completed"
    COMPLETED_WITH_WARNINGS = "completed-with-warnings"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


app = group()
BatchArgument: TypeAlias = Annotated[str, typer.Argument(metavar="BATCH", help="Id.")]
ScheduleArgument: TypeAlias = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Id, or its hypervisor.")]
Watch: TypeAlias = Annotated[bool, typer.Option("--wait", "-w", help="Watch the batch until it has ended.")]
_LIVE = (State.DEFERRED, State.DISPATCHED, State.RUNNING)
_BAD = ("partial", "failed", "cancelled")
_LOOK_SECONDS = 1.0


@app.command("list")
def list_batches(
    schedule: Annotated[str, typer.Option("--schedule", help="Only this schedule's: id, or its hypervisor.")] = "",
    job: Annotated[str, typer.Option("--job", help="Only the one that this job is of.")] = "",
    state: Annotated[list[State] | None, typer.Option("--state", help="Only those in this state; repeatable.")] = None,
    active: Annotated[bool, typer.Option("--active", help="Only those that have not ended.")] = False,
    since: Since = "",
    until: Until = "",
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List batches, newest first."""
    from clients.gen.backupmanager.v1 import batch_pb2
    from clients.gen.backupmanager.v1.batch_service_pb2 import ListBatchesRequest

    request = ListBatchesRequest(schedule_id=schedule, job_id=job)
    for word in dict.fromkeys([*(state or ()), *(_LIVE if active else ())]):
        request.states.append(words.enum_value(batch_pb2.BatchState, "BATCH_STATE_", word))
    if (begin := moment("--since", since)) is not None:
        request.start_time.FromDatetime(begin)
    if (end := moment("--until", until)) is not None:
        request.end_time.FromDatetime(end)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, more = await controller.every(controller.batches.ListBatches, request, "batches", limit)
        names = Names() if screen.json else await Names.load(controller, "storages", "hypervisors")
        screen.show_list(reply, "batches", _columns(screen, names), empty="No such batches.")
        if more:
            screen.note(f"There are more; these are the newest {limit}. --limit 0 shows all.")

    run(work)


@app.command()
def show(batch: BatchArgument, output: Output = "table") -> None:
    """Show a batch with what became of each of its servers."""

    async def work(controller: Controller) -> None:
        await _show(controller, Screen(output), await _find(controller, batch))

    run(work)


@app.command("start")
def start_batch(
    schedule: ScheduleArgument, wait: Watch = False, request_id: RequestId = "", output: Output = "table"
) -> None:
    """Run a schedule now, whatever its window and its due time."""
    start(schedule, wait=wait, request_id=request_id, output=output)


@app.command()
def cancel(batch: BatchArgument, wait: Watch = False, output: Output = "table") -> None:
    """Ask for a batch's end.

    Its process stops and tidies up; servers that are done keep their restore points.
    """
    from clients.gen.backupmanager.v1.batch_service_pb2 import CancelBatchRequest

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.batches.CancelBatch, CancelBatchRequest(batch_id=batch))
        await _conclude(controller, Screen(output), reply.batch, wait=wait, bad=("partial", "failed"))

    run(work)


@app.command("retry-failed")
def retry_failed(
    batch: BatchArgument, wait: Watch = False, request_id: RequestId = "", output: Output = "table"
) -> None:
    """Make a batch of only those servers that failed in this one."""
    from clients.gen.backupmanager.v1.batch_service_pb2 import RetryBatchRequest

    request = RetryBatchRequest(batch_id=batch, request_id=options.request_id(request_id))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.batches.RetryBatch, request)
        await _conclude(controller, Screen(output), reply.batch, wait=wait, bad=_BAD)

    run(work)


def start(schedule: str, *, wait: bool, request_id: str, output: Any) -> None:
    """Run a schedule now; also `bmctl schedule run`."""
    from clients.gen.backupmanager.v1.batch_service_pb2 import StartBatchRequest

    request = StartBatchRequest(schedule_id=schedule, request_id=options.request_id(request_id))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.batches.StartBatch, request)
        await _conclude(controller, Screen(output), reply.batch, wait=wait, bad=_BAD)

    run(work)


async def _conclude(
    controller: Controller, screen: Screen, batch: "Batch", *, wait: bool, bad: tuple[str, ...]
) -> None:
    """Show a batch, with `wait` once it has ended; then a bad end is the exit status."""
    while wait and not batch.HasField("end_time"):
        await asyncio.sleep(_LOOK_SECONDS)
        batch = await _find(controller, batch.batch_id)
    await _show(controller, screen, batch)
    label = words.enum_label(batch, "state")
    if wait and label in bad:
        raise typer.Exit(Exit.CANCELLED if label == "cancelled" else Exit.JOB_FAILED)


async def _find(controller: Controller, batch: str) -> "Batch":
    from clients.gen.backupmanager.v1.batch_service_pb2 import GetBatchRequest

    return (await controller.call(controller.batches.GetBatch, GetBatchRequest(batch_id=batch))).batch


async def _show(controller: Controller, screen: Screen, batch: "Batch") -> None:
    from clients.gen.backupmanager.v1.job_service_pb2 import ListJobsRequest

    request = ListJobsRequest(batch_id=batch.batch_id)
    reply, _ = await controller.every(controller.jobs.ListJobs, request, "jobs", 0)
    jobs = sorted(reply.jobs, key=lambda one: one.job_id)
    names = Names() if screen.json else await Names.load(controller, "servers", "storages", "hypervisors")
    document = {"batch": plain(batch), "jobs": [plain(one) for one in jobs]}
    screen.show(document, lambda: _card(screen, batch, jobs, names))


def _card(screen: Screen, batch: "Batch", jobs: "list[Job]", names: Names) -> "RenderableType":
    facts = [
        ("Batch", batch.batch_id),
        ("Hypervisor", names[batch.hypervisor_id]),
        ("Storage", names[batch.storage_id]),
        ("Because of", words.enum_label(batch, "origin")),
        ("Retry of", batch.origin_batch_id),
        ("By", batch.requester),
        (
            "Waits",
            f"{batch.wait.text}, since {words.short_time(batch.wait.since_time, screen.now)}" * batch.HasField("wait"),
        ),
        ("Due", words.long_time(words.set_time(batch, "due_time"), screen.now)),
        ("Started", words.long_time(words.set_time(batch, "start_time"), screen.now)),
        ("Nobody begins after", words.long_time(words.set_time(batch, "close_time"), screen.now)),
        ("Ended", words.long_time(words.set_time(batch, "end_time"), screen.now)),
        ("Took", took(batch)),  # type: ignore[arg-type]  # it has the two times that are looked at
        ("Servers", _summary(batch)),
        ("Why", batch.failure.message),
    ]
    parts = [screen.table(jobs, _job_columns(names), title="")] if jobs else []
    return card(heading("batch", state_of(batch)), facts, *parts)


def _columns(screen: Screen, names: Names) -> tuple[Column, ...]:
    return (
        Column("Batch", lambda one: one.batch_id, whole=True),
        Column("State", state_of),
        Column("Hypervisor", lambda one: names[one.hypervisor_id]),
        Column("Servers", _summary),
        Column("Made", lambda one: words.short_time(words.set_time(one, "create_time"), screen.now), rank=1),
        Column("Took", took, right=True, rank=2),
        Column("Storage", lambda one: names[one.storage_id], rank=3),
        Column("Because of", lambda one: words.enum_label(one, "origin"), rank=4),
        Column("Waits for", lambda one: one.wait.reason or "-", rank=2),
    )


def _job_columns(names: Names) -> tuple[Column, ...]:
    return (
        Column("Server", lambda one: names[one.server_id]),
        Column("State", state_of),
        Column("Done", lambda one: f"{percent(one)} %" if one.progress.bytes_total else "-", right=True),
        Column("Took", took, right=True),
        Column("Job", lambda one: one.job_id, whole=True, rank=1),
        Column("Why", lambda one: one.failure.reason or "-", rank=1),
    )


def _summary(batch: "Batch") -> str:
    """Return how many servers stand where, such as `3 of 5 done, 1 failed`."""
    counts = batch.counts
    found = [f"{counts.completed} of {counts.servers} done"]
    for name in ("running", "failed", "cancelled", "skipped"):
        number = getattr(counts, name)
        if number:
            found.append(f"{number} {name}")
    return ", ".join(found) if counts.servers else "-"
