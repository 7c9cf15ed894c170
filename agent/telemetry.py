"""What is good to know and may be lost: how far jobs are, and what they said on the way. All of it is bounded.

engine's lines ──► Feed ──► session     progress: the newest word of each job, at most one a second
                                        log:      in order; beyond the limits lines are left out, and a line says so
"""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeAlias, cast

from engine.units import KIB, MIB

PROGRESS_SECONDS = 1.0
RATE_SECONDS = 10.0
LOG_BYTES_MAX = 2 * MIB  # waiting for a controller, all jobs together
LOG_LINES_MAX = 20_000  # of one attempt; more would help nobody
LINE_MAX = 4 * KIB
LINE_BYTES_EXTRA = 128  # ids, time and level of a line
Key: TypeAlias = tuple[str, int]
Level: TypeAlias = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt of a job is; `bytes_total` is 0 while unknown."""

    job_id: str
    attempt: int
    time: datetime
    stage: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_stored: int = 0
    bytes_per_second: int = 0

    @property
    def key(self) -> Key:
        return self.job_id, self.attempt


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of an attempt's log; `sequence` counts from 1."""

    job_id: str
    attempt: int
    sequence: int
    time: datetime
    level: Level
    message: str

    @property
    def key(self) -> Key:
        return self.job_id, self.attempt

    @property
    def size(self) -> int:
        return len(self.message.encode()) + LINE_BYTES_EXTRA


class Rate:
    """Bytes a second over the last few seconds. Values only grow within a stage; a smaller one begins anew."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def take(self, uptime: float, bytes_done: int) -> int:
        """Note a value and return the rate."""
        points = self._points
        if points and bytes_done < points[-1][1]:
            points.clear()
        points.append((uptime, bytes_done))
        while len(points) > 2 and points[0][0] < uptime - RATE_SECONDS:
            points.popleft()
        seconds = uptime - points[0][0]
        return int((bytes_done - points[0][1]) / seconds) if seconds > 0 else 0


class Feed:
    """Between the engines' words and the session. Belongs to the event loop; `changed` is set when there is something new."""

    def __init__(self, changed: asyncio.Event | None = None) -> None:
        self.changed = changed or asyncio.Event()
        self._progress: dict[Key, Progress] = {}
        self._sent_uptime: dict[Key, float] = {}
        self._rates: dict[Key, Rate] = {}
        self._lines: deque[LogLine] = deque()
        self._lines_size = 0
        self._left_out: dict[Key, tuple[int, LogLine]] = {}

    # ---- in ------------------------------------------------------------------------------------------------------------

    def progress(self, progress: Progress, uptime: float) -> None:
        """Note how far a job is; an older word that was not sent yet is dropped."""
        rate = self._rates.setdefault(progress.key, Rate()).take(uptime, progress.bytes_done)
        self._progress[progress.key] = replace(progress, bytes_per_second=rate)
        self.changed.set()

    def log(self, line: LogLine) -> None:
        """Note a line, or only that there was one when there is no room."""
        if line.sequence > LOG_LINES_MAX or self._lines_size + line.size > LOG_BYTES_MAX:
            count, _ = self._left_out.get(line.key, (0, line))
            self._left_out[line.key] = count + 1, line
        else:
            self._lines.append(line)
            self._lines_size += line.size
        self.changed.set()

    def forget(self, key: Key) -> None:
        """The job's attempt has ended: no more progress of it. Its log is still sent."""
        for table in (self._progress, self._sent_uptime, self._rates):
            cast("dict[Key, object]", table).pop(key, None)

    # ---- out -----------------------------------------------------------------------------------------------------------

    def take_progress(self, uptime: float) -> list[Progress]:
        """Return what may be sent now: of each job the newest word, if none was sent within the last second."""
        due = [
            progress
            for key, progress in self._progress.items()
            if uptime - self._sent_uptime.get(key, -PROGRESS_SECONDS) >= PROGRESS_SECONDS
        ]
        for progress in due:
            del self._progress[progress.key]
            self._sent_uptime[progress.key] = uptime
        return due

    def take_lines(self, bytes_max: int) -> list[LogLine]:
        """Return the oldest lines, at most `bytes_max` of them together, in order for each job."""
        taken: list[LogLine] = []
        while self._lines and self._lines[0].size <= bytes_max:
            line = self._lines.popleft()
            taken.append(line)
            self._lines_size -= line.size
            bytes_max -= line.size
        if not self._lines:
            taken += [_left_out_line(count, last) for count, last in self._left_out.values()]
            self._left_out.clear()
        return taken


def make_line(key: Key, sequence: int, time: datetime, level: str, message: str) -> LogLine:
    """Return a log line within its limits: one line of text, a level that exists."""
    known: Level = cast("Level", level) if level in {"info", "warning", "error"} else "info"
    text = " ".join(message.encode("utf-8", "replace").decode()[:LINE_MAX].splitlines())
    return LogLine(*key, sequence, time, known, text)


def _left_out_line(count: int, last: LogLine) -> LogLine:
    return replace(last, level="warning", message=f"{count} lines up to here were left out: more than can be kept")
