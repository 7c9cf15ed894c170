"""Running a program from its start to its end and measuring it as a whole: seconds, CPU seconds, what it printed."""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` by the clock from before the start to the end; `cpu_seconds` in user and kernel mode, with its children."""

    seconds: float
    cpu_seconds: float
    output: bytes


def run(
    command: Sequence[str | Path], *, keep_output: bool = False, environment: Mapping[str, str] | None = None
) -> Run:
    """Run `command` to its end. Its stdout is thrown away unless `keep_output`. Raises RuntimeError with its last words."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if keep_output else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        words = ((done.stdout or b"") + done.stderr)[-2000:].decode(errors="replace")
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {words}")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu_seconds, done.stdout or b"")


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU seconds that a running process has used so far, all its threads together. Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mib(pid: str = "self") -> float:
    """Return the most memory that a running process has had in RAM.

    Not getrusage's number: that one remembers the memory of the process which started this one.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def stored_bytes(folder: Path) -> int:
    """Return how many bytes the files below `folder` hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
