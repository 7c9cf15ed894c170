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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from engine.storage.base import PART_SUFFIX, part_name
from engine.storage.ftp_tree import denied, exists
from engine.storage.ftp_wire import Control, Lost, Refused

STALE_SECONDS = 30.0
HOLD_SECONDS = 15.0  # who has it for longer gives up, and leaves the lock to become stale
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


class NameLock:
    """The right to give the file `path` its name. One thread; the connection may be another one at each call."""

    def __init__(self, path: str, sleep: Callable[[float], object]) -> None:
        self._path, self._sleep = path, sleep
        self._number, self._end_time = 0, 0.0

    @property
    def held(self) -> bool:
        return time.monotonic() < self._end_time

    def acquire(self, control: Control) -> None:
        """Make the lock, unless it is still ours from before its connection was lost.

        Raises Taken if the file is there or comes to be there, Refused if the server makes no lock, Lost.
        """
        pause, strange = _PAUSE_SECONDS, 0
        following, since = 1, time.monotonic()  # which lock is made when those before it have been there for too long
        while not self.held:
            stale = time.monotonic() - since > STALE_SECONDS
            for number in (0, following) if stale else (0,):
                begin = time.monotonic()
                try:
                    control.command(f"MKD {self._name(number)}")
                except Refused as refused:
                    strange = 0 if exists(control, self._name(number)) else strange + 1
                    if denied(refused) or strange >= _STRANGE_MAX:
                        raise
                else:
                    self._number, self._end_time = number, begin + HOLD_SECONDS
                    return
            if stale:
                following, since = following + 1, time.monotonic()
            if exists(control, self._path):
                raise Taken
            self._sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def release(self, control: Control) -> None:
        """Remove the lock; one that was held for too long is left to become stale, since it may be somebody's by now."""
        for number in range(
            self._number + 1
        ):  # those of the dead first: who finds the first one free must find us done
            if self.held:
                with suppress(Refused):
                    control.command(f"RMD {self._name(number)}")
        self._end_time = 0.0

    def _name(self, number: int) -> str:
        return f"{self._path}.{number}.lock{PART_SUFFIX}"


def _succeeds(control: Control, command: str) -> bool:
    try:
        control.command(command)
    except Refused:
        return False
    return True
