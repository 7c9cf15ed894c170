"""The note that a backup of a running domain keeps while it is made, for the engine that has to go on if this one dies.

    <lock folder>/<domain uuid>.unfinished     JSON, 0600, replaced whole and synced; it holds no secret

It is written when the disks are open, again with each finished segment, and removed at the end, whatever that is. So a note
whose domain is not locked belongs to an engine that was killed. The folder is root's alone and is emptied with the machine's
end, as QEMU and the block job are. Nothing in a note is believed without a look at what it is about: see resume.py.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine import spec
from engine.errors import EngineError
from engine.format.layout import SegmentRef
from engine.spec import BackupType

log = logging.getLogger(__name__)

VERSION = 1
_SUFFIX = ".unfinished"


@dataclass(frozen=True, slots=True)
class Peer:
    """Names a process for ever; `start_time` is in clock ticks since the boot `boot_id`."""

    pid: int
    start_time: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class DiskNote:
    """A disk of the backup: what was chosen for it, where it is read, and the segments that are on the storage."""

    disk: str
    path: str
    size_bytes: int
    type: BackupType
    reason: str
    parent_backup_id: str
    export: str
    bitmap: str
    segments: tuple[SegmentRef, ...] = ()
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """`peer` is the QEMU that serves `socket_path`; `checkpoint` the new one, "" if libvirt has none of that name.

    `definition` is the SHA-256 of the domain's XML. For the rest see `engine.source.running.Instant`.
    """

    job_id: str
    server_id: str
    backup_id: str
    repository_id: str
    key_id: str
    definition: str
    socket_path: str
    peer: Peer
    checkpoint: str
    consistency: str
    detail: str
    quiesce_seconds: float
    fault: bool
    recorded: tuple[str, ...]
    disks: tuple[DiskNote, ...]
    version: int = VERSION

    @property
    def complete(self) -> bool:
        """Whether all data is on the storage, so that only the commit is missing."""
        return all(disk.complete for disk in self.disks)

    def of(self, disk: str) -> DiskNote:
        return next(one for one in self.disks if one.disk == disk)


class NotResumable(Exception):
    """The backup has to be begun anew; the message says why. It never leaves the backup that asked."""


class NoteFile:
    """The note of one domain. Whoever uses it holds the domain's lock; one thread at a time."""

    def __init__(self, folder: Path, domain_uuid: str) -> None:
        self._path = folder / f"{domain_uuid}{_SUFFIX}"
        self._note: Note | None = None

    def read(self) -> Note | None:
        """Return the note that lies there, None if there is none that can be used."""
        try:
            note = spec.load(Note, self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, EngineError) as error:
            log.warning("The note of an unfinished backup cannot be used path=%s: %s", self._path, error)
            return None
        return note if note.version == VERSION else None

    def write(self, note: Note) -> None:
        """Replace the note, durably. One that cannot be written is no reason to fail: an older one is as true, only less is in it."""
        self._note = note
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(spec.dump(note).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            self._sync_folder()
        except OSError as error:
            log.warning("No note of an unfinished backup can be written path=%s: %s", self._path, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def finish(self, disk: str, segment: SegmentRef, last: bool) -> None:
        """Add a segment that is on the storage; the last one completes its disk. Without a note nothing is done."""
        if self._note is None:
            return
        one = self._note.of(disk)
        done = replace(one, segments=(*one.segments, segment), complete=last)
        self.write(replace(self._note, disks=tuple(done if each is one else each for each in self._note.disks)))

    def remove(self) -> None:
        """Remove the note; there may be none."""
        self._note = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            self._sync_folder()

    @contextlib.contextmanager
    def removed_at_the_end(self) -> Iterator[None]:
        """Remove the note when the block ends, whatever happened in it: only a kill leaves it."""
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.remove()

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
