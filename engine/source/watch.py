"""Looks after a backup job while its disks are read: is it alive, is there room, does the guest go on.

    room thread    the scratch folder's free bytes, as often as scratch.py says; asks nobody, so nothing can hold it up
    life thread    libvirt, once a second and at each stop of the guest that libvirt tells of

Whichever finds a reason to give up ends the job at once, before the guest's next write finds no room, and wakes whoever
reads. Of several jobs that share the room the one that has taken most of it gives up first, and the others may go on.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.errors import EngineError, HypervisorError, LibvirtUnreachable, NbdError, ScratchRanShort
from engine.hypervisor.backup_job import BackupJob
from engine.hypervisor.connection import DomainEvent
from engine.source.nbd_disk import NbdDisk
from engine.source.scratch import Gauge, free_room, largest_elsewhere
from engine.work import Stop

log = logging.getLogger(__name__)

LIFE_SECONDS = 1.0
GONE_SECONDS = 5.0  # QEMU's sockets close some moments before libvirt hears of its end
RESUME_SECONDS_MAX = 60.0  # a guest whose own image finds no room only stops again: it is tried ever more seldom


@contextlib.contextmanager
def watched(job: BackupJob, disks: Mapping[str, NbdDisk], scratch_folder: Path, stop: Stop) -> Iterator[None]:
    """Interrupt the disks when the job is gone or scratch space runs short; that error then leaves the block, not its echo.

    `disks` may be filled later. The guest is running again, if it ran before, when the error leaves.
    """
    watch = _Watch(job, disks, scratch_folder)
    with watch.running():
        try:
            yield
        except (NbdError, HypervisorError) as error:
            if watch.found is not None:
                raise watch.found from error
            if isinstance(error, NbdError):
                _raise_gone(job, stop)
            raise


class _Watch:
    def __init__(self, job: BackupJob, disks: Mapping[str, NbdDisk], scratch_folder: Path) -> None:
        self.found: EngineError | None = None
        self._job, self._disks, self._folder = job, disks, scratch_folder
        self._gauge = Gauge(free_room(scratch_folder), time.monotonic())
        self._ended = threading.Event()
        self._look = threading.Event()
        self._lock = threading.Lock()
        self._resume_time, self._resume_seconds = 0.0, LIFE_SECONDS

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch for the time of the block."""
        threads = [
            threading.Thread(target=self._watch_room, name="scratch-room", daemon=True),
            threading.Thread(target=self._watch_life, name="backup-job-life", daemon=True),
        ]
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(HypervisorError):  # without events the life thread sees it within a second
                domain = self._job.domain
                stack.callback(domain.connection.watch_domain(domain, self._on_event))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._ended.set()
                self._look.set()
                for thread in threads:
                    thread.join()

    def _on_event(self, event: DomainEvent) -> None:
        if event.change in {"suspended", "stopped", "crashed"}:
            self._look.set()

    # ---- room --------------------------------------------------------------------------------------------------------

    def _watch_room(self) -> None:
        while not self._ended.wait(self._gauge.look_seconds):
            try:
                self._gauge.read(free_room(self._folder), time.monotonic())
            except HypervisorError as error:
                self._give_up(error)
                return
            if self._gauge.short and (self._gauge.dire or self._largest()):
                self._give_up(self._short())
                return

    def _largest(self) -> bool:
        return self._job.scratch_used() >= largest_elsewhere(self._folder, self._job.folder)

    def _short(self) -> ScratchRanShort:
        gauge = self._gauge
        return ScratchRanShort(
            path=self._folder, free=gauge.free_bytes, needed=gauge.reserve_bytes, used=self._job.scratch_used(),
            rate=int(gauge.rate),
        )  # fmt: skip

    # ---- life --------------------------------------------------------------------------------------------------------

    def _watch_life(self) -> None:
        while True:
            self._look.wait(LIFE_SECONDS)
            self._look.clear()
            if self._ended.is_set():
                return
            try:
                self._job.check_alive()
                self._go_on()
            except LibvirtUnreachable:  # it is being restarted; the data comes from QEMU, and the job's end will tell
                continue
            except HypervisorError as error:
                self._give_up(error)
                return

    def _go_on(self) -> None:
        """Let a guest go on that stopped for want of room, which may be there again; while it is not, the room thread acts."""
        now = time.monotonic()
        if now >= self._resume_time and not self._gauge.short and self._job.resume_io_error():
            self._resume_time = now + self._resume_seconds
            self._resume_seconds = min(2 * self._resume_seconds, RESUME_SECONDS_MAX)

    def _give_up(self, error: EngineError) -> None:
        with self._lock:
            if self.found is not None or self._ended.is_set():
                return
            self.found = error
        for disk in list(self._disks.values()):
            disk.interrupt()
        for disk in list(self._disks.values()):
            disk.settle(GONE_SECONDS)  # QEMU must not be told to stop its server while we shake hands
        # The block may stand in an upload for long, and a guest whose write found no room stands still until then.
        with contextlib.suppress(HypervisorError):  # the end of the job is tried again, and tells why it fails
            self._job.end()


def _raise_gone(job: BackupJob, stop: Stop) -> None:
    """Raise DomainGone if the domain was stopped, which a read may notice before libvirt does. Who cancels need not wait for that."""
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline and not stop.event.wait(0.1):
        job.check_alive()
