"""Watching a job until it ends: from the stream while it lives, by asking while it does not.

    WatchJob ──breaks──► PollJob ──answers──► WatchJob from the version last seen …      until the job has ended,
                            └──no answer──► wait, longer each time ──► PollJob …         or nobody answered for ten minutes

A terminal gets a bar that is drawn in place and leaves nothing behind; anything else gets one line for each change.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clients.cli import words
from clients.cli.failures import ContactLost, Interrupted
from clients.errors import CallRefused, refusal
from engine.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from rich.console import Console

    from clients.cli.output import Screen
    from clients.cli.session import Controller
    from clients.gen.backupmanager.v1.job_pb2 import Job

    Drawing: TypeAlias = Callable[[Console], AbstractContextManager["Display"]]

PATIENCE_SECONDS = 600.0  # a controller that is upgraded is back by then
POLL_SECONDS = 10  # how long one PollJob waits for a change; below the time limit of a call
PAUSE_SECONDS = (0.25, 5.0)  # between two tries without an answer: the first, the longest
ENDED = frozenset(
    {
        "JOB_STATE_COMPLETED",
        "JOB_STATE_COMPLETED_WITH_WARNINGS",
        "JOB_STATE_FAILED",
        "JOB_STATE_CANCELLED",
        "JOB_STATE_SKIPPED",
    }
)
_WAITING_WORDS = {"queued": "queued, waits for other work to end", "dispatched": "sent to the hypervisor"}
# What a broken connection looks like. A refusal with a reason of its own is an answer, and no broken connection.
_BROKEN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN", "UNIMPLEMENTED"})
_BROKEN_REASONS = _BROKEN | {"CONTROLLER_UNREACHABLE", "CONTROLLER_SILENT", "SHUTTING_DOWN", "UNSUPPORTED"}


class Display(Protocol):
    """Where a job's progress is drawn."""

    def change(self, job: Job) -> None: ...

    def lost(self) -> None:
        """Say that the controller does not answer at the moment."""


def ended(job: Job) -> bool:
    """Tell whether nothing more will happen to a job."""
    from clients.gen.backupmanager.v1.job_pb2 import JobState

    return JobState.Name(job.state) in ENDED if job.state in JobState.values() else False


async def follow(controller: Controller, screen: Screen, job_id: str, drawing: Drawing | None = None) -> Job:
    """Show a job's progress until it has ended, and return it. Raises Interrupted for Ctrl-C, ContactLost, CallRefused.

    `drawing` stands for the bar on a terminal.
    """
    import asyncio

    try:
        with _display(screen, drawing or _bar) as display:
            async for job in changes(controller, job_id, display):
                display.change(job)
    except asyncio.CancelledError:
        raise Interrupted(job_id=job_id) from None
    return job


async def changes(
    controller: Controller, job_id: str, display: Display, patience_seconds: float = PATIENCE_SECONDS
) -> AsyncIterator[Job]:
    """Yield a job at each change, its present state first and its end last, over broken connections too."""
    import asyncio

    cursor, pause, last_contact = 0, PAUSE_SECONDS[0], time.monotonic()
    while True:
        async for job in _streamed(controller, job_id, cursor):
            cursor, last_contact = job.version, time.monotonic()
            yield job
            if ended(job):
                return
        try:
            job = await _polled(controller, job_id, cursor)
        except CallRefused as error:
            if not is_broken(error):
                raise
            if time.monotonic() - last_contact > patience_seconds:
                raise ContactLost(seconds=f"{patience_seconds:.0f}", job_id=job_id) from error
            display.lost()
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS[1])
            continue
        pause, last_contact = PAUSE_SECONDS[0], time.monotonic()
        if job.version > cursor:
            cursor = job.version
            yield job
            if ended(job):
                return


async def _streamed(controller: Controller, job_id: str, cursor: int) -> AsyncIterator[Job]:
    """Yield what one WatchJob says; end quietly when it breaks, since asking with PollJob tells why."""
    from grpc import aio

    from clients.gen.backupmanager.v1.job_service_pb2 import WatchJobRequest

    try:
        async for reply in controller.jobs.WatchJob(WatchJobRequest(job_id=job_id, cursor=cursor)):
            yield reply.job
    except aio.AioRpcError as error:
        if not is_broken(refused := refusal(error)):
            raise refused from error


async def _polled(controller: Controller, job_id: str, cursor: int) -> Job:
    from google.protobuf.duration_pb2 import Duration

    from clients.gen.backupmanager.v1.job_service_pb2 import PollJobRequest

    request = PollJobRequest(job_id=job_id, cursor=cursor, wait=Duration(seconds=POLL_SECONDS))
    return (await controller.call(controller.jobs.PollJob, request)).job


def is_broken(error: CallRefused) -> bool:
    return error.status.name in _BROKEN and error.reason in _BROKEN_REASONS


# ---- drawing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """A job's progress in words; each part is "" where it is not known."""

    stage: str
    percent: str = ""
    amount: str = ""
    pace: str = ""

    @property
    def line(self) -> str:
        details = ", ".join(part for part in (self.amount, self.pace) if part)
        whole = " ".join(part for part in (self.stage, self.percent) if part)
        return f"{whole} ({details})" if details else whole


def figures(job: Job) -> Figures:
    """Return what to say about a job at this moment."""
    state, progress = words.enum_label(job, "state"), job.progress
    if state != "running":
        return Figures(_WAITING_WORDS.get(state, state))
    stage = "cancelling" if job.cancel_requested else progress.stage or "running"
    if not progress.bytes_total:
        return Figures(stage, amount=words.size(progress.bytes_done) if progress.bytes_done else "")
    pace = [words.rate(progress.bytes_per_second)] if progress.bytes_per_second else []
    if progress.HasField("remaining"):
        pace.append(f"{words.span(max(1, round(words.seconds_of(progress.remaining))))} left")
    return Figures(
        stage,
        f"{percent(job)} %",
        f"{human_bytes(progress.bytes_done)} of {human_bytes(progress.bytes_total)}",
        ", ".join(pace),
    )


def percent(job: Job) -> int:
    """Return how far the present stage is, 0 to 100, and 100 only when it is done."""
    progress = job.progress
    return min(100, progress.bytes_done * 100 // progress.bytes_total) if progress.bytes_total else 0


class Lines:
    """One line for each change of state or stage, and for each tenth of a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: tuple[object, ...] = ()

    def change(self, job: Job) -> None:
        said = (job.state, job.progress.stage, percent(job) // 10, job.cancel_requested)
        if said != self._said:
            self._said = said
            self._print(figures(job).line)

    def lost(self) -> None:
        if self._said != ("lost",):
            self._said = ("lost",)
            self._print("no answer from the controller, trying again")

    def _print(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", soft_wrap=True)


class Silence:
    """Nothing: a script reads the end."""

    def change(self, job: Job) -> None: ...

    def lost(self) -> None: ...


@contextmanager
def _display(screen: Screen, drawing: Drawing) -> Iterator[Display]:
    console = screen.side if screen.json else screen.console
    if console.is_terminal:
        with drawing(console) as display:
            yield display
    else:
        yield Silence() if screen.json else Lines(console)


@contextmanager
def _bar(console: Console) -> Iterator[Display]:
    """Draw a bar in place for as long as the block lasts; the cursor comes back and the bar goes, however it ends."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}", markup=True),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[percent]}", style="bold"),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[pace]}", style="cyan"),
    )
    with Progress(*columns, console=console, expand=True, transient=True) as progress:
        task = progress.add_task("asking", total=None, percent="", amount="", pace="")

        class Bar:
            def change(self, job: Job) -> None:
                said = figures(job)
                progress.update(
                    task,
                    description=said.stage,
                    completed=job.progress.bytes_done,
                    total=job.progress.bytes_total or None,
                    percent=said.percent,
                    amount=said.amount,
                    pace=said.pace,
                )

            def lost(self) -> None:
                progress.update(task, description="no answer from the controller, trying again", pace="")

        yield Bar()
