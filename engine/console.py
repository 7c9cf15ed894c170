"""What a person sees while bm-engine works: one line that moves on a terminal, a line per stage elsewhere. All on stderr."""

import sys
import threading
import time
from typing import Any, TextIO

from engine.units import human_bytes

REFRESH_SECONDS = 0.2
BAR_CELLS = 28


class ConsoleReport:
    """A `Report` (see work.py) for people; `quiet` leaves only warnings."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.records: list[dict[str, Any]] = []
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() and not quiet
        self._quiet = quiet
        self._lock = threading.Lock()
        self._stage = ""
        self._done = 0
        self._total = 0
        self._stored = 0
        self._begun = 0.0
        self._drawn = 0.0

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        with self._lock:
            self._draw(force=True)
            if self._live and self._stage:
                self._stream.write("\n")
            self._stage, self._done, self._total, self._begun = stage, 0, bytes_total, time.monotonic()
            if not self._live and not self._quiet:
                self._say(stage)
            self._draw(force=True)

    def expect(self, bytes_total: int) -> None:
        with self._lock:
            self._total = bytes_total

    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None:
        with self._lock:
            self._done += bytes_done
            self._stored += bytes_stored
            self._draw(force=False)

    def info(self, message: str) -> None:
        if not self._quiet:
            with self._lock:
                self._say(message)

    def warn(self, message: str) -> None:
        with self._lock:
            self._say(f"warning: {message}")

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def may_commit(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the line as it is, and the cursor below it."""
        with self._lock:
            self._draw(force=True)
            if self._live and self._stage:
                self._stream.write("\n")
                self._stream.flush()

    def _say(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}\n" if self._live else f"{line}\n")
        self._stream.flush()

    def _draw(self, *, force: bool) -> None:
        now = time.monotonic()
        if not self._live or not self._stage or (not force and now - self._drawn < REFRESH_SECONDS):
            return
        self._drawn = now
        seconds = now - self._begun
        rate = self._done / seconds if seconds > 0 else 0.0
        line = f"{self._stage:<8}"
        if self._total:
            share = min(1.0, self._done / self._total)
            cells = round(share * BAR_CELLS)
            line += f" {'█' * cells}{'░' * (BAR_CELLS - cells)} {share:4.0%}"
        if self._done:
            line += f"  {human_bytes(self._done)}"
            line += f" of {human_bytes(self._total)}" if self._total else ""
            line += f"  {human_bytes(rate)}/s"
        if self._stored:
            line += f"  stored {human_bytes(self._stored)}"
        if self._total and rate and self._done < self._total:
            line += f"  {(self._total - self._done) / rate:.0f} s left"
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()
