"""sshd's empty folder /run/sshd, which a service manager would make: there while one of ours needs it, gone afterwards.

Several tests and demos on one machine share it: each user holds a shared lock on the folder, and the last one of those that
found it missing takes it away. A folder that was there before any of us stays.
"""

import contextlib
import fcntl
import os
from pathlib import Path

FOLDER = Path("/run/sshd")
_MARK = FOLDER / ".made-for-backup-manager-tests"


class SshdFolder:
    """The right to count on the folder, from `acquire` to `release`. Does nothing where we are not root."""

    def __init__(self) -> None:
        self._descriptor = -1

    def acquire(self) -> None:
        """See to it that the folder is there until `release`. May be called again."""
        while self._descriptor < 0 and os.geteuid() == 0:
            with contextlib.suppress(FileExistsError):
                FOLDER.mkdir(mode=0o755)
                _MARK.touch()
            descriptor = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if FOLDER.exists() and os.fstat(descriptor).st_ino == FOLDER.stat().st_ino:
                self._descriptor = descriptor
            else:  # the last user took it away in between
                os.close(descriptor)

    def release(self) -> None:
        """Let go, and remove the folder if nobody else uses it and one of us made it. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _MARK.exists():
                _MARK.unlink()
                FOLDER.rmdir()
        except OSError:  # others use it
            pass
        finally:
            os.close(descriptor)
