"""Whether a file or block device of this host is in use: written over, it would be the end of what uses it.

a process has it open        /proc/*/fd      QEMU with a raw volume takes no claim that O_EXCL would see
a loop device stands on it   /sys/block/loop*
it is mounted, or a part of  the kernel's claim: opening the device with O_EXCL fails (see RawTarget.device)
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.errors import TargetError


def refuse_used(path: Path) -> None:
    """Raise TargetError if anything uses what is at `path`, a regular file or a block device."""
    real = os.path.realpath(path)
    try:
        wanted = Path(real).stat()
        if stat.S_ISBLK(wanted.st_mode):
            os.close(os.open(real, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
    for loop in _loops_on(real):
        raise TargetError(target=path, detail=f"the loop device {loop} stands on it")
    for pid in _openers(wanted):
        raise TargetError(target=path, detail=f"process {pid} has it open")


def _loops_on(real: str) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached meanwhile
            if backing.read_text().strip() == real:
                yield f"/dev/{backing.parts[3]}"


def _openers(wanted: os.stat_result) -> Iterator[int]:
    """Yield the other processes that have it open; those of other users only root can see."""
    is_device = stat.S_ISBLK(wanted.st_mode)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it ended, or is not ours to look at
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found = descriptor.stat()
                    if is_device:
                        same = stat.S_ISBLK(found.st_mode) and found.st_rdev == wanted.st_rdev
                    else:
                        same = (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
                    if same:
                        yield int(process.name)
                        break
