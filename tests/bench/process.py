"""Running a program from its start to its end and measuring it as a whole: seconds, CPU seconds, what it printed."""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` by the clock from before the start to the end; `cpu_seconds` in user and kernel mode, with its children."""

    seconds: float
    cpu_seconds: float
    output: bytes


def run(
    command: Sequence[str | Path],
    *,
    keep_output: bool = False,
    environment: Mapping[str, str] | None = None,
    source: Path = Path(os.devnull),
    sink: Path | None = None,
) -> Run:
    """Run `command` to its end, `source` on its stdin. Raises RuntimeError with its last words.

    Its stdout goes to the file `sink` if there is one, else nowhere unless `keep_output`.
    """
    with source.open("rb") as given, (sink or Path(os.devnull)).open("wb") as taken:
        return _run(command, given, subprocess.PIPE if keep_output else taken, {**os.environ, **(environment or {})})


def run_with(command: Sequence[str | Path], words: bytes) -> Run:
    """Run `command` to its end with `words` on its stdin, and keep its output. Raises RuntimeError with its last words."""
    with tempfile.TemporaryFile() as given:
        given.write(words)
        given.seek(0)
        return _run(command, given, subprocess.PIPE, os.environ)


def _run(
    command: Sequence[str | Path], given: IO[bytes], taken: IO[bytes] | int, environment: Mapping[str, str]
) -> Run:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        stdin=given,
        stdout=taken,
        stderr=subprocess.PIPE,
        env=dict(environment),
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
