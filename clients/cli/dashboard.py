"""The overview as a screen: cards, storages with bars, what ran, what comes, what went wrong. Drawn for a width, read without colors.

wide     six cards in a row; storages and batches on the left, what comes and what needs somebody on the right
narrow   two rows of cards, and the sections one below the other
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.cli import words
from clients.cli.output import Column, heading, printable, state, styled, table
from engine.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.overview_pb2 import Overview, StorageSummary
    from clients.gen.backupmanager.v1.storage_pb2 import StorageUsage

WIDE = 110  # cells from which two columns are easier to read than one
WIDTH_MIN, WIDTH_MAX = 60, 180
_GAP = 2


def render(data: Overview, now: datetime, width: int, note: str = "") -> RenderableType:
    """Return the screen for a terminal of `width` cells; `note` stands below it."""
    from rich.console import Group

    width = max(WIDTH_MIN, min(width, WIDTH_MAX))
    parts: list[RenderableType] = [_head(data, note), _cards(data, width)]
    left, right = _left(data, now), _right(data, now)
    if width >= WIDE:
        half = (width - _GAP) // 2
        parts.append(_beside([make(half) for make in left], [make(half) for make in right], half))
    else:
        parts += [make(width) for make in (*left, *right)]
    return Group(*parts)


def usage_bar(usage: StorageUsage, cells: int) -> Text:
    """Return what fills a storage as a bar: ours █, others' ▓, free ░; as many dots where nobody can tell."""
    from rich.text import Text

    if not usage.total_bytes:
        return Text("·" * cells, style="dim")
    ours = min(cells, round(cells * min(usage.backup_bytes, usage.total_bytes) / usage.total_bytes))
    free = min(cells - ours, round(cells * usage.free_bytes / usage.total_bytes))
    share = 1 - usage.free_bytes / usage.total_bytes
    color = "red" if share >= 0.95 else "yellow" if share >= 0.85 else "green"
    bar = Text("█" * ours, style=color)
    return bar.append("▓" * (cells - ours - free), style="blue").append("░" * free, style="dim")


def share_bar(part: int, whole: int, cells: int) -> Text:
    """Return a share as a bar; full only when nothing is missing."""
    from rich.text import Text

    filled = cells if part >= whole > 0 else min(cells - 1, cells * part // whole) if whole else 0
    style = "green" if whole and part >= whole else "yellow" if part else "red"
    return Text("█" * filled, style=style).append("░" * (cells - filled), style="dim")


# ---- cards --------------------------------------------------------------------------------------------------------------


def _head(data: Overview, note: str) -> RenderableType:
    stamp = words.set_time(data, "time")
    taken = f"{stamp.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if stamp else ""
    parts: list[Any] = ["Backup Manager", styled(taken, "dim")]
    if data.paused:
        parts.append(styled("● dispatcher paused", "bold yellow"))
    if note:
        parts.append(styled(note, "yellow"))
    return heading(*parts)


def _cards(data: Overview, width: int) -> RenderableType:
    from rich.table import Table

    counts = data.counts
    busy = counts.running_job_count + counts.waiting_job_count
    made = [
        ("Active now", words.plural(counts.running_job_count, "job"), _waiting(data), "cyan" if busy else "dim"),
        (
            "Protected",
            f"{counts.protected_server_count} of {words.plural(counts.server_count, 'server')}",
            share_bar(counts.protected_server_count, counts.server_count, 12),
            _tone(counts.failing_server_count),
        ),
        ("Backup data", human_bytes(counts.backup_bytes), words.plural(counts.backup_count, "backup"), "green"),
        (
            "Schedules",
            f"{counts.enabled_schedule_count} of {counts.schedule_count} on",
            _bad(counts.overdue_schedule_count, "overdue", "none overdue"),
            _tone(counts.overdue_schedule_count),
        ),
        (
            "Hypervisors",
            f"{counts.online_hypervisor_count} of {counts.hypervisor_count} online",
            share_bar(counts.online_hypervisor_count, counts.hypervisor_count, 12),
            _tone(counts.hypervisor_count - counts.online_hypervisor_count),
        ),
        (
            "Storages",
            words.plural(counts.storage_count, "storage"),
            _bad(counts.unhealthy_storage_count, "unhealthy", "none unhealthy"),
            _tone(counts.unhealthy_storage_count),
        ),
    ]
    columns = 6 if width >= WIDE else 3
    grid = Table.grid(padding=0)
    for _ in range(columns):
        grid.add_column(width=width // columns)
    for start in range(0, len(made), columns):
        grid.add_row(*(_card(*one) for one in made[start : start + columns]))
    return grid


def _card(title: str, figure: str, below: Any, style: str) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    lines = Group(Text(figure, style="bold", no_wrap=True, overflow="ellipsis"), below)
    return Panel(lines, title=title, title_align="left", border_style=style, padding=(0, 1))


def _waiting(data: Overview) -> Text:
    batches = f", {words.plural(data.counts.running_batch_count, 'batch')}" if data.counts.running_batch_count else ""
    return styled(f"{data.counts.waiting_job_count} waiting{batches}".replace("batchs", "batches"), "dim")


def _bad(count: int, what: str, none: str) -> Text:
    return styled(f"● {count} {what}", "bold red") if count else styled(none, "dim")


def _tone(bad: int) -> str:
    return "red" if bad > 0 else "green"


# ---- sections -----------------------------------------------------------------------------------------------------------


def _left(data: Overview, now: datetime) -> list[Any]:
    return [
        lambda width: _section("Storages", data.storages, _storage_columns(now), width, "none yet"),
        lambda width: _section("Recent batches", data.recent_batches, _batch_columns(now), width, "none yet"),
    ]


def _right(data: Overview, now: datetime) -> list[Any]:
    counts = data.counts
    return [
        lambda width: _section("Upcoming", data.upcoming, _upcoming_columns(now), width, "nothing is scheduled"),
        lambda width: _section(
            f"Failing servers ({counts.failing_server_count})", data.failing_servers, _failing_columns(now), width, "none"
        ),
        lambda width: _section(
            f"Without any backup ({counts.unprotected_server_count})",
            data.unprotected_servers, _unprotected_columns(now), width, "none",
        ),
        lambda width: _section(
            f"To be purged ({counts.pending_purge_count})", data.pending_purges, _purge_columns(now), width, "none"
        ),
        lambda width: _section(
            f"Not as the catalog said ({_differing(data)})", data.discrepancies, _DISCREPANCIES, width, "none"
        ),
        lambda width: _section("Recent errors", data.recent_errors, _error_columns(now), width, "none"),
    ]  # fmt: skip


def _differing(data: Overview) -> int:
    counts = data.counts
    return counts.missing_backup_count + counts.damaged_backup_count + counts.adopted_backup_count


def _section(title: str, rows: Sequence[Any], columns: Sequence[Column], width: int, none: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    if not rows:
        return Text("\n").append(title, style="bold").append(f"  {none}", style="dim")
    return Group("", table(rows, columns, title=title, width=width))


def _beside(left: Sequence[RenderableType], right: Sequence[RenderableType], half: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(width=half)
    grid.add_column(width=half)
    grid.add_row(Group(*left), Group(*right))
    return grid


def storage_state(storage: StorageSummary) -> Text:
    """Return a storage's health; where somebody switched it, that comes first."""
    if not storage.enabled:
        return state("disabled")
    return state("read-only") if storage.read_only else state(words.enum_label(storage.health, "state"))


def _room(storage: StorageSummary) -> str:
    usage = storage.usage
    return f"{human_bytes(usage.free_bytes)} free" if usage.total_bytes else "-"


def _storage_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Name", lambda one: one.name),
        Column("Health", storage_state),
        Column("Usage", lambda one: usage_bar(one.usage, 10)),
        Column("Room", _room, right=True, rank=1),
        Column("Ours", lambda one: words.size(one.usage.backup_bytes), right=True, rank=2),
        Column("Backups", lambda one: str(one.backup_count), right=True, rank=3),
        Column("Last backup", lambda one: words.short_time(words.set_time(one, "last_backup_time"), now), rank=4),
    )


def _took(batch: Any) -> str:
    start, end = words.set_time(batch, "start_time"), words.set_time(batch, "end_time")
    return words.span((end.ToDatetime() - start.ToDatetime()).total_seconds()) if start and end else "-"


def _servers(batch: Any) -> str:
    failed = f", {batch.failed_count} failed" if batch.failed_count else ""
    return f"{batch.completed_count} of {batch.server_count}{failed}"


def _batch_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("State", lambda one: state(one.state.replace("_", " "))),
        Column("Hypervisor", lambda one: one.hypervisor_name or one.hypervisor_id),
        Column("Servers", _servers, right=True),
        Column("Begun", lambda one: words.short_time(words.set_time(one, "start_time"), now), rank=1),
        Column("Took", _took, right=True, rank=2),
        Column("Storage", lambda one: one.storage_name or "-", rank=3),
    )


def _due(run: Any, now: datetime) -> Text:
    when = words.short_time(words.set_time(run, "due_time"), now)
    return styled(f"● overdue, {when}", "bold red") if run.overdue else styled(when, "")


def _upcoming_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Due", lambda one: _due(one, now)),
        Column("Hypervisor", lambda one: one.hypervisor_name or one.hypervisor_id),
        Column("Agent", lambda one: state("online" if one.online else "offline"), rank=1),
        Column("Storage", lambda one: one.storage_name or "-", rank=2),
    )


def _failing_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Server", lambda one: one.server_name or one.server_id),
        Column("In a row", lambda one: str(one.failure_count), right=True),
        Column("Reason", lambda one: styled(one.failure.reason or "-", "red")),
        Column("Last backup", lambda one: words.short_time(words.set_time(one, "last_backup_time"), now), rank=1),
        Column("Hypervisor", lambda one: one.hypervisor_name or "-", rank=2),
    )


def _unprotected_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Server", lambda one: one.server_name or one.server_id),
        Column("Hypervisor", lambda one: one.hypervisor_name or "-"),
        Column("Registered", lambda one: words.short_time(words.set_time(one, "create_time"), now), rank=1),
    )


def _purge_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Server", lambda one: one.server_name or one.server_id),
        Column("Goes", lambda one: words.short_time(words.set_time(one, "purge_time"), now)),
        Column("Backups", lambda one: str(one.backup_count), right=True),
        Column("Frees", lambda one: words.size(one.stored_bytes), right=True, rank=1),
    )


def _number(count: int, style: str) -> Text:
    return styled(str(count), style if count else "dim")


_DISCREPANCIES = (
    Column("Server", lambda one: one.server_name or one.server_id),
    Column("Storage", lambda one: one.storage_name or "-"),
    Column("Gone", lambda one: _number(one.missing_count, "bold red"), right=True),
    Column("Damaged", lambda one: _number(one.damaged_count, "bold red"), right=True),
    Column("Taken in", lambda one: _number(one.adopted_count, "yellow"), right=True),
)


def _error_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("When", lambda one: words.short_time(words.set_time(one, "time"), now)),
        Column("What", lambda one: f"{one.type} {one.server_name or one.storage_name}".strip()),
        Column("Reason", lambda one: styled(one.failure.reason or "-", "red")),
        Column("Step", lambda one: one.failure.step or "-", rank=1),
        Column("Message", lambda one: printable(one.failure.message), rank=2),
    )
