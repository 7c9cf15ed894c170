"""One writer at a time for one name, on servers whose rename overwrites: a folder that only one can make.

    MKD <name>.0.lock.part ──► nobody else passes ──► is <name> there? ──► RNFR, RNTO ──► RMD <name>.0.lock.part
         └── refused: wait; refused for STALE_SECONDS and the name still free: its maker is dead, MKD <name>.1.lock.part

The promise: of writers that keep to this one alone gives a name its object, if MKD refuses what is there (asked of each server
once, `Manners`) and a command that was sent is carried out within STALE_SECONDS - HOLD_SECONDS or never. A foreign program that
writes below the storage's folder is not bound by it. A lock is never taken from its maker by removal, which could hit its
successor's: the next number is made instead. The ending leaves locks out of listings; a dead writer's goes with its folder.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from engine.storage.base import PART_SUFFIX, part_name
from engine.storage.ftp_tree import denied, exists
from engine.storage.ftp_wire import Control, Lost, Refused

STALE_SECONDS = 30.0
HOLD_SECONDS = 10.0  # who has it for longer gives up, and leaves the lock to become stale
_PAUSE_SECONDS = 0.1
_PAUSE_SECONDS_MAX = 1.0
_STRANGE_MAX = 5  # refusals in a row of a lock that is not there a moment later: it is not the lock that is refused


class Taken(Exception):
    """The name was there, or came to be there while we waited."""


@dataclass(frozen=True, slots=True)
class Manners:
    """What a server's commands really do. `makes_once`: MKD refuses a name that is taken; `keeps_full`: RMD, one with content."""

    makes_once: bool
    keeps_full: bool


def probe(control: Control, root: str) -> Manners:
    """Try the server's manners on folders of our own below `root`, and remove them."""
    outer = f"{root}/{part_name('probe')}"
    inner = f"{outer}/inner"
    control.command(f"MKD {outer}")
    try:
        makes_once = not _succeeds(control, f"MKD {outer}")
        control.command(f"MKD {inner}")
        return Manners(makes_once, keeps_full=not _succeeds(control, f"RMD {outer}"))
    finally:
        with suppress(Refused, Lost):
            _succeeds(control, f"RMD {inner}")
            control.command(f"RMD {outer}")


@contextmanager
def locked(control: Control, path: str, sleep: Callable[[float], object]) -> Iterator[Callable[[], bool]]:
    """Hold the lock of the file `path` for the block, which gets a function that tells whether it is held still.

    Raises Taken if the file is there, Refused if the server makes no lock, Lost.
    """
    number, end_time = _acquire(control, path, sleep)
    try:
        yield lambda: time.monotonic() < end_time
    finally:
        for held in range(number + 1):  # those of the dead first: who finds the first one free must find us done
            if time.monotonic() < end_time and not control.broken:
                with suppress(Refused):
                    control.command(f"RMD {_name(path, held)}")


def _acquire(control: Control, path: str, sleep: Callable[[float], object]) -> tuple[int, float]:
    """Make the lock and return its number, and until when it may be used."""
    pause, strange = _PAUSE_SECONDS, 0
    following, since = 1, time.monotonic()  # which lock is made when those before it have been there for too long
    while True:
        stale = time.monotonic() - since > STALE_SECONDS
        for number in (0, following) if stale else (0,):
            begin = time.monotonic()
            try:
                control.command(f"MKD {_name(path, number)}")
            except Refused as refused:
                strange = 0 if exists(control, _name(path, number)) else strange + 1
                if denied(refused) or strange >= _STRANGE_MAX:
                    raise
            else:
                return number, begin + HOLD_SECONDS
        if stale:
            following, since = following + 1, time.monotonic()
        if exists(control, path):
            raise Taken
        sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)


def _name(path: str, number: int) -> str:
    return f"{path}.{number}.lock{PART_SUFFIX}"


def _succeeds(control: Control, command: str) -> bool:
    try:
        control.command(command)
    except Refused:
        return False
    return True
