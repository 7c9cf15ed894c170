"""How a storage's health and usage read: in a table of all, on a card of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.cli import words
from clients.cli.output import Column, card, heading, state, state_of, styled
from engine.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.console import RenderableType
    from rich.text import Text

    from clients.cli.output import Screen
    from clients.gen.backupmanager.v1.storage_pb2 import ServerUsage, Storage, StorageCheck, StorageUsage

_BAR_CELLS = 30


def columns(now: datetime) -> tuple[Column, ...]:
    """Return the columns of a table of storages by health."""
    return (
        Column("Name", lambda one: one.name),
        Column("Health", lambda one: state("disabled") if not one.enabled else state_of(one.health)),
        Column("Usage", lambda one: _bar(one.usage, 12)),
        Column("Free", lambda one: words.size(one.usage.free_bytes), right=True),
        Column("Ours", lambda one: words.size(one.usage.backup_bytes), right=True, rank=2),
        Column("Checked", lambda one: words.short_time(words.set_time(one.health, "check_time"), now), rank=1),
        Column("Error", lambda one: one.health.failure.reason or "-", rank=3),
    )


def sentence(storage: Storage, now: datetime) -> Text:
    """Return a storage's health in a line: state, since when, why."""
    health = storage.health
    line = state_of(health)
    if health.detail:
        line.append(f"  {health.detail}", style="not bold default")
    checked = words.set_time(health, "check_time")
    if checked is not None:
        line.append(f", checked {words.short_time(checked, now)}", style="dim not bold")
    if health.HasField("failure"):
        line.append(f"\n{health.failure.message or health.failure.reason}", style="not bold default")
    return line


def usage_line(usage: StorageUsage) -> str:
    """Return what fills a storage in words, "" where nobody can tell."""
    if not usage.total_bytes:
        return ""
    parts = (f"{human_bytes(usage.backup_bytes)} ours", f"{human_bytes(usage.other_bytes)} others'")
    return f"{', '.join(parts)}, {human_bytes(usage.free_bytes)} free of {human_bytes(usage.total_bytes)}"


def show(
    screen: Screen, storage: Storage, checks: Sequence[StorageCheck], usages: Sequence[ServerUsage]
) -> RenderableType:
    """Return one storage's health: what it is, who found what, and who takes the room."""
    usage = storage.usage
    facts: tuple[tuple[str, Any], ...] = (
        ("Health", sentence(storage, screen.now)),
        ("Usage", _bar(usage, _BAR_CELLS) if usage.total_bytes else "the storage does not tell"),
        ("", styled(usage_line(usage), "")),
        ("Backups", f"{storage.backup_count} of {words.plural(usage.server_count, 'server')}"),
        ("Measured", words.long_time(words.set_time(usage, "measure_time"), screen.now)),
    )
    parts = []
    if checks:
        parts.append(screen.table(checks, _check_columns(screen.now), title="Checks"))
    if usages:
        parts.append(screen.table(usages, _usage_columns(screen.now), title="Largest servers"))
    return card(heading(storage.name, state_of(storage.health)), facts, *parts)


def _check_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Hypervisor", lambda one: one.hypervisor_name or one.hypervisor_id),
        Column("Health", state_of),
        Column("Checked", lambda one: words.short_time(words.set_time(one, "check_time"), now)),
        Column("Latency", _latency, right=True, rank=1),
        Column("Failed", lambda one: str(one.failure_count) if one.failure_count else "-", right=True, rank=2),
        Column("Error", lambda one: one.failure.message or "-", rank=3),
    )


def _usage_columns(now: datetime) -> tuple[Column, ...]:
    return (
        Column("Server", lambda one: one.server_name or one.server_id),
        Column("Stored", lambda one: words.size(one.stored_bytes), right=True),
        Column("Backups", lambda one: str(one.backup_count), right=True),
        Column("Last backup", lambda one: words.short_time(words.set_time(one, "last_backup_time"), now), rank=1),
    )


def _latency(check: StorageCheck) -> str:
    return words.span(words.seconds_of(check.latency)) if check.HasField("latency") else "-"


def _bar(usage: StorageUsage, cells: int) -> Text:
    from clients.cli.dashboard import usage_bar

    return usage_bar(usage, cells)
