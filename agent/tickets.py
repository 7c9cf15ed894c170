"""Restore tickets that are over: removed at the agent's start and every half minute, with a controller or without (M11).

a ticket                      removed once its time is over; revoked by the controller: replaced at once by what says so
what says so                  after the longest time that any ticket may live
half a ticket (.name…)        left by an engine that died: after 10 minutes
what cannot be read as one    after the longest time that any ticket may live, counted from when it was written
"""

import asyncio
import logging
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.clock import Clock
from agent.files import sync_folder, write_whole
from engine import spec
from engine.errors import InvalidSpec, TicketRevoked
from engine.ticket import BYTES_MAX, CLOCK_STEP_MAX, LIFETIME_SECONDS_MAX, Revocation, parse_ticket

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 30.0
UNFINISHED_AGE_MAX = timedelta(minutes=10)
UNREADABLE_AGE_MAX = timedelta(seconds=LIFETIME_SECONDS_MAX)


async def remove_expired(folder: Path, clock: Clock, interval_seconds: float = INTERVAL_SECONDS) -> None:
    """Remove what is over: at once, and then again and again. Never returns, and no failure of a file ends it."""
    while True:
        await asyncio.to_thread(sweep, folder, clock.now())
        await asyncio.sleep(interval_seconds)


def sweep(folder: Path, now: datetime) -> list[str]:
    """Remove the tickets of a folder that are over at `now`; return their names."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        log.warning("restore tickets cannot be looked at folder=%s detail=%s", folder, error.strerror)
        return []
    return [file.name for file in files if _remove_over(file, now)]


def revoke(file: Path, now: datetime) -> None:
    """Put a word of its revocation in a ticket's place, durably; where there is none, nothing is done. Raises OSError.

    A restore that has read the ticket goes on. One that was revoked before keeps the time of that.
    """
    try:
        parse_ticket(_read(file), file.name)
    except (FileNotFoundError, TicketRevoked):
        return
    except InvalidSpec:
        file.unlink(missing_ok=True)  # whatever it is, it is the ticket's file, and may hold what a ticket holds
        sync_folder(file.parent)
        return
    write_whole(file, spec.dump(Revocation(now.astimezone(UTC).isoformat(timespec="seconds"))).encode())
    log.info("a restore ticket was revoked file=%s", file)


def _read(file: Path) -> bytes:
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        return stream.read(BYTES_MAX)


def is_over(name: str, data: bytes, write_time: datetime, now: datetime) -> bool:
    """Tell whether a file of this name and content, written at that time, has to go at `now`. Pure."""
    age = now - write_time
    if name.startswith("."):
        return age > UNFINISHED_AGE_MAX or age < -CLOCK_STEP_MAX
    try:
        return parse_ticket(data, name).is_over(now)
    except (InvalidSpec, TicketRevoked):
        return age > UNREADABLE_AGE_MAX or age < -CLOCK_STEP_MAX


def _remove_over(file: Path, now: datetime) -> bool:
    try:
        status = file.lstat()
        if stat.S_ISDIR(status.st_mode):
            return False  # not ours
        data = b""
        if stat.S_ISREG(status.st_mode):
            with file.open("rb") as stream:
                data = stream.read(BYTES_MAX)
        if not is_over(file.name, data, datetime.fromtimestamp(status.st_mtime, UTC), now):
            return False
        file.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("a restore ticket cannot be removed file=%s detail=%s", file, error.strerror)
        return False
    log.info("a restore ticket expired and was removed file=%s", file)
    return True
