"""The real bm-agent as a child process, in a folder of its own.

with Agent(folder, controller="127.0.0.1:7440", token=token) as agent: ...     enrolls, starts, and leaves nothing behind
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.process import ProcessName, boot_id, start_time_of
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Agent:
    """An agent on this machine. `folder` holds its settings, state, run and scratch folders and its log.

    With `controller` (HOST:PORT) and `token`, entering the block enrolls it; it is started in either case, unless `start` is
    False. Leaving the block ends the agent and every engine that it started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        controller: str = "",
        token: str = "",
        libvirt_uri: str = "qemu:///system",
        engine_command: Sequence[str] = (),
        cancel_word_seconds: float = 10.0,
        stop_grace_seconds: float = 0.0,
        controllers: Sequence[str] = (),
        program: Sequence[str] = (sys.executable, "-m", "agent.main"),
        start: bool = True,
    ) -> None:
        self.folder = folder
        self.state_folder, self.run_folder, self.scratch_folder = folder / "state", folder / "run", folder / "scratch"
        self.log_file = folder / "agent.log"
        self.config_file = folder / "agent.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.program = tuple(program)
        self._controller, self._token, self._start = controller, token, start
        self.scratch_folder.mkdir(parents=True, exist_ok=True)
        command = list(engine_command) or [sys.executable, "-m", "engine.worker"]
        self.config_file.write_text(
            f"state_folder = {json.dumps(str(self.state_folder))}\n"
            f"run_folder = {json.dumps(str(self.run_folder))}\n"
            f"scratch_folder = {json.dumps(str(self.scratch_folder))}\n"
            f"libvirt_uri = {json.dumps(libvirt_uri)}\n"
            f"engine_command = {json.dumps(command)}\n"
            f"cancel_word_seconds = {cancel_word_seconds}\n"
            f"stop_grace_seconds = {stop_grace_seconds}\n"
            f"controllers = {json.dumps(list(controllers))}\n"
            'log_level = "debug"\n'
        )

    def __enter__(self) -> Self:
        try:
            if self._controller:
                outcome = self.enroll(self._controller, self._token)
                assert outcome.returncode == 0, outcome.stderr
            if self._start:
                self.start()
        except BaseException:
            self._leave_nothing()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave_nothing()

    def enroll(self, controller: str, token: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `bm-agent enroll` with the token on stdin; return how it ended."""
        arguments = ["enroll", "--config", str(self.config_file), "--controller", controller, "--token-file", "-"]
        return subprocess.run(
            [*self.program, *arguments, *options],
            input=token, text=True, capture_output=True, cwd=ROOT, timeout=60, check=False,
        )  # fmt: skip

    def start(self) -> None:
        """Start `bm-agent run`."""
        assert self.process is None
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "run", "--config", str(self.config_file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def stop(self) -> int:
        """End it with SIGTERM; return its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, or find it killed already."""
        self._end(signal.SIGKILL)

    def wait_ended(self, seconds: float = 30) -> int:
        """Wait until it ends by itself; return its exit status."""
        assert self.process is not None
        status = self.process.wait(seconds)
        self.process = None
        return status

    def engines(self) -> Iterator[int]:
        """Yield the pids of the engines that run in this agent's folders."""
        for file in self.state_folder.glob("operations/*/process.json"):
            with suppress(OSError, ValueError, KeyError):
                data = json.loads(file.read_bytes())
                name = ProcessName(data["pid"], data["start_time"], data["boot_id"])
                if name.boot_id == boot_id() and start_time_of(name.pid) == name.start_time and _runs(name.pid):
                    yield name.pid

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.wait_ended()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait_ended()
            raise

    def _leave_nothing(self) -> None:
        if self.process is not None:
            self.kill()
        for pid in list(self.engines()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not list(self.engines()), 10, "the engines' end")


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
