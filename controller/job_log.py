"""Keeping the logs of jobs: lines as the agent numbered them, once each, at most so many bytes for a job (G8: 1 MiB)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from controller import settings
from controller.db.models import Job, JobLog
from engine.units import KIB

LINE_CHARACTERS_MAX = 8 * KIB
_LINE_BYTES = 64  # what a line costs beside its text
_FULL = "the log ends here: it has reached its limit"


@dataclass(frozen=True, slots=True)
class Line:
    """A line as an agent sent it; `sequence` is the attempt's own. `level` is info, warning or error."""

    job_id: str
    attempt: int
    sequence: int
    time: datetime
    level: str
    message: str


def append(hypervisor_id: str, lines: Iterable[Line]) -> int:
    """Keep lines of jobs of this hypervisor; others, and lines that are there already, are left out. Returns how many were kept."""
    kept = 0
    rooms: dict[str, int | None] = {}
    most = settings.get().job_log_bytes_max
    for line in lines:
        if line.job_id not in rooms:
            rooms[line.job_id] = _log_bytes(line.job_id, hypervisor_id)
        used = rooms[line.job_id]
        if used is None or used >= most or _is_there(line):
            continue
        message = line.message[:LINE_CHARACTERS_MAX]
        used += len(message.encode()) + _LINE_BYTES
        full = used >= most
        JobLog.insert(
            job=line.job_id,
            attempt=line.attempt,
            sequence=line.sequence,
            time=line.time,
            level="warning" if full else line.level,
            message=_FULL if full else message,
        ).execute()
        rooms[line.job_id] = used
        kept += 1
    for job_id, used in rooms.items():
        if used is not None:
            Job.update(log_bytes=used).where(Job.job_id == job_id).execute()
    return kept


def _log_bytes(job_id: str, hypervisor_id: str) -> int | None:
    row = Job.get_or_none((Job.job_id == job_id) & (Job.hypervisor_id == hypervisor_id))
    return None if row is None else int(row.log_bytes)


def _is_there(line: Line) -> bool:
    return bool(
        JobLog.select()
        .where((JobLog.job == line.job_id) & (JobLog.attempt == line.attempt) & (JobLog.sequence == line.sequence))
        .exists()
    )
