"""What the guest changes on a disk whose image cannot keep a record (a raw file, a block device, an old qcow2): QEMU keeps it in memory.

    the disk's node     t1    a bitmap that has recorded since the last backup, under that backup's checkpoint name
                        t2    the same for this backup: begins to record just before the instant
    ── the instant ──   libvirt's job; the disk takes part as a full
    its scratch node    changes    t1 as it is just after the instant, frozen; exported beside the job's own exports

Each bitmap so knows more than its share and never less: what a guest writes around the instant stands in both. The data is
read from the job's export, so a block too many costs its bytes and nothing else. t1 is only ever looked at: whatever fails or
dies, it has missed nothing, and t2 can be removed. The frozen copy and its export belong to the job's scratch file and its
NBD server, and go when the job ends, whoever ends it. All of it is gone with QEMU: the next backup is then a full.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import DiskMismatch, HypervisorError
from engine.hypervisor import qmp
from engine.hypervisor.backup_job import BackupJob
from engine.hypervisor.bitmaps import device_nodes
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import DomainInfo
from engine.units import KIB

# QEMU's own choice would be 4 KiB for some raw files, 128 MiB of its memory for 4 TiB. This is 8 MiB, and what qcow2 has.
GRANULARITY_BYTES = 64 * KIB
_COPY = "changes"


@dataclass(frozen=True, slots=True)
class Export:
    """An export of the job's NBD server: the disk at the job's instant, with a bitmap of what changed."""

    name: str
    bitmap: str


def nodes_of(domain: Domain, info: DomainInfo, disks: Collection[str]) -> dict[str, str]:
    """Return QEMU's node for each of `disks` that is recorded in memory. Ask before the job begins, which hides them."""
    wanted = {disk.target for disk in info.eligible_disks if disk.target in disks and not disk.holds_bitmaps}
    if not wanted:
        return {}
    return {disk: node["node-name"] for disk, node in device_nodes(domain, info).items() if disk in wanted}


def record(domain: Domain, nodes: Mapping[str, str], name: str) -> None:
    """Begin to record what is written to the nodes, on all or none, in bitmaps called `name`. Raises QmpFailed."""
    if nodes:
        qmp.execute(domain, "transaction", actions=[_add(node, name, disabled=False) for node in nodes.values()])


def export_changes(job: BackupJob, nodes: Mapping[str, str], bases: Mapping[str, str]) -> dict[str, Export]:
    """Export each disk of `bases` with what has changed since its base, a bitmap of its node; call this after the job began.

    Raises QmpFailed, and DiskMismatch when the job reads another node: a snapshot came in between.
    """
    if not bases:
        return {}
    opened = {one["node-name"]: one for one in qmp.execute(job.domain, "query-named-block-nodes", flat=True)}
    exports = {}
    for disk, base in bases.items():
        scratch = _scratch_node(job, disk, opened.values())
        if scratch.get("backing_file") != opened.get(nodes[disk], {}).get("file"):
            raise DiskMismatch(disk=disk, detail="another image took its place just now; run the backup again")
        exports[disk] = _export(job.domain, disk, scratch["node-name"], {"node": nodes[disk], "name": base})
    return exports


def _scratch_node(job: BackupJob, disk: str, opened: Iterable[dict[str, Any]]) -> dict[str, Any]:
    path = str(job.scratch_path(disk))
    for node in opened:
        if node["file"] == path and node["drv"] == "qcow2":
            return node
    raise HypervisorError(operation="exporting changes", domain=job.domain.name, detail=f"{path} is not open", code=0)


def _export(domain: Domain, disk: str, node: str, base: Mapping[str, str]) -> Export:
    """Copy the bitmap `base` to `node`, and export both."""
    merge = {"node": node, "target": _COPY, "bitmaps": [base]}
    actions: list[object] = [_add(node, _COPY, disabled=True), {"type": "block-dirty-bitmap-merge", "data": merge}]
    qmp.execute(domain, "transaction", actions=actions)
    made = Export(f"{disk}-{_COPY}", _COPY)
    wanted: dict[str, object] = {
        "type": "nbd",
        "id": f"bm-{disk}",
        "node-name": node,
        "name": made.name,
        "bitmaps": [made.bitmap],
    }
    qmp.execute_raw(domain, "block-export-add", wanted)
    return made


def _add(node: str, name: str, *, disabled: bool) -> dict[str, object]:
    """Return the action that adds an empty bitmap; a disabled one does not record."""
    data = {"node": node, "name": name, "granularity": GRANULARITY_BYTES, "persistent": False, "disabled": disabled}
    return {"type": "block-dirty-bitmap-add", "data": data}
