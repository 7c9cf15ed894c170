"""One holder per domain, whoever it is, and none that is dead."""

import errno
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from engine.errors import DomainBusy, HypervisorError
from engine.hypervisor.lock import DomainLock

_UUID = str(uuid.UUID(int=1))
_HOLD = """
import sys
from pathlib import Path
from engine.hypervisor.lock import DomainLock
with DomainLock(Path(sys.argv[1]), sys.argv[2], "job 7") as lock:
    {more}
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(folder: Path, more: str = "") -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD.format(more=more), str(folder), _UUID],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


@pytest.mark.feature("N15")
def test_a_second_holder_learns_who_has_it(tmp_path: Path) -> None:
    child = _holder(tmp_path / "locks")
    try:
        with pytest.raises(DomainBusy) as caught:
            DomainLock(tmp_path / "locks", _UUID).acquire()
        assert caught.value.reason == "VM_BUSY"
        assert caught.value.facts["pid"] == str(child.pid)
        assert caught.value.facts["work"] == "job 7"
        with DomainLock(tmp_path / "locks", str(uuid.UUID(int=2))):  # another domain is free
            pass
    finally:
        _end(child)


@pytest.mark.feature("N15", "C11")
def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    child = _holder(tmp_path)
    _end(child)
    with DomainLock(tmp_path, _UUID) as lock:
        assert lock.fd >= 0
    assert lock.fd == -1


@pytest.mark.feature("N15")
def test_a_child_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    more = """
    import subprocess
    print(subprocess.Popen(["sleep", "60"], pass_fds=(lock.fd,), stdout=subprocess.DEVNULL).pid, end=" ", flush=True)"""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD.format(more=more), str(tmp_path), _UUID],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    heir = int(child.stdout.readline().split()[0])
    try:
        _end(child)
        with pytest.raises(DomainBusy):
            DomainLock(tmp_path, _UUID).acquire()
    finally:
        os.kill(heir, signal.SIGKILL)
    lock = DomainLock(tmp_path, _UUID)
    for _ in range(500):  # the kernel closes the killed child's files a moment later
        try:
            lock.acquire()
            break
        except DomainBusy:
            continue
    assert lock.fd >= 0
    lock.release()
    lock.release()


def test_a_text_that_cannot_be_read_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"{_UUID}.lock").write_bytes(b"\xff{")
    with DomainLock(tmp_path, _UUID):
        (tmp_path / f"{_UUID}.lock").write_bytes(b"[]")
        with pytest.raises(DomainBusy) as caught:
            DomainLock(tmp_path, _UUID).acquire()
    assert "another process" in str(caught.value)


def test_a_name_that_is_no_uuid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        DomainLock(tmp_path, "../etc/passwd")


def test_a_disk_without_room_for_the_text_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    domain = str(uuid.UUID(int=9))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with DomainLock(tmp_path, domain), pytest.raises(DomainBusy):
            DomainLock(tmp_path, domain).acquire()
    with DomainLock(tmp_path, domain):  # no descriptor was left with the lock
        pass


def test_a_folder_that_cannot_be_made_has_its_type(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(HypervisorError):
        DomainLock(tmp_path / "file" / "locks", str(uuid.UUID(int=9))).acquire()
