"""The folder that an engine process and whichever agent lives at the time share; they share nothing else.

    spec.json      0600, the engine's stdin; removed as soon as the process has it open
    events.jsonl   the engine's stdout, appended to; one JSON object a line
    stderr.log     the engine's stderr
    control.jsonl  what the agent says to the engine, appended to
    process.json   {pid, start_time, boot_id}, written by the engine as its first act
    lock           locked through a descriptor that the engine inherits: locked as long as it lives, from its first instant on

The lock closes the gap between the start of a process and its process.json, in which an agent may be killed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.files import make_folder, sync_folder, write_whole
from agent.process import Process, ProcessName, adopt, holder_of, watch_child

STDERR_BYTES_MAX = 16 << 10  # of its end
LINE_BYTES_MAX = 8 << 20  # a record of a server with very many disks stays far below
READ_BYTES = 256 << 10  # some milliseconds of parsing


@dataclass(frozen=True, slots=True)
class Folder:
    """An operation's folder. All methods block for no longer than a small file takes."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def control(self) -> Path:
        return self.path / "control.jsonl"

    @property
    def _stderr(self) -> Path:
        return self.path / "stderr.log"

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    def create(self, spec: str) -> None:
        """Make the folder with its spec, durably."""
        make_folder(self.path.parent)
        make_folder(self.path)
        for file in (self.control, self.events, self._lock):
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        write_whole(self.spec, spec.encode())
        sync_folder(self.path.parent)

    def read_spec(self) -> str | None:
        """Return the spec while it lies there."""
        with contextlib.suppress(FileNotFoundError):
            return self.spec.read_text()
        return None

    def drop_spec(self) -> None:
        self.spec.unlink(missing_ok=True)

    def begun(self) -> bool:
        """Tell whether an engine process came as far as its first act."""
        return (self.path / "process.json").exists() or self._size(self.events) > 0

    # ---- the process ---------------------------------------------------------------------------------------------------

    def start(self, command: tuple[str, ...]) -> Process:
        """Start the engine on this folder, in a session of its own, and remove the spec. Raises OSError.

        No preexec_fn: beside gRPC's threads a plain fork is not safe. The engine sets its own priority.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BM_AGENT_")}
        with contextlib.ExitStack() as stack:

            def opened(path: Path, flags: int) -> int:
                file = os.open(path, flags | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, file)
                return file

            lock = opened(self._lock, os.O_RDWR | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            child = subprocess.Popen(
                command,
                stdin=opened(self.spec, os.O_RDONLY),
                stdout=opened(self.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
                stderr=opened(self._stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
                pass_fds=[lock],
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        self.drop_spec()
        return watch_child(child)

    def restart(self, spec: str, command: tuple[str, ...]) -> Process:
        """Start another engine where one has died. Its words follow those of the dead one. Raises OSError."""
        (self.path / "process.json").unlink(missing_ok=True)
        with self.events.open("ab+") as events:
            if events.tell() > 0:
                events.seek(-1, os.SEEK_END)
                if events.read(1) != b"\n":  # a word that was cut off: the next one must not be taken for its end
                    events.write(b"\n")
        write_whole(self.spec, spec.encode())
        try:
            return self.start(command)
        finally:
            self.drop_spec()

    def find_process(self) -> Process | None:
        """Return the engine of this folder if it runs, whoever started it."""
        name = self._process_name()
        process = adopt(name) if name is not None else None
        if process is None and self._locked():
            holder = holder_of(self._lock)
            process = adopt(holder) if holder is not None else None
        return process

    def tell(self, line: dict[str, Any]) -> None:
        """Append a line to what the engine reads."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        file = os.open(self.control, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, data)
        finally:
            os.close(file)

    # ---- what it said --------------------------------------------------------------------------------------------------

    def read_lines(self, offset: int) -> list[tuple[bytes, int]]:
        """Return whole lines of the events from byte `offset`, each with the offset behind it; [] when there are none.

        A line that has no end yet is left for later; one longer than LINE_BYTES_MAX comes as empty lines.
        """
        size = READ_BYTES
        try:
            with self.events.open("rb") as stream:
                while True:
                    stream.seek(offset)
                    data = stream.read(size)
                    if b"\n" in data:
                        return _numbered(data, offset)
                    if len(data) < size:
                        return []
                    if size > LINE_BYTES_MAX:
                        return [(b"", offset + size)]
                    size *= 2
        except FileNotFoundError:
            return []

    def take_stderr(self) -> list[str]:
        """Return the last whole lines of the engine's stderr, and remove the file: it may hold anything."""
        try:
            with self._stderr.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                start = max(0, size - STDERR_BYTES_MAX)
                stream.seek(start)
                lines = stream.read(STDERR_BYTES_MAX).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        self._stderr.unlink()
        return lines[1:] if start else lines  # half a line could be half a secret, which nobody would recognize

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    # ---- details -------------------------------------------------------------------------------------------------------

    def _process_name(self) -> ProcessName | None:
        try:
            data = json.loads((self.path / "process.json").read_bytes())
            return ProcessName(int(data["pid"]), int(data["start_time"]), str(data["boot_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _locked(self) -> bool:
        try:
            file = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    @staticmethod
    def _size(path: Path) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0


def _numbered(data: bytes, offset: int) -> list[tuple[bytes, int]]:
    lines = []
    for line in data[: data.rfind(b"\n")].split(b"\n"):
        offset += len(line) + 1
        lines.append((line, offset))
    return lines
