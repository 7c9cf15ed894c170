"""The real engine process as an agent runs it, in a folder of its own, with what can be seen of it from outside."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from engine import spec
from engine.spec import Job, Operation
from tests.waiting import wait_until

_IOPRIO_GET = 252  # the system call's number on x86-64; the C library has no function for it
_IOPRIO_WHO_PROCESS = 1


class EngineProcess:
    """`python -m engine.worker` on an operation; killed at the block's end if it still runs."""

    def __init__(self, folder: Path, operation: Operation, jobs: Sequence[Job], **environment: str) -> None:
        folder.mkdir()
        self._control, self._events = folder / "control.jsonl", folder / "events.jsonl"
        self._control.touch()
        self._stderr = folder / "stderr.log"
        self._operation = replace(operation, jobs=tuple(jobs), control_file=str(self._control))
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._events.open("wb") as events, self._stderr.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.worker"],
                stdin=subprocess.PIPE, stdout=events, stderr=errors, env={**os.environ, **self._environment},
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(spec.dump(self._operation).encode())
        self._process.stdin.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def tell(self, **line: Any) -> None:
        with self._control.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def grant(self, *, workers: int = 4, read: int = 0, upload: int = 0) -> None:
        self.tell(type="grant", workers=workers, read_limit=read, upload_limit=upload)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the whole lines it has said so far."""
        lines = [json.loads(line) for line in self._events.read_text().split("\n")[:-1]]
        return [line for line in lines if kind in {"", line["type"]}]

    def wait_event(self, kind: str, count: int = 1, seconds: float = 60) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.events(kind)) >= count, seconds, f"{count} {kind} of {self.events()}")
        return self.events(kind)

    def wait(self, seconds: float = 60) -> list[dict[str, Any]]:
        """Wait for the end; return the `finished` events."""
        assert self._process is not None
        assert self._process.wait(seconds) == 0, self._stderr.read_text()
        return self.events("finished")

    def children(self, name: str) -> list[int]:
        """Return the pids of its descendants of that name."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name() == name:
                        found.append(child.pid)
        return found


def priorities(pid: int) -> set[tuple[int, int]]:
    """Return (nice, I/O priority as the kernel has it) of every thread of a process; none if it is gone."""
    found = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                nice = int((task / "stat").read_text().rpartition(")")[2].split()[16])  # field 19 of all
                found.add((nice, io_priority(int(task.name))))
    return found


def io_priority(thread: int) -> int:
    """Return what ioprio_get(2) says: the class in bits 13 and up, the level below."""
    value = ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_GET, _IOPRIO_WHO_PROCESS, thread)
    if value < 0:
        raise OSError(ctypes.get_errno(), "ioprio_get")
    return int(value)


class Meter:
    """Samples a growing number every 20 ms while the block runs."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.02):
            self.samples.append((time.monotonic(), self._value()))

    def most(self, seconds: float) -> int:
        """Return how much it grew at most in any time of at most `seconds`."""
        best = first = 0
        for at, value in self.samples:
            while at - self.samples[first][0] > seconds:
                first += 1
            best = max(best, value - self.samples[first][1])
        return best


def bytes_below(folder: Path) -> int:
    """Return the bytes of all data files below a storage's folder, unfinished ones included."""
    total = 0
    for file in folder.rglob("*.data*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def bytes_read(pids: Sequence[int]) -> int:
    """Return what processes have read from files so far, from the page cache or not."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/io").read_text().split()[1])
    return total
