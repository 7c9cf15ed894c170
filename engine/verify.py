"""Verify: read every frame that a backup needs, and name everything that is damaged (C2).

Without the key each frame's SHA-256 is compared; with it each frame is also opened and decompressed, so that what is called
whole has been restored once, but for writing it down.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.catalog import Keys, Point, of_one_object, read_history
from engine.errors import ChainBroken, FormatError, StorageError
from engine.extents import Extent
from engine.format import names
from engine.format.crypto import ServerKey
from engine.format.frames import FrameOpener
from engine.format.index import FrameEntry, Row
from engine.format.manifest import DiskManifest
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
        self._seen: set[tuple[str, str, int]] = set()

    def first_time(self, backup_id: str, disk: str, segment: int) -> bool:
        """Tell whether this segment was not checked yet: several backups may need it."""
        key = (backup_id, disk, segment)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def add(self, damage: Damage) -> None:
        self.damaged_count += 1
        if len(self.damaged) < DAMAGED_MAX:
            self.damaged.append(damage)

    def result(self) -> VerifyResult:
        return VerifyResult(self.frames, self.stored_bytes, self.damaged_count, self.damaged)


def verify(storage: Storage, server_id: str, backup_id: str, keys: Keys, work: Work) -> VerifyResult:
    """Verify one backup of a server with all that it needs, or all of its backups if `backup_id` is "".

    A manifest that cannot be read is a finding. Raises BackupNotFound, WrongKey, what the storage raises, Cancelled.
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
        for disk, detail in point.unreadable.items():
            name = names.manifest_name(server_id, point.server.backup_id, disk)
            findings.add(Damage(point.server.backup_id, disk, name, -1, 0, 0, detail))
        for manifest in point.disks.values():
            verify_disk(storage, manifest, keys.get(manifest.key_id), findings, work)
    return findings.result()


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
                findings.add(Damage(layer.backup_id, manifest.disk, name, -1, 0, manifest.size_bytes, str(error)))


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
            findings.add(Damage(self._backup_id, self._disk, name, entry.number, start, end, checked.detail))


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
    detail: str


class _Worker:
    def __init__(self, reader: SegmentReader) -> None:
        self._reader = reader
        self._opener = FrameOpener()

    def process(self, entry: Row | FrameEntry) -> _Checked:
        try:
            if isinstance(entry, FrameEntry):
                self._reader.read(entry, self._opener)
            else:
                self._reader.verify(entry)
        except (FormatError, StorageError) as error:
            if not of_one_object(error):
                raise
            return _Checked(entry, str(error))
        return _Checked(entry, "")

    def close(self) -> None:
        """Nothing to release."""
