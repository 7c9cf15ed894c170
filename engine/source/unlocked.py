"""Images that are read without a lock: whether anybody may have written to them since they were looked at.

    write_locked   QEMU's own lock bytes: somebody has the image open for writing now. Asked of the kernel, nothing is locked
    Fingerprint    the file's identity, size and time of change; of a block device what the kernel counts as written to it

A lock would keep a domain from starting; so none is taken, and what was read counts only if both say that nothing happened.
QEMU's writes, others' writes and a domain that came and went between two looks all change the fingerprint. What a writer
has not written yet has not been read either.
"""

import contextlib
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import HypervisorError

# Times of change come in steps: of the kernel's clock tick (4-10 ms), or of whole seconds on old file systems. A change in the
# same step as the last one would not show, so a fingerprint is taken only when its step is over.
_STEP_SECONDS = 0.05
_STEP_SECONDS_WHOLE = 2.1
_SETTLE_SECONDS_MAX = 10.0

# Bytes that QEMU locks in every image, see block/file-posix.c: at 100 + n whoever uses permission n; writing is 1, resizing 3.
_LOCK_BASE = 100
_PERMISSIONS = (1, 3)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one content of a file from another. `change_time` is of the inode (ctime), in nanoseconds: nobody can
    set it back, as tools that copy do with the time of the content. 0 of a block device.
    """

    device: int
    inode: int
    size_bytes: int
    change_time: int
    written: str


def write_locked(path: str) -> bool:
    """Tell whether a process has the image open for writing, by QEMU's locks; nobody is hindered by the question.

    False where the file system knows no locks. Raises HypervisorError if the image cannot be opened.
    """
    with _opened(path) as file:
        return any(_is_locked(file, _LOCK_BASE + permission) for permission in _PERMISSIONS)


def fingerprint(path: str) -> Fingerprint:
    """Return an image's fingerprint now. Raises HypervisorError if it cannot be opened."""
    with _opened(path) as file:  # a network file system asks its server anew when a file is opened
        found = os.fstat(file)
    if stat.S_ISBLK(found.st_mode):
        return Fingerprint(found.st_rdev, 0, 0, 0, _written(found.st_rdev))
    return Fingerprint(found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns, "")


def fingerprints(paths: Iterable[str], stop: threading.Event) -> dict[str, Fingerprint]:
    """Return the fingerprints of images, in which every later change will show: waits until the last change is a while ago.

    Returns early when `stop` is set. Raises HypervisorError.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS_MAX
    while True:
        found = {path: fingerprint(path) for path in paths}
        wait = max((_fresh_seconds(one.change_time) for one in found.values()), default=0.0)
        if wait <= 0 or time.monotonic() >= deadline or stop.wait(wait):
            return found


def _fresh_seconds(change_time: int) -> float:
    """Return for how long another change could still bear the same time, at most; a clock that is ahead counts as now."""
    step = _STEP_SECONDS if change_time % 1_000_000_000 else _STEP_SECONDS_WHOLE
    age = time.time() - change_time / 1e9
    return step - max(0.0, age) if change_time else 0.0


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HypervisorError(operation="looking at an image", detail=f"{path}: {error.strerror}", code=0) from error
    try:
        yield file
    finally:
        os.close(file)


def _is_locked(file: int, byte: int) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, question)
    except OSError:
        return False
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK


def _written(device: int) -> str:
    """Return the kernel's counts of writes and discards of a block device, which never go back; "" where it keeps none."""
    try:
        words = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return ""
    return " ".join((words[4], words[6], *words[11:14:2]))  # writes, sectors written; discards, sectors discarded
