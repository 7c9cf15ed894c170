"""Back up one domain: all its disks at one instant, each as a full or an incremental, as one restore point.

    lock the domain ─► read what the storage has ─► choose full or incremental for each disk, with the reason (plan.py)
      ─► intent ─► the instant ─► disk by disk to the storage ─► job ended ─► commit ─► checkpoints that nothing needs go
                    └── an engine that takes up the job of one that was killed goes on from here (resume.py)

If anything fails, the attempt is removed from the storage, the block job is ended, the guest is thawed, and the new
checkpoint is removed: the next backup goes on from the old one. A stopped domain that is started meanwhile is a running one
from then on: all of this happens once more, in the same job.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from engine import plan
from engine.attempt import AttemptIdentity, ask_lease, attempt, check_ancestors, check_sizes, commit, remove_attempt
from engine.catalog import History, Point, read_history
from engine.delete import finish_deletions
from engine.describe import Describer, read_definition
from engine.errors import (
    BackupManagerError,
    DiskMismatch,
    DomainStarted,
    HypervisorError,
    ImageChanged,
    KeyMissing,
)
from engine.extents import Extent, plan_full, plan_packed
from engine.failpoint import reached
from engine.format import manifest as manifests
from engine.format.crypto import ServerKey
from engine.format.layout import SegmentRef
from engine.format.manifest import Definition, SkippedDisk
from engine.orphans import remove_orphans
from engine.pipeline import DiskIdentity, store
from engine.reindex import summarize
from engine.results import BackupResult
from engine.selection import Task, choose, select
from engine.spec import BackupJob
from engine.storage.base import Storage
from engine.surroundings import Surroundings, keys_of
from engine.unfinished import DiskNote, NoteFile, NotResumable

if TYPE_CHECKING:
    from engine.changes import Changes
    from engine.hypervisor.connection import Domain
    from engine.hypervisor.domains import DiskInfo, DomainInfo
    from engine.hypervisor.lock import DomainLock
    from engine.resume import Job as ResumeJob
    from engine.resume import Resumption
    from engine.source.nbd_disk import NbdDisk
    from engine.source.running import Instant

log = logging.getLogger(__name__)

TURNS_MAX = 3  # a stopped domain is started, stopped and started again: then something is wrong, and the job says so


def back_up(around: Surroundings) -> BackupResult:
    """Make the backup that the job asks for and return it. Raises what stands in errors.py; then nothing of it remains."""
    from engine.hypervisor.connection import RESTART_SECONDS, open_connection
    from engine.hypervisor.lock import DomainLock

    spec = around.job.backup
    assert spec is not None
    around.work.report.stage("prepare")
    with (
        DomainLock(around.lock_folder, spec.domain_uuid, around.job.job_id) as lock,
        open_connection(around.operation.libvirt_uri, RESTART_SECONDS) as connection,
    ):
        domain = connection.domain(spec.domain_uuid)
        for _ in range(TURNS_MAX - 1):
            try:
                return _turn(around, spec, domain, lock)
            except (DomainStarted, ImageChanged) as change:
                around.work.report.info(f"{change}; the backup begins anew")
                around.work.stop.check()
                around.work.report.stage("prepare")
                _forget_turn(around, spec, domain)
        return _turn(around, spec, domain, lock)


def _turn(around: Surroundings, spec: BackupJob, domain: "Domain", lock: "DomainLock") -> BackupResult:
    """Make the backup of the domain as it is now, running or stopped.

    A turn that was in vain has left nothing, so the next one may use the same backup id: no frame is sealed twice under one
    salt, since every segment begins with a fresh one, and its objects' names are free again.
    """
    with around.repository(write=True, initialize=not _has_been_there(domain, around)) as storage:
        return _Backup(around, spec, domain, storage, lock).run()


def _forget_turn(around: Surroundings, spec: BackupJob, domain: "Domain") -> None:
    """Make sure that no bitmap of the turn in vain is left: the next turn's has the same name. Raises HypervisorError."""
    from engine.hypervisor.checkpoints import checkpoint_name, delete_checkpoint

    delete_checkpoint(domain, checkpoint_name(around.operation.storage.repository_id, spec.backup_id))


def _has_been_there(domain: "Domain", around: Surroundings) -> bool:
    """Tell whether the domain has a checkpoint of this repository: then it is somewhere.

    An empty place is then one whose disk is not mounted, and a full written there would fill the disk below it.
    """
    from engine.hypervisor.checkpoints import list_checkpoints, repository_digits

    digits = repository_digits(around.operation.storage.repository_id)
    return any(one.repository == digits for one in list_checkpoints(domain))


class _Backup:
    def __init__(
        self, around: Surroundings, spec: BackupJob, domain: "Domain", storage: Storage, lock: "DomainLock"
    ) -> None:
        from engine.hypervisor.checkpoints import checkpoint_name
        from engine.hypervisor.domains import domain_info

        self._around = around
        self._spec = spec
        self._work = around.work
        self._target = around.operation.storage
        self._domain = domain
        self._info: DomainInfo = domain_info(domain)
        self._storage = storage
        self._lock = lock
        self._keys = keys_of(spec.server_keys)
        self._key = self._sealing_key()
        only_copies = {spec.type, *spec.disk_types.values()} == {"copy"}
        self._checkpoint = "" if only_copies else checkpoint_name(self._target.repository_id, spec.backup_id)
        self._bitmaps: Mapping[str, frozenset[str]] = {}  # names by disk, as they were before this backup
        self._identity = AttemptIdentity(spec.server_id, spec.backup_id, around.job.job_id, around.operation.host)
        self._notes = NoteFile(around.lock_folder, domain.uuid)
        self._bytes: dict[str, int] = {}  # by disk, about how much is to be read of it
        self._found: dict[str, Changes] = {}  # by disk, what is to be stored of it
        self._data_ends: dict[str, int | None] = {}
        self._earlier: Resumption | None = None  # what an engine that died has left to go on with

    def run(self) -> BackupResult:
        images, skipped = select(self._domain, self._info, self._spec)
        history = self._history()
        with self._notes.removed_at_the_end():
            why_anew = ""
            try:
                self._earlier = self._find_earlier(images, history)
                if self._earlier is not None:
                    tasks = [Task(image, self._earlier.choices[image.target]) for image in images]
                    return self._make(tasks, skipped, history)
            except NotResumable as error:
                why_anew = str(error)
            self._clear(history, why_anew)
            return self._make(self._choose(images, history), skipped, history)

    def _make(self, tasks: list[Task], skipped: list[SkippedDisk], history: History) -> BackupResult:
        definition = read_definition(self._domain, tasks, self._work.report)
        reached("prepared")
        announced = self._earlier is not None
        with attempt(self._storage, self._reopen, self._identity, self._around.now(), self._work, announced=announced):
            reached("intent")
            self._tidy(history)
            with self._tentative_checkpoint():
                with self._instant(tasks) as instant, self._waking(instant):
                    self._check_sizes(tasks, instant)
                    self._take_notes(tasks, instant)
                    self._expect(tasks, instant)
                    self._tell_consistency(instant, history)
                    stored = {task.disk: self._store(task, instant) for task in tasks}
                    reached("stored")
                reached("job_ended")
                self._work.report.stage("commit")
                point = self._commit(tasks, stored, skipped, instant, definition)
        reached("committed")
        self._drop_checkpoints(history, point)
        reached("checkpoints_dropped")
        for one in skipped:
            self._work.report.warn(f"disk {one.disk} was left out: {one.detail}")
        return summarize(point, instant.quiesce_seconds)

    # ---- what an engine before us left -------------------------------------------------------------------------------

    def _find_earlier(self, images: list["DiskInfo"], history: History) -> "Resumption | None":
        """Return what can be gone on with, None if this job has no note. Raises NotResumable."""
        note = self._notes.read()
        if note is None or note.job_id != self._identity.job_id:
            return None
        from engine.resume import examine

        return examine(note, self._resume_job(), images, self._domain, self._storage, history)

    def _resume_job(self) -> "ResumeJob":
        from engine.resume import Job as ResumeJob

        return ResumeJob(self._identity, self._target.repository_id, self._key, self._around.scratch_folder)

    def _clear(self, history: History, why_anew: str) -> None:
        """Remove all that an engine before us left, so that the backup can begin; one that was committed is never touched."""
        from engine.hypervisor.checkpoints import delete_checkpoint
        from engine.hypervisor.domains import domain_info

        mine = self._around.job.restarts > 0 or why_anew
        self._earlier = None
        self._notes.remove()
        self._end_leftovers()
        if not mine:
            return
        self._info = domain_info(self._domain)
        self._work.report.warn(
            f"an engine died while it made this backup, and it was begun anew: {why_anew or 'nothing was noted yet'}"
        )
        spec = self._spec
        if spec.backup_id not in {point.server.backup_id for point in history.points} | set(history.unreadable):
            remove_attempt(self._storage, spec.server_id, spec.backup_id)
            if self._checkpoint:
                delete_checkpoint(self._domain, self._checkpoint, self._info)

    def _take_notes(self, tasks: list[Task], instant: "Instant") -> None:
        """Note what the next engine would have to know, or take up the note that we go on from."""
        from engine.resume import check_within, kept_names, note_of

        if self._earlier is not None:
            note = self._earlier.note
            for task in tasks:
                if (covered := self._earlier.covered.get(task.disk)) is not None:
                    check_within(self._changes(task, instant).everything(), covered)
            self._storage.sweep(self._identity.folder, kept_names(note))
            self._notes.write(note)
            self._work.report.warn(
                "an engine died while it made this backup; the next one went on from"
                f" {sum(len(one.segments) for one in note.disks)} finished segments, at the same instant"
            )
        elif instant.held is not None:
            choices = {task.disk: (task.image, task.choice) for task in tasks}
            try:
                self._notes.write(note_of(self._resume_job(), choices, self._domain, instant, self._checkpoint))
            except OSError as error:  # then a crash costs the whole backup, as it may
                log.warning("no note can be made for a resume: %s", error)
        reached("noted")

    # ---- before the instant ------------------------------------------------------------------------------------------

    def _end_leftovers(self) -> None:
        """End what a dead engine left open in QEMU; as long as its job runs, the bitmaps behind it cannot be seen."""
        from engine.hypervisor.backup_job import clean_stale

        if clean_stale(self._domain, self._around.scratch_folder):
            self._work.report.info("ended a backup job that was left behind")

    def _history(self) -> History:
        """Read what the storage has of the server, after deletions that were interrupted are finished."""
        history = read_history(self._storage, self._spec.server_id, self._keys)
        if not finish_deletions(self._around, self._storage, self._spec.server_id, history):
            return history
        return read_history(self._storage, self._spec.server_id, self._keys)

    def _tidy(self, history: History) -> None:
        """Remove what died under this domain's lock, which is ours now."""
        spec, host = self._spec, self._around.operation.host
        for backup_id in remove_orphans(
            self._storage, spec.server_id, history, host, self._around.now(), spec.backup_id
        ):
            self._work.report.info(f"removed what an unfinished backup left on the storage: {backup_id}")

    def _reopen(self) -> Storage:
        """Connect once more to clean up; for a person who waits for the end of a cancel, not for long."""
        return self._around.connect(brief=self._work.stop.event.is_set())

    def _sealing_key(self) -> ServerKey | None:
        if not self._target.key_id:
            return None
        if self._target.key_id not in self._keys:
            raise KeyMissing(key_id=self._target.key_id)
        return self._keys[self._target.key_id]

    def _choose(self, images: list["DiskInfo"], history: History) -> list[Task]:
        chosen = choose(self._domain, self._info, self._spec, self._target, images, history)
        self._bitmaps = chosen.bitmaps
        for one in chosen.tasks:
            why = f" ({one.choice.reason})" if one.choice.reason else ""
            self._work.report.info(f"disk {one.disk}: {one.choice.type}{why}")
        return chosen.tasks

    # ---- the instant and the data ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tentative_checkpoint(self) -> Iterator[None]:
        """Remove the new checkpoint if the block fails: it belongs to a backup that never was."""
        from engine.hypervisor.checkpoints import delete_checkpoint

        try:
            yield
        except BaseException:
            if self._checkpoint:
                try:
                    delete_checkpoint(self._domain, self._checkpoint)
                except (
                    BackupManagerError
                ) as error:  # the domain is gone, or libvirt: the next run or cleanup removes it
                    log.warning("A checkpoint stays behind name=%s: %s", self._checkpoint, error)
            raise

    def _instant(self, tasks: list[Task]) -> contextlib.AbstractContextManager["Instant"]:
        from engine.source.held import held_disks
        from engine.source.running import Instant, running_disks
        from engine.source.stopped import stopped_disks

        if self._earlier is not None:
            note = self._earlier.note
            if self._earlier.open:
                return held_disks(self._domain, note, self._around.scratch_folder, self._work)
            return contextlib.nullcontext(
                Instant({}, note.consistency, note.detail, note.quiesce_seconds, note.recorded, note.fault)
            )
        bases = {task.disk: task.choice.parent.checkpoint if task.choice.parent else None for task in tasks}
        copies = {task.disk for task in tasks if task.choice.type == "copy"}
        if not self._info.active:
            return stopped_disks(self._domain, self._info, bases, self._checkpoint, self._work.stop, copies)
        lock = (self._around.lock_folder, self._lock)
        return running_disks(
            self._domain, self._info, bases, self._checkpoint, self._spec.consistency, self._around.scratch_folder, lock,
            self._work, copies,
        )  # fmt: skip

    @contextlib.contextmanager
    def _waking(self, instant: "Instant") -> Iterator[None]:
        """Let a cancel end whatever waits for the disks."""
        with contextlib.ExitStack() as stack:
            for disk in instant.disks.values():
                stack.enter_context(self._work.stop.waking(disk.interrupt))
            yield

    def _check_sizes(self, tasks: list[Task], instant: "Instant") -> None:
        """Raise DiskMismatch if a disk was resized since it was looked at: an incremental was chosen for another size."""
        for task in tasks:
            size, parent = self._size_of(task, instant), task.choice.parent
            if parent is not None and parent.size_bytes != size:
                detail = f"it had {parent.size_bytes} bytes and has {size} now; run the backup again"
                raise DiskMismatch(disk=task.disk, detail=detail)

    def _size_of(self, task: Task, instant: "Instant") -> int:
        """Return a disk's size at the instant, in bytes."""
        if self._earlier is not None:
            return self._earlier.note.of(task.disk).size_bytes
        return instant.disks[task.disk].size_bytes

    def _done(self, task: Task) -> DiskNote | None:
        """Return what an engine before us has stored of a disk."""
        return self._earlier.note.of(task.disk) if self._earlier is not None else None

    def _expect(self, tasks: list[Task], instant: "Instant") -> None:
        """Tell how much there is to do: of each disk what it will hold, which for an incremental is what is dirty."""
        for task in tasks:
            done = self._done(task)
            if done is not None and done.complete:
                self._bytes[task.disk] = sum(one.plain_bytes for one in done.segments)
            elif task.choice.parent is None:
                self._bytes[task.disk] = task.image.size_bytes
            else:
                self._bytes[task.disk] = instant.disks[task.disk].recorded_bytes()
        self._work.report.stage("read", sum(self._bytes.values()))
        for one in self._earlier.note.disks if self._earlier is not None else ():
            for segment in one.segments:
                self._work.report.advance(segment.plain_bytes, segment.stored_bytes)

    def _tell_consistency(self, instant: "Instant", history: History) -> None:
        """Tell why the instant is worth less than was asked: a warning where something failed, or used to do better.

        A guest that never had an agent is paused, as the mode says, and that stands on the record.
        """
        if not instant.detail:
            return
        last = history.points[-1].server.consistency_reached if history.points else ""
        fell = last == "frozen" and instant.consistency == "paused" and self._info.state == "running"
        tell = self._work.report.warn if instant.fault or fell else self._work.report.info
        tell(f"the backup is of consistency {instant.consistency}: {instant.detail}")

    def _store(self, task: Task, instant: "Instant") -> tuple[SegmentRef, ...]:
        done = self._done(task)
        before = done.segments if done is not None else ()
        if done is not None and done.complete:
            return before
        disk: NbdDisk = instant.disks[task.disk]
        changes = self._changes(task, instant)
        extents = self._extents(task, changes)
        items = plan_full(extents) if task.choice.parent is None else plan_packed(extents)
        identity = DiskIdentity(self._spec.server_id, self._spec.backup_id, task.disk)
        stored = before + store(
            disk, items, self._storage, identity, self._key, self._work,
            first=len(before), finished=partial(self._notes.finish, task.disk), plain_bytes=max(1, self._bytes[task.disk] - sum(one.plain_bytes for one in before)),
        )  # fmt: skip
        if done is None:  # what an engine before us took did not go by here
            self._data_ends[task.disk] = changes.data_end()
        return stored

    def _extents(self, task: Task, changes: "Changes") -> Iterator[Extent]:
        """Yield what is still to be stored of a disk."""
        extents = changes.to_store()
        covered = self._earlier.covered.get(task.disk) if self._earlier is not None else None
        if covered is None:
            return extents
        from engine.resume import remaining

        return remaining(extents, covered)

    def _changes(self, task: Task, instant: "Instant") -> "Changes":
        from engine.changes import Changes

        if task.disk not in self._found:
            self._found[task.disk] = Changes(instant.disks[task.disk], task.choice, self._storage, self._key)
        return self._found[task.disk]

    # ---- the commit --------------------------------------------------------------------------------------------------

    def _commit(
        self,
        tasks: list[Task],
        stored: dict[str, tuple[SegmentRef, ...]],
        skipped: list[SkippedDisk],
        instant: "Instant",
        definition: Definition,
    ) -> Point:
        describe = Describer(self._around, self._spec, self._info, self._key, self._checkpoint)
        disks = {
            task.disk: describe.disk(
                task, stored[task.disk], self._size_of(task, instant), instant.recorded, self._data_ends.get(task.disk)
            )
            for task in tasks
        }
        for one in disks.values():
            check_sizes(self._storage, one)
        data = {name: manifests.dump(one, self._key) for name, one in disks.items()}
        server = describe.server(disks, data, skipped, instant.consistency, definition)
        server_data = manifests.dump(server, self._key)
        ask_lease(self._identity, self._work)
        check_ancestors(self._storage, disks.values())
        reached("lease_held")
        by_name = {disks[disk].name: data[disk] for disk in disks}
        digest = commit(self._storage, by_name, (server.name, server_data))
        return Point(server, digest, disks)

    def _drop_checkpoints(self, history: History, point: Point) -> None:
        """Remove this repository's checkpoints that no disk's newest point needs, and another's that is one too many."""
        from engine.hypervisor.domains import wait_settled
        from engine.hypervisor.notes import settle_restored

        if not self._checkpoint:
            return
        if self._earlier is not None:  # while its job ran the bitmaps were hidden
            from engine.hypervisor.bitmaps import bitmap_names

            with contextlib.suppress(HypervisorError):
                self._bitmaps = bitmap_names(self._domain, self._info)
        newest = {disk: one for disk, one in point.disks.items() if one.type != "copy"}
        for disk in {image.target for image in self._info.disks} - {*newest}:  # one that was removed needs nothing
            if (last := plan.head(history.of_disk(disk), self._bitmaps.get(disk, ()))) is not None:
                newest[disk] = last
        keep = {one.checkpoint for one in newest.values() if one.checkpoint}
        try:
            settle_restored(self._domain, point.disks, datetime.fromisoformat(point.server.create_time))
            self._keep_checkpoints(keep)
        except HypervisorError:  # a domain that is being started holds its images' locks and answers nothing yet
            wait_settled(self._domain, self._work.stop)
            try:
                self._keep_checkpoints(keep)
            except HypervisorError as error:  # the backup is whole; the next one, or cleanup, removes them
                self._work.report.warn(f"old checkpoints could not be removed: {error}")

    def _keep_checkpoints(self, keep: set[str]) -> None:
        from engine.hypervisor.checkpoints import remove_stale_bitmaps, remove_surplus

        remove_stale_bitmaps(self._domain, self._target.repository_id, keep)
        for name in remove_surplus(self._domain, self._target.repository_id):
            self._work.report.info(f"too many storages follow this server: checkpoint {name} gives way")
