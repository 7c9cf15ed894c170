"""The system log (M9): what the controller did and met of its own accord, in sentences, with links to what they are about.

An event says that something happened, to programs; a line of this log says to people what went well or wrong and why. Lines of
level info are kept only while Log Info Level is on (G9).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from controller import settings
from controller.db import models

Level: TypeAlias = Literal["info", "warning", "error"]
Source: TypeAlias = Literal["dispatcher", "inventory", "purge", "health", "prune", "heal"]

Row = models.SystemLog
MESSAGE_CHARACTERS_MAX = 4096
_LINKS = frozenset({"schedule_id", "storage_id", "hypervisor_id", "server_id", "batch_id", "job_id"})


def write(level: Level, source: Source, message: str, now: datetime, **links: str) -> None:
    """Add a line. `links` are ids: schedule_id, storage_id, hypervisor_id, server_id, batch_id, job_id. Inside Database.run.

    A message says what happened, why and what helps, and holds no secret.
    """
    if unknown := links.keys() - _LINKS:
        raise ValueError(f"no link {', '.join(sorted(unknown))}")
    if level == "info" and not settings.get().log_info_level:
        return
    text = message[:MESSAGE_CHARACTERS_MAX].replace("\0", "")
    Row.insert(time=now, level=level, source=source, message=text, **links).execute()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of the log. Links are "" where it is not about such a thing."""

    sequence: int
    time: datetime
    level: str
    source: str
    message: str
    schedule_id: str
    storage_id: str
    hypervisor_id: str
    server_id: str
    batch_id: str
    job_id: str


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines; empty means all. `text` is a part of the message. `start_time` <= time < `end_time`."""

    levels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    text: str = ""
    schedule_id: str = ""
    storage_id: str = ""
    hypervisor_id: str = ""
    server_id: str = ""
    batch_id: str = ""
    job_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


def list_entries(wanted: LogFilter, *, after: tuple[int] | None = None, limit: int = 101) -> list[LogEntry]:
    """Return lines, newest first, those after the sequence in `after`."""
    query = Row.select()
    for column, values in ((Row.level, wanted.levels), (Row.source, wanted.sources)):
        if values:
            query = query.where(column.in_(list(values)))
    for name in _LINKS:
        if value := getattr(wanted, name):
            query = query.where(getattr(Row, name) == value)
    if wanted.text:
        query = query.where(Row.message.contains(wanted.text))
    if wanted.start_time:
        query = query.where(Row.time >= wanted.start_time)
    if wanted.end_time:
        query = query.where(Row.time < wanted.end_time)
    if after:
        query = query.where(Row.sequence < after[0])
    rows = query.order_by(Row.sequence.desc()).limit(limit)
    return [LogEntry(**{name: getattr(row, name) for name in LogEntry.__dataclass_fields__}) for row in rows]


def remove_before(time: datetime, limit: int) -> int:
    """Remove the oldest lines from before a time, at most `limit`. Returns how many went."""
    old = [row.sequence for row in Row.select(Row.sequence).where(Row.time < time).limit(limit)]
    return int(Row.delete().where(Row.sequence.in_(old)).execute()) if old else 0
