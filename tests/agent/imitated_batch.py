"""The real engine process with imitated jobs: each does nothing but wait for its file, and ends as that file's name says.

In the storage's folder, `<server>.go` ends a job well, `<server>.fail` badly, `<server>.die` kills the process. What begins is
noted in `seen.jsonl`, with the process's priorities and what it was granted.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from engine import worker
from engine.errors import Cancelled
from engine.jobs import Outcome
from engine.spec import Job, Operation
from engine.work import Work
from tests.agent.imitated_engine import LIMIT_SECONDS, POLL_SECONDS, backup, heal


def main() -> None:
    if "--heal" in sys.argv:
        heal(sys.stdin.buffer.read())
        return
    setattr(worker, "run_job", run_job)  # noqa: B010 - it is the name that the worker looks up
    worker.main()


def run_job(job: Job, operation: Operation, work: Work) -> Outcome:
    spec = job.backup or job.restore or job.verify
    place = operation.storage.local
    assert place is not None
    assert spec is not None
    folder, deadline = Path(place.path), time.monotonic() + LIMIT_SECONDS
    note(folder, "begins", server=spec.server_id, pid=os.getpid(), ionice=ionice(), nice=os.nice(0))
    work.report.stage("read", 1000)
    work.report.info(f"hello of {spec.server_id}")
    granted = 0
    while time.monotonic() < deadline:
        if work.workers.count != granted:
            granted = work.workers.count
            note(folder, "granted", server=spec.server_id, workers=granted, read=work.read.rate)
        if (folder / f"{spec.server_id}.die").exists():
            (folder / f"{spec.server_id}.die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / f"{spec.server_id}.fail").exists():
            failure = {"reason": "STORAGE_FULL", "message": "full", "facts": {}, "step": "read"}
            return Outcome("failed", failure, [], None)
        if (folder / f"{spec.server_id}.go").exists():
            return Outcome("completed", None, [], backup(job.backup.backup_id) if job.backup else None)
        try:
            work.stop.check()
        except Cancelled:
            return Outcome("cancelled", None, [], None)
        time.sleep(POLL_SECONDS)
    os._exit(9)


def note(folder: Path, what: str, **facts: Any) -> None:
    with (folder / "seen.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, **facts}) + "\n")


def ionice() -> list[int]:
    """Return class and level of this thread."""
    import psutil

    found = psutil.Process().ionice()
    return [int(found.ioclass), int(found.value)]


if __name__ == "__main__":
    main()
