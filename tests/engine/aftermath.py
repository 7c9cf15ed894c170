"""What every stress test ends with: nothing is left over, and the next backup is whole and of the right type.

report = At("read", lambda: sshd.stop())          the fault happens inside the job, at a step, never at a guessed time
outcome = rig.run(report=report, backup=job)
assert reason(outcome) == "STORAGE_UNREACHABLE"
assert_host_is_clean(rig, domain)
assert_next_is_good(rig, domain, {"vda": ("incremental", "")})
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.heal import HealSpec, heal
from engine.hypervisor.lock import DomainLock
from engine.results import BackupRecord
from tests.engine.rig import RecordingReport, Rig, digest, reason
from tests.servers.guest import BlankDomain, RealGuest

RUNNING, PAUSED, SHUTOFF = 1, 3, 5
INCREMENTAL = {"vda": ("incremental", "")}


def full(why: str) -> dict[str, tuple[str, str]]:
    """Return what `assert_next_is_good` expects of a full of vda."""
    return {"vda": ("full", why)}


class At(RecordingReport):
    """Does something once: when a stage begins or, with `after_bytes`, when so much of the stage is done."""

    def __init__(self, stage: str, act: Callable[[], object], after_bytes: int = 0) -> None:
        super().__init__()
        self.fired = threading.Event()
        self._stage, self._act, self._after_bytes = stage, act, after_bytes
        self._done_before = 0

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        super().stage(stage, bytes_total)
        self._done_before = self.done
        if not self._after_bytes:
            self._fire()

    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None:
        super().advance(bytes_done, bytes_stored)
        if self._after_bytes and self.done - self._done_before >= self._after_bytes:
            self._fire()

    def _fire(self) -> None:
        if self.stages[-1] == self._stage and not self.fired.is_set():
            self.fired.set()
            self._act()


def assert_host_is_clean(rig: Rig, domain: BlankDomain | RealGuest, state: int = RUNNING) -> None:
    """No block job, no scratch file, no mark of a freeze, no lock; a domain in the state that its owner wants."""
    assert domain.state()[0] == state
    if state != SHUTOFF:
        assert domain.handle.jobStats()["type"] == 0
        nodes = domain.qmp("query-named-block-nodes")
        assert not [node for node in nodes if ".scratch" in node.get("file", "")]
    scratch = rig.folder / "scratch"
    assert not scratch.exists() or not [one for one in scratch.iterdir() if one.name != "lost+found"]
    assert not list((rig.folder / "locks").glob("*.quiesced"))
    with DomainLock(rig.folder / "locks", domain.uuid, "a test"):
        pass


def folders(storage: Path, server_id: str) -> list[str]:
    """Return what lies in a server's folder on a storage, whole backups or not."""
    folder = storage / "servers" / server_id
    return sorted(one.name for one in folder.iterdir()) if folder.exists() else []


def assert_only(storage: Path, server_id: str, *made: dict[str, Any]) -> None:
    """These backups lie on the storage and nothing else of this server, not even an unfinished object."""
    assert folders(storage, server_id) == sorted(one["backup_id"] for one in made)
    assert not list(storage.rglob("*.part"))


def assert_next_is_good(
    rig: Rig, domain: BlankDomain | RealGuest, expected: dict[str, tuple[str, str]], **options: Any
) -> dict[str, Any]:
    """The next backup has these types and fallback reasons by disk, and restores byte by byte. The guest must not write."""
    made = rig.back_up(domain.uuid, **options)
    assert {one["disk"]: (one["type"], one["fallback_reason"]) for one in made["disks"]} == expected
    assert_restores(rig, domain, made["backup_id"])
    return made


def assert_restores(rig: Rig, domain: BlankDomain | RealGuest, backup_id: str) -> None:
    """The backup's disks are what the domain's disks are now."""
    restored = rig.restore_to(rig.folder / f"out-{backup_id}", domain.uuid, backup_id)
    for disk in domain.disks:
        if disk.target in restored:
            assert digest(restored[disk.target]) == digest(disk.path, disk.format), disk.target


def assert_verifies(rig: Rig, domain: BlankDomain | RealGuest) -> None:
    assert reason(rig.verify(domain.uuid)) == ""


def heal_after(rig: Rig, uuid: str, backup_id: str) -> BackupRecord | None:
    """Tidy up as an agent does after an engine died; return the record of its backup if it is whole."""
    folders = str(rig.folder / "scratch"), str(rig.folder / "locks")
    healed = heal(HealSpec(rig.uri, uuid, *folders, rig.target, uuid, backup_id))
    assert not healed.failed, healed
    return healed.record
