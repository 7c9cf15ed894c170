"""A database in small that writes in the test guest all the while, and what of it must be in a backup.

    record-writer (guest_writer.c) ── record n, fsync ──► /data1/records, /data2/records
                                   ── "n" ──► virtio port ──► <guest's folder>/bm.acknowledged on the host

A number in that file is a promise: its record is on both disks. A backup whose instant is after that has to keep it.
"""

import functools
import operator
import struct
from dataclasses import dataclass
from pathlib import Path

from tests.servers.guest import WRITER_CHANNEL, RealGuest, file_of
from tests.waiting import wait_until

_WORDS = 188  # as in guest_writer.c
_STEP = 0x9E3779B97F4A7C15
_RECORD = struct.Struct(f"<{_WORDS}Q")
_START_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Records:
    """What a file of records holds: `whole` without a gap from 1 on; `torn` tells whether there is more that is no record."""

    whole: int
    torn: bool


def start(guest: RealGuest) -> None:
    """Begin to write anew, and return when the first records are acknowledged."""
    stop(guest)
    command = f"record-writer /dev/virtio-ports/{WRITER_CHANNEL} /data1/records /data2/records"
    before = len(_lines(guest))
    guest.guest_exec(f"{command} </dev/null >/dev/null 2>&1 &")
    wait_until(lambda: len(_lines(guest)) > before + 2, _START_SECONDS_MAX, "the writer's first records")
    _wait_port(guest, "connected")


def stop(guest: RealGuest) -> None:
    guest.guest_exec(
        "killall record-writer 2>/dev/null; while pidof record-writer >/dev/null; do usleep 10000; done; true"
    )
    _wait_port(guest, "disconnected")


def _wait_port(guest: RealGuest, state: str) -> None:
    """Wait until libvirt has heard what the port is: it hears of nothing else for 30 s if a backup begins before."""
    words = f"name='{WRITER_CHANNEL}' state='{state}'"
    wait_until(lambda: words in guest.handle.XMLDesc(), _START_SECONDS_MAX, f"the writer's port to be {state}")


def acknowledged(guest: RealGuest) -> int:
    """Return the last number that the writer has promised."""
    lines = _lines(guest)
    return int(lines[-1]) if lines else 0


def wait_for_more(guest: RealGuest, count: int = 3) -> None:
    """Wait until so many more records are promised: the guest runs, and its file systems take writes."""
    goal = acknowledged(guest) + count
    wait_until(lambda: acknowledged(guest) >= goal, _START_SECONDS_MAX, "the guest to go on writing")


def records_in(image: Path) -> Records:
    """Read the records of a raw ext4 image, as its file system stands."""
    data = file_of(image, "/records")
    count = 0
    while data[count * _RECORD.size : (count + 1) * _RECORD.size] == _record(count + 1):
        count += 1
    return Records(count, torn=len(data) > count * _RECORD.size)


def _record(number: int) -> bytes:
    """Make a record once more, as the guest does."""
    words = [number, *((number * _STEP + at) % (1 << 64) for at in range(_WORDS - 2))]
    return _RECORD.pack(*words, functools.reduce(operator.xor, words))


def _lines(guest: RealGuest) -> list[bytes]:
    """Return the acknowledgments' whole lines."""
    data = (guest.folder / WRITER_CHANNEL).read_bytes()
    return data[: data.rfind(b"\n") + 1].split()
