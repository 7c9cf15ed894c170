"""Engine processes that outlive us: found again by who they are, watched by pidfd, reaped where they are our children.

A pid alone says nothing, since the kernel uses it again. Pid, start time (field 22 of /proc/PID/stat) and the kernel's boot
id together name one process for ever.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessName:
    """Names one process for ever. `start_time` is in clock ticks since boot."""

    pid: int
    start_time: int
    boot_id: str


def boot_id() -> str:
    """Return the kernel's boot id: another one means that every earlier process is gone."""
    return BOOT_ID_FILE.read_text().strip()


def start_time_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])  # what follows the name, which may hold anything; field 22 of all


class Process:
    """A running or ended process that we may signal and wait for. Belongs to the event loop it was made in."""

    def __init__(self, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.exit_status: int | None = None  # as Popen has it; stays None for one that is not our child
        self._pidfd = pidfd
        self._child = child
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_exit)  # readable once it is a zombie or gone

    @property
    def ended(self) -> bool:
        """True once the process has ended and, if it is our child, is reaped."""
        return self._ended.is_set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, at most `seconds`; tell whether it has come."""
        if seconds is None:
            await self._ended.wait()
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)
        return self.ended

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process; one that has ended gets none."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def release(self) -> None:
        """Stop watching. The process goes on."""
        if not self.ended:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            if self._child is not None:
                self._child.returncode = 0  # else its destructor complains; whoever adopts our children reaps it

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._child is not None:
            self.exit_status = self._child.wait()
        self._ended.set()


def adopt(name: ProcessName) -> Process | None:
    """Return the process of that name if it still runs. Source of the order: a pidfd taken before the start time is read
    cannot point to another process than the one whose start time fits.
    """
    if name.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(name.pid)
    except (ProcessLookupError, ValueError):
        return None
    if start_time_of(name.pid) != name.start_time:
        os.close(pidfd)
        return None
    return Process(name.pid, pidfd)


def watch_child(child: subprocess.Popen[bytes]) -> Process:
    """Return a child that was just started. It cannot be reaped before, so its pid is its own."""
    return Process(child.pid, os.pidfd_open(child.pid), child)


def holder_of(path: Path) -> ProcessName | None:
    """Return a process that has a file open: for the instant between the start of an engine and its process.json."""
    wanted = str(path)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(link.readlink().as_posix() == wanted for link in (folder / "fd").iterdir()):
                start_time = start_time_of(int(folder.name))
                if start_time is not None:
                    return ProcessName(int(folder.name), start_time, boot_id())
    return None
