"""What a job reports, on its way: remembered where the end needs it."""

import threading
import time
from typing import Any

from engine.units import human_bytes
from engine.work import Report


class StepReport:
    """Passes a job's words on, and remembers its stage and warnings for the end."""

    def __init__(self, inner: Report) -> None:
        self.step = "prepare"
        self.warnings: list[str] = []
        self._inner = inner
        self._lock = threading.Lock()
        self._bytes_done = 0
        self._bytes_stored = 0
        self._begun = time.monotonic()

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        self.step = stage
        self._inner.stage(stage, bytes_total)

    def expect(self, bytes_total: int) -> None:
        self._inner.expect(bytes_total)

    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None:
        with self._lock:
            self._bytes_done += bytes_done
            self._bytes_stored += bytes_stored
        self._inner.advance(bytes_done, bytes_stored)

    def info(self, message: str) -> None:
        self._inner.info(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self._inner.warn(message)

    def record(self, record: dict[str, Any]) -> None:
        self._inner.record(record)

    def may_commit(self) -> bool:
        return self._inner.may_commit()

    def conclude(self, state: str) -> None:
        """Say how the job ended, in one line with what it took."""
        took = f"{time.monotonic() - self._begun:.1f} s, {human_bytes(self._bytes_done)} done"
        stored = f", {human_bytes(self._bytes_stored)} stored" if self._bytes_stored else ""
        self._inner.info(f"{state.replace('_', ' ')} in {took}{stored}")
