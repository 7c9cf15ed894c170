"""Which disks of a domain a backup holds, and as what: the hypervisor's and the storage's facts, gathered for plan.py's choice.

domain's disks ──► left out, with the reason (read-only, unsupported, unreadable now)
└──► image ──► what the storage has of it, what is known of its changes ──► plan.choose ──► task
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from engine import plan
from engine.catalog import History
from engine.errors import DiskNotFound, DiskUnsupported
from engine.format.manifest import DiskManifest, SkippedDisk
from engine.spec import BackupJob, StorageSpec

if TYPE_CHECKING:
    from engine.hypervisor.connection import Domain
    from engine.hypervisor.domains import DiskInfo, DomainInfo


@dataclass(frozen=True, slots=True)
class Task:
    """One disk and what is to be done with it."""

    image: "DiskInfo"
    choice: plan.Choice

    @property
    def disk(self) -> str:
        """Return the disk's name, such as vda."""
        return self.image.target


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with each disk; `bitmaps` are the names of those that each disk had before, by disk."""

    tasks: list[Task]
    bitmaps: Mapping[str, frozenset[str]]


def select(domain: "Domain", info: "DomainInfo", spec: BackupJob) -> tuple[list["DiskInfo"], list[SkippedDisk]]:
    """Return the disks to back up, and those left out with the reason; a disk asked for by name must be there.

    Raises DiskNotFound, and DiskUnsupported if nothing is left.
    """
    from engine.hypervisor.io_threads import unreadable

    by_target = {disk.target: disk for disk in info.disks}
    for name in (*spec.disks, *spec.disk_types):
        if name not in by_target:
            raise DiskNotFound(domain=info.name, disk=name)
    wanted = [by_target[name] for name in spec.disks] or list(info.disks)
    why = unreadable(domain, info) | {disk.target: disk.unsupported for disk in wanted if disk.unsupported}
    skipped = [
        SkippedDisk(disk.target, DiskUnsupported.reason, why[disk.target]) for disk in wanted if disk.target in why
    ]
    images = [disk for disk in wanted if disk.target not in why]
    if not images:
        detail = skipped[0].detail if skipped else "the domain has no disks"
        raise DiskUnsupported(disk=skipped[0].disk if skipped else "", detail=detail)
    # A CD drive is no loss; of a disk that holds data and is left out the owner has to hear.
    return images, [one for one in skipped if by_target[one.disk].device == "disk"]


def choose(
    domain: "Domain",
    info: "DomainInfo",
    spec: BackupJob,
    target: StorageSpec,
    images: list["DiskInfo"],
    history: History,
) -> Plan:
    """Return what to do with each of `images`. Raises HypervisorError."""
    from engine.hypervisor.bitmaps import bitmap_names
    from engine.hypervisor.checkpoints import (
        REPOSITORIES_MAX,
        displaced,
        last_backups,
        list_checkpoints,
        repository_digits,
    )
    from engine.hypervisor.notes import restored_times

    own = repository_digits(target.repository_id)
    checkpoints = list_checkpoints(domain, info)
    restored = restored_times(domain)
    bitmaps = bitmap_names(domain, info)
    now = datetime.fromisoformat(spec.create_time)
    wish = plan.Wish(spec.type, spec.full_interval_days, target.key_id, now, timedelta(seconds=spec.interval_seconds))
    tasks = []
    for image in images:
        points = history.of_disk(image.target)
        wish = replace(wish, type=spec.disk_types.get(image.target, spec.type))
        names = bitmaps.get(image.target, frozenset())
        parent = plan.base(wish, points, names)
        tracking = _tracking(domain, info, image, parent)
        lost = parent is not None and parent.checkpoint and not tracking and image.holds_bitmaps
        elsewhere = last_backups(checkpoints, image.target)
        elsewhere.pop(own, None)
        state = plan.DiskState(
            image.target, image.size_bytes, image.path, tracking, restored.get(image.target),
            tuple(elsewhere.values()), REPOSITORIES_MAX - 1, names,
            displaced=bool(parent and lost and displaced(domain, parent.checkpoint, image.target)),
        )  # fmt: skip
        unreadable = history.doubtful(image.target)
        tasks.append(Task(image, plan.choose(wish, state, points, unreadable=unreadable, whole=history.extendable)))
    return Plan(tasks, bitmaps)


def _tracking(
    domain: "Domain", info: "DomainInfo", image: "DiskInfo", parent: DiskManifest | None
) -> Mapping[str, str]:
    """Return what the hypervisor says of the checkpoint that the next incremental would count from."""
    from engine.hypervisor.checkpoints import checkpoint_usable

    if parent is None or not parent.checkpoint:
        return {}
    sizes, paths = {image.target: parent.size_bytes}, {image.target: (parent.sealed or {}).get("path", "")}
    fault = checkpoint_usable(domain, parent.checkpoint, sizes, info, paths)[image.target]
    return {} if fault == plan.BITMAP_LOST else {parent.checkpoint: fault}
