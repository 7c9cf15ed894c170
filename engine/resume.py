"""Whether a backup that a dead engine left can be gone on with, and what of it is still to be done.

    note ─► the same job, disks and definition? ─► the same block job, open? ─► the intent ours, parents and finished segments there?
         ─► their indexes read: what they cover is done, and lies within what was to be done ─► the rest, in new segments

A half-written segment is not gone on with. It is removed and its part of the disk is read again into a segment with a salt of
its own: a frame that was sealed and lost would otherwise share key and nonce with the one in its place.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.attempt import AttemptIdentity
from engine.catalog import History
from engine.coverage import Coverage
from engine.errors import FormatError, ObjectNotFound, ObjectTruncated
from engine.extents import Extent
from engine.format import names
from engine.format.crypto import ServerKey
from engine.format.markers import Intent
from engine.format.reader import SegmentReader
from engine.plan import Choice
from engine.storage.base import Storage
from engine.unfinished import DiskNote, Note, NotResumable

if TYPE_CHECKING:
    from engine.hypervisor.connection import Domain
    from engine.hypervisor.domains import DiskInfo
    from engine.source.running import Instant


@dataclass(frozen=True, slots=True)
class Resumption:
    """What can be gone on with. `open`: the block job is; `covered`: by disk, what its finished segments hold."""

    note: Note
    choices: Mapping[str, Choice]
    covered: Mapping[str, Coverage]
    open: bool


@dataclass(frozen=True, slots=True)
class Job:
    """What the note has to fit: the job as it was asked again, and where it works."""

    identity: AttemptIdentity
    repository_id: str
    key: ServerKey | None
    scratch_folder: Path


def examine(
    note: Note, job: Job, images: Sequence["DiskInfo"], domain: "Domain", storage: Storage, history: History
) -> Resumption:
    """Return what can be gone on with. Raises NotResumable, and what libvirt and the storage raise."""
    from engine.source.held import why_not_open

    identity = job.identity
    wanted = (identity.job_id, identity.server_id, identity.backup_id, job.repository_id, _key_id(job.key))
    if (note.job_id, note.server_id, note.backup_id, note.repository_id, note.key_id) != wanted:
        raise NotResumable("the job is another one")
    if {one.disk: one.path for one in note.disks} != {image.target: image.path for image in images}:
        raise NotResumable("the domain has other disks now")
    if note.definition != definition_digest(domain):
        raise NotResumable("the domain's definition was changed")
    why_not = why_not_open(domain, note, job.scratch_folder)
    if why_not and not note.complete:
        raise NotResumable(why_not)
    _check_announced(storage, identity)
    choices = {one.disk: _choice(one, history) for one in note.disks}
    for one in note.disks:
        _check_sizes(one, identity, history)
    covered = {
        one.disk: _covered(one, identity, job.key, storage)
        for one in note.disks
        if one.segments and not one.complete
    }  # fmt: skip
    return Resumption(note, choices, covered, open=not why_not)


def note_of(
    job: Job, choices: Mapping[str, tuple["DiskInfo", Choice]], domain: "Domain", instant: "Instant", checkpoint: str
) -> Note:
    """Return the note of a backup that is about to be read from `instant`. Raises OSError, HypervisorError."""
    from engine.hypervisor.checkpoints import is_noted
    from engine.source.held import peer_of

    held, identity = instant.held, job.identity
    assert held is not None
    disks = tuple(
        DiskNote(
            disk, image.path, instant.disks[disk].size_bytes, choice.type, choice.reason,
            choice.parent.backup_id if choice.parent else "", held.exports[disk].name, held.exports[disk].bitmap,
        )
        for disk, (image, choice) in choices.items()
    )  # fmt: skip
    noted = bool(checkpoint) and is_noted(domain, checkpoint)
    return Note(
        identity.job_id, identity.server_id, identity.backup_id, job.repository_id, _key_id(job.key),
        definition_digest(domain), held.socket_path, peer_of(held.socket_path), checkpoint if noted else "",
        instant.consistency, instant.detail, instant.quiesce_seconds, instant.fault, tuple(instant.recorded), disks,
    )  # fmt: skip


def definition_digest(domain: "Domain") -> str:
    """Return the SHA-256 of the XML that defines a domain anew."""
    from engine.hypervisor.domains import definition

    return hashlib.sha256(definition(domain).encode()).hexdigest()


def check_within(changes: Iterable[Extent], covered: Coverage) -> None:
    """Raise NotResumable unless `changes` has everything that is covered: what they tell is the same as before."""
    total = inside = 0
    for start, end in covered:
        total += end - start
    for extent in changes:
        inside += extent.length - sum(end - start for start, end in covered.gaps(extent.start, extent.end))
    if inside != total:
        raise NotResumable("the record of what has changed is not the same")


def remaining(extents: Iterable[Extent], covered: Coverage) -> Iterator[Extent]:
    """Yield what of `extents` is not covered yet.

    A zero extent may stand in an earlier segment than data before it (see placement.py). So that pieces ascend all the same over
    all segments, what lies before the end of the covered part is taken for data, whatever it is.
    """
    frontier = max((end for _, end in covered), default=0)
    for extent in extents:
        for start, end in covered.gaps(extent.start, extent.end):
            yield Extent(start, end - start, extent.zero and start >= frontier)


def kept_names(note: Note) -> set[str]:
    """Return the objects of the dead engine's attempt that stay."""
    where = (note.server_id, note.backup_id)
    segments = {names.segment_name(*where, one.disk, ref.number) for one in note.disks for ref in one.segments}
    return {names.intent_name(*where), *segments}


def _key_id(key: ServerKey | None) -> str:
    return key.key_id if key else ""


def _check_announced(storage: Storage, identity: AttemptIdentity) -> None:
    name = names.intent_name(identity.server_id, identity.backup_id)
    try:
        intent = Intent.load(storage.get(name), name)
    except (ObjectNotFound, ObjectTruncated, FormatError) as error:
        raise NotResumable("what was uploaded is gone from the storage") from error
    if (intent.job_id, intent.host) != (identity.job_id, identity.host):
        raise NotResumable("what lies on the storage is another's")


def _choice(one: DiskNote, history: History) -> Choice:
    if not one.parent_backup_id:
        return Choice(one.disk, one.type, None, one.reason)
    for parent in history.of_disk(one.disk):
        if parent.backup_id == one.parent_backup_id and history.extendable(parent):
            return Choice(one.disk, one.type, parent, one.reason)
    raise NotResumable(f"the backup that disk {one.disk} builds upon is gone")


def _check_sizes(one: DiskNote, identity: AttemptIdentity, history: History) -> None:
    for ref in one.segments:
        name = names.segment_name(identity.server_id, identity.backup_id, one.disk, ref.number)
        if history.sizes.get(name) != ref.stored_bytes:
            raise NotResumable(f"{name} is not on the storage as it was written")


def _covered(one: DiskNote, identity: AttemptIdentity, key: ServerKey | None, storage: Storage) -> Coverage:
    """Return what a disk's finished segments hold, as their indexes tell."""
    covered = Coverage()
    for ref in one.segments:
        name = names.segment_name(identity.server_id, identity.backup_id, one.disk, ref.number)
        try:
            source = storage.open(name)
            try:
                entries = SegmentReader(source, name, ref, key).entries()
                pieces = [(entry,) if isinstance(entry, Extent) else entry.extents for entry in entries]
            finally:
                source.close()
        except (ObjectNotFound, ObjectTruncated, FormatError) as error:
            raise NotResumable(f"{name} cannot be read: {error}") from error
        covered.add(sorted((extent.start, extent.end) for extents in pieces for extent in extents))
    return covered
