"""Backup jobs on domains without a system: the instant, what is dirty, and every way in which a job ends."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import libvirt
import pytest

from engine.errors import (
    CheckpointUnusable,
    DiskNotFound,
    DiskUnsupported,
    DomainBusy,
    DomainGone,
    DomainState,
    HypervisorError,
    ScratchShort,
)
from engine.hypervisor import backup_job, domains
from engine.hypervisor.connection import Connection, DomainEvent, open_connection
from tests.servers.export import copy_export, dirty_extents
from tests.servers.guest import MIB, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

KIB64 = 64 << 10
_CHECKOUT = Path(__file__).parents[3]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _raw(size_bytes: int, *writes: tuple[int, int, int]) -> str:
    """Return the digest of a disk of zeros with (start, length, pattern) written."""
    content = bytearray(size_bytes)
    for start, length, pattern in writes:
        content[start : start + length] = bytes([pattern]) * length
    return hashlib.sha256(content).hexdigest()


@pytest.mark.feature("T11", "T7")
def test_a_full_and_an_incremental_show_their_instant(connection: Connection, blank_domain, tmp_path: Path) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(16 * MIB)])
    domain = connection.domain(made.uuid)
    scratch = tmp_path / "scratch"
    made.write("vda", 0, MIB, 1)
    with backup_job.begin(domain, {"vda": None}, "one", scratch) as job:
        made.write("vda", 0, MIB, 2)  # after the instant
        assert job.bitmap_name("vda") == ""
        assert _digest(copy_export(job.socket_path, "vda", tmp_path / "full")) == _raw(16 * MIB, (0, MIB, 1))
        assert job.scratch_used() >= MIB
        assert backup_job.job_folder(scratch, made.uuid).stat().st_mode & 0o777 == 0o700
    assert list(scratch.iterdir()) == []
    made.write("vda", 8 * MIB + 10, 10, 3)
    with backup_job.begin(domain, {"vda": "one"}, "two", scratch) as job:
        made.write("vda", 12 * MIB, MIB, 4)
        assert dirty_extents(job.socket_path, "vda", job.bitmap_name("vda")) == [(0, MIB), (8 * MIB, KIB64)]
        wanted = _raw(16 * MIB, (0, MIB, 2), (8 * MIB + 10, 10, 3))
        assert _digest(copy_export(job.socket_path, "vda", tmp_path / "incremental")) == wanted
    with backup_job.begin(domain, {"vda": "two"}, "", scratch) as job:
        assert dirty_extents(job.socket_path, "vda", job.bitmap_name("vda")) == [(12 * MIB, MIB)]
        job.end()
        job.end()
    assert domains.state_of(domain) == "running"


@pytest.mark.feature("T28", "T7")
def test_mixed_disks_share_one_instant(connection: Connection, blank_domain, tmp_path: Path) -> None:
    disks = [
        DiskFile("vda", tmp_path / "a.qcow2").create(4 * MIB),
        DiskFile("vdb", tmp_path / "b.raw", "raw").create(4 * MIB),
        DiskFile("sda", tmp_path / "c.qcow2", bus="scsi").create(4 * MIB),
        DiskFile("vdd", tmp_path / "d.qcow2").create(4 * MIB),
    ]
    made = blank_domain(disks)
    domain = connection.domain(made.uuid)
    with backup_job.begin(domain, {"vda": None, "vdb": None}, "one", tmp_path / "scratch"):
        pass
    for target, pattern in (("vda", 1), ("vdb", 2), ("sda", 3)):
        made.write(target, MIB, MIB, pattern)
    bases = {"vda": "one", "vdb": None, "sda": None}  # vdb cannot be in a checkpoint, sda is new in it, vdd stays out
    with backup_job.begin(domain, bases, "two", tmp_path / "scratch") as job:
        assert job.disks == ("vda", "vdb", "sda")
        for target in bases:
            made.write(target, 0, 4 * MIB, 9)
        for target, pattern in (("vda", 1), ("vdb", 2), ("sda", 3)):
            copied = copy_export(job.socket_path, target, tmp_path / f"{target}.copy")
            assert _digest(copied) == _raw(4 * MIB, (MIB, MIB, pattern))
        assert dirty_extents(job.socket_path, "vda", job.bitmap_name("vda")) == [(MIB, MIB)]
        with pytest.raises(subprocess.CalledProcessError):
            copy_export(job.socket_path, "vdd", tmp_path / "vdd.copy")
    with backup_job.begin(domain, {"sda": "two"}, "", tmp_path / "scratch") as job:
        assert dirty_extents(job.socket_path, "sda", job.bitmap_name("sda")) == [(0, 4 * MIB)]


def test_what_cannot_be_begun_is_refused_with_its_reason(connection: Connection, blank_domain, tmp_path: Path) -> None:
    iso = tmp_path / "a.iso"
    iso.write_bytes(bytes(MIB))
    cdrom = f"<disk type='file' device='cdrom'><source file='{iso}'/><target dev='hdc' bus='ide'/></disk>"
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)], devices=cdrom)
    domain = connection.domain(made.uuid)
    scratch = tmp_path / "scratch"
    with pytest.raises(DiskNotFound):
        backup_job.begin(domain, {"vdx": None}, "", scratch)
    with pytest.raises(DiskUnsupported):
        backup_job.begin(domain, {"hdc": None}, "", scratch)
    with pytest.raises(CheckpointUnusable):
        backup_job.begin(domain, {"vda": "never-made"}, "", scratch)
    with pytest.raises(HypervisorError) as caught:
        backup_job.begin(domain, {"vda": None}, "", scratch, socket_path=tmp_path / ("x" * 120))
    assert "too long" in str(caught.value)
    assert not scratch.exists() or list(scratch.iterdir()) == []
    made.handle.destroy()
    with pytest.raises(DomainState):
        backup_job.begin(domain, {"vda": None}, "", scratch)


@pytest.mark.feature("N15")
def test_a_second_job_is_refused_at_once_and_a_foreign_one_left_alone(connection, blank_domain, tmp_path: Path) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)])
    domain = connection.domain(made.uuid)
    foreign = tmp_path / "elsewhere"
    with backup_job.begin(domain, {"vda": None}, "", foreign) as job:
        begun = time.monotonic()
        with pytest.raises(DomainBusy) as caught:
            backup_job.begin(domain, {"vda": None}, "", tmp_path / "scratch")
        assert time.monotonic() - begun < 5  # libvirt itself makes us wait 30 s
        assert "another program" in caught.value.facts["holder"]
        assert not backup_job.clean_stale(domain, tmp_path / "scratch")
        job.check_alive()
        with pytest.raises(DomainBusy) as caught:
            backup_job.begin(domain, {"vda": None}, "", foreign)
        assert "left behind" in caught.value.facts["holder"]
        job.check_alive()


@pytest.mark.parametrize("how", ["destroyed", "killed"])
def test_a_domain_that_goes_away_in_the_middle(
    connection: Connection, libvirtd: Libvirtd, blank_domain, tmp_path, how
) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)])
    domain = connection.domain(made.uuid)
    events: list[DomainEvent] = []
    end = connection.watch_domain(domain, events.append)
    job = backup_job.begin(domain, {"vda": None}, "one", tmp_path / "scratch")
    job.check_alive()
    if how == "destroyed":
        made.handle.destroy()
    else:
        os.kill(libvirtd.qemu_pid(made.name), signal.SIGKILL)
    wait_until(lambda: any(one.change == "stopped" for one in events), 10, "the event")
    with pytest.raises(DomainGone):
        job.check_alive()
    job.end()
    end()
    assert list((tmp_path / "scratch").iterdir()) == []
    made.close()
    backup_job.BackupJob(
        domain, tmp_path / "scratch" / made.uuid, job.socket_path, {"vda": None}
    ).end()  # undefined, too


_ENGINE = """
import sys
from pathlib import Path
from engine.hypervisor import backup_job
from engine.hypervisor.connection import open_connection
connection = open_connection(sys.argv[1])
job = backup_job.begin(connection.domain(sys.argv[2]), {"vda": None}, "one", Path(sys.argv[3]))
print(job.socket_path, flush=True)
sys.stdin.read()
"""


@pytest.mark.feature("C11", "N15")
def test_the_job_of_a_killed_engine_is_ended(
    connection: Connection, libvirtd: Libvirtd, blank_domain, tmp_path
) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)])
    scratch = tmp_path / "scratch"
    engine = subprocess.Popen(
        [sys.executable, "-c", _ENGINE, libvirtd.uri, made.uuid, str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert engine.stdout is not None
        assert engine.stdout.readline().endswith(b"/nbd\n")
    finally:
        engine.kill()
        engine.communicate()
    domain = connection.domain(made.uuid)
    assert backup_job.running_job(domain) is not None
    made.write("vda", 0, MIB, 1)
    assert backup_job.clean_stale(domain, scratch)
    assert backup_job.running_job(domain) is None
    assert list(scratch.iterdir()) == []
    assert not backup_job.clean_stale(domain, scratch)
    with backup_job.begin(domain, {"vda": "one"}, "", scratch) as job:  # its checkpoint counts from the right instant
        assert dirty_extents(job.socket_path, "vda", job.bitmap_name("vda")) == [(0, MIB)]


@pytest.mark.feature("C11")
def test_files_that_a_stopped_domains_job_left_are_removed(
    connection: Connection, blank_domain, tmp_path: Path
) -> None:
    made = blank_domain([], running=False)
    folder = backup_job.job_folder(tmp_path / "scratch", made.uuid)
    folder.mkdir(parents=True)
    (folder / "vda.scratch").write_bytes(b"left")
    assert backup_job.clean_stale(connection.domain(made.uuid), tmp_path / "scratch")
    assert not folder.exists()


@pytest.mark.feature("N15")
def test_a_job_outlives_a_restart_of_libvirtd(libvirtd: Libvirtd, blank_domain, tmp_path: Path) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)])
    made.write("vda", 0, KIB64, 1)
    with open_connection(libvirtd.uri) as before:
        job = backup_job.begin(before.domain(made.uuid), {"vda": None}, "one", tmp_path / "scratch")
        libvirtd.restart()
    assert _digest(copy_export(job.socket_path, "vda", tmp_path / "copy")) == _raw(MIB, (0, KIB64, 1))
    with open_connection(libvirtd.uri) as after:
        assert backup_job.clean_stale(after.domain(made.uuid), tmp_path / "scratch")
        assert list((tmp_path / "scratch").iterdir()) == []


# Runs with the daemon's mounts, so that QEMU and this program see the same small file system.
_FULL = """
import subprocess, sys
from pathlib import Path
from engine.hypervisor import backup_job
from engine.hypervisor.connection import open_connection
from tests.servers.guest import _shell
from tests.waiting import wait_until
uri, uuid, scratch, console = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", scratch], check=True)
connection = open_connection(uri)
domain = connection.domain(uuid)
seen = []
connection.watch_domain(domain, seen.append)
job = backup_job.begin(domain, {"vdb": None}, "", Path(scratch))
assert not job.resume_io_error()
write = "dd if=/dev/urandom of=/data2/f bs=1M count=8 conv=notrunc,fsync"
_shell(Path(console), f"( {write}; echo done > /run/wrote ) </dev/null >/dev/null 2>&1 &")
wait_until(lambda: any(one.change == "suspended" and one.io_error for one in seen), 30, "the guest to stop")
assert job.scratch_used() > 1 << 20
assert RECOVER
assert backup_job.running_job(domain) is None
connection.close()
subprocess.run(["umount", scratch], check=True)
"""


@pytest.mark.feature("C11")
@pytest.mark.parametrize(
    "recover",
    ["job.end() is None", "backup_job.clean_stale(domain, Path(scratch))"],
)
def test_a_guest_stopped_by_a_full_scratch_folder_goes_on(libvirtd, real_guest, tmp_path: Path, recover: str) -> None:
    guest = real_guest(formats=("qcow2", "raw"))
    scratch = tmp_path / "s"
    scratch.mkdir()
    guest.run("dd if=/dev/urandom of=/data2/f bs=1M count=8 2>/dev/null; sync")
    script = _FULL.replace("RECOVER", recover)
    arguments = [libvirtd.uri, guest.uuid, str(scratch), str(guest.folder / "console")]
    subprocess.run([*libvirtd.enter(), sys.executable, "-c", script, *arguments], check=True, cwd=_CHECKOUT)
    wait_until(lambda: "done" in guest.run("cat /run/wrote 2>/dev/null || true"), 30, "the guest's write")
    assert guest.state()[0] == 1


def test_room_is_checked_before_it_is_needed(tmp_path: Path) -> None:
    free = backup_job.check_room(tmp_path / "scratch", 1)
    with pytest.raises(ScratchShort) as caught:
        backup_job.check_room(tmp_path / "scratch", free + (1 << 50))
    assert caught.value.facts["path"] == str(tmp_path / "scratch")


def test_libvirts_numbers_are_those_of_the_facts() -> None:
    assert libvirt.VIR_ERR_NO_DOMAIN_BACKUP == 104
    assert libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT == 109
