"""A real file system that can be made to stand still, so that calls on it hang in the kernel as on a dead network mount. Needs root.

    image ── served through FUSE by a process of ours ──► loop device ──► ext4, mounted at `folder`
                    └ stop: reads of what is not cached hang         └ freeze: whatever changes something hangs

Whoever freezes or stops it thaws it in `finally`; the block's end does so too, whatever happened.
"""

import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import wait_until

_SIZE_BYTES = 64 << 20
_START_SECONDS_MAX = 20.0


class Standstill:
    """`folder` is on the file system; `served` is the file below it, whose reads hang too while it is stopped."""

    def __init__(self, place: Path) -> None:
        self.folder, self.served = place / "mounted", place / "served"
        self._image = place / "image"
        self._server: subprocess.Popen[bytes] | None = None
        self._frozen = False

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(self.folder)], check=True)
        self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.folder)], check=True)
            self._frozen = False

    def stop(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def forget_cached(self, path: Path) -> None:
        """Let the next reads of a file go to the device, and those of the device to who serves it."""
        for cached in (path, self.served):
            with cached.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> Self:
        self.folder.mkdir()
        self.served.touch()
        with self._image.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m0", "-O", "^has_journal", str(self._image)], check=True)
        node = f"driver=file,node-name=disk,filename={self._image}"
        export = f"type=fuse,id=disk,node-name=disk,mountpoint={self.served},writable=on"
        self._server = subprocess.Popen(["qemu-storage-daemon", "--blockdev", node, "--export", export])
        try:
            wait_until(lambda: self.served.stat().st_size == _SIZE_BYTES, _START_SECONDS_MAX, "the image to be served")
            subprocess.run(["mount", "-o", "loop", str(self.served), str(self.folder)], check=True)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.go_on()
            self.thaw()
        finally:
            subprocess.run(["umount", str(self.folder)], check=False)  # busy: somebody leaves files open
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False, stderr=subprocess.DEVNULL)
            self._end()

    def _end(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()
        subprocess.run(["umount", "--lazy", str(self.served)], check=False, stderr=subprocess.DEVNULL)
