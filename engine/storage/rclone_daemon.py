"""The one `rclone rcd` of an open rclone storage: its configuration checked, started, watched, started again, ended.

    config file ── 0600 and ours? ──► rclone rcd on 127.0.0.1:0 ── prints its port ──► Wire
                                        └── ends with us, even if we are killed (see engine/source/child.py)

The kernel chooses the port and rclone says which, so there is no race for it. User and password go by environment: a process
list shows neither. rclone writes OAuth tokens that it has refreshed back to its configuration; we only ever look at the file.
"""

import logging
import os
import re
import secrets
import shutil
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import RcloneConfigInvalid, RcloneMissing, StorageUnreachable
from engine.source.child import Child, private_folder, running
from engine.spec import RcloneConfig
from engine.storage.rclone_wire import USER, Lost, Refused, Wire

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

log = logging.getLogger(__name__)

VERSION_MIN = (1, 57)  # operations/stat came with it
_POLL_SECONDS = 0.01
_ENDING_SECONDS = 1.0
_LAST_WORDS_SECONDS = 5.0  # from the end of a connection to that of the process
PLACES = "/usr/local/bin:/usr/bin:/bin"  # beside PATH: a service's PATH may be empty
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)/")
# Of the host's settings for rclone only what opens an encrypted configuration is passed on: others could undo ours.
_KEPT_VARIABLES = ("RCLONE_CONFIG_PASS", "RCLONE_PASSWORD_COMMAND")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try again; rclone itself repeats each request `retries` times before it gives up."""

    start_seconds: float = 30
    connect_seconds: float = 15
    stall_seconds: float = 120  # rclone's: a connection on which nothing moves is given up
    answer_seconds: float = 900  # ours: far beyond rclone's own limits, so that its error is the one that is told
    commit_seconds: float = 4 * 3600  # some remotes rename by copying, 32 GiB on their side
    abort_seconds: float = 30
    retries: int = 10
    attempts: int = 3
    pause_seconds: float = 0.5  # before the second attempt; doubles each time
    pause_seconds_max: float = 15
    reading_attempts: int = 6  # of one range: a restore that has come some way should go on


BRIEF = Patience(
    start_seconds=10, connect_seconds=4, stall_seconds=5, answer_seconds=12, commit_seconds=12, abort_seconds=2,
    retries=1, attempts=1, reading_attempts=1,
)  # fmt: skip  # somebody waits for us to end


class Daemon:
    """The process and the way to speak to it. Any thread may call any method."""

    def __init__(self, config: RcloneConfig, label: str, patience: Patience) -> None:
        self._config, self._label, self._patience = config, label, patience
        self._lock = threading.Lock()
        self._interrupted = False
        self._running: AbstractContextManager[Child] | None = None
        self._child: Child | None = None
        self._wire: Wire | None = None

    def wire(self) -> Wire:
        """Return the way to a running rclone, started (again) if it is not there.

        Raises RcloneMissing, RcloneConfigInvalid, and StorageUnreachable when interrupted.
        """
        with self._lock:
            if self._child is not None and self._is_gone(self._child):
                log.warning("rclone ended, starting it again storage=%s", self._label)
                self._end()
            self._refuse_if_interrupted()
            if self._wire is None:
                self._start()
            assert self._wire is not None
            self._refuse_if_interrupted()  # it came while rclone was starting, and found nothing to cut
            return self._wire

    def interrupt(self) -> None:
        """Cut every request; rclone itself ends with `close`, and till then may remove what it has half written."""
        self._interrupted = True
        if (wire := self._wire) is not None:
            wire.cut()

    def close(self) -> None:
        self.interrupt()
        with self._lock:
            self._end()

    @property
    def pid(self) -> int:
        """The process's id, 0 while there is none."""
        return self._child.pid if self._child is not None else 0

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _is_gone(self, child: Child) -> bool:
        """Tell whether rclone has ended; its connections end a moment before it does, and then that moment is waited for."""
        if self._wire is not None and self._wire.reset and not self._interrupted:
            self._wire.reset = False
            return _ends_within(child, _ENDING_SECONDS)
        return child.has_ended()

    def _refuse_if_interrupted(self) -> None:
        if self._interrupted:
            raise StorageUnreachable(storage=self._label, step="connect", detail="interrupted")

    def _start(self) -> None:
        check_config_file(self._config.config_path, self._label)
        program = shutil.which("rclone", path=f"{os.environ.get('PATH', '')}:{PLACES}")
        if program is None:
            raise RcloneMissing(storage=self._label, detail="it is not installed")
        password, folder = secrets.token_urlsafe(24), private_folder()
        command = [program, "rcd", "--rc-serve", "--rc-addr", "127.0.0.1:0", "--config", self._config.config_path]
        self._running = running(
            command, folder, environment=environment(self._config, password, folder, self._patience)
        )
        try:
            self._child = self._running.__enter__()
        except OSError as error:
            self._running = None
            raise RcloneMissing(storage=self._label, detail=f"it cannot be started: {error.strerror}") from error
        try:
            self._wire = Wire(self._port(self._child), password, self._child.pid)
            self._check(self._child, self._wire)
        except BaseException:
            self._end()
            raise

    def _port(self, child: Child) -> int:
        deadline = time.monotonic() + self._patience.start_seconds
        while (found := _PORT.search(child.message())) is None:
            if child.has_ended():
                raise self._not_started(child.message())
            if self._interrupted or time.monotonic() > deadline:
                raise StorageUnreachable(
                    storage=self._label,
                    step="start rclone",
                    detail="interrupted" if self._interrupted else "it does not begin to listen",
                )
            time.sleep(_POLL_SECONDS)
        return int(found[1])

    def _not_started(self, said: str) -> RcloneMissing | RcloneConfigInvalid:
        """Return why rclone ended at once. What it says of an encrypted configuration names no secret; else we say less."""
        if "config" in said.lower() and ("decrypt" in said or "password" in said):
            problem = "it is encrypted, and the agent's environment has no RCLONE_CONFIG_PASS that opens it"
            return RcloneConfigInvalid(storage=self._label, path=self._config.config_path, problem=problem)
        if "bind" in said.lower() and self._config.bind_address:
            return RcloneMissing(storage=self._label, detail=f"it cannot bind to {self._config.bind_address}")
        return RcloneMissing(storage=self._label, detail=f"it ended at once: {(said.splitlines() or ['silently'])[-1]}")

    def _check(self, child: Child, wire: Wire) -> None:
        """See to it that it is new enough, and has read its configuration: one that it cannot read is its end, only then."""
        try:
            found = wire.call("core/version", self._patience.start_seconds)
            wire.call("config/listremotes", self._patience.start_seconds)
        except (Lost, Refused) as error:
            self._refuse_if_interrupted()
            _ends_within(child, _LAST_WORDS_SECONDS)
            raise self._not_started(child.message()) from error
        decomposed = tuple(int(part) for part in found.get("decomposed", ()))
        if decomposed < VERSION_MIN:
            raise RcloneMissing(storage=self._label, detail=f"{found.get('version', 'its version')} is too old")

    def _end(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = self._child = None


def check_config_file(path: str, label: str) -> None:
    """Raise RcloneConfigInvalid unless the file is there, ours, and closed to all others: it holds every remote's secrets."""
    problem = ""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a file"
        elif status.st_uid != os.geteuid():
            problem = f"belongs to the user id {status.st_uid}, the agent's is {os.geteuid()}"
        elif status.st_mode & 0o077:
            problem = f"has the mode {stat.S_IMODE(status.st_mode):04o}, others may read it; it must be 0600"
    except OSError as error:
        problem = f"cannot be looked at: {error.strerror}"
    if problem:
        raise RcloneConfigInvalid(storage=label, path=path, problem=problem)


def environment(config: RcloneConfig, password: str, folder: Path, patience: Patience) -> dict[str, str]:
    """Return the whole environment for rclone: ours without what would change its ways, and how we want it to work."""
    # AWS_CA_BUNDLE: rclone's S3 library fails at each request with it, where the bundle is one that it cannot add to.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RCLONE_") and key != "AWS_CA_BUNDLE"}
    kept |= {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    kept |= {
        "TMPDIR": str(folder),  # what a remote spools goes with the process
        "RCLONE_CACHE_DIR": str(folder / "cache"),
        "RCLONE_RC_USER": USER,
        "RCLONE_RC_PASS": password,
        # Its default of an hour ends a request, and so an upload, that takes longer; there is none to switch it off.
        "RCLONE_RC_SERVER_READ_TIMEOUT": "8760h",
        "RCLONE_RC_SERVER_WRITE_TIMEOUT": "8760h",
        "RCLONE_FS_CACHE_EXPIRE_DURATION": "8760h",
        "RCLONE_ASK_PASSWORD": "false",
        "RCLONE_CONTIMEOUT": f"{patience.connect_seconds:g}s",
        "RCLONE_TIMEOUT": f"{patience.stall_seconds:g}s",
        "RCLONE_LOW_LEVEL_RETRIES": str(patience.retries),
        # With a cutoff rclone fills a buffer first, and takes a form that was cut meanwhile for a small, whole object.
        "RCLONE_STREAMING_UPLOAD_CUTOFF": "0",
        "RCLONE_USE_SERVER_MODTIME": "true",  # else a listing of a bucket asks once for each object
        "RCLONE_SKIP_LINKS": "true",
        "RCLONE_SFTP_SKIP_LINKS": "true",
        # Else rclone runs commands on the server to learn what shell it has, and writes that into the configuration.
        "RCLONE_SFTP_SHELL_TYPE": "none",
        "RCLONE_S3_NO_CHECK_BUCKET": "true",  # a bucket that is missing is an error, nothing to be made
        # 10,000 parts of rclone's own 5 MiB are 48.8 GiB: a segment of 32 GiB with all it brings fits at any part size.
        "RCLONE_S3_UPLOAD_CONCURRENCY": str(config.s3_concurrency),
        "RCLONE_B2_CHUNK_SIZE": "16Mi",  # each of four in flight lies in memory; its own default would be 96 MiB
    }
    if config.bind_address:
        kept["RCLONE_BIND"] = config.bind_address
    return kept


def _ends_within(child: Child, seconds: float) -> bool:
    """Wait until a process has ended, so long at most, and tell whether it has."""
    deadline = time.monotonic() + seconds
    while not child.has_ended() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return child.has_ended()
