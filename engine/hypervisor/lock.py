"""One operation at a time per domain: a lock file that the engine, the agent and commands run by hand all take.

    <lock folder>/<domain uuid>.lock     flock: held by whoever has it open and locked; text: who that is, for people

The kernel drops the lock when its last holder ends, by kill -9 too, so a stale file means nothing and files are never removed
(removing one while another process waits for it would give two holders). A thaw guard inherits the lock: while it still
undoes a dead engine's freeze, nobody else begins to work on that domain.
"""

import contextlib
import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import DomainBusy, HypervisorError
from engine.ids import is_id

_TEXT_BYTES_MAX = 4096


class DomainLock:
    """The right to work on one domain of this hypervisor, as a `with` block. Raises DomainBusy at once when it is taken.

    `work` says what for, such as a job id; it is shown to whoever is refused. One thread at a time.
    """

    def __init__(self, folder: Path, domain_uuid: str, work: str = "") -> None:
        if not is_id(domain_uuid):
            raise ValueError(domain_uuid)
        self._folder, self._uuid, self._work = folder, domain_uuid, work
        self._file = -1

    @property
    def fd(self) -> int:
        """The locked file's descriptor, for a child that has to keep the lock; -1 when it is not held."""
        return self._file

    def acquire(self) -> None:
        """Take the lock. Raises DomainBusy with what is known of the holder, HypervisorError when there can be no file."""
        path = self._folder / f"{self._uuid}.lock"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HypervisorError(operation="taking the domain's lock", detail=str(error), code=0) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file)
            os.close(file)
            raise DomainBusy(domain=self._uuid, **holder) from error
        except BaseException:
            os.close(file)
            raise
        about = {"pid": os.getpid(), "work": self._work, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        self._file = file
        with contextlib.suppress(OSError):  # the text is for people; a full disk does not undo the lock
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(about).encode(), 0)

    def release(self) -> None:
        """Give the lock back, also for children that inherited it. May be called twice."""
        file, self._file = self._file, -1
        if file < 0:
            return
        os.ftruncate(file, 0)
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def at_work(folder: Path, work: str) -> bool:
    """Tell whether a lock of this hypervisor is held for `work`, whatever its domain; what died holding one is not at work."""
    for path in folder.glob("*.lock"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if _holder(file.fileno()).get("work") != work:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _holder(file: int) -> dict[str, str]:
    """Return facts about the holder from the file's text, which may just be being written."""
    try:
        about = json.loads(os.pread(file, _TEXT_BYTES_MAX, 0))
        pid, work, since = str(about["pid"]), str(about["work"]), str(about["since"])
    except (ValueError, KeyError, TypeError):
        return {"holder": "another process works on it"}
    return {
        "holder": f"process {pid} works on it since {since}" + (f" ({work})" if work else ""),
        "pid": pid,
        "work": work,
    }
