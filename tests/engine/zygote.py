"""Engine processes for tests that start hundreds of them: one interpreter that has everything imported forks for each.

    with Zygote(log) as engines:
        ended = engines.run(operation, kill_at="committed")       ended.status == -9

The child does what an engine process does between reading its spec and its end. It has no thread and no connection in common
with the tests.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine import failpoint, spec
from engine.jobs import run_job
from engine.spec import Operation
from engine.work import Work

KILLED = -9  # as a child's status, for SIGKILL


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: `status` as of a child (-9 for killed), the job's reason of failure, and the steps it reached."""

    status: int
    reason: str
    steps: tuple[str, ...]


class Zygote:
    """The interpreter that forks, as a `with` block; it ends when its standard input does. `log` gets what children print."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.close()
        process.wait(60)
        process.stdout.close()

    def run(self, operation: Operation, folder: Path, kill_at: str = "", *, refuse: bool = False) -> Ended:
        """Run an operation's first job to its end; temporary files go to `folder`. `refuse`: it has lost its lease."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        asked = {"spec": spec.dump(operation), "folder": str(folder), "kill_at": kill_at, "refuse": refuse}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        told = json.loads(process.stdout.readline())
        return Ended(told["status"], told["reason"], tuple(told["steps"]))


# ---- the zygote --------------------------------------------------------------------------------------------------------


class _Report:
    """Takes a job's words, and has one of its own: whether the job may commit."""

    def __init__(self, *, allow: bool) -> None:
        self._allow = allow

    def may_commit(self) -> bool:
        return self._allow

    def _nothing(self, *_: object, **__: object) -> None: ...

    stage = expect = advance = info = warn = record = _nothing


def main() -> None:
    """Fork for every line of standard input, and answer each with a line."""
    import engine.backup
    import engine.delete
    import engine.heal
    import engine.hypervisor.backup_job
    import engine.restore
    import engine.source.running
    import engine.source.stopped
    import engine.storage.open  # noqa: F401 -- all of them for the children

    for line in sys.stdin:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _be_an_engine(json.loads(line), theirs)
        os.close(theirs)
        with open(ours) as answer:
            told = answer.read()
        _, status = os.waitpid(child, 0)
        steps, _, reason = told.rpartition("\n")
        ended = {"status": os.waitstatus_to_exitcode(status), "reason": reason, "steps": steps.split()}
        print(json.dumps(ended), flush=True)


def _be_an_engine(asked: dict[str, Any], answer: int) -> None:
    """Do the job in this child, and never return; `answer` gets every step, and at last the reason of a failure."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        os.environ["TMPDIR"] = tempfile.tempdir = asked["folder"]
        failpoint.observe = lambda step: _write(answer, f"{step}\n")
        failpoint.kill_at(asked["kill_at"])
        operation = spec.load(Operation, asked["spec"])
        outcome = run_job(operation.jobs[0], operation, Work(_Report(allow=not asked["refuse"]), operation.settings))
        _write(answer, str(outcome.failure["reason"]) if outcome.failure else "")
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode())


if __name__ == "__main__":
    main()
