"""The engine process under an agent: spec in on stdin, events out on stdout, control lines from a file. See spec.py.

    main thread      waits; signal handlers run here: SIGTERM and SIGINT cancel every job
    job threads      as many as jobs may run side by side (P2); each takes the next job when its last one has ended
    control thread   reads what the agent appends: cancel, grant, commit

The jobs share one pool of worker threads and one bucket for each limit (P1); one job's failure leaves the others alone.

Its first act is process.json beside the control file, so that an agent started later finds it. It ends by itself when its
jobs have ended, with exit status 0: how they ended is in the events.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine import spec
from engine.errors import BackupManagerError, WindowClosed
from engine.jobs import Outcome, failure_of, run_job
from engine.memory import keep_one_pool
from engine.spec import Job, Operation
from engine.work import Pool, Stop, Work

log = logging.getLogger(__name__)

CONTROL_POLL_SECONDS = 0.2
PROGRESS_SECONDS = 1.0
COMMIT_WAIT_SECONDS = 600.0  # an agent that is being restarted or updated is back by then; see EventReport.may_commit

_DISPENSABLE = frozenset({"progress", "log"})


class Events:
    """Numbered JSON lines on one descriptor, each written by one call. Any thread may use it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._number = 0
        self._rest = b""

    def send(self, kind: str, *, durable: bool = False, **fields: Any) -> None:
        """Write one event; `durable` ones are on disk when this returns.

        Progress and log lines that find no room are dropped: they are no reason to lose a backup. Raises OSError for others.
        """
        with self._lock:
            self._number += 1
            time_text = datetime.now(UTC).isoformat(timespec="milliseconds")
            data = b""
            line = json.dumps({"n": self._number, "type": kind, "time": time_text, **fields}, separators=(",", ":"))
            try:
                self._flush()  # the rest of a line that found no room
                self._rest = data = line.encode() + b"\n"
                self._flush()
            except OSError:
                if kind not in _DISPENSABLE:
                    raise
                if self._rest == data or not data:  # nothing of it was written
                    self._rest, self._number = b"" if data else self._rest, self._number - 1
                return
            if durable:
                with contextlib.suppress(OSError):  # a pipe or a terminal cannot be synced
                    os.fsync(self._descriptor)

    def _flush(self) -> None:
        """Write what is left of the newest line; what could not be written stays in `_rest`. Raises OSError."""
        while self._rest:
            self._rest = self._rest[os.write(self._descriptor, self._rest) :]


class EventReport:
    """A job's words as events; progress at most once a second."""

    def __init__(self, events: Events, job_id: str, *, managed: bool) -> None:
        self._events = events
        self._job_id = job_id
        self._managed = managed
        self._lock = threading.Lock()
        self._stage = ""
        self._done = 0
        self._total = 0
        self._stored = 0
        self._sent = 0.0
        self._answer = threading.Event()
        self._allowed = False

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        with self._lock:
            self._stage, self._done, self._total, self._sent = stage, 0, bytes_total, 0.0
        self._events.send("stage", job_id=self._job_id, stage=stage)

    def expect(self, bytes_total: int) -> None:
        with self._lock:
            self._total = bytes_total

    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None:
        now = time.monotonic()
        with self._lock:
            self._done += bytes_done
            self._stored += bytes_stored
            if now - self._sent < PROGRESS_SECONDS:
                return
            self._sent = now
            stage, done, total, stored = self._stage, self._done, self._total, self._stored
        self._events.send(
            "progress", job_id=self._job_id, stage=stage, bytes_done=done, bytes_total=total, bytes_stored=stored
        )

    def info(self, message: str) -> None:
        self._events.send("log", job_id=self._job_id, level="info", message=message)

    def warn(self, message: str) -> None:
        self._events.send("log", job_id=self._job_id, level="warning", message=message)

    def record(self, record: dict[str, Any]) -> None:
        self._events.send("record", job_id=self._job_id, record=record)

    def may_commit(self) -> bool:
        """Ask the agent. If none answers for ten minutes, go on: the domain's lock is ours, and a whole backup harms nobody."""
        if not self._managed:
            return True
        self._events.send("commit", job_id=self._job_id)
        if not self._answer.wait(COMMIT_WAIT_SECONDS):
            self.warn("no agent answered whether the job still holds its lease; the backup is committed")
            return True
        return self._allowed

    def answer(self, *, allow: bool) -> None:
        """The agent's word on `may_commit`; a cancelled job gets False."""
        self._allowed = allow
        self._answer.set()


class Worker:
    """The process's jobs and what is said to them while they run."""

    def __init__(self, operation: Operation, events: Events) -> None:
        self._operation = operation
        self._events = events
        self._reports = {
            job.job_id: EventReport(events, job.job_id, managed=operation.managed) for job in operation.jobs
        }
        self._pool = Pool(operation.settings)
        self._works = {
            job.job_id: Work(self._reports[job.job_id], operation.settings, Stop(), self._pool)
            for job in operation.jobs
        }
        self._waiting = deque(operation.jobs)
        self._taking = threading.Condition()
        self._held = False

    def start(self) -> list[threading.Thread]:
        """Begin with the jobs; when the threads have ended, so have all of them."""
        count = max(1, min(self._operation.concurrency, len(self._operation.jobs)))
        threads = [threading.Thread(target=self._run_jobs, name=f"job-{n}", daemon=True) for n in range(1, count + 1)]
        for thread in threads:
            thread.start()
        return threads

    def _run_jobs(self) -> None:
        while True:
            job = self._take()
            if job is None:
                return
            try:
                if 0 < job.begin_uptime_max < time.clock_gettime(time.CLOCK_BOOTTIME):
                    self._finish(job, Outcome("failed", failure_of(WindowClosed(), "prepare"), [], None))
                else:
                    self._do(job)
            except OSError:  # its events cannot be written; for the agent it has crashed, the next may be luckier
                log.exception("The end of a job could not be told job_id=%s", job.job_id)

    def _do(self, job: Job) -> None:
        self._events.send("started", job_id=job.job_id)
        self._finish(job, self._run(job))

    def _take(self) -> Job | None:
        """Return the next job once it may begin; None when there is none."""
        with self._taking:
            self._taking.wait_for(lambda: not (self._held and self._waiting))
            return self._waiting.popleft() if self._waiting else None

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._events.send(
            "finished", durable=True, job_id=job.job_id, state=outcome.state, failure=outcome.failure,
            warnings=outcome.warnings, result=outcome.result,
        )  # fmt: skip

    def _run(self, job: Job) -> Outcome:
        try:
            return run_job(job, self._operation, self._works[job.job_id])
        except Exception as error:  # a fault of ours: said once, with its traceback, in the process's own log
            log.exception("The job failed by a fault of this program job_id=%s", job.job_id)
            where = traceback.extract_tb(error.__traceback__)[-1]
            detail = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            failure = {"reason": "INTERNAL", "message": f"a fault of this program: {detail}", "facts": {}, "step": ""}
            return Outcome("failed", failure, [], None)

    def cancel(self, job_id: str) -> None:
        if job_id in self._works:
            self._works[job_id].stop.set()
            self._reports[job_id].answer(allow=False)
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        """End a job that has not begun."""
        with self._taking:
            found = [job for job in self._waiting if job.job_id == job_id]
            self._waiting = deque(job for job in self._waiting if job.job_id != job_id)
            self._taking.notify_all()
        for job in found:
            self._finish(job, Outcome("cancelled", None, ["It had not begun yet"], None))

    def hold(self, *, hold: bool) -> None:
        """Let no further job begin, or let them begin again."""
        with self._taking:
            self._held = hold
            self._taking.notify_all()
        if hold:
            self._events.send("held")

    def cancel_all(self) -> None:
        for job_id in self._works:
            self.cancel(job_id)

    def control(self, line: dict[str, Any]) -> None:
        """Obey one control line; one that is not understood is logged, since an agent may be newer."""
        match line:
            case {"type": "cancel", "job_id": str(job_id)}:
                self.cancel(job_id)
            case {"type": "grant", "workers": int(workers), "read_limit": int(read), "upload_limit": int(upload)} if (
                min(read, upload) >= 0
            ):
                self._pool.grant(workers, read, upload)
            case {"type": "commit", "job_id": str(job_id), "allow": bool(allow)} if job_id in self._reports:
                self._reports[job_id].answer(allow=allow)
            case {"type": "hold", "hold": bool(hold)}:
                self.hold(hold=hold)
            case _:
                log.warning("An unknown control line was ignored line=%s", line)


class Control:
    """The control file: feeds every whole line that is appended to it to the worker, each once."""

    def __init__(self, path: Path, worker: Worker) -> None:
        self._path = path
        self._worker = worker
        self._position = 0
        self._rest = b""

    def read(self) -> None:
        """Obey the lines that have come since the last call."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
            self._position += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):  # a torn line of an agent that died
                    self._worker.control(json.loads(line))

    def follow(self, ended: threading.Event) -> None:
        """Obey until `ended`."""
        while not ended.wait(CONTROL_POLL_SECONDS):
            self.read()


def identify_process() -> dict[str, Any]:
    """Return what tells this process from any other that may get its pid: pid, start time in clock ticks, boot id."""
    stat = Path(f"/proc/{os.getpid()}/stat").read_text()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "start_time": int(stat.rpartition(")")[2].split()[19]), "boot_id": boot_id}


def set_priority(settings: spec.Settings) -> None:
    """Set nice and ionice of this process. Before the first thread: later ones inherit, earlier ones would not."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = {"normal": nice, "low": max(10, nice), "idle": 19}[settings.cpu_priority]
    with contextlib.suppress(PermissionError):  # raising a priority again needs privileges; lowering never does
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
    if settings.io_priority != "normal":
        import psutil  # two MiB, which others can do without

        with contextlib.suppress(psutil.AccessDenied):
            own = psutil.Process()
            if settings.io_priority == "low":
                own.ionice(psutil.IOPRIO_CLASS_BE, 7)
            else:
                own.ionice(psutil.IOPRIO_CLASS_IDLE)


@contextlib.contextmanager
def private_stdout() -> Iterator[int]:
    """Yield the process's stdout for events alone; whatever else writes to descriptor 1 from now on goes to stderr."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run(operation: Operation, events: Events) -> None:
    """Do an operation's jobs, obeying signals and control lines; call from the main thread."""
    worker = Worker(operation, events)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.cancel_all())
    if operation.control_file:
        control = Control(Path(operation.control_file), worker)
        control.read()  # the share that the agent has granted already holds from the first byte on
        threading.Thread(target=control.follow, args=(ended,), name="control", daemon=True).start()
    for thread in worker.start():
        while thread.is_alive():
            thread.join(1.0)
    ended.set()
    events.send("ended", durable=True)


def main() -> None:
    """Entry point of `python -m engine.worker [--heal]`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    text = sys.stdin.buffer.read()
    with private_stdout() as descriptor:
        if "--heal" in sys.argv[1:]:
            from engine.heal import heal_from_json

            stop = Stop()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            os.write(descriptor, heal_from_json(text, stop).encode() + b"\n")
            return
        events = Events(descriptor)
        try:
            operation = spec.load(Operation, text)
        except BackupManagerError as error:
            events.send("refused", durable=True, failure=failure_of(error, "prepare"))
            sys.exit(2)
        if operation.control_file:
            _announce(Path(operation.control_file).parent)
        keep_one_pool()
        set_priority(operation.settings)
        run(operation, events)


def _announce(folder: Path) -> None:
    temporary = folder / f"process.json.{os.getpid()}"
    temporary.write_text(json.dumps(identify_process()))
    temporary.replace(folder / "process.json")


if __name__ == "__main__":
    main()
