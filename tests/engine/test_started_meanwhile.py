"""A stopped domain's images change hands while they are read: the domain is started, or somebody else writes to them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine import spec
from engine.ids import new_id
from engine.spec import Job
from engine.units import MIB
from engine.work import Stop
from tests.engine.aftermath import (
    RUNNING,
    SHUTOFF,
    At,
    assert_host_is_clean,
    assert_next_is_good,
    assert_only,
    assert_restores,
    heal_after,
)
from tests.engine.rig import Rig, digest, reason, result
from tests.engine.zygote import KILLED
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.servers.nbd import MiniVm

pytestmark = pytest.mark.feature("T24")

DISK_BYTES = 24 * MIB


def disks_of(folder: Path, *formats: str) -> list[DiskFile]:
    names = ("vda", "vdb")
    return [
        DiskFile(name, folder / f"{name}.{kind}", kind).create(DISK_BYTES)
        for name, kind in zip(names, formats, strict=False)
    ]


class Meanwhile(At):
    """Acts in the middle of the first reading; when the guest is held still later, takes the disks' content of that moment."""

    def __init__(self, domain: BlankDomain, act: Callable[[], object]) -> None:
        super().__init__("read", act, MIB)
        self.instants: list[dict[str, str]] = []
        self._domain = domain

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        super().stage(stage, bytes_total)
        if stage == "freeze":
            self.instants.append({disk.target: digest(disk.path, disk.format) for disk in self._domain.disks})
        if stage == "read" and self.instants:
            for disk in self._domain.disks:
                self._domain.write(disk.target, 20 * MIB, MIB, 0x77)


def run(rig: Rig, domain: BlankDomain, act: Callable[[], object], **options: Any) -> tuple[Meanwhile, Any]:
    report = Meanwhile(domain, act)
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid, **options))
    assert report.fired.is_set()
    return report, outcome


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", ["full", "incremental"])
@pytest.mark.parametrize("formats", [("qcow2",), ("raw",), ("qcow2", "raw")], ids="+".join)
def test_a_start_wins_and_the_job_goes_on(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, formats: tuple[str, ...], kind: str
) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, *formats))
    rig = Rig.make(tmp_path, libvirtd.uri)
    before = [rig.back_up(domain.uuid)] if kind == "incremental" else []
    for disk in domain.disks:
        domain.write(disk.target, 0, 16 * MIB, 0x11)
    domain.handle.destroy()

    def start() -> None:
        domain.handle.create()
        for disk in domain.disks:
            domain.write(disk.target, 3 * MIB, MIB, 0x55)

    report, outcome = run(rig, domain, start)

    made = result(outcome)
    assert outcome.warnings == report.warnings
    assert report.stages == ["prepare", "read", "prepare", "freeze", "read", "commit"]
    assert made["consistency"] == "paused"
    tracked = {"qcow2": ("incremental", ""), "raw": ("full", "bitmap_lost")}
    first = dict.fromkeys(tracked, ("full", "first"))
    expected = tracked if kind == "incremental" else first
    assert [(one["type"], one["fallback_reason"]) for one in made["disks"]] == [expected[one] for one in formats]
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert [{disk: digest(file) for disk, file in restored.items()}] == report.instants
    assert_host_is_clean(rig, domain)
    assert_only(tmp_path / "storage", domain.uuid, *before, made)
    if "qcow2" in formats:
        assert len(domain.handle.listAllCheckpoints()) == 1
    assert_next_is_good(rig, domain, {disk.target: ("incremental", "") for disk in domain.disks})


def test_a_start_after_the_reading_leaves_the_backup_as_it_is(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, "qcow2", "raw"))
    rig = Rig.make(tmp_path, libvirtd.uri)
    rig.back_up(domain.uuid)
    domain.write("vda", 0, 2 * MIB, 0x11)
    domain.handle.destroy()
    expected = {disk.target: digest(disk.path, disk.format) for disk in domain.disks}

    def start() -> None:
        domain.handle.create()
        for disk in domain.disks:
            domain.write(disk.target, 3 * MIB, MIB, 0x55)

    outcome = rig.run(report=At("commit", start), backup=rig.backup_job(domain.uuid))

    made = result(outcome)
    assert (outcome.state, made["consistency"]) == ("completed", "offline")
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert {disk: digest(file) for disk, file in restored.items()} == expected
    bitmaps = [
        bitmap["name"] for one in domain.qmp("query-block") for bitmap in one["inserted"].get("dirty-bitmaps", ())
    ]
    assert [name[-36:] for name in bitmaps] == [made["backup_id"]]
    assert_next_is_good(rig, domain, {"vda": ("incremental", ""), "vdb": ("full", "untracked")})


def test_a_cancel_while_the_backup_begins_anew_leaves_nothing(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, "qcow2"))
    rig, stop = Rig.make(tmp_path, libvirtd.uri), Stop()
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 16 * MIB, 0x11)
    domain.handle.destroy()

    class CancelAnew(At):
        def info(self, message: str) -> None:
            super().info(message)
            if "begins anew" in message:
                stop.set()

    outcome = rig.run(stop, CancelAnew("read", domain.handle.create, MIB), backup=rig.backup_job(domain.uuid))

    assert outcome.state == "cancelled"
    assert_host_is_clean(rig, domain)
    assert_only(tmp_path / "storage", domain.uuid, first)
    assert_next_is_good(rig, domain, {"vda": ("incremental", "")})
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.parametrize("restart", [False, True], ids=["seen", "libvirtd_restarted"])
def test_a_domain_that_came_and_went_is_read_anew(
    tmp_path: Path, libvirtd: Libvirtd, blank_domain: Any, *, restart: bool
) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, "qcow2", "raw"))
    rig = Rig.make(tmp_path, libvirtd.uri)
    for disk in domain.disks:
        domain.write(disk.target, 0, 16 * MIB, 0x11)
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 16 * MIB, 0x12)
    domain.handle.destroy()

    def come_and_go() -> None:
        if restart:
            libvirtd.restart()
        domain.handle.create()
        domain.write("vda", 3 * MIB, MIB, 0x55)
        domain.handle.destroy()

    report, outcome = run(rig, domain, come_and_go)

    made = result(outcome)
    assert report.stages == ["prepare", "read", "prepare", "read", "commit"]
    assert (made["consistency"], [one["type"] for one in made["disks"]]) == ("offline", ["incremental", "full"])
    assert_restores(rig, domain, made["backup_id"])
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert_only(tmp_path / "storage", domain.uuid, first, made)
    domain.handle.create()
    assert_next_is_good(rig, domain, {"vda": ("incremental", ""), "vdb": ("full", "untracked")})


def test_a_domain_that_never_comes_to_rest_is_no_backup(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, "qcow2"))
    domain.write("vda", 0, 16 * MIB, 0x11)
    domain.handle.destroy()
    rig = Rig.make(tmp_path, libvirtd.uri)

    class EachTime(At):
        def stage(self, stage: str, bytes_total: int = 0) -> None:
            super().stage(stage, bytes_total)
            if stage == "read":
                domain.handle.create()
                domain.handle.destroy()

    report = EachTime("none", lambda: None)
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert reason(outcome) == "VM_BUSY"
    assert report.stages.count("read") == 3
    assert_only(tmp_path / "storage", domain.uuid)
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert_next_is_good(rig, domain, {"vda": ("full", "first")})


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_what_another_program_wrote_meanwhile_is_in_the_backup(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, kind: str
) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, kind))
    domain.write("vda", 0, 16 * MIB, 0x11)
    domain.handle.destroy()
    rig = Rig.make(tmp_path, libvirtd.uri)
    first = [rig.back_up(domain.uuid)]
    tool = ["qemu-io", "-f", kind, "-c", "write -P 9 0 20M", str(domain.disks[0].path)]
    subprocess.run(tool, check=True, capture_output=True)
    once = [*tool[:-2], "write -P 10 5M 1M", tool[-1]]

    report, outcome = run(rig, domain, lambda: subprocess.run(once, check=True, capture_output=True))

    made = result(outcome)
    assert report.stages == ["prepare", "read", "prepare", "read", "commit"]
    assert made["disks"][0]["type"] == ("incremental" if kind == "qcow2" else "full")
    assert_restores(rig, domain, made["backup_id"])
    assert_only(tmp_path / "storage", domain.uuid, *first, made)


def test_an_image_that_another_program_has_open_is_refused(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, "qcow2"), running=False)
    rig = Rig.make(tmp_path, libvirtd.uri)
    with MiniVm({"vda": domain.disks[0].path}):
        outcome = rig.run(backup=rig.backup_job(domain.uuid))
        assert reason(outcome) == "VM_BUSY"
    assert_only(tmp_path / "storage", domain.uuid)
    assert_host_is_clean(rig, domain, SHUTOFF)


@pytest.mark.feature("C11")
@pytest.mark.parametrize("step", ["begun", "stored", "committed"])
def test_an_engine_killed_after_the_start_leaves_whole_backups(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, step: str
) -> None:
    domain: BlankDomain = blank_domain(disks_of(tmp_path, "qcow2"))
    rig = Rig.make(tmp_path, libvirtd.uri)
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 16 * MIB, 0x11)
    domain.handle.destroy()
    rig.settings = replace(rig.settings, read_limit=8 * MIB)
    backup = rig.backup_job(domain.uuid)
    operation = spec.dump(rig.operation(Job(new_id(datetime.now(UTC)), backup=backup)))

    with subprocess.Popen(
        [sys.executable, "-m", "engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "BM_KILL_AT": step},
    ) as engine:
        try:
            assert engine.stdin is not None
            assert engine.stdout is not None
            engine.stdin.write(operation.encode())
            engine.stdin.close()
            for line in engine.stdout:
                event = json.loads(line)
                if event["type"] == "stage" and event["stage"] == "read" and not domain.handle.isActive():
                    domain.handle.create()
                    domain.write("vda", 3 * MIB, MIB, 0x55)
            status = engine.wait()
        finally:
            engine.send_signal(signal.SIGKILL)
    told = heal_after(rig, domain.uuid, backup.backup_id)

    assert (status, told is not None) == (KILLED, step == "committed")
    assert_host_is_clean(rig, domain, RUNNING)
    records = [record["backup"] for record in rig.reindex()]
    assert_only(tmp_path / "storage", domain.uuid, *records)
    assert len(records) == 1 + (step == "committed")
    assert first["backup_id"] in {one["backup_id"] for one in records}
    rig.settings = replace(rig.settings, read_limit=0)
    assert_next_is_good(rig, domain, {"vda": ("incremental", "")})
    assert len(domain.handle.listAllCheckpoints()) == 1
