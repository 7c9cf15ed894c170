"""What an end user is told: names of drives, how long a backup stays, what they may do now, and why something failed. Pure.

inside                               outside
vda, vdb, sda                        Drive A, Drive B, Drive C
an expected end, or none             Currently Retained | 2026-05-04, 6 days left | Expired
level, switch, cooldown, lease       allowed, or the first thing that stands in the way, as a sentence
any reason of an error               one of a few words, with advice that ends at support
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from controller.rules.access import Act, Level, allows

Refusal: TypeAlias = Literal[
    "not_included",
    "switched_off",
    "cooldown",
    "busy",
    "locked",
    "try_later",
    "backup_unusable",
    "contact_support",
]
RetentionState: TypeAlias = Literal["retained", "expiring", "expired"]

ADVICE: dict[Refusal, str] = {
    "not_included": "This is not included for this server.",
    "switched_off": "Your provider has switched this off.",
    "cooldown": "This was done a short while ago. Wait a little before the next one.",
    "busy": "Something else is being done with this server. Try again when it has ended.",
    "locked": "This server is in maintenance. Try again later; if that does not help, contact support.",
    "try_later": "This does not work at the moment. Try again later; if it persists, contact support.",
    "backup_unusable": "This backup cannot be used. Try another one; if none works, contact support.",
    "contact_support": "This did not work. If it happens again, contact support.",
}
_BY_REASON: dict[str, Refusal] = {
    **dict.fromkeys(("VM_BUSY",), "busy"),
    **dict.fromkeys(("VM_LOCKED", "SERVER_CONFLICT", "SERVER_DELETED", "DOMAIN_NOT_FOUND", "VM_STATE"), "locked"),
    **dict.fromkeys(
        (
            "HYPERVISOR_UNREACHABLE",
            "HYPERVISOR_BANNED",
            "LIBVIRT_UNREACHABLE",
            "CLOCK_SKEW",
            "STORAGE_UNREACHABLE",
            "STORAGE_UNTRUSTED",
            "STORAGE_CLOCK_SKEWED",
            "STORAGE_THROTTLED",
            "STORAGE_DISABLED",
            "STORAGE_READ_ONLY",
            "STORAGE_FAILED",
            "SHUTTING_DOWN",
            "COMMAND_NOT_ACCEPTED",
            "OPERATION_LOST",
            "ENGINE_CRASHED",
            "JOB_STALE",
            "SCRATCH_SHORT",
            "QUIESCE_FAILED",
            "WINDOW_CLOSED",
        ),
        "try_later",
    ),
    **dict.fromkeys(
        (
            "BACKUP_NOT_FOUND",
            "CHAIN_BROKEN",
            "FORMAT_INVALID",
            "FRAME_CORRUPT",
            "SEGMENT_CORRUPT",
            "MANIFEST_CORRUPT",
            "MANIFEST_UNSUPPORTED",
            "OBJECT_NOT_FOUND",
            "OBJECT_TRUNCATED",
            "DISK_NOT_FOUND",
            "DISK_MISMATCH",
        ),
        "backup_unusable",
    ),
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Permit:
    """Whether an end user can do something now. `refusal` None is yes; `available_time` is when it will be possible again."""

    refusal: Refusal | None = None
    available_time: datetime | None = None

    @property
    def message(self) -> str:
        return "" if self.refusal is None else ADVICE[self.refusal]


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides about an end user's act: the level, and how things are now. `last_success` is of the user's own acts."""

    level: Level
    switched_on: bool
    cooldown: timedelta
    last_success: datetime | None
    busy: bool = False
    locked: bool = False
    lock_expire_time: datetime | None = None
    possible: bool = True  # there is a place to back up to, or a backup to restore


@dataclass(frozen=True, slots=True)
class Stay:
    """How long a backup stays."""

    state: RetentionState
    expire_time: datetime | None
    days_left: int
    text: str


def permit(act: Act, standing: Standing, now: datetime) -> Permit:
    """Tell whether a user can do something, or the first thing in the way: what lasts longest is told first."""
    if not allows(standing.level, act):
        return Permit("not_included")
    if not standing.switched_on:
        return Permit("switched_off")
    if not standing.possible:
        return Permit("contact_support" if act == "backup" else "try_later")
    if standing.locked:
        return Permit("locked", standing.lock_expire_time)
    if standing.busy:
        return Permit("busy")
    if standing.last_success is not None and now < standing.last_success + standing.cooldown:
        return Permit("cooldown", standing.last_success + standing.cooldown)
    return Permit()


def refusal_of(reason: str) -> Refusal:
    """Return the word for an end user that stands for a reason; one that is not known here is support's."""
    return _BY_REASON.get(reason, "contact_support")


def stay(expire_time: datetime | None, now: datetime) -> Stay:
    """Return how long a backup stays that is expected to go at a time, or at none that is known (U3)."""
    if expire_time is None:
        return Stay("retained", None, 0, "Currently Retained")
    if expire_time <= now:
        return Stay("expired", expire_time, 0, "Expired")
    days = math.ceil((expire_time - now) / timedelta(days=1))
    return Stay("expiring", expire_time, days, f"{expire_time:%Y-%m-%d}, {days} {'day' if days == 1 else 'days'} left")


def drive_names(attached: Sequence[str], held: Iterable[str]) -> dict[str, str]:
    """Return a name for each disk: `attached` are those of the server, in order, `held` those that backups have (U6).

    A disk keeps the letter of its own name (vdb is Drive B) as long as no other has taken it, so that a drive is called the same
    before and after another one is removed.
    """
    known = list(dict.fromkeys((*attached, *sorted(held, key=lambda disk: (len(disk), disk)))))
    letters: dict[str, str] = {}
    for disk in known:
        own = _own_letter(disk)
        if own and own not in letters.values():
            letters[disk] = own
    number = 0
    for disk in known:
        while disk not in letters:
            if (letter := _letter(number)) not in letters.values():
                letters[disk] = letter
            number += 1
    return {disk: f"Drive {letters[disk]}" for disk in sorted(known, key=lambda one: (len(letters[one]), letters[one]))}


def percent(done: int, total: int) -> int:
    """Return how far something is, 0 to 99: only its end is 100."""
    return min(99, max(0, 100 * done // total)) if total > 0 else 0


def _own_letter(disk: str) -> str:
    """Return the letter of a Linux or libvirt name such as vdb, "" for another name."""
    return disk[2].upper() if len(disk) == 3 and disk[1] == "d" and disk[2].isascii() and disk[2].islower() else ""


def _letter(number: int) -> str:
    """Return A, B, …, Z, AA, AB, … for 0, 1, …"""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(_LETTERS))
        text = _LETTERS[rest] + text
    return text
