"""What is written of a backup, for whoever restores it: a manifest for each disk, one for the server, and its definition.

task, segments, instant ──► DiskManifest ─┐
domain ──► Definition (sealed) ───────────┴──► ServerManifest: with it, and only with it, the backup is there
"""

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import plan
from engine.format import manifest as manifests
from engine.format.crypto import ServerKey
from engine.format.layout import SegmentRef
from engine.format.manifest import Definition, DiskManifest, Layer, ServerManifest, SkippedDisk, layer_digest
from engine.selection import Task
from engine.spec import BackupJob
from engine.surroundings import Surroundings
from engine.work import Report

if TYPE_CHECKING:
    from engine.hypervisor.connection import Domain
    from engine.hypervisor.domains import DiskInfo, DomainInfo


@dataclass(frozen=True, slots=True)
class Describer:
    """Knows what all manifests of one backup have in common. `checkpoint` is the backup's tracking point, "" for none."""

    around: Surroundings
    spec: BackupJob
    info: "DomainInfo"
    key: ServerKey | None
    checkpoint: str

    def disk(
        self,
        task: Task,
        segments: tuple[SegmentRef, ...],
        size_bytes: int,
        recorded: Collection[str],
        data_end: int | None,
    ) -> DiskManifest:
        """Return a disk's manifest. `recorded` are the disks whose changes QEMU keeps in memory from the instant on.

        The disk's data ends at the byte `data_end`, as far as that is known.
        """
        target, parent = self.around.operation.storage, task.choice.parent
        return DiskManifest(
            repository_id=target.repository_id,
            installation_id=target.installation_id,
            server_id=self.spec.server_id,
            backup_id=self.spec.backup_id,
            disk=task.disk,
            type=task.choice.type,
            chain_id=parent.chain_id if parent else self.spec.backup_id,
            parent_backup_id=parent.backup_id if parent else "",
            create_time=self.spec.create_time,
            size_bytes=size_bytes,
            checkpoint=self._checkpoint_of(task, recorded),
            reason=task.choice.reason,
            compression_level=self.around.work.settings.compression_level,
            key_id=self.key.key_id if self.key else "",
            key_check=self.key.check.hex() if self.key else "",
            plain_bytes=sum(segment.plain_bytes for segment in segments),
            stored_bytes=sum(segment.stored_bytes for segment in segments),
            sha256=layer_digest(segments),
            layers=(*_layers_below(task.choice), Layer(self.spec.backup_id, segments)),
            sealed=_about(task.image) | ({} if data_end is None else {"data_end": str(data_end)}),
        )

    def server(
        self,
        disks: Mapping[str, DiskManifest],
        data: Mapping[str, bytes],
        skipped: Collection[SkippedDisk],
        consistency: str,
        definition: Definition,
    ) -> ServerManifest:
        """Return the server's manifest; `data` has the disks' manifests as they are written, whose digests it holds."""
        target = self.around.operation.storage
        return ServerManifest(
            repository_id=target.repository_id,
            installation_id=target.installation_id,
            server_id=self.spec.server_id,
            backup_id=self.spec.backup_id,
            job_id=self.around.job.job_id,
            host=self.around.operation.host,
            domain_uuid=self.info.uuid,
            domain_name=self.info.name,
            create_time=self.spec.create_time,
            consistency_asked=self.spec.consistency,
            consistency_reached=consistency,
            disks=tuple(manifests.summarize(disks[disk], data[disk]) for disk in disks),
            skipped=tuple(skipped),
            warnings=tuple(self.around.job_warnings()),
            key_id=self.key.key_id if self.key else "",
            key_check=self.key.check.hex() if self.key else "",
            wrapped_key=target.wrapped_keys.get(target.key_id, ""),
            sealed=definition,
        )

    def _checkpoint_of(self, task: Task, recorded: Collection[str]) -> str:
        """Return the tracking point that the next incremental counts from, "" where there is none; a copy never has one."""
        tracked = task.image.holds_bitmaps or task.disk in recorded
        return self.checkpoint if tracked and task.choice.type != "copy" else ""


def read_definition(domain: "Domain", tasks: Collection[Task], report: Report) -> Definition:
    """Read what defines the domain anew, before the instant: hours later it may be another's. Raises HypervisorError.

    It is the definition for the next start, unless a disk of the backup is not in it, having been plugged in for now only.
    """
    from engine.hypervisor.domains import definition, disk_names, nvram

    xml = definition(domain)
    plugged = sorted({task.disk for task in tasks} - disk_names(xml))
    if plugged:
        xml = definition(domain, live=True)
        report.warn(
            f"not part of the domain's definition for its next start: disk {', '.join(plugged)}; the live one is kept"
        )
    nvram_bytes = nvram(domain) or b""
    disk_map = {task.disk: _about(task.image) for task in tasks}
    return Definition(xml, base64.b64encode(nvram_bytes).decode(), disk_map)


def _layers_below(choice: plan.Choice) -> tuple[Layer, ...]:
    """Return what the new layer builds upon: the whole chain so far, of a differential the full alone."""
    if choice.parent is None:
        return ()
    return choice.parent.layers[:1] if choice.type == "differential" else choice.parent.layers


def _about(image: "DiskInfo") -> dict[str, str]:
    return {"path": image.path, "format": image.format, "bus": image.bus, "serial": image.serial}
