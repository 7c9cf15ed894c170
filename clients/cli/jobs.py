"""`bmctl job …`: seeing and ending work."""

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import words
from clients.cli.failures import Usage
from clients.cli.names import Names
from clients.cli.options import (
    JobArgument,
    Limit,
    Output,
    ServerFilter,
    Since,
    StorageFilter,
    Until,
    Wait,
    group,
    moment,
)
from clients.cli.output import Column, Screen, plain, printable, state_of
from clients.cli.progress import ended, percent
from clients.cli.results import conclude, show_job, took
from clients.cli.session import PAGE_SIZE, Controller, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clients.gen.backupmanager.v1.job_pb2 import Job, JobLogEntry


class State(StrEnum):  # typer takes a list of an enum, and none of a Literal
    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    COMPLETED = "completed"
    COMPLETED_WITH_WARNINGS = "completed-with-warnings"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PENDING = "pending"
    SKIPPED = "skipped"


class Type(StrEnum):
    BACKUP = "backup"
    RESTORE = "restore"
    VERIFY = "verify"
    DELETE = "delete"
    PRUNE = "prune"
    PURGE = "purge"
    REINDEX = "reindex"
    TEST = "test"
    HEALTH = "health"
    TICKET = "ticket"
    BUNDLE = "bundle"


app = group()

_ACTIVE = (State.QUEUED, State.PENDING, State.DISPATCHED, State.RUNNING)
_LOG_POLL_SECONDS = 1.0
_LEVEL_STYLES = {"warning": "yellow", "error": "red"}


@app.command("list")
def list_jobs(
    server: ServerFilter = "",
    state: Annotated[list[State] | None, typer.Option("--state", help="Only those in this state; repeatable.")] = None,
    active: Annotated[bool, typer.Option("--active", help="Only those that have not ended.")] = False,
    storage: StorageFilter = "",
    hypervisor: Annotated[str, typer.Option("--hypervisor", help="Only those of this hypervisor: id or name.")] = "",
    job: Annotated[str, typer.Option("--job", help="Only those whose id begins with this.")] = "",
    job_type: Annotated[list[Type] | None, typer.Option("--type", help="Only those of this type; repeatable.")] = None,
    since: Since = "",
    until: Until = "",
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List jobs, newest first."""
    from clients.gen.backupmanager.v1 import job_pb2
    from clients.gen.backupmanager.v1.job_service_pb2 import ListJobsRequest

    request = ListJobsRequest(server_id=server, storage_id=storage, hypervisor_id=hypervisor, job_id=job)
    for word in dict.fromkeys([*(state or ()), *(_ACTIVE if active else ())]):
        request.states.append(words.enum_value(job_pb2.JobState, "JOB_STATE_", word))
    for word in job_type or ():
        request.types.append(words.enum_value(job_pb2.JobType, "JOB_TYPE_", word))
    if (start := moment("--since", since)) is not None:
        request.start_time.FromDatetime(start)
    if (end := moment("--until", until)) is not None:
        request.end_time.FromDatetime(end)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, more = await controller.every(controller.jobs.ListJobs, request, "jobs", limit)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages", "hypervisors")
        screen.show_list(reply, "jobs", _columns(screen, names), empty="No such jobs.")
        if more:
            screen.note(f"There are more; these are the newest {limit}. --limit 0 shows all.")

    run(work)


@app.command()
def show(job: JobArgument, output: Output = "table") -> None:
    """Show how far a job is, or what it brought."""

    async def work(controller: Controller) -> None:
        found = await _find(controller, job)
        screen = Screen(output)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages", "hypervisors")
        show_job(screen, found, names)

    run(work)


@app.command()
def watch(job: JobArgument, output: Output = "table") -> None:
    """Watch a job until it has ended.

    The exit code says how it ended.
    """

    async def work(controller: Controller) -> None:
        await conclude(controller, Screen(output), job, wait=True)

    run(work)


@app.command()
def cancel(job: JobArgument, wait: Wait = False, output: Output = "table") -> None:
    """Ask for a job's end.

    Its process stops, tidies up, and leaves no restore point.
    """
    from clients.gen.backupmanager.v1.job_service_pb2 import CancelJobRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.jobs.CancelJob, CancelJobRequest(job_id=job))
        if wait and not ended(reply.job):
            await conclude(controller, screen, job, wait=True)
            return
        screen.show(
            {"job": plain(reply.job)},
            lambda: f"Job {job} has been cancelled." if ended(reply.job) else f"Job {job} is being cancelled.",
        )

    run(work)


@app.command()
def log(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    output: Output = "table",
) -> None:
    """Show a job's log."""
    if follow and output == "json":
        raise Usage(
            field="--follow", problem="prints lines as they come; JSON is one document, so give only one of them"
        )

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        entries = []
        async for entry in _entries(controller, job, follow=follow):
            if screen.json:
                entries.append(plain(entry))
            else:
                _print_entry(screen, entry)
        if screen.json:
            screen.show({"entries": entries}, lambda: None)

    run(work)


async def _find(controller: Controller, job: str) -> "Job":
    from clients.gen.backupmanager.v1.job_service_pb2 import GetJobRequest

    return (await controller.call(controller.jobs.GetJob, GetJobRequest(job_id=job))).job


async def _entries(controller: Controller, job: str, *, follow: bool) -> "AsyncIterator[JobLogEntry]":
    """Yield a job's log as it stands, or (with `follow`) until the job has ended and all of it was read."""
    token, over = "", False
    while True:
        page, token = await _log_page(controller, job, token)
        for entry in page:
            yield entry
        if not token or (not page and (over or not follow)):
            return
        if not page:
            over = ended(await _find(controller, job))  # what was logged before its end is still read after this
            await asyncio.sleep(0 if over else _LOG_POLL_SECONDS)


async def _log_page(controller: Controller, job: str, token: str) -> tuple[list["JobLogEntry"], str]:
    from clients.gen.backupmanager.v1.job_service_pb2 import ListJobLogEntriesRequest

    request = ListJobLogEntriesRequest(job_id=job, page_size=PAGE_SIZE, page_token=token)
    reply = await controller.call(controller.jobs.ListJobLogEntries, request)
    return list(reply.entries), reply.next_page_token


def _print_entry(screen: Screen, entry: "JobLogEntry") -> None:
    time = entry.time.ToDatetime(tzinfo=screen.now.tzinfo).astimezone()
    line = f"{time:%Y-%m-%d %H:%M:%S}  {entry.level:<7}  {entry.message}"
    screen.console.print(printable(line), style=_LEVEL_STYLES.get(entry.level), soft_wrap=True)


def _columns(screen: Screen, names: Names) -> tuple[Column, ...]:
    return (
        Column("Job", lambda one: one.job_id, whole=True),
        Column("Type", lambda one: words.enum_label(one, "type")),
        Column("State", state_of),
        Column("Server", lambda one: names[one.server_id]),
        Column("Asked for", lambda one: words.short_time(words.set_time(one, "create_time"), screen.now), rank=1),
        Column("Done", _done, right=True, rank=2),
        Column("Took", took, right=True, rank=3),
        Column("Storage", lambda one: names[one.storage_id], rank=4),
        Column("Hypervisor", lambda one: names[one.hypervisor_id], rank=5),
        Column("Why", lambda one: one.failure.reason or "-", rank=2),
    )


def _done(job: "Job") -> str:
    if ended(job) or not job.progress.bytes_total:
        return "-"
    return f"{percent(job)} %"
