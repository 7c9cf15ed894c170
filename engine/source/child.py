"""A helper program that never outlives us: started, watched, and ended by its pid, even if we are killed.

    we ── life (a socket pair) ──► guard: a subshell that reads it
     └─ Popen ─────────────────► program (the shell has become it: the pid is the program's own)

When our end of `life` closes, by `end` or because we died, the guard reads end-of-file, sends the program SIGTERM and
removes its folder. The kernel's own way (PR_SET_PDEATHSIG) is of no use: it fires when the starting *thread* ends.
The guard ends before the program is reaped, so that it can never signal a pid that has been given to somebody else.

With a listening socket the program gets it by socket activation (as file descriptor 3), so clients can connect from the
first moment, there is nothing to poll for, and nothing to lose if the program fails to start: they are disconnected.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

END_SECONDS = 10.0  # a program that flushes to a slow disk may take a while; after this it is killed
MESSAGE_BYTES_MAX = 4096

# stdin is the listening socket, stdout our life line; both are moved out of the way of the program.
_GUARDED = """
exec 3<&0 4<&1 </dev/null >/dev/null
(read -r _ <&4; kill $$ 2>/dev/null; rm -rf -- "$CHILD_FOLDER") 3<&- &
unset CHILD_FOLDER
LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 4<&-
"""


class Child:
    """A running program. `folder` is private to it (0700) and goes with it."""

    def __init__(self, process: subprocess.Popen[bytes], life: socket.socket, folder: Path, errors: IO[bytes]) -> None:
        self._process = process
        self._life = life
        self._errors = errors
        self.folder = folder

    @property
    def pid(self) -> int:
        return self._process.pid

    def message(self) -> str:
        """Return the end of what the program has written to its standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        data = os.pread(self._errors.fileno(), MESSAGE_BYTES_MAX, max(0, size - MESSAGE_BYTES_MAX))
        return data.decode(errors="replace").strip()

    def has_ended(self) -> bool:
        """Tell whether the program has ended; it is not reaped by this."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """Kill the program without its say, as a fault would. `end` stays due."""
        self._process.kill()

    def end(self) -> int:
        """End the program, wait for it, and remove its folder; return its exit status. Once only."""
        self._life.settimeout(END_SECONDS)
        with contextlib.suppress(OSError):  # the guard has gone already: somebody killed it
            self._life.shutdown(socket.SHUT_WR)
            self._life.recv(1)  # end-of-file: the guard has done its work
        self._life.close()
        self._errors.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)  # not reaped yet, so the pid is still its own
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(
    arguments: Sequence[str],
    folder: Path,
    listener: socket.socket | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """Run a program for the time of a `with` block; it ends with the block, or with this process.

    `folder` is removed with it. `listener` is a listening socket for a program that knows socket activation; it is closed
    here, so that clients are disconnected as soon as the program is gone. `environment` replaces ours, whole. Raises OSError
    if no process can be started.
    """
    child = _start(arguments, folder, listener, os.environ if environment is None else environment)
    try:
        yield child
    finally:
        child.end()


def _start(
    arguments: Sequence[str], folder: Path, listener: socket.socket | None, environment: Mapping[str, str]
) -> Child:
    life, guard = socket.socketpair()
    errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the child)
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDED, "guard", *arguments],
            stdin=subprocess.DEVNULL if listener is None else listener.fileno(),
            stdout=guard.fileno(),
            stderr=errors,
            cwd="/",
            env={**environment, "LC_ALL": "C", "CHILD_FOLDER": str(folder)},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    except BaseException:
        life.close()
        errors.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        guard.close()
        if listener is not None:
            listener.close()
    return Child(process, life, folder, errors)


def private_folder(parent: Path | None = None) -> Path:
    """Make and return a folder that only we can enter; `parent` None means the system's place for temporary files."""
    return Path(tempfile.mkdtemp(prefix="bm-child-", dir=parent))
