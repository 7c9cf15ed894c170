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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from engine import plan
from engine.attempt import AttemptIdentity, ask_lease, attempt, check_ancestors, check_sizes, commit, remove_attempt
from engine.catalog import History, Point, read_history
from engine.delete import finish_deletions
from engine.errors import (
    BackupManagerError,
    DiskMismatch,
    DiskNotFound,
    DiskUnsupported,
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
from engine.format.manifest import Definition, DiskManifest, Layer, ServerManifest, SkippedDisk, layer_digest
from engine.jobs import Surroundings, keys_of
from engine.orphans import remove_orphans
from engine.pipeline import DiskIdentity, store
from engine.reindex import summarize
from engine.results import BackupResult
from engine.spec import BackupJob
from engine.storage.base import Storage
from engine.unfinished import DiskNote, NoteFile, NotResumable

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class _Task:
    """One disk and what is to be done with it."""

    image: "DiskInfo"
    choice: plan.Choice


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
        self._earlier: Resumption | None = None  # what an engine that died has left to go on with

    def run(self) -> BackupResult:
        images, skipped = self._select()
        history = self._history()
        with self._notes.removed_at_the_end():
            why_anew = ""
            try:
                self._earlier = self._find_earlier(images, history)
                if self._earlier is not None:
                    tasks = [_Task(image, self._earlier.choices[image.target]) for image in images]
                    return self._make(tasks, skipped, history)
            except NotResumable as error:
                why_anew = str(error)
            self._clear(history, why_anew)
            return self._make(self._choose(images, history), skipped, history)

    def _make(self, tasks: list[_Task], skipped: list[SkippedDisk], history: History) -> BackupResult:
        definition = self._read_definition(tasks)
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
                    stored = {task.image.target: self._store(task, instant) for task in tasks}
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

    def _take_notes(self, tasks: list[_Task], instant: "Instant") -> None:
        """Note what the next engine would have to know, or take up the note that we go on from."""
        from engine.resume import check_within, kept_names, note_of

        if self._earlier is not None:
            note = self._earlier.note
            for task in tasks:
                if (covered := self._earlier.covered.get(task.image.target)) is not None:
                    check_within(self._changes(task, instant), covered)
            self._storage.sweep(self._identity.folder, kept_names(note))
            self._notes.write(note)
            self._work.report.warn(
                "an engine died while it made this backup; the next one went on from"
                f" {sum(len(one.segments) for one in note.disks)} finished segments, at the same instant"
            )
        elif instant.held is not None:
            choices = {task.image.target: (task.image, task.choice) for task in tasks}
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

    def _select(self) -> tuple[list["DiskInfo"], list[SkippedDisk]]:
        """Return the disks to back up, and those left out with the reason; a disk asked for by name must be there."""
        from engine.hypervisor.io_threads import unreadable

        by_target = {disk.target: disk for disk in self._info.disks}
        for name in (*self._spec.disks, *self._spec.disk_types):
            if name not in by_target:
                raise DiskNotFound(domain=self._info.name, disk=name)
        wanted = [by_target[name] for name in self._spec.disks] or list(self._info.disks)
        why = unreadable(self._domain, self._info) | {
            disk.target: disk.unsupported for disk in wanted if disk.unsupported
        }
        skipped = [
            SkippedDisk(disk.target, DiskUnsupported.reason, why[disk.target]) for disk in wanted if disk.target in why
        ]
        images = [disk for disk in wanted if disk.target not in why]
        if not images:
            detail = skipped[0].detail if skipped else "the domain has no disks"
            raise DiskUnsupported(disk=skipped[0].disk if skipped else "", detail=detail)
        # A CD drive is no loss; of a disk that holds data and is left out the owner has to hear.
        return images, [one for one in skipped if by_target[one.disk].device == "disk"]

    def _choose(self, images: list["DiskInfo"], history: History) -> list[_Task]:
        from engine.hypervisor.bitmaps import bitmap_names
        from engine.hypervisor.checkpoints import REPOSITORIES_MAX, last_backups, list_checkpoints, repository_digits
        from engine.hypervisor.notes import restored_times

        spec, own = self._spec, repository_digits(self._target.repository_id)
        checkpoints = list_checkpoints(self._domain, self._info)
        restored = restored_times(self._domain)
        self._bitmaps = bitmap_names(self._domain, self._info)
        now = datetime.fromisoformat(spec.create_time)
        interval = timedelta(seconds=spec.interval_seconds)
        wish = plan.Wish(spec.type, spec.full_interval_days, self._target.key_id, now, interval)
        tasks = []
        for image in images:
            points = history.of_disk(image.target)
            wish = replace(wish, type=spec.disk_types.get(image.target, spec.type))
            names = self._bitmaps.get(image.target, frozenset())
            tracking = self._tracking(image, plan.base(wish, points, names))
            elsewhere = last_backups(checkpoints, image.target)
            elsewhere.pop(own, None)
            state = plan.DiskState(
                image.target, image.size_bytes, image.path, tracking, restored.get(image.target),
                tuple(elsewhere.values()), REPOSITORIES_MAX - 1, names,
            )  # fmt: skip
            unreadable = history.doubtful(image.target)
            choice = plan.choose(wish, state, points, unreadable=unreadable, whole=history.whole)
            self._work.report.info(
                f"disk {choice.disk}: {choice.type}" + (f" ({choice.reason})" if choice.reason else "")
            )
            tasks.append(_Task(image, choice))
        return tasks

    def _tracking(self, image: "DiskInfo", parent: DiskManifest | None) -> Mapping[str, str]:
        """Return what the hypervisor says of the checkpoint that the next incremental would count from."""
        from engine.hypervisor.checkpoints import checkpoint_usable

        if parent is None or not parent.checkpoint:
            return {}
        sizes, paths = {image.target: parent.size_bytes}, {image.target: (parent.sealed or {}).get("path", "")}
        fault = checkpoint_usable(self._domain, parent.checkpoint, sizes, self._info, paths)[image.target]
        return {} if fault == plan.BITMAP_LOST else {parent.checkpoint: fault}

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

    def _instant(self, tasks: list[_Task]) -> contextlib.AbstractContextManager["Instant"]:
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
        bases = {task.image.target: task.choice.parent.checkpoint if task.choice.parent else None for task in tasks}
        copies = {task.image.target for task in tasks if task.choice.type == "copy"}
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

    def _check_sizes(self, tasks: list[_Task], instant: "Instant") -> None:
        """Raise DiskMismatch if a disk was resized since it was looked at: an incremental was chosen for another size."""
        for task in tasks:
            size, parent = self._size_of(task, instant), task.choice.parent
            if parent is not None and parent.size_bytes != size:
                detail = f"it had {parent.size_bytes} bytes and has {size} now; run the backup again"
                raise DiskMismatch(disk=task.image.target, detail=detail)

    def _size_of(self, task: _Task, instant: "Instant") -> int:
        """Return a disk's size at the instant, in bytes."""
        if self._earlier is not None:
            return self._earlier.note.of(task.image.target).size_bytes
        return instant.disks[task.image.target].size_bytes

    def _done(self, task: _Task) -> DiskNote | None:
        """Return what an engine before us has stored of a disk."""
        return self._earlier.note.of(task.image.target) if self._earlier is not None else None

    def _expect(self, tasks: list[_Task], instant: "Instant") -> None:
        """Tell how much there is to do: of each disk what it will hold, which for an incremental is what is dirty."""
        total = 0
        for task in tasks:
            done = self._done(task)
            if done is not None and done.complete:
                total += sum(one.plain_bytes for one in done.segments)
            elif task.choice.parent is None:
                total += task.image.size_bytes
            else:
                total += instant.disks[task.image.target].recorded_bytes()
        self._work.report.stage("read", total)
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

    def _store(self, task: _Task, instant: "Instant") -> tuple[SegmentRef, ...]:
        done = self._done(task)
        before = done.segments if done is not None else ()
        if done is not None and done.complete:
            return before
        disk: NbdDisk = instant.disks[task.image.target]
        extents = self._extents(task, instant)
        items = plan_full(extents) if task.choice.parent is None else plan_packed(extents)
        identity = DiskIdentity(self._spec.server_id, self._spec.backup_id, task.image.target)
        return before + store(
            disk, items, self._storage, identity, self._key, self._work,
            first=len(before), finished=partial(self._notes.finish, task.image.target),
        )  # fmt: skip

    def _extents(self, task: _Task, instant: "Instant") -> Iterator[Extent]:
        """Yield what is still to be stored of a disk."""
        parent, disk = task.choice.parent, instant.disks[task.image.target]
        extents = disk.extents()
        if parent is not None and task.choice.type == "differential":
            from engine.differential import changed_since_full

            extents = changed_since_full(disk, self._storage, parent, self._key)
        covered = self._earlier.covered.get(task.image.target) if self._earlier is not None else None
        if covered is None:
            return extents
        from engine.resume import remaining

        return remaining(extents, covered)

    def _changes(self, task: _Task, instant: "Instant") -> Iterable[Extent]:
        """Return all that a backup of this disk has to hold, what is stored already included."""
        parent, disk = task.choice.parent, instant.disks[task.image.target]
        if parent is None:
            return (Extent(0, disk.size_bytes),)
        if task.choice.type == "differential":
            from engine.differential import changed_since_full

            return changed_since_full(disk, self._storage, parent, self._key)
        return disk.extents()

    # ---- the commit --------------------------------------------------------------------------------------------------

    def _commit(
        self,
        tasks: list[_Task],
        stored: dict[str, tuple[SegmentRef, ...]],
        skipped: list[SkippedDisk],
        instant: "Instant",
        definition: Definition,
    ) -> Point:
        disks = {task.image.target: self._manifest(task, stored[task.image.target], instant) for task in tasks}
        for one in disks.values():
            check_sizes(self._storage, one)
        data = {name: manifests.dump(one, self._key) for name, one in disks.items()}
        server = self._server_manifest(disks, data, skipped, instant.consistency, definition)
        server_data = manifests.dump(server, self._key)
        ask_lease(self._identity, self._work)
        check_ancestors(self._storage, disks.values())
        reached("lease_held")
        by_name = {disks[disk].name: data[disk] for disk in disks}
        digest = commit(self._storage, by_name, (server.name, server_data))
        return Point(server, digest, disks)

    def _manifest(self, task: _Task, segments: tuple[SegmentRef, ...], instant: "Instant") -> DiskManifest:
        spec, parent, image = self._spec, task.choice.parent, task.image
        return DiskManifest(
            repository_id=self._target.repository_id,
            installation_id=self._target.installation_id,
            server_id=spec.server_id,
            backup_id=spec.backup_id,
            disk=image.target,
            type=task.choice.type,
            chain_id=parent.chain_id if parent else spec.backup_id,
            parent_backup_id=parent.backup_id if parent else "",
            create_time=spec.create_time,
            size_bytes=self._size_of(task, instant),
            checkpoint=self._checkpoint_of(task, instant),
            reason=task.choice.reason,
            compression_level=self._work.settings.compression_level,
            key_id=self._key.key_id if self._key else "",
            key_check=self._key.check.hex() if self._key else "",
            plain_bytes=sum(segment.plain_bytes for segment in segments),
            stored_bytes=sum(segment.stored_bytes for segment in segments),
            sha256=layer_digest(segments),
            layers=(*_layers_below(task.choice), Layer(spec.backup_id, segments)),
            sealed=_about(image),
        )

    def _checkpoint_of(self, task: _Task, instant: "Instant") -> str:
        """Return the tracking point that the next incremental counts from, "" where there is none; a copy never has one."""
        image = task.image
        tracked = image.holds_bitmaps or image.target in instant.recorded
        return self._checkpoint if tracked and task.choice.type != "copy" else ""

    def _server_manifest(
        self,
        disks: dict[str, DiskManifest],
        data: dict[str, bytes],
        skipped: list[SkippedDisk],
        consistency: str,
        definition: Definition,
    ) -> ServerManifest:
        spec, target = self._spec, self._target
        return ServerManifest(
            repository_id=target.repository_id,
            installation_id=target.installation_id,
            server_id=spec.server_id,
            backup_id=spec.backup_id,
            job_id=self._around.job.job_id,
            host=self._around.operation.host,
            domain_uuid=self._info.uuid,
            domain_name=self._info.name,
            create_time=spec.create_time,
            consistency_asked=spec.consistency,
            consistency_reached=consistency,
            disks=tuple(manifests.summarize(disks[disk], data[disk]) for disk in disks),
            skipped=tuple(skipped),
            warnings=tuple(self._around.job_warnings()),
            key_id=self._key.key_id if self._key else "",
            key_check=self._key.check.hex() if self._key else "",
            wrapped_key=target.wrapped_keys.get(target.key_id, ""),
            sealed=definition,
        )

    def _read_definition(self, tasks: list[_Task]) -> Definition:
        """Read what defines the domain anew, before the instant: hours later it may be another's.

        It is the definition for the next start, unless a disk of the backup is not in it, having been plugged in for now only.
        """
        import base64

        from engine.hypervisor.domains import definition, disk_names, nvram

        xml = definition(self._domain)
        plugged = sorted({task.image.target for task in tasks} - disk_names(xml))
        if plugged:
            xml = definition(self._domain, live=True)
            self._work.report.warn(
                f"not part of the domain's definition for its next start: disk {', '.join(plugged)}; the live one is kept"
            )
        nvram_bytes = nvram(self._domain) or b""
        disk_map = {task.image.target: _about(task.image) for task in tasks}
        return Definition(xml, base64.b64encode(nvram_bytes).decode(), disk_map)

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


def _layers_below(choice: plan.Choice) -> tuple[Layer, ...]:
    """Return what the new layer builds upon: the whole chain so far, of a differential the full alone."""
    if choice.parent is None:
        return ()
    return choice.parent.layers[:1] if choice.type == "differential" else choice.parent.layers


def _about(image: "DiskInfo") -> dict[str, str]:
    return {"path": image.path, "format": image.format, "bus": image.bus, "serial": image.serial}
