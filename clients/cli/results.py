"""How a job looks to people: its card while it lives, and what it brought when it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.cli import storage_report, words
from clients.cli.failures import JobEnded
from clients.cli.names import Names
from clients.cli.output import Column, card, heading, state_of, styled
from clients.cli.progress import ended, figures, follow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from rich.console import RenderableType

    from clients.cli.output import Screen
    from clients.cli.progress import Drawing
    from clients.cli.session import Controller
    from clients.gen.backupmanager.v1.job_pb2 import Job

_BAD_STATES = {"failed", "cancelled"}
_DAMAGE_SHOWN = 20

DISKS = (
    Column("Disk", lambda one: one.disk),
    Column("Type", lambda one: words.enum_label(one, "type")),
    Column("Size", lambda one: words.size(one.size_bytes), right=True),
    Column("Data", lambda one: words.size(one.data_bytes), right=True),
    Column("Stored", lambda one: words.size(one.stored_bytes), right=True),
    Column("Why full", lambda one: one.fallback_reason or "-"),
    Column("Chain", lambda one: one.chain_id, rank=2, whole=True),
)
SKIPPED = (
    Column("Disk left out", lambda one: one.disk),
    Column("Reason", lambda one: one.failure.reason),
    Column("Because", lambda one: one.failure.message),
)
_DAMAGED = (
    Column("Disk", lambda one: one.disk),
    Column("Bytes", lambda one: f"{one.start}-{one.end}", right=True),
    Column("Frame", lambda one: str(one.frame) if one.frame >= 0 else "all", right=True),
    Column("What", lambda one: one.detail),
    Column("Object", lambda one: one.object_name, rank=1),
)


async def conclude(
    controller: Controller, screen: Screen, job_id: str, *, wait: bool, drawing: Drawing | None = None
) -> None:
    """End a verb that started a job: say its id, or (with `wait`) show it to its end. Raises JobEnded if that is not good."""
    if not wait:
        screen.show(
            {"job_id": job_id},
            lambda: f"Job {job_id} has been started. Watch it with `bmctl job watch {job_id}`.",
        )
        return
    job = await follow(controller, screen, job_id, drawing)
    names = Names() if screen.json else await Names.load(controller, "servers", "storages", "hypervisors")
    show_job(screen, job, names)
    if words.enum_label(job, "state") in _BAD_STATES:
        raise JobEnded(job)


def show_job(screen: Screen, job: Job, names: Names) -> None:
    """Show one job: JSON is {"job": …}."""
    from clients.cli.output import plain

    screen.show({"job": plain(job)}, lambda: job_card(screen, job, names))
    if job.result.ticket.command and not screen.json:
        screen.note(styled("Run this there as root, with a folder of your choice:", "dim"))
        screen.console.print(
            styled(job.result.ticket.command, ""), soft_wrap=True
        )  # to be copied: one line at any width


def job_card(screen: Screen, job: Job, names: Names) -> RenderableType:
    """Return a job with all that is known of it."""
    now, progress = screen.now, job.progress
    facts: list[tuple[str, Any]] = [
        ("Job", job.job_id),
        ("Server", names[job.server_id]),
        ("Storage", names[job.storage_id]),
        ("Hypervisor", names[job.hypervisor_id]),
        ("Backup", job.backup_id),
        ("Asked for", words.long_time(words.set_time(job, "create_time"), now)),
        ("By", job.requester),
        ("Attempt", str(job.attempt) if job.attempt > 1 else ""),
        ("Ended", words.long_time(words.set_time(job, "end_time"), now)),
        ("Took", took(job)),
        ("Stored", words.size(progress.bytes_stored)),
        ("Now", "" if ended(job) else figures(job).line),
        *_result_facts(job, now),
    ]
    return card(
        heading(words.enum_label(job, "type"), state_of(job)),
        facts,
        *_failure(job),
        *_warnings(job),
        *_tables(screen, job),
    )


def took(job: Job) -> str:
    """Return how long a job ran, `-` where it has not ended or never began."""
    if not (job.HasField("start_time") and job.HasField("end_time")):
        return "-"
    return words.span(max(0.0, (job.end_time.ToNanoseconds() - job.start_time.ToNanoseconds()) / 1e9))


def _result_facts(job: Job, now: datetime) -> list[tuple[str, str]]:
    result = job.result
    match result.WhichOneof("result"):
        case "backup":
            seconds = words.seconds_of(result.backup.quiesce_duration)
            quiesced = f", quiet for {words.span(seconds)}" if seconds else ""
            return [("Consistency", words.enum_label(result.backup, "consistency") + quiesced)]
        case "restore":
            return [
                ("Disks", ", ".join(result.restore.disks)),
                ("Written", words.size(result.restore.bytes_written)),
                ("Afterwards", "the server was started again" if result.restore.server_started else ""),
                ("Files", "\n".join(result.restore.files)),
            ]
        case "verify":
            damaged = result.verify.damaged_count
            return [
                ("Checked", f"{words.plural(result.verify.frames, 'frame')}, {words.size(result.verify.stored_bytes)}"),
                ("Damage", words.plural(damaged, "frame") if damaged else "none"),
            ]
        case "delete":
            return [
                ("Deleted", words.plural(len(result.delete.backup_ids), "backup")),
                ("Freed", words.size(result.delete.freed_bytes)),
            ]
        case "reindex":
            return [
                ("Found", words.plural(result.reindex.backup_count, "backup")),
                ("New", words.plural(result.reindex.added_count, "backup")),
                ("Gone", _flawed(result.reindex.missing_count)),
                ("Damaged", _flawed(result.reindex.damaged_count)),
                ("Unreadable", "\n".join(result.reindex.unreadable)),
            ]
        case "test":
            return [("Host key", result.test.host_key)]
        case "ticket":
            expire_time = words.set_time(result.ticket, "expire_time")
            return [
                ("Disks", ", ".join(result.ticket.disks)),
                ("Ticket", result.ticket.path),
                ("Expires", words.long_time(expire_time, now)),
            ]
        case "bundle":
            return [("Bundle", f"{result.bundle.name}, {words.size(result.bundle.stored_bytes)}")]
    return []


def _flawed(count: int) -> str:
    return words.plural(count, "backup") if count else ""


def _failure(job: Job) -> Iterator[RenderableType]:
    if job.HasField("failure") and not job.result.test.steps:  # a test's report has it beside its steps
        during = f", during {job.failure.step}" if job.failure.step else ""
        yield styled(f"  ✗ {job.failure.message} [{job.failure.reason}{during}]", "red")


def _warnings(job: Job) -> Iterator[RenderableType]:
    for warning in job.warnings:
        yield styled(f"  ! {warning}", "yellow")


def _tables(screen: Screen, job: Job) -> Iterator[RenderableType]:
    result = job.result
    if result.backup.disks:
        yield screen.table(result.backup.disks, DISKS)
    if result.backup.skipped_disks:
        yield screen.table(result.backup.skipped_disks, SKIPPED)
    if result.test.steps:
        yield from storage_report.report(job)
    if result.verify.damaged:
        yield screen.table(result.verify.damaged[:_DAMAGE_SHOWN], _DAMAGED)
        more = result.verify.damaged_count - _DAMAGE_SHOWN
        if more > 0:
            yield styled(f"  and {more} more; --output json has up to a thousand", "dim")
