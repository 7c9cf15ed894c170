"""Restore tickets: a file on a hypervisor with which bm-engine restores one backup to files there, until it expires (M11).

    agent ── TicketJob ──► engine (ticket_issue.py): can the backup be restored from here? ──► tickets/<id>.json
    bm-engine restore --ticket FILE --to FOLDER ──► private? not over? ──► the job of a restore to files
              list, verify --ticket FILE ─────────► the same, of this one backup and what it needs
    revoked: the agent puts a Revocation in the file's place, which holds no secret and says when

The folder is 0700 and the file 0600: it holds the storage's credentials and the keys of one server, so that no command line
has to. It may be used as often as wanted until it expires; a restore that has begun goes on. The agent removes what is over
(agent/tickets.py).
"""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from engine import spec
from engine.errors import InvalidSpec, TicketExpired, TicketExposed, TicketRevoked
from engine.spec import RestoreJob, StorageSpec, VerifyJob

VERSION = 1
SUFFIX = ".json"
LIFETIME_SECONDS_MAX = 7 * 24 * 3600
CLOCK_STEP_MAX = timedelta(minutes=10)  # a clock that was corrected by less does not end a ticket
BYTES_MAX = 1 << 20  # a storage's settings with certificates, and some keys


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket's file holds. Times are ISO 8601 in UTC, of this host's clock; `disks` empty means all of the backup."""

    create_time: str
    expire_time: str
    storage: StorageSpec
    server_id: str
    backup_id: str
    disks: tuple[str, ...] = ()
    manifest_digest: str = ""
    server_keys: dict[str, str] = field(default_factory=dict, repr=False)
    version: int = VERSION

    def is_over(self, now: datetime) -> bool:
        """Tell whether it must not be used any more: after its time, and where a clock was set back and would lengthen it.

        Raises InvalidSpec for times that are none.
        """
        age = now - _time("create_time", self.create_time)
        too_old = age >= timedelta(seconds=LIFETIME_SECONDS_MAX) or age < -CLOCK_STEP_MAX
        return too_old or now >= _time("expire_time", self.expire_time)

    def job(self, disks: tuple[str, ...]) -> RestoreJob:
        """Return a restore of what the ticket is for, `disks` alone if any are given. Raises InvalidSpec for others."""
        for disk in disks:
            if self.disks and disk not in self.disks:
                raise InvalidSpec(field=disk, problem=f"is not among the ticket's disks: {', '.join(self.disks)}")
        return RestoreJob(
            server_id=self.server_id, domain_uuid="", backup_id=self.backup_id, disks=disks or self.disks,
            manifest_digest=self.manifest_digest, server_keys=self.server_keys,
        )  # fmt: skip

    def check(self) -> VerifyJob:
        """Return a verification of what the ticket is for: of every disk of its backup, and of the backups that it needs."""
        return VerifyJob(server_id=self.server_id, backup_id=self.backup_id, server_keys=self.server_keys)


@dataclass(frozen=True, slots=True)
class Revocation:
    """What stands in the place of a ticket that was revoked."""

    revoke_time: str
    revoked: bool = True
    version: int = VERSION


def load_ticket(path: Path, now: datetime) -> Ticket:
    """Return a ticket that may be used.

    Raises TicketExposed, TicketExpired, TicketRevoked, InvalidSpec; none quotes what is in the file.
    """
    ticket = parse_ticket(_read_private(path), str(path))
    if ticket.is_over(now):
        raise TicketExpired(path=path, expire_time=ticket.expire_time)
    return ticket


def parse_ticket(data: bytes, name: str) -> Ticket:
    """Return the ticket that a file's bytes are. Raises TicketRevoked for what stands in its place, else InvalidSpec."""
    with suppress(InvalidSpec, RecursionError):
        revocation = spec.load(Revocation, data)
        raise TicketRevoked(path=name, revoke_time=_time("revoke_time", revocation.revoke_time).isoformat())
    try:
        ticket = spec.load(Ticket, data)
        _time("create_time", ticket.create_time), _time("expire_time", ticket.expire_time)
    except (InvalidSpec, RecursionError) as error:
        raise InvalidSpec(field=name, problem="is not a restore ticket") from error
    if ticket.version != VERSION:
        raise InvalidSpec(field=name, problem=f"is a restore ticket of version {ticket.version}, which is not known")
    return ticket


# ---- files --------------------------------------------------------------------------------------------------------------


def _read_private(path: Path) -> bytes:
    """Return the bytes of a file that is the caller's own and nobody else's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        problem = (
            "there is none, or it has expired and was removed"
            if isinstance(error, FileNotFoundError)
            else error.strerror
        )
        raise InvalidSpec(field=str(path), problem=problem) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TicketExposed(path=path, problem="it is not a file")
        if status.st_uid != os.geteuid():
            raise TicketExposed(path=path, problem="it belongs to another user")
        mode = stat.S_IMODE(status.st_mode)
        if mode & ~0o600:
            raise TicketExposed(path=path, problem=f"its mode is {mode:04o} and has to be 0600")
        return file.read(BYTES_MAX)


def _time(name: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidSpec(field=name, problem="is not a time") from error
    if time.tzinfo is None:
        raise InvalidSpec(field=name, problem="has no time zone")
    return time
