"""The domain, its guest, libvirt or the scratch space changes in the middle of a backup; or somebody cancels, or comes second."""

import dataclasses
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.hypervisor import quiesce as quiescing
from engine.hypervisor.quiesce import quiesce
from engine.source import child, running, scratch
from engine.spec import RestoreJob, Settings
from engine.units import MIB
from engine.work import Stop
from tests.engine.aftermath import (
    PAUSED,
    SHUTOFF,
    At,
    assert_host_is_clean,
    assert_next_is_good,
    assert_only,
    assert_restores,
    assert_verifies,
    folders,
)
from tests.engine.rig import Rig, digest, reason, result
from tests.servers.guest import BlankDomain, DiskFile, RealGuest, check_file_system, file_of, needs_recovery
from tests.servers.libvirtd import Libvirtd
from tests.servers.small_disk import shared_disk, small_disk
from tests.waiting import wait_until

INCREMENTAL = {"vda": ("incremental", "")}


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(32 * MIB)])
    made.write("vda", 0, 24 * MIB, 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


# ---- the domain -------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N15")
@pytest.mark.parametrize("stage", ["freeze", "read"])
def test_a_domain_destroyed_in_the_middle(rig: Rig, domain: BlankDomain, stage: str) -> None:
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 24 * MIB, 2)

    report = At(stage, lambda: domain.handle.destroy(), 4 * MIB if stage == "read" else 0)
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert (outcome.state, reason(outcome)) == ("failed", "DOMAIN_GONE" if stage == "read" else "VM_STATE")
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert_only(rig.folder / "storage", domain.uuid, first)
    domain.handle.create()
    domain.write("vda", 0, MIB, 3)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert_host_is_clean(rig, domain)
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.feature("N15")
def test_a_qemu_killed_in_the_middle(rig: Rig, domain: BlankDomain, libvirtd: Libvirtd) -> None:
    first = rig.back_up(domain.uuid)
    domain.handle.destroy()
    domain.handle.create()
    domain.write("vda", 0, 24 * MIB, 2)

    report = At("read", lambda: os.kill(libvirtd.qemu_pid(domain.name), signal.SIGKILL), 4 * MIB)
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert (outcome.state, reason(outcome)) == ("failed", "DOMAIN_GONE")
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert_only(rig.folder / "storage", domain.uuid, first)
    domain.handle.create()
    assert_next_is_good(rig, domain, {"vda": ("full", "bitmap_inconsistent")})
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.feature("T11")
def test_a_guest_that_is_reset_while_it_is_read(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)  # what QEMU holds back of the image's metadata is in the file now
    expected = digest(domain.disks[0].path, "qcow2")

    def reset() -> None:
        domain.handle.reset()
        domain.write("vda", 0, 24 * MIB, 9)

    made = result(rig.run(report=At("read", reset, 4 * MIB), backup=rig.backup_job(domain.uuid, type="full")))

    restored = rig.restore_to(rig.folder / "out", domain.uuid, made["backup_id"])
    assert digest(restored["vda"]) == expected
    assert_host_is_clean(rig, domain)
    assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("T17")
def test_a_domain_that_its_owner_paused_stays_paused(rig: Rig, domain: BlankDomain) -> None:
    domain.handle.suspend()

    made = assert_next_is_good(rig, domain, {"vda": ("full", "first")})

    assert made["consistency"] == "paused"
    assert_host_is_clean(rig, domain, PAUSED)
    refused = rig.run(backup=rig.backup_job(domain.uuid, consistency="freeze"))
    assert reason(refused) == "QUIESCE_FAILED"
    assert_host_is_clean(rig, domain, PAUSED)
    assert_only(rig.folder / "storage", domain.uuid, made)
    domain.handle.resume()
    assert_next_is_good(rig, domain, INCREMENTAL)
    during = At("read", lambda: domain.handle.suspend())
    result(rig.run(report=during, backup=rig.backup_job(domain.uuid, type="full")))
    assert_host_is_clean(rig, domain, PAUSED)


@pytest.mark.feature("N15")
@pytest.mark.parametrize("stage", ["freeze", "read", "commit"])
def test_a_restart_of_libvirtd_in_the_middle(rig: Rig, domain: BlankDomain, libvirtd: Libvirtd, stage: str) -> None:
    """QEMU, who has the data, goes on; so does the backup, on a new connection."""
    rig.back_up(domain.uuid)
    domain.write("vda", 0, 24 * MIB, 2)

    report = At(stage, libvirtd.restart, 4 * MIB if stage == "read" else 0)
    made = result(rig.run(report=report, backup=rig.backup_job(domain.uuid)))

    assert report.fired.is_set()
    assert [one["type"] for one in made["disks"]] == ["incremental"]
    assert_restores(rig, domain, made["backup_id"])
    assert_host_is_clean(rig, domain)
    domain.write("vda", 0, MIB, 3)
    assert_next_is_good(rig, domain, INCREMENTAL)


# ---- who comes second -------------------------------------------------------------------------------------------------------


@pytest.mark.feature("X4")
def test_the_second_of_two_engines_is_refused_at_once(rig: Rig, domain: BlankDomain) -> None:
    other = dataclasses.replace(rig)
    refused: list[tuple[str, float]] = []

    def come_second() -> None:
        begun = time.monotonic()
        refused.append((reason(other.run(backup=other.backup_job(domain.uuid))), time.monotonic() - begun))
        refused.append((reason(other.run(restore=restore_job(other, domain, made))), time.monotonic() - begun))

    made = rig.back_up(domain.uuid)
    first = rig.run(report=At("read", come_second), backup=rig.backup_job(domain.uuid))
    assert reason(first) == ""
    restored = rig.run(report=At("write", come_second), restore=restore_job(rig, domain, made))
    assert reason(restored) == ""

    assert [why for why, _seconds in refused] == ["VM_BUSY"] * 4
    assert max(seconds for _why, seconds in refused) < 5
    assert_host_is_clean(rig, domain)
    assert first.result is not None
    assert_only(rig.folder / "storage", domain.uuid, made, first.result)
    assert_next_is_good(rig, domain, {"vda": ("full", "restored_over")})


def restore_job(rig: Rig, domain: BlankDomain, made: dict[str, Any]) -> RestoreJob:
    return RestoreJob(domain.uuid, domain.uuid, made["backup_id"], server_keys=rig.keys(domain.uuid))


# ---- a cancel ---------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N15")
def test_a_cancel_at_any_stage_of_a_backup_leaves_nothing(rig: Rig, domain: BlankDomain) -> None:
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 24 * MIB, 2)

    for stage, after_bytes in (("prepare", 0), ("freeze", 0), ("read", 0), ("read", 4 * MIB), ("commit", 0)):
        stop, begun = Stop(), time.monotonic()
        report = At(stage, stop.set, after_bytes)
        outcome = rig.run(stop, report, backup=rig.backup_job(domain.uuid))
        assert (outcome.state, outcome.failure) == ("cancelled", None), stage
        assert report.fired.is_set()
        assert time.monotonic() - begun < 10
        assert_host_is_clean(rig, domain)
        assert_only(rig.folder / "storage", domain.uuid, first)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.feature("N15")
@pytest.mark.feature("T24")
def test_a_cancel_ends_a_read_that_stands_still(rig: Rig, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "END_SECONDS", 2.0)  # then a program that does not end is killed
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 24 * MIB, 2)
    domain.handle.destroy()
    stop = Stop()
    timer = threading.Timer(0.5, stop.set)

    def stand_still() -> None:
        for one in psutil.Process().children(recursive=True):
            if one.name() == "qemu-nbd":
                one.suspend()
        timer.start()

    begun = time.monotonic()
    outcome = rig.run(stop, At("read", stand_still, 4 * MIB), backup=rig.backup_job(domain.uuid))

    assert outcome.state == "cancelled"
    assert time.monotonic() - begun < 10
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert_only(rig.folder / "storage", domain.uuid, first)
    assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("N15")
def test_a_qemu_that_stands_still_for_a_while(rig: Rig, domain: BlankDomain, libvirtd: Libvirtd) -> None:
    """Nobody can end its job while it does; a cancel is done as soon as it goes on."""
    first = rig.back_up(domain.uuid)
    domain.write("vda", 0, 24 * MIB, 2)
    stop, qemu = Stop(), libvirtd.qemu_pid(domain.name)
    go_on = threading.Timer(2, os.kill, (qemu, signal.SIGCONT))

    def stand_still() -> None:
        os.kill(qemu, signal.SIGSTOP)
        threading.Timer(0.5, stop.set).start()
        go_on.start()

    outcome = rig.run(stop, At("read", stand_still, 4 * MIB), backup=rig.backup_job(domain.uuid))

    assert outcome.state == "cancelled"
    assert_host_is_clean(rig, domain)
    assert_only(rig.folder / "storage", domain.uuid, first)
    assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("M15")
def test_a_restore_cancelled_before_the_first_byte_starts_the_domain_again(rig: Rig, domain: BlankDomain) -> None:
    made = rig.back_up(domain.uuid)
    domain.write("vda", 0, 4 * MIB, 7)
    before = digest(domain.disks[0].path, "qcow2")
    for stage in ("prepare", "write"):
        stop = Stop()

        outcome = rig.run(stop, At(stage, stop.set), restore=restore_job(rig, domain, made))

        assert outcome.state == "cancelled"
        assert_host_is_clean(rig, domain)
        assert digest(domain.disks[0].path, "qcow2") == before
    # Its bitmaps were given up before; nobody may trust them after a restore.
    assert_next_is_good(rig, domain, {"vda": ("full", "restored_over")})


@pytest.mark.feature("M15")
def test_a_domain_that_would_vanish_when_stopped_is_not_restored(rig: Rig, blank_domain: Any, tmp_path: Path) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(4 * MIB)
    transient = blank_domain([disk], persistent=False)
    made = rig.back_up(transient.uuid)

    assert reason(rig.restore(transient.uuid, made["backup_id"])) == "VM_STATE"
    assert_host_is_clean(rig, transient)
    assert_next_is_good(rig, transient, INCREMENTAL)


@pytest.mark.feature("C11")
def test_a_restore_cancelled_half_way_says_so_and_can_be_run_again(rig: Rig, domain: BlankDomain) -> None:
    made, expected = rig.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    domain.write("vda", 0, 32 * MIB, 7)
    stop = Stop()

    outcome = rig.run(stop, At("write", stop.set, 8 * MIB), restore=restore_job(rig, domain, made))

    assert outcome.state == "cancelled"
    assert any("half restored" in warning for warning in outcome.warnings)
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert reason(rig.restore(domain.uuid, made["backup_id"])) == ""
    assert digest(domain.disks[0].path, "qcow2") == expected


# ---- scratch space ----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C11")
def test_too_little_scratch_space_is_known_before_anything_begins(rig: Rig, domain: BlankDomain) -> None:
    with small_disk(rig.folder / "scratch", 66 * MIB):
        outcome = rig.run(backup=rig.backup_job(domain.uuid))

        assert (outcome.state, reason(outcome)) == ("failed", "SCRATCH_SHORT")
        assert rig.report.stages == ["prepare"]
        assert_host_is_clean(rig, domain)
        assert_only(rig.folder / "storage", domain.uuid)
    assert_next_is_good(rig, domain, {"vda": ("full", "first")})


@pytest.mark.feature("C11")
def test_scratch_space_that_runs_short_ends_the_backup_and_not_the_guest(
    rig: Rig, real_guest: Any, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "RESERVE_BYTES", 2 * MIB)
    guest = real_guest()
    guest.run("dd if=/dev/urandom of=/data2/f bs=1M count=24 2>/dev/null; sync")
    rig.settings = Settings(read_limit=8 * MIB)
    write = "dd if=/dev/zero of=/data2/f bs=1M count=24 conv=notrunc,fsync 2>/dev/null; echo done > /run/wrote"
    with shared_disk(libvirtd, rig.folder / "scratch", 16 * MIB):
        report = At("read", lambda: guest.run(f"( {write} ) </dev/null >/dev/null 2>&1 &"))
        outcome = rig.run(report=report, backup=rig.backup_job(guest.uuid))

        assert (outcome.state, reason(outcome)) == ("failed", "SCRATCH_SHORT")
        assert_host_is_clean(rig, guest)
        wait_until(lambda: "done" in guest.run("cat /run/wrote 2>/dev/null || true"), 30, "the guest's write")
        assert_only(rig.folder / "storage", guest.uuid)
    rig.settings = Settings()
    assert_paused_backup_is_good(rig, guest, {"vda": ("full", "first"), "vdb": ("full", "first")})


# ---- the guest --------------------------------------------------------------------------------------------------------------


def assert_paused_backup_is_good(rig: Rig, guest: RealGuest, expected: dict[str, tuple[str, str]]) -> None:
    """Make the next backup of a guest that does not write meanwhile, so that bytes can be compared."""
    guest.handle.suspend()
    assert_next_is_good(rig, guest, expected)
    assert_host_is_clean(rig, guest, PAUSED)
    guest.handle.resume()


def assert_thawed(rig: Rig, guest: RealGuest) -> None:
    wait_until(
        lambda: not list((rig.folder / "locks").glob("*.quiesced")), 30, "the guard's word that the guest is well"
    )
    assert guest.freeze_status() == "thawed"
    guest.write_file("/data1/alive", "yes")
    assert guest.state()[0] == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the guest agent two seconds where it has thirty."""
    monkeypatch.setattr(running, "quiesce", partial(quiesce, timeout_seconds=2))
    monkeypatch.setattr(quiescing, "_THAW_SECONDS", 1.0)


@pytest.mark.feature("T17")
@pytest.mark.feature("T18")
@pytest.mark.feature("T20")
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("agent", ["hung", "slow", "absent"])
def test_an_agent_that_does_not_freeze(rig: Rig, real_guest: Any, agent: str) -> None:
    """What was reached is on the record, and the guest is never left frozen, not even by a freeze that comes too late."""
    guest: RealGuest = real_guest()
    break_agent(guest, agent)
    reached = {}
    for mode in ("none", "freeze_or_pause", "freeze"):
        outcome = rig.run(backup=rig.backup_job(guest.uuid, consistency=mode))
        reached[mode] = outcome.result["consistency"] if outcome.result else reason(outcome)
        assert guest.state()[0] == 1
        guest.run("echo still > /run/alive")  # the guest's file systems in memory answer in any case
    assert reached == {"none": "crash", "freeze_or_pause": "paused", "freeze": "QUIESCE_FAILED"}

    mend_agent(guest, agent)
    if agent != "absent":
        assert_thawed(rig, guest)
    assert_host_is_clean(rig, guest)
    assert len(folders(rig.folder / "storage", guest.uuid)) == 2
    if agent != "absent":
        assert rig.back_up(guest.uuid, consistency="freeze")["consistency"] == "frozen"
        assert_thawed(rig, guest)
    assert_paused_backup_is_good(rig, guest, {"vda": ("incremental", ""), "vdb": ("incremental", "")})


def break_agent(guest: RealGuest, how: str) -> None:
    if how == "hung":
        guest.hang_agent()
    elif how == "slow":
        guest.slow_freeze(5)
    else:
        guest.stop_agent()


def mend_agent(guest: RealGuest, how: str) -> None:
    if how == "hung":
        guest.wake_agent()
    elif how == "slow":
        guest.slow_freeze(0)


@pytest.mark.feature("T28")
@pytest.mark.parametrize("mode", ["freeze", "pause"])
def test_disks_of_both_formats_are_of_one_instant(rig: Rig, real_guest: Any, tmp_path: Path, mode: str) -> None:
    """A program writes one number to both disks in turn: in any restored point they are equal, or the first is one ahead."""
    guest: RealGuest = real_guest(formats=("qcow2", "raw"))
    guest.start_writer()
    counts = []
    for step in range(3):
        before = guest.written()
        wait_until(lambda before=before: guest.written() > before + 3, 30, "the writer")  # type: ignore[misc]
        made = rig.back_up(guest.uuid, consistency=mode)
        assert [one["type"] for one in made["disks"]] == ["incremental" if step else "full"] * 2
        restored = rig.restore_to(tmp_path / f"point{step}", guest.uuid, made["backup_id"])
        if mode == "freeze":
            assert not needs_recovery(restored["vda"])
            assert not needs_recovery(restored["vdb"])
        for image in restored.values():
            check_file_system(image)
        first, second = (int(file_of(restored[disk], "/counter")) for disk in ("vda", "vdb"))
        assert second <= first <= second + 1
        counts.append(second)
    assert counts == sorted(set(counts))
    assert_thawed(rig, guest)
    assert_verifies(rig, guest)
