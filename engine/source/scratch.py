"""How much room the scratch files of a backup need: before it begins, and from moment to moment while guests overwrite.

    free ▲
         │╲              looks every second …
         │ ╲
         │  ╲╲           … up to every 10 ms: no guest gets from one look to the next through what is above the reserve
 reserve ┼────╲────────  the backup is given up here; ending its job takes some moments, in which the guest still writes
         └────────────►  so the reserve grows with the rate at which room has vanished lately

A write of the guest that finds no room in a scratch file stops the guest, so being late is not an option. Room is what the
file system says, not what our files take: whoever else fills it stops the guest all the same.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from engine.errors import HypervisorError
from engine.units import GIB, MIB

# At the beginning a tenth of the disks' sizes has to be free: what guests overwrite during one backup is far less in all but
# the rarest cases.
ROOM_SHARE = 10
RESERVE_BYTES = 128 * MIB  # 0.13 s of a guest that begins to overwrite 1 GB/s when nobody expects it
# Ending a job takes 5-90 ms, more on a busy host, and a look may come late when all processors are taken.
END_SECONDS = 0.5
RATE_BYTES_MAX = (
    2 * GIB
)  # a second; what a guest can overwrite on fast local disks, where each byte is also read and copied
LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 0.01, 1.0
_SPAN_SECONDS = 0.1  # file systems hand out room in lumps, so a rate is taken over no less than this
_HALF_LIFE_SECONDS = 10.0  # guests write in bursts: the next one may be as fast as the last
_BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system. Source: POSIX, sys/stat.h


def needed_before(disk_bytes: Iterable[int]) -> int:
    """Return the bytes that have to be free when a backup of disks of these sizes begins."""
    return RESERVE_BYTES + sum(disk_bytes) // ROOM_SHARE


class Gauge:
    """Follows the free room by readings, and tells when it is short and when to look again. One thread at a time.

    Times are seconds of the monotonic clock, never before those of the last reading.
    """

    def __init__(self, free_bytes: int, now: float) -> None:
        self.free_bytes = free_bytes
        self.rate = 0.0
        self._mark = (free_bytes, now)

    def read(self, free_bytes: int, now: float) -> None:
        """Take a reading. `rate` is then the fastest loss of room lately, bytes a second, halved every ten seconds."""
        marked_bytes, marked_time = self._mark
        seconds = now - marked_time
        rate = max(0, marked_bytes - free_bytes) / max(seconds, _SPAN_SECONDS)
        faded = self.rate * 0.5 ** (seconds / _HALF_LIFE_SECONDS)
        self.free_bytes = free_bytes
        if seconds >= _SPAN_SECONDS:
            self.rate, self._mark = max(rate, faded), (free_bytes, now)
        else:
            self.rate = max(rate, self.rate)

    @property
    def reserve_bytes(self) -> int:
        """What has to be free for the backup to go on."""
        return max(RESERVE_BYTES, int(self.rate * END_SECONDS))

    @property
    def short(self) -> bool:
        return self.free_bytes < self.reserve_bytes

    @property
    def dire(self) -> bool:
        """Tell whether it is too late to let others give up first."""
        return 2 * self.free_bytes < self.reserve_bytes

    @property
    def look_seconds(self) -> float:
        """Return when to look again: before the fastest guest could have used up what is above the reserve."""
        seconds = (self.free_bytes - self.reserve_bytes) / RATE_BYTES_MAX
        return min(max(seconds, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)


def free_room(folder: Path) -> int:
    """Return the bytes free for scratch files in `folder`. Raises HypervisorError if it cannot be looked at."""
    try:
        room = os.statvfs(folder)
    except OSError as error:
        raise HypervisorError(operation="looking at the scratch folder", detail=str(error), code=0) from error
    return room.f_bavail * room.f_frsize


def largest_elsewhere(folder: Path, own: Path) -> int:
    """Return the bytes of the largest scratch files beside `own`, another domain's, whichever process it is that reads it."""
    sizes: dict[Path, int] = {}
    for path in folder.glob("*/*.scratch"):
        try:
            blocks = path.stat().st_blocks
        except OSError:  # that job has just ended
            continue
        sizes[path.parent] = sizes.get(path.parent, 0) + blocks * _BLOCK_BYTES
    sizes.pop(own, None)
    return max(sizes.values(), default=0)
