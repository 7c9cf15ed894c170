"""bmctl as a person or a script runs it: a process of its own, with pipes or on a terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clients import connect
from tests.clients.authority import Authority
from tests.waiting import wait_until

SECONDS = 60.0  # for the end of one run, on a machine that does much else at the same time
_COMMAND = (sys.executable, "-m", "clients.cli.main")
_ROOT = Path(__file__).parents[2]
_SEQUENCE = re.compile(rb"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[=>]|\x1b\][^\x07]*\x07")


@dataclass(frozen=True)
class Ended:
    """How a run ended; `json` is stdout as a document, `error` stderr's."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


class Bmctl:
    """Runs bmctl with a profile of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.profile = folder / "config" / "bmctl.json"
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(_ROOT),
            "HOME": str(folder),
            "BMCTL_CONFIG": str(self.profile),
            "TZ": "UTC",
            "PYTHONWARNINGS": "error",
            **{name: value for name, value in os.environ.items() if name == "PYTHONPYCACHEPREFIX"},
        }

    def log_in(self, address: str, authority: Authority | str, token: str) -> None:
        """Write the profile that a login would have written."""
        pem = authority if isinstance(authority, str) else authority.pem
        data = {
            "version": 1,
            "address": address,
            "authority": pem,
            "fingerprint": connect.fingerprint_of(pem),
            "token": token,
        }
        self.profile.parent.mkdir(exist_ok=True)
        self.profile.touch(0o600)
        self.profile.write_text(json.dumps(data))

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ended:
        """Run to the end, with pipes."""
        done = subprocess.run(
            [*_COMMAND, *arguments],
            input=stdin,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start with pipes and return at once; the caller ends it."""
        return subprocess.Popen(
            [*_COMMAND, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def parse(text: str) -> Any:
        return json.loads(text)

    def on_terminal(self, *arguments: str, columns: int = 120, **environment: str) -> "Terminal":
        """Start on a terminal of its own; use it as a `with` block."""
        return Terminal([*_COMMAND, *arguments], self.environment | {"TERM": "xterm-256color"} | environment, columns)


class Terminal:
    """A process on a pseudo terminal; what it wrote is `raw`, what a person would see is `screen()`."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int) -> None:
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.raw = b""
        try:
            self._process = subprocess.Popen(
                command, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
            )
        finally:
            os.close(side)

    def write(self, text: str) -> None:
        os.write(self._main, text.encode())

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Press Ctrl-C, or send another signal."""
        self._process.send_signal(number)

    def wait_for(self, text: str) -> None:
        """Read until `text` is on the screen or was written at any time."""

        def seen() -> bool:
            alive = self._read(0)
            if text.encode() not in self.raw and text not in self.screen():
                assert alive, f"it ended without {text!r}:\n{self.screen()}"
                return False
            return True

        wait_until(seen, SECONDS, f"{text!r} on the terminal")

    def end(self) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + SECONDS
        while self._read(0.1):
            assert time.monotonic() < deadline, f"it did not end:\n{self.screen()}"
        return self._process.wait(SECONDS)

    def screen(self) -> str:
        """Return the lines as a terminal shows them now, without colors."""
        return draw(self.raw)

    def _read(self, seconds: float) -> bool:
        """Take what there is; tell whether more may come."""
        while select.select([self._main], [], [], seconds)[0]:
            try:
                data = os.read(self._main, 65536)
            except OSError:  # Linux: the other side is closed
                return False
            if not data:
                return False
            self.raw += data
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._main)


def draw(raw: bytes) -> str:
    """Return what a terminal shows after `raw`: lines, carriage returns, cursor up, erased lines. Colors are dropped."""
    lines, row, column, position = [""], 0, 0, 0
    while position < len(raw):
        sequence = _SEQUENCE.match(raw, position)
        if sequence:
            position = sequence.end()
            kind, count = sequence[2], int(sequence[1] or b"0") if (sequence[1] or b"0").isdigit() else 0
            if kind == b"A":
                row = max(0, row - max(1, count))
            elif kind == b"K":
                lines[row] = "" if count == 2 else lines[row][:column]
            continue
        end = next((at for at in range(position, len(raw)) if raw[at] in b"\x1b\r\n"), len(raw))
        if end == position:
            if raw[position : position + 1] == b"\n":
                row += 1
                lines.extend([""] * (row + 1 - len(lines)))
            else:
                column = 0
            position += 1
            continue
        text = raw[position:end].decode("utf-8", "replace")
        lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
        column += len(text)
        position = end
    return "\n".join(line.rstrip() for line in lines)
