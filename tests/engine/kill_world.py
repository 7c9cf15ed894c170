"""Hosts on which engines are killed: a domain and a storage that many kill points share, and what must hold after each.

    worlds.get("mixed", running=True) ─► World: domain, storage, zygote
    world.points(world.run(job).steps)  ─► one job to its end, and the steps that it reached on the way
    world.kill(job, point)              ─► a job that dies there
    world.assert_no_trace()             ─► the host is as if it had never been; the storage: assert_only_whole_backups()

A world whose test failed is not used again.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import libvirt

from engine.errors import DomainBusy
from engine.heal import Healed, HealSpec, heal
from engine.hypervisor.checkpoints import parse_name
from engine.hypervisor.lock import DomainLock
from engine.ids import new_id
from engine.results import VerifyResult
from engine.spec import BackupJob, Job, RestoreJob
from engine.units import MIB
from tests.engine.rig import Rig, digest, new_storage, reason, result
from tests.engine.zygote import KILLED, Ended, Zygote
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.loop import loop_device
from tests.shares import share
from tests.waiting import wait_until

KINDS = {
    "qcow2": ("qcow2",),
    "raw": ("raw",),
    "block": ("block",),
    "mixed": ("qcow2", "raw", "block"),
}
DISK_BYTES = 8 * MIB
GONE_SECONDS = 20.0
SHARE = 6  # so that all of it takes minutes, where `make kill` takes a quarter of an hour


@dataclass(frozen=True, slots=True)
class Point:
    """A step, and at which time that it is reached the process dies."""

    step: str
    count: int

    def __str__(self) -> str:
        return f"{self.step}:{self.count}"


class Worlds:
    """The worlds of one process, made when asked for, as a `with` block."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._stack = contextlib.ExitStack()
        self._made: dict[str, tuple[World, contextlib.ExitStack]] = {}
        self._count = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._engines = self._stack.enter_context(Zygote(self._folder / "engines.log"))
        return self

    def __exit__(self, *error: object) -> None:
        for kind in list(self._made):
            self._drop(kind)
        self._stack.close()

    @contextlib.contextmanager
    def get(self, kind: str, *, running: bool) -> Iterator["World"]:
        """Give the world with such disks, its domain running or stopped, for the block."""
        if kind not in self._made:
            self._make(kind)
        world, _ = self._made[kind]
        try:
            world.set_state(running=running)
            yield world
        except BaseException:
            self._drop(kind)
            raise

    def _make(self, kind: str) -> None:
        self._count += 1
        folder = self._folder / f"{kind}{self._count}"
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            disks = [stack.enter_context(_disk(folder, f"vd{'abc'[n]}", one)) for n, one in enumerate(KINDS[kind])]
            domain = stack.enter_context(BlankDomain(self._uri, disks))
            rig = Rig.make(folder, self._uri)
            rig.host = os.uname().nodename  # as `bm-engine` calls it
            world = World(folder, domain, rig, self._engines)
            self._made[kind] = (world, stack.pop_all())

    def _drop(self, kind: str) -> None:
        _, stack = self._made.pop(kind)
        stack.close()


@contextlib.contextmanager
def _disk(folder: Path, target: str, kind: str) -> Iterator[DiskFile]:
    if kind == "block":
        with loop_device(folder / f"{target}.device", DISK_BYTES) as device:
            yield DiskFile(target, device, "raw", kind="block")
    else:
        yield DiskFile(target, folder / f"{target}.{kind}", kind).create(DISK_BYTES)


class World:
    """One domain and its storage."""

    def __init__(self, folder: Path, domain: BlankDomain, rig: Rig, engines: Zygote) -> None:
        self.folder, self.domain, self.rig = folder, domain, rig
        self._engines = engines
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._writes = 0
        self._nodes: Counter[str] = Counter()
        self._running = True

    @property
    def uuid(self) -> str:
        return self.domain.uuid

    @property
    def storage(self) -> Path:
        return self.rig.folder / "storage"

    def points(self, steps: tuple[str, ...]) -> list[Point]:
        """Return where to kill a job that reaches `steps`: all of `every_point`, or a share of it that the test's name decides.

        The shares of the many tests and disks cover every step several times over; `make kill` has them all die everywhere.
        """
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
        return list(share(self.every_point(steps), test, SHARE))

    def every_point(self, steps: tuple[str, ...]) -> list[Point]:
        """Return each step's first time, and with several disks the last time too."""
        found = []
        for step, count in Counter(steps).items():
            found.append(Point(step, 1))
            if count > 1 and len(self.domain.disks) > 1:
                found.append(Point(step, count))
        return found

    # ---- what happens in it --------------------------------------------------------------------------------------------

    def set_state(self, *, running: bool) -> None:
        """Start or stop the domain; a stop is one that its owner asked for, and bitmaps are stored."""
        active = bool(self.domain.handle.isActive())
        if running and not active:
            self.domain.handle.create()
        if active and not running:
            self.domain.handle.destroy()
        self._running = running
        self._nodes = self._open_nodes()

    def begin_anew(self) -> None:
        """Take another storage, empty; the old one and what it left on the domain are gone."""
        shutil.rmtree(self.storage, ignore_errors=True)
        self.rig.target, self.rig.key = new_storage(self.storage)
        for checkpoint in self.domain.handle.listAllCheckpoints():
            checkpoint.delete(0 if self._running else libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        for node in self.domain.qmp("query-named-block-nodes") if self._running else ():
            for bitmap in node.get("dirty-bitmaps", ()):
                if parse_name(bitmap.get("name", "")):  # of a raw disk, or without libvirt's note
                    self.domain.qmp("block-dirty-bitmap-remove", node=node["node-name"], name=bitmap["name"])
        for disk in () if self._running else self.domain.disks:
            for name in bitmaps_in(disk):
                subprocess.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", disk.path, name], check=True)

    def scribble(self) -> None:
        """Write a little to every disk, another place and value each time."""
        self._writes += 1
        for number, disk in enumerate(self.domain.disks):
            start = ((self._writes * 5 + number * 3) % 120) * 64 * 1024
            if self._running:
                self.domain.write(disk.target, start, 128 * 1024, self._writes % 255 + 1)
            else:
                write = f"write -P {self._writes % 255 + 1} {start} {128 * 1024}"
                subprocess.run(
                    ["qemu-io", "-f", disk.format, "-c", write, str(disk.path)], check=True, capture_output=True
                )

    def digests(self) -> dict[str, str]:
        return {disk.target: digest(disk.path, disk.format) for disk in self.domain.disks}

    def backup_job(self, **options: Any) -> Job:
        return Job(new_id(datetime.now(UTC)), backup=self.rig.backup_job(self.uuid, **options))

    def restore_job(self, backup_id: str, domain_uuid: str, folder: str = "") -> Job:
        job = RestoreJob(self.uuid, domain_uuid, backup_id, target_folder=folder, server_keys=self.rig.keys(self.uuid))
        return Job(new_id(datetime.now(UTC)), restore=job)

    def run(self, job: Job, *, refuse: bool = False) -> Ended:
        """Run a job in a process of its own, to its end."""
        ended = self._engines.run(self.rig.operation(job), self._temporary, refuse=refuse)
        assert (ended.status, ended.reason) == (0, "LEASE_LOST" if refuse else ""), ended
        return ended

    def kill(self, job: Job, point: Point, *, refuse: bool = False) -> None:
        """Run a job in a process that is killed at `point`."""
        ended = self._engines.run(self.rig.operation(job), self._temporary, str(point), refuse=refuse)
        assert ended.status == KILLED, f"{point} is not reached: {ended}"

    def heal(self, job: BackupJob | None = None) -> Healed:
        """Do what an agent does after an engine died."""
        storage = self.rig.target if job else None
        backup_id = job.backup_id if job else ""
        healed = heal(HealSpec(self.rig.uri, self.uuid, *self._folders(), storage, self.uuid, backup_id))
        assert not healed.failed, healed
        return healed

    def settle(self) -> None:
        """Wait until a dead engine's thaw guard has let go of the lock: it has a moment, and whoever comes then is refused."""
        lock = DomainLock(self.folder / "locks", self.uuid, "a test")

        def free() -> bool:
            try:
                lock.acquire()
            except DomainBusy:
                return False
            lock.release()
            return True

        wait_until(free, GONE_SECONDS, "the lock")

    def clean_up(self) -> None:
        """Do what a person does after an engine died: `bm-engine cleanup`."""
        target = self.rig.target
        assert target.local is not None
        storage = self.folder / "storage.json"
        storage.write_text(json.dumps({"type": "local", "path": target.local.path}))
        storage.chmod(0o600)
        scratch, locks = self._folders()
        command = [
            sys.executable,
            "-m",
            "engine.cli",
            "cleanup",
            "--libvirt",
            self.rig.uri,
            "--domain",
            self.domain.name,
        ]
        command += ["--scratch", scratch, "--locks", locks, "--storage", str(storage)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def lose_domain(self) -> None:
        """Undefine the stopped domain and remove its images; volumes stay, as their host's, with nothing in them."""
        self.domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        for disk in self.domain.disks:
            if disk.kind == "block":
                disk.path.write_bytes(bytes(DISK_BYTES))
            else:
                disk.path.unlink()

    def strangers(self) -> list[str]:
        """Return what lies beside the images and is none of the world's."""
        known = {"tmp", "storage", "scratch", "locks", "storage.json", *(disk.path.name for disk in self.domain.disks)}
        return [one.name for one in self.folder.iterdir() if one.name not in known and one.suffix != ".device"]

    def steps_to_files(self, backup_id: str) -> tuple[str, ...]:
        """Return the steps of a restore to files."""
        folder = self.folder / "files"
        folder.mkdir()
        steps = self.run(self.restore_job(backup_id, "", str(folder))).steps
        shutil.rmtree(folder)
        return steps

    def left_of(self, job: Job) -> list[str]:
        """Return which of the backups that a deletion is about have anything on the storage."""
        assert job.delete is not None
        return [one for one in job.delete.backup_ids if (self.storage / "servers" / self.uuid / one).exists()]

    def _folders(self) -> tuple[str, str]:
        return str(self.folder / "scratch"), str(self.folder / "locks")

    # ---- what must hold ------------------------------------------------------------------------------------------------

    def assert_no_trace(self, running: bool | None = None) -> None:
        """Nothing of an engine is left on the host: no process, file, job, node, or lock; the guest is as its owner wants it."""
        wait_until(lambda: not self._processes(), GONE_SECONDS, f"the end of {self._processes()}")
        wait_until(lambda: not list(self._temporary.iterdir()), GONE_SECONDS, "the end of temporary files")
        with DomainLock(self.folder / "locks", self.uuid, "a test"):
            pass
        assert not [one for one in (self.folder / "locks").iterdir() if one.suffix != ".lock"]
        scratch = self.folder / "scratch"
        assert not scratch.exists() or not list(scratch.iterdir())
        running = self._running if running is None else running
        assert self.domain.state()[0] == (libvirt.VIR_DOMAIN_RUNNING if running else libvirt.VIR_DOMAIN_SHUTOFF)
        if running:
            assert self.domain.handle.jobStats()["type"] == libvirt.VIR_DOMAIN_JOB_NONE
            assert self.domain.qmp("query-jobs") == []
            assert self.domain.qmp("query-block-exports") == []
        if running and self._running:
            assert self._open_nodes() == self._nodes
        listed = {record["backup"]["backup_id"] for record in self.rig.reindex()}
        tracked = self.tracked()
        assert tracked <= listed, (tracked - listed, listed)

    def assert_only_whole_backups(self) -> list[str]:
        """Every backup that is listed is verified, and nothing else lies on the storage; return their ids."""
        listed = self.assert_whole()
        folder = self.storage / "servers" / self.uuid
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        assert found == sorted(listed)
        assert not list(self.storage.rglob("*.part"))
        return listed

    def assert_whole(self) -> list[str]:
        """Every backup that is listed is verified; return their ids."""
        if not (self.storage / "repository.json").exists():
            return []
        listed = [record["backup"]["backup_id"] for record in self.rig.reindex()]
        verified = self.rig.verify(self.uuid)
        assert reason(verified) == "", verified.result
        assert isinstance(VerifyResult(**result(verified)), VerifyResult)
        return listed

    def assert_next_is_good(self, wanted: str = "incremental") -> dict[str, Any]:
        """The next backup restores byte by byte, and is as `wanted` where changes can be known; one checkpoint is left."""
        made = self.rig.back_up(self.uuid, consistency="none")
        for one, disk in zip(made["disks"], self.domain.disks, strict=True):
            untracked = disk.format == "raw" and not self._running
            assert one["type"] == ("full" if untracked else wanted), one
        self.assert_restores(made["backup_id"], self.digests())
        if any(disk.format == "qcow2" for disk in self.domain.disks):
            assert self.tracked() == {made["backup_id"]}
        return made

    def assert_restores(self, backup_id: str, expected: dict[str, str]) -> None:
        out = self.folder / "out"
        restored = self.rig.restore_to(out, self.uuid, backup_id)
        assert {disk: digest(path) for disk, path in restored.items()} == expected
        shutil.rmtree(out)

    def tracked(self) -> set[str]:
        """Return the backups that have a checkpoint or a bitmap of ours on the domain."""
        names = {one.getName() for one in self.domain.handle.listAllCheckpoints()}
        if self.domain.handle.isActive():
            for node in self.domain.qmp("query-named-block-nodes"):
                names |= {bitmap.get("name", "") for bitmap in node.get("dirty-bitmaps", ())}
        else:
            for disk in self.domain.disks:
                names |= bitmaps_in(disk)
        return {parsed[1] for name in names if (parsed := parse_name(name))}

    def _open_nodes(self) -> Counter[str]:
        if not self.domain.handle.isActive():
            return Counter()
        return Counter(node.get("file", "") for node in self.domain.qmp("query-named-block-nodes"))

    def _processes(self) -> list[str]:
        """Return the processes that have to do with this world, but for the domain's own."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
                if str(self.folder) in command and "guest=" not in command:
                    found.append(command.replace("\0", " "))
        return found


def bitmaps_in(disk: DiskFile) -> set[str]:
    """Return the names of the bitmaps that an image holds."""
    if disk.format != "qcow2":
        return set()
    shown = subprocess.run(["qemu-img", "info", "--output=json", disk.path], check=True, capture_output=True).stdout
    return {one["name"] for one in json.loads(shown)["format-specific"]["data"].get("bitmaps", [])}
