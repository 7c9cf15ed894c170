"""An engine that does nothing, by script: it speaks the protocol of engine/spec.py, and fails in every way that one may fail.

The script is a file `script.json` in the storage's folder (a list of steps, see `STEPS`). What the engine was told is noted
in `seen.jsonl` beside it. Steps wait for files there, so that a test says when things happen.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from engine import spec

POLL_SECONDS = 0.01
LIMIT_SECONDS = 60.0  # whatever happens, this process is gone after it


class Cancelled(Exception):
    """The work was cancelled, by word or by signal."""


class Engine:
    def __init__(self, operation: spec.Operation, folder: Path) -> None:
        self.operation = operation
        self.folder = folder
        self.job = operation.jobs[0]
        self.control = Path(operation.control_file)
        self.number = 0
        self.told: list[dict[str, Any]] = []
        self.deaf = False
        self.cancelled = threading.Event()

    def say(self, kind: str, **fields) -> None:
        self.number += 1
        line = json.dumps({"n": self.number, "type": kind, "job_id": self.job.job_id, **fields})
        os.write(1, line.encode() + b"\n")

    def note(self, what: str, **facts) -> None:
        with (self.folder / "seen.jsonl").open("a") as file:
            file.write(json.dumps({"what": what, **facts}) + "\n")

    def listen(self) -> None:
        """Read new control lines; raise Cancelled for a cancel, unless deaf."""
        lines = [json.loads(line) for line in self.control.read_bytes().splitlines()]
        for line in lines[len(self.told) :]:
            self.told.append(line)
            self.note("told", line=line)
        if self.deaf:
            return
        if self.cancelled.is_set() or any(line["type"] == "cancel" for line in self.told):
            raise Cancelled

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (self.folder / name).exists():
            self.listen()
            if time.monotonic() > deadline:
                os._exit(9)
            time.sleep(POLL_SECONDS)

    # ---- steps ---------------------------------------------------------------------------------------------------------

    def step(self, step: dict[str, Any]) -> None:
        getattr(self, f"do_{step.pop('do')}")(**step)

    def do_wait(self, file: str) -> None:
        self.note("waits", file=file)
        self.wait_for(file)

    def do_stage(self, stage: str) -> None:
        self.say("stage", stage=stage)

    def do_progress(self, count: int = 1, total: int = 1000) -> None:
        for done in range(1, count + 1):
            self.say("progress", stage="read", bytes_done=done, bytes_total=total, bytes_stored=done // 2)

    def do_log(self, message: str, count: int = 1) -> None:
        for number in range(count):
            self.say("log", level="info", message=f"{message} {number}")

    def do_record(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.say("record", record=record(number))

    def do_commit(self) -> None:
        self.say("commit")
        self.note("asked")
        while not any(line["type"] == "commit" for line in self.told):
            self.listen()
            time.sleep(POLL_SECONDS)
        allowed = next(line["allow"] for line in self.told if line["type"] == "commit")
        if not allowed:
            failure = {"reason": "LEASE_LOST", "message": "the lease is gone", "facts": {}, "step": "commit"}
            self.say("finished", state="failed", failure=failure, warnings=[], result=None)
            raise SystemExit(0)

    def do_finish(
        self, state: str = "completed", result: dict[str, Any] | None = None, warnings: tuple[str, ...] = ()
    ) -> None:
        self.say("finished", state=state, failure=None, warnings=list(warnings), result=result)
        self.note("finished")

    def do_stderr(self, text: str) -> None:
        os.write(2, text.encode() + b"\n")

    def do_crash(self, status: int = 3) -> None:
        os._exit(status)

    def do_die(self, times: int = 1) -> None:
        """Be killed, `times` times; an engine that was started after as many goes on."""
        if self.job.restarts < times:
            os.kill(os.getpid(), signal.SIGKILL)

    def do_torn_death(self) -> None:
        """Be killed in the middle of a line; once."""
        if self.job.restarts == 0:
            os.write(1, b'{"n": 99, "type": "finished", "job_id": "')
            os.kill(os.getpid(), signal.SIGKILL)

    def do_torn(self) -> None:
        os.write(1, b'{"n": 99, "type": "finished", "job_id": "')
        os._exit(0)

    def do_rubbish(self) -> None:
        os.write(1, b"this is not JSON\n[1, 2]\n\xff\xfe\n")

    def do_deaf(self) -> None:
        """From now on neither a word nor SIGTERM counts."""
        self.deaf = True
        signal.signal(signal.SIGTERM, lambda *_: self.note("signal"))

    def do_deaf_to_words(self) -> None:
        self.deaf = True

        def end(*_) -> None:
            self.note("signal")
            self.say("finished", state="cancelled", failure=None, warnings=[], result=None)
            os._exit(0)

        signal.signal(signal.SIGTERM, end)


def record(number: int) -> dict[str, Any]:
    backup_id = f"00000000-0000-7000-8000-{number:012d}"
    return {"server_id": "s", "job_id": "j", "backup": backup(backup_id), "unreadable_disks": []}


def backup(backup_id: str) -> dict[str, Any]:
    """Return a backup's result as the engine tells it."""
    disk = {
        "disk": "vda", "type": "full", "chain_id": backup_id, "parent_backup_id": "", "size_bytes": 1 << 30,
        "data_bytes": 1 << 20, "stored_bytes": 1 << 19, "sha256": "ab" * 32, "fallback_reason": "first",
    }  # fmt: skip
    return {
        "backup_id": backup_id, "create_time": "2026-11-23T03:00:00+00:00", "consistency": "frozen", "disks": [disk],
        "skipped": [{"disk": "sda", "reason": "DISK_UNSUPPORTED", "detail": "a cdrom is not backed up"}],
        "needed_backup_ids": [backup_id], "manifest_digest": "cd" * 32, "encrypted": True, "domain_uuid": "u",
        "domain_name": "web", "path": f"servers/s/{backup_id}", "quiesce_seconds": 0.25,
    }  # fmt: skip


def identify(folder: Path) -> None:
    start_time = int(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    temporary = folder / "process.part"
    temporary.write_text(json.dumps({"pid": os.getpid(), "start_time": start_time, "boot_id": boot_id}))
    temporary.replace(folder / "process.json")


def heal(text: bytes) -> None:
    data = json.loads(text)
    folder = Path(data["scratch_folder"])
    with (folder / "healed.jsonl").open("a") as file:
        file.write(
            json.dumps(
                {name: value for name, value in data.items() if name != "storage"} | {"storage": "storage" in data}
            )
            + "\n"
        )
    failed = ["libvirt is away"] if (folder / "heal-fails").exists() else []
    record = json.loads((folder / "record").read_text()) if (folder / "record").exists() else None
    answer: dict[str, Any] = {"done": ["thawed"] if not failed else [], "failed": failed, "record": record}
    answer["resumable"] = "resume_job_id" in data
    print(json.dumps(answer))


def main() -> None:
    text = sys.stdin.buffer.read()
    if "--heal" in sys.argv:
        heal(text)
        return
    operation = spec.load(spec.Operation, text)
    place = operation.storage.local or operation.storage.sftp
    assert place is not None
    engine = Engine(operation, Path(place.path))
    signal.signal(signal.SIGTERM, lambda *_: engine.cancelled.set())
    steps = json.loads((engine.folder / "script.json").read_text())
    engine.note("process", pid=os.getpid(), workers=operation.settings.workers, nice=os.nice(0))
    if steps and steps[0]["do"] == "before_process_file":
        engine.wait_for(steps.pop(0)["file"])
    identify(engine.control.parent)
    engine.say("started")
    try:
        for step in steps:
            engine.step(step)
            engine.listen()
    except Cancelled:
        engine.note("cancelled")
        engine.say("finished", state="cancelled", failure=None, warnings=[], result=None)
    engine.say("ended")


if __name__ == "__main__":
    main()
