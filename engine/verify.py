"""Verify: read every frame that a backup needs, and name everything that is damaged (C2).

What is found in a disk's segments is noted beside them (damaged.json), so that the next backup begins a new chain, whoever
makes it: nobody has to remember. The note stays until the backup is deleted; nothing is rewritten.

Without the key each frame's SHA-256 is compared; with it each frame is also opened and decompressed, so that what is called
whole has been restored once, but for writing it down.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from engine.catalog import History, Keys, Point, of_one_object, read_history
from engine.errors import ChainBroken, FormatError, ObjectExists, StorageDenied, StorageError
from engine.extents import Extent
from engine.format import names
from engine.format.crypto import ServerKey
from engine.format.frames import FrameOpener
from engine.format.index import FrameEntry, Row
from engine.format.manifest import DiskManifest
from engine.format.markers import Damaged
from engine.format.reader import SegmentReader
from engine.ordered import run_ordered
from engine.rebuild import open_segment
from engine.results import Damage, VerifyResult
from engine.storage.base import Storage
from engine.work import Work

DAMAGED_MAX = 1000  # named one by one; all of them are counted


class Findings:
    """What a verification has seen so far."""

    def __init__(self) -> None:
        self.frames = 0
        self.stored_bytes = 0
        self.damaged_count = 0
        self.damaged: list[Damage] = []
        self.lasting: dict[
            tuple[str, str], list[Damage]
        ] = {}  # by backup and disk, what is worth a note on the storage
        self._seen: set[tuple[str, str, int]] = set()

    def first_time(self, backup_id: str, disk: str, segment: int) -> bool:
        """Tell whether this segment was not checked yet: several backups may need it."""
        key = (backup_id, disk, segment)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def add(self, damage: Damage, *, lasting: bool = False) -> None:
        """Note a damage; a `lasting` one is in the data, and no mere want of a right to read it."""
        self.damaged_count += 1
        if lasting:
            self.lasting.setdefault((damage.backup_id, damage.disk), []).append(damage)
        if len(self.damaged) < DAMAGED_MAX:
            self.damaged.append(damage)

    def result(self) -> VerifyResult:
        return VerifyResult(self.frames, self.stored_bytes, self.damaged_count, self.damaged)


@dataclass(frozen=True, slots=True)
class Finder:
    """Who verifies, for the notes."""

    job_id: str
    host: str
    now: datetime


def verify(
    storage: Storage, server_id: str, backup_id: str, keys: Keys, work: Work, finder: Finder | None = None
) -> VerifyResult:
    """Verify one backup of a server with all that it needs, or all of its backups if `backup_id` is "".

    Without a `finder` nothing is written. A manifest that cannot be read is a finding. Raises BackupNotFound, WrongKey, what the storage raises, Cancelled.
    """
    work.report.stage("verify")
    history = read_history(storage, server_id, keys)
    points = history.points if not backup_id else (history.point(server_id, backup_id),)
    findings = Findings()
    for one, error in history.unreadable.items():
        if not backup_id:
            findings.add(Damage(one, "", names.backup_name(server_id, one), -1, 0, 0, str(error)))
    work.report.expect(sum(_stored_bytes(points)))
    for point in points:
        if (
            keys and not point.server.key_id
        ):  # a restore with the key refuses it: whoever has no key can write such a one
            detail = f"{point.server.name} is not encrypted, but a key was given for it"
            findings.add(Damage(point.server.backup_id, "", point.server.name, -1, 0, 0, detail))
            continue
        for disk, detail in point.unreadable.items():
            name = names.manifest_name(server_id, point.server.backup_id, disk)
            findings.add(Damage(point.server.backup_id, disk, name, -1, 0, 0, detail))
        for manifest in point.disks.values():
            verify_disk(storage, manifest, keys.get(manifest.key_id), findings, work)
    if finder is not None:
        _note(storage, server_id, history, findings, finder, work)
    return findings.result()


def _note(storage: Storage, server_id: str, history: History, findings: Findings, finder: Finder, work: Work) -> None:
    """Leave a mark beside damaged segments of backups that are there. Where that is not possible, a warning says so."""
    here = {point.server.backup_id for point in history.points}
    for (backup_id, disk), damages in findings.lasting.items():
        if backup_id not in here or history.damaged(backup_id, disk):
            continue
        mark = Damaged(
            server_id,
            backup_id,
            disk,
            finder.job_id,
            finder.host,
            finder.now.isoformat(),
            len(damages),
            damages[0].detail,
        )
        try:
            storage.put(names.damaged_name(server_id, backup_id, disk), mark.dump())
        except ObjectExists:
            continue
        except StorageError as error:
            work.report.warn(f"the damage of backup {backup_id} could not be noted on the storage: {error}")


def _stored_bytes(points: Sequence[Point]) -> Iterator[int]:
    """Yield the size of every segment that the points need, each once."""
    seen = set()
    for point in points:
        for manifest in point.disks.values():
            for layer in manifest.layers:
                for segment in layer.segments:
                    if (layer.backup_id, manifest.disk, segment.number) not in seen:
                        seen.add((layer.backup_id, manifest.disk, segment.number))
                        yield segment.stored_bytes


def verify_disk(
    storage: Storage, manifest: DiskManifest, key: ServerKey | None, findings: Findings, work: Work
) -> None:
    """Check every segment that the disk needs and that was not checked before. Raises what the storage raises, Cancelled."""
    for layer in manifest.layers:
        for segment in layer.segments:
            if not findings.first_time(layer.backup_id, manifest.disk, segment.number):
                continue
            try:
                with open_segment(storage, manifest, layer.backup_id, segment, key) as reader:
                    _Segment(reader, layer.backup_id, manifest.disk, findings).verify(
                        storage, work, with_key=key is not None
                    )
            except (FormatError, ChainBroken, StorageError) as error:
                if not isinstance(error, ChainBroken) and not of_one_object(error):
                    raise
                name = error.facts.get("name") or error.facts.get("missing", "")
                damage = Damage(layer.backup_id, manifest.disk, name, -1, 0, manifest.size_bytes, str(error))
                findings.add(damage, lasting=not isinstance(error, StorageDenied))


class _Segment:
    def __init__(self, reader: SegmentReader, backup_id: str, disk: str, findings: Findings) -> None:
        self._reader = reader
        self._backup_id = backup_id
        self._disk = disk
        self._findings = findings

    def verify(self, storage: Storage, work: Work, *, with_key: bool) -> None:
        ended = threading.Event()

        def consume(checked: _Checked) -> None:
            work.report.advance(checked.entry.stored_bytes)
            self._note(checked)

        with work.stop.waking(ended.set):
            run_ordered(
                _frames(self._reader, with_key=with_key), lambda: _Worker(self._reader), consume,
                workers=work.workers, stop=ended, interrupts=(storage.interrupt,),
            )  # fmt: skip

    def _note(self, checked: "_Checked") -> None:
        entry, findings = checked.entry, self._findings
        findings.frames += 1
        findings.stored_bytes += entry.stored_bytes
        if checked.detail:
            start, end = _range(entry, self._reader.size_bytes)
            name = self._reader.name
            damage = Damage(self._backup_id, self._disk, name, entry.number, start, end, checked.detail)
            findings.add(damage, lasting=checked.lasting)


def _frames(reader: SegmentReader, *, with_key: bool) -> Iterator[Row | FrameEntry]:
    """Yield every frame: with its extents where the map can be opened, else as the table has it."""
    if reader.header.encrypted and not with_key:
        yield from reader.rows()
        return
    for entry in reader.entries():
        if not isinstance(entry, Extent):
            yield entry


def _range(entry: Row | FrameEntry, size_bytes: int) -> tuple[int, int]:
    """Return the part of the disk that a frame may cover; all of it where the map is closed."""
    if isinstance(entry, FrameEntry):
        return entry.extents[0].start, entry.extents[-1].end
    return 0, size_bytes


@dataclass(frozen=True, slots=True)
class _Checked:
    entry: Row | FrameEntry
    detail: str = ""
    lasting: bool = False


class _Worker:
    def __init__(self, reader: SegmentReader) -> None:
        self._reader = reader
        self._opener = FrameOpener()

    def process(self, entry: Row | FrameEntry) -> _Checked:
        try:
            if isinstance(entry, FrameEntry):
                self._reader.read(entry, self._opener)
            else:
                self._reader.verify(entry, self._opener)
        except (FormatError, StorageError) as error:
            if not of_one_object(error):
                raise
            return _Checked(entry, str(error), not isinstance(error, StorageDenied))
        return _Checked(entry)

    def close(self) -> None:
        """Nothing to release."""
