"""Freezing and pausing a real guest, whose ext4 says afterwards what state it was read in."""

import base64
import gzip
import statistics
import subprocess
from pathlib import Path

import pytest

from engine.errors import DomainState, QuiesceFailed
from engine.hypervisor import backup_job, thaw_guard
from engine.hypervisor.connection import Connection, Domain
from engine.hypervisor.freeze import FileSystem, ensure_thawed, freezable, freeze
from engine.hypervisor.quiesce import Quiesced, quiesce
from engine.spec import Consistency
from tests.servers.export import copy_export
from tests.servers.guest import RealGuest, check_file_system, file_of, needs_recovery
from tests.waiting import wait_until


def _instant(domain: Domain, mode: Consistency, folder: Path, timeout_seconds: int = 30) -> tuple[Quiesced, list[Path]]:
    """Take one instant of both disks; return how it was, and the raw copies of it."""
    with quiesce(domain, mode, folder / "locks", timeout_seconds) as quiesced:
        job = backup_job.begin(domain, {"vda": None, "vdb": None}, "", folder / "s")
    with job:
        return quiesced, [copy_export(job.socket_path, disk, folder / f"{disk}.copy") for disk in job.disks]


def _counters(images: list[Path]) -> tuple[int, int]:
    first, second = (int(file_of(image, "/counter")) for image in images)
    return first, second


@pytest.mark.feature("T17", "T18", "T19", "T20", "T28", "T11")
@pytest.mark.parametrize(
    ("mode", "reached"), [("freeze_or_pause", "frozen"), ("freeze", "frozen"), ("pause", "paused"), ("none", "crash")]
)
def test_the_state_that_was_read_is_the_state_that_is_claimed(
    connection: Connection, real_guest, tmp_path: Path, mode: Consistency, reached: str
) -> None:
    guest: RealGuest = real_guest(formats=("qcow2", "raw"))
    domain = connection.domain(guest.uuid)
    guest.start_writer()
    wait_until(lambda: guest.written() > 2, 20, "the writer to write")
    quiesced, images = _instant(domain, mode, tmp_path)
    assert (quiesced.reached, quiesced.detail, quiesced.thaw_confirmed) == (reached, "", True)
    for image in images:
        assert needs_recovery(image) == (reached != "frozen")
        check_file_system(image)
    first, second = _counters(images)
    assert second <= first <= second + 1  # both disks show one instant of the writer
    assert first > 0
    wait_until(lambda: guest.written() > first + 2, 20, "the writer to go on")
    assert guest.freeze_status() == "thawed"
    assert thaw_guard.marks(tmp_path / "locks") == ()


@pytest.mark.feature("T19")
def test_the_pause_is_short(connection: Connection, real_guest, tmp_path: Path) -> None:
    domain = connection.domain(real_guest().uuid)
    seconds = []
    for number in range(3):
        quiesced, _images = _instant(domain, "pause", tmp_path / str(number))
        seconds.append(quiesced.seconds)
    assert statistics.median(seconds) < 1.0


@pytest.mark.feature("T17", "T18")
def test_without_an_agent_only_the_fallback_goes_on(connection: Connection, real_guest, tmp_path: Path) -> None:
    guest: RealGuest = real_guest()
    guest.stop_agent()
    domain = connection.domain(guest.uuid)
    with pytest.raises(QuiesceFailed) as caught, quiesce(domain, "freeze", tmp_path):
        pytest.fail("the block ran")
    assert "agent" in caught.value.facts["detail"]
    with quiesce(domain, "freeze_or_pause", tmp_path) as quiesced:
        assert guest.state()[0] == 3
    assert guest.state()[0] == 1
    assert (quiesced.reached, quiesced.thaw_confirmed) == ("paused", True)
    assert (quiesced.detail, quiesced.fault) == ("no guest agent is connected", False)


@pytest.mark.feature("T17", "C11")
def test_a_hung_agent_is_given_up_and_its_late_freeze_is_undone(
    connection: Connection, real_guest, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("engine.hypervisor.quiesce._THAW_SECONDS", 0.5)
    guest: RealGuest = real_guest()
    domain = connection.domain(guest.uuid)
    guest.hang_agent()
    with quiesce(domain, "freeze_or_pause", tmp_path, timeout_seconds=1) as quiesced:
        assert guest.state()[0] == 3
    assert guest.state()[0] == 1
    assert (quiesced.reached, quiesced.fault) == ("paused", True)
    assert quiesced.seconds < 1.0  # what the guest stood still, not what its agent was waited for
    assert not quiesced.thaw_confirmed  # the agent says nothing: a guard stays with it
    (mark,) = thaw_guard.marks(tmp_path)
    assert mark.deeds == ("freeze",)
    assert mark.guarded()
    monkeypatch.setattr("engine.hypervisor.quiesce._EARLIER_SECONDS", 0.5)
    with quiesce(domain, "pause", tmp_path) as quiesced:  # a next backup, which asks nothing of the agent
        pass
    assert not quiesced.thaw_confirmed
    (later,) = thaw_guard.marks(tmp_path)
    assert (later.deeds, later.guarded()) == (("freeze",), True)  # not forgotten
    wait_until(lambda: not mark.guarded(), 30, "the first guard to leave it to the second")
    guest.wake_agent()
    wait_until(lambda: thaw_guard.marks(tmp_path) == (), 30, "the guard to see the guest thawed")
    wait_until(lambda: not later.guarded(), 10, "the guard to end")
    assert guest.freeze_status() == "thawed"
    guest.write_file("/data1/after", "written")  # hangs in a frozen guest


@pytest.mark.feature("T18")
def test_a_freeze_that_takes_too_long_fails_and_is_undone(connection: Connection, real_guest, tmp_path: Path) -> None:
    guest: RealGuest = real_guest()
    domain = connection.domain(guest.uuid)
    guest.slow_freeze(4)
    with pytest.raises(QuiesceFailed), quiesce(domain, "freeze", tmp_path, timeout_seconds=1):
        pytest.fail("the block ran")
    assert guest.state()[0] == 1
    assert guest.freeze_status() == "thawed"
    assert thaw_guard.marks(tmp_path) == ()
    with quiesce(domain, "freeze", tmp_path, timeout_seconds=20) as quiesced:  # slow, but within the limit
        assert guest.freeze_status() == "frozen"
    assert quiesced.reached == "frozen"
    assert guest.freeze_status() == "thawed"


@pytest.mark.feature("T17")
@pytest.mark.parametrize("mode", ["freeze", "pause"])
def test_an_error_in_the_block_leaves_a_guest_that_runs(connection: Connection, real_guest, tmp_path, mode) -> None:
    guest: RealGuest = real_guest()
    with pytest.raises(ZeroDivisionError), quiesce(connection.domain(guest.uuid), mode, tmp_path):
        _ = 1 / 0
    assert guest.state()[0] == 1
    assert guest.freeze_status() == "thawed"
    assert thaw_guard.marks(tmp_path) == ()


@pytest.mark.feature("T18")
def test_a_guest_that_thaws_by_itself_was_not_frozen(connection: Connection, real_guest, tmp_path: Path) -> None:
    guest: RealGuest = real_guest()
    domain = connection.domain(guest.uuid)
    with quiesce(domain, "freeze", tmp_path) as quiesced:
        assert ensure_thawed(domain, 10)  # as Windows does after 10 s
    assert (quiesced.reached, quiesced.fault) == ("crash", True)
    assert quiesced.detail


@pytest.mark.feature("T21")
def test_a_loop_device_is_left_out_of_the_freeze(connection: Connection, real_guest, tmp_path: Path) -> None:
    guest: RealGuest = real_guest()
    image = tmp_path / "image"
    image.write_bytes(bytes(256 << 10))
    subprocess.run(["mke2fs", "-q", "-t", "ext2", str(image)], check=True)
    packed = base64.b64encode(gzip.compress(image.read_bytes())).decode()
    guest.run(f"echo {packed} | base64 -d | gunzip > /data1/image; losetup /dev/loop0 /data1/image")
    guest.run("mkdir -p /mnt; mount -t ext2 /dev/loop0 /mnt")
    assert "/dev/loop0 /mnt" in guest.run("cat /proc/mounts")
    domain = connection.domain(guest.uuid)
    with quiesce(domain, "freeze", tmp_path) as quiesced:
        with pytest.raises(TimeoutError):
            _write_in_guest(guest, "/data1/frozen")
        guest.run("echo words > /mnt/free")  # not synced: its image lies on a frozen file system
    assert quiesced.reached == "frozen"
    assert guest.freeze_status() == "thawed"
    assert guest.run("cat /mnt/free") == "words\n"


@pytest.mark.feature("T21")
def test_mount_points_of_the_callers_choice_are_left_out(connection: Connection, real_guest, tmp_path: Path) -> None:
    guest: RealGuest = real_guest()
    domain = connection.domain(guest.uuid)
    with quiesce(domain, "freeze", tmp_path, exclude=["/data2"]):
        guest.run("echo words > /data2/free; sync /data2/free")
    with pytest.raises(QuiesceFailed):
        freeze(domain, 10, exclude=["/data1", "/data2"])
    assert guest.freeze_status() == "thawed"


def _write_in_guest(guest: RealGuest, path: str) -> None:
    """Write a file in the background of the guest, and wait for it in vain if the file system is frozen."""
    guest.run(f"( echo x > {path}; sync; touch /run/wrote ) </dev/null >/dev/null 2>&1 &")
    wait_until(lambda: "yes" in guest.run("[ -e /run/wrote ] && echo yes || echo no"), 0.5, "the write")


@pytest.mark.feature("T21")
def test_what_is_left_out() -> None:
    windows = [
        FileSystem("C:\\", "\\\\?\\Volume{1}\\", "NTFS"),
        FileSystem("System Reserved", "\\\\?\\Volume{2}\\", "NTFS"),
        FileSystem("D:\\", "\\\\?\\Volume{3}\\", "CDFS"),
    ]
    assert freezable(windows) == ["C:\\"]
    linux = [FileSystem("/", "sda1", "ext4"), FileSystem("/boot", "sda2", "ext4")]
    assert freezable(linux) is None
    snaps = [*linux, FileSystem("/snap/x/1", "loop0", "squashfs"), FileSystem("/srv", "sda1", "ext4")]
    assert freezable(snaps) == ["/", "/boot"]
    assert freezable(linux, exclude=["/boot"]) == ["/"]
    assert freezable([FileSystem("/x", "loop1", "ext4")]) == []
    assert freezable([]) is None


@pytest.mark.feature("T19", "T18")
def test_a_domain_that_its_owner_paused_stays_paused(connection: Connection, blank_domain, tmp_path: Path) -> None:
    made = blank_domain([])
    made.handle.suspend()
    domain = connection.domain(made.uuid)
    for mode in ("freeze_or_pause", "pause"):
        with quiesce(domain, mode, tmp_path) as quiesced:
            pass
        assert quiesced.reached == "paused"
        assert made.state()[0] == 3
    with pytest.raises(QuiesceFailed), quiesce(domain, "freeze", tmp_path):
        pytest.fail("the block ran")
    assert made.state()[0] == 3


@pytest.mark.feature("T19", "C11")
def test_a_pause_that_a_dead_engine_left_is_not_taken_for_the_owners(
    connection: Connection, blank_domain, tmp_path: Path
) -> None:
    made = blank_domain([])
    domain = connection.domain(made.uuid)
    for mode in ("pause", "none", "freeze_or_pause"):
        made.handle.suspend()
        thaw_guard.mark_path(tmp_path, made.uuid).write_text('{"deeds": ["pause"], "guard": 0}')
        with quiesce(domain, mode, tmp_path) as quiesced:
            assert made.state()[0] == (1 if mode == "none" else 3)
        assert quiesced.reached == ("crash" if mode == "none" else "paused")
        assert quiesced.detail == ("the domain has no guest agent" if mode == "freeze_or_pause" else "")
        assert not quiesced.fault
        assert made.state()[0] == 1
        assert thaw_guard.marks(tmp_path) == ()


def test_a_stopped_domain_is_refused(connection: Connection, blank_domain, tmp_path: Path) -> None:
    domain = connection.domain(blank_domain([], running=False).uuid)
    with pytest.raises(DomainState), quiesce(domain, "none", tmp_path):
        pytest.fail("the block ran")
    assert ensure_thawed(domain, 0)
