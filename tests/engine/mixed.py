"""A domain whose disks are of every kind, and what each of them was at a backup's instant.

    vda  qcow2        vdb  raw file        vdc  raw block device (a loop device)

`at_each_instant` makes every backup keep a copy of the job's own exports before it reads them, so that a test can let the guest
write all the time and still knows byte by byte what has to come back.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.hypervisor import transient
from engine.hypervisor.backup_job import BackupJob
from engine.source.nbd_disk import NbdDisk
from engine.units import MIB
from tests.engine.rig import Rig, digest
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.loop import loop_device

ALL = ("vda", "vdb", "vdc")
RAW = ("vdb", "vdc")
Instants = list[dict[str, str]]


@contextlib.contextmanager
def mixed_domain(
    folder: Path, make: Callable[..., BlankDomain], size_bytes: int = 16 * MIB, **options: Any
) -> Iterator[BlankDomain]:
    """Make the domain with `make` (the blank_domain fixture); its block device goes with the block, it itself with the test."""
    with loop_device(folder / "vdc.volume", size_bytes) as device:
        disks = [
            DiskFile("vda", folder / "vda.qcow2").create(size_bytes),
            DiskFile("vdb", folder / "vdb.raw", "raw").create(size_bytes),
            DiskFile("vdc", device, "raw", kind="block"),
        ]
        domain = make(disks, **options)
        try:
            yield domain
        finally:
            domain.close()  # it has the device open


def write_all(domain: BlankDomain, start: int, length: int, pattern: int) -> None:
    for disk in domain.disks:
        domain.write(disk.target, start, length, pattern)


def digests(domain: BlankDomain) -> dict[str, str]:
    """Return what each disk is now; the guest must not write."""
    return {disk.target: digest(disk.path, disk.format) for disk in domain.disks}


def at_each_instant(monkeypatch: pytest.MonkeyPatch) -> Instants:
    """Return a list that grows with each backup of this process: the SHA-256 of each disk at its instant."""
    instants: Instants = []
    export_changes = transient.export_changes

    def watched(job: BackupJob, nodes: Mapping[str, str], bases: Mapping[str, str]) -> dict[str, transient.Export]:
        exports = export_changes(job, nodes, bases)
        instants.append({disk: _content(job, disk) for disk in job.disks})
        return exports

    monkeypatch.setattr(transient, "export_changes", watched)
    return instants


def _content(job: BackupJob, disk: str) -> str:
    """Return the SHA-256 of all of an export, read without asking what is allocated or dirty."""
    with NbdDisk(str(job.socket_path), disk).connect() as client:
        sums = hashlib.sha256()
        for start in range(0, client.size_bytes, MIB):
            sums.update(client.read(start, min(MIB, client.size_bytes - start)))
        return sums.hexdigest()


def assert_is(rig: Rig, domain: BlankDomain, backup_id: str, expected: Mapping[str, str]) -> None:
    """The backup restores to these contents."""
    restored = rig.restore_to(rig.folder / f"out-{backup_id}", domain.uuid, backup_id)
    assert {disk: digest(path) for disk, path in restored.items()} == expected


def types(made: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return each disk's type and reason of a backup."""
    return {one["disk"]: (one["type"], one["fallback_reason"]) for one in made["disks"]}


def transient_bitmaps(domain: BlankDomain) -> dict[str, list[str]]:
    """Return the names of all transient bitmaps in a domain's QEMU, by node."""
    nodes = domain.qmp("query-named-block-nodes", flat=True)
    found = {
        node["node-name"]: [one.get("name", "") for one in node.get("dirty-bitmaps", ()) if not one["persistent"]]
        for node in nodes
    }
    return {node: names for node, names in found.items() if names}


@contextlib.contextmanager
def writing(write: Callable[[], None]) -> Iterator[None]:
    """Call `write` on and on, in a thread, for the block. Its exception leaves the block."""
    ended = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.is_set():
                write()
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=run, name="a guest that writes", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
    if failed:
        raise failed[0]
