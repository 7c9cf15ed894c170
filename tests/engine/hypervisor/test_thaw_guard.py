"""An engine killed between freeze and thaw: its guard thaws, and where the guard dies too, self-heal does."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from engine import heal as healing
from engine.errors import DomainBusy, HypervisorError
from engine.hypervisor import thaw_guard
from engine.hypervisor.connection import Connection
from engine.hypervisor.lock import DomainLock
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

_ENGINE = """
import sys
from pathlib import Path
from engine.hypervisor.connection import open_connection
from engine.hypervisor.lock import DomainLock
from engine.hypervisor.quiesce import quiesce
uri, domain, folder, mode = sys.argv[1:]
connection = open_connection(uri)
with DomainLock(Path(folder), domain, "job 7") as lock:
    with quiesce(connection.domain(domain), mode, Path(folder), lock_fd=lock.fd) as quiesced:
        print(quiesced.reached, flush=True)
        sys.stdin.read()
"""


class _Engine:
    """An engine that stands in the middle of a freeze or pause."""

    def __init__(self, libvirtd: Libvirtd, domain: str, folder: Path, mode: str) -> None:
        command = [sys.executable, "-c", _ENGINE, libvirtd.uri, domain, str(folder), mode]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        self.reached = self.child.stdout.readline().strip()
        (mark,) = thaw_guard.marks(folder)
        self.guard = mark.guard

    def kill(self) -> None:
        self.child.kill()
        self.child.communicate()

    def kill_guard(self) -> None:
        if Path(f"/proc/{self.guard}").exists():
            os.kill(self.guard, signal.SIGKILL)

    def guard_lives(self) -> bool:
        try:
            state = Path(f"/proc/{self.guard}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"


def _free(folder: Path, domain: str) -> bool:
    """Tell whether the domain's lock can be taken: a dying process gives it back when its last thread is gone."""
    try:
        with DomainLock(folder, domain):
            return True
    except DomainBusy:
        return False


@pytest.mark.feature("C11")
def test_a_killed_engines_freeze_is_thawed(
    connection: Connection, libvirtd: Libvirtd, real_guest, tmp_path: Path
) -> None:
    guest = real_guest()
    engine = _Engine(libvirtd, guest.uuid, tmp_path / "locks", "freeze")
    try:
        assert engine.reached == "frozen"
        assert guest.freeze_status() == "frozen"
        os.kill(engine.guard, signal.SIGTERM)  # a guard does not end with its group
        os.kill(engine.guard, signal.SIGINT)
    finally:
        engine.kill()
    wait_until(lambda: guest.freeze_status() == "thawed", 20, "the guard to thaw")
    wait_until(lambda: _free(tmp_path / "locks", guest.uuid), 10, "the guard to give the lock back")
    assert thaw_guard.marks(tmp_path / "locks") == ()


@pytest.mark.feature("C11", "N15")
def test_the_lock_is_held_until_the_guest_is_thawed(connection, libvirtd: Libvirtd, real_guest, tmp_path: Path) -> None:
    guest = real_guest()
    engine = _Engine(libvirtd, guest.uuid, tmp_path / "locks", "freeze")
    try:
        guest.hang_agent()
    finally:
        engine.kill()
    try:
        with pytest.raises(DomainBusy) as caught:
            DomainLock(tmp_path / "locks", guest.uuid).acquire()
        assert caught.value.facts["work"] == "job 7"
        assert thaw_guard.heal(connection, tmp_path / "locks", 0) == ()  # the guard is at it
        guest.wake_agent()
        wait_until(lambda: _free(tmp_path / "locks", guest.uuid), 30, "the guard to thaw and end")
    finally:
        engine.kill_guard()
    assert guest.freeze_status() == "thawed"


@pytest.mark.feature("C11")
def test_a_killed_engines_pause_is_resumed(libvirtd: Libvirtd, blank_domain, tmp_path: Path) -> None:
    made = blank_domain([])
    engine = _Engine(libvirtd, made.uuid, tmp_path, "pause")
    try:
        assert (engine.reached, made.state()[0]) == ("paused", 3)
    finally:
        engine.kill()
    wait_until(lambda: made.state()[0] == 1, 20, "the guard to resume")
    wait_until(lambda: not engine.guard_lives(), 10, "the guard to end")


@pytest.mark.feature("C11")
def test_a_guard_goes_on_through_a_restart_of_libvirtd(libvirtd: Libvirtd, blank_domain, tmp_path: Path) -> None:
    made = blank_domain([])
    engine = _Engine(libvirtd, made.uuid, tmp_path, "pause")
    libvirtd.kill()
    try:
        engine.kill()
    finally:
        libvirtd.start()
    wait_until(lambda: made.state()[0] == 1, 20, "the guard to resume")
    wait_until(lambda: not engine.guard_lives(), 10, "the guard to end")


@pytest.mark.feature("C11")
def test_when_the_guard_is_killed_too_self_heal_does_it(
    connection, libvirtd: Libvirtd, real_guest, tmp_path: Path
) -> None:
    guest = real_guest()
    engine = _Engine(libvirtd, guest.uuid, tmp_path, "freeze")
    try:
        assert thaw_guard.heal(connection, tmp_path, 1) == ()  # somebody works on it: not ours to touch
        assert guest.freeze_status() == "frozen"
        engine.kill_guard()
    finally:
        engine.kill()
    wait_until(lambda: _free(tmp_path, guest.uuid), 10, "the guard to be gone")
    assert guest.freeze_status() == "frozen"
    guest.hang_agent()
    assert thaw_guard.heal(connection, tmp_path, 0.5) == (guest.uuid,)
    assert len(thaw_guard.marks(tmp_path)) == 1  # not forgotten
    guest.wake_agent()
    assert thaw_guard.heal(connection, tmp_path, 20) == ()
    assert guest.freeze_status() == "thawed"
    assert thaw_guard.marks(tmp_path) == ()


@pytest.mark.feature("C11")
def test_self_heal_does_not_call_a_guest_thawed_whose_guard_is_still_at_it(
    libvirtd: Libvirtd, blank_domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other = blank_domain([]), blank_domain([])
    other.handle.suspend()
    (tmp_path / f"{other.uuid}.quiesced").write_text(json.dumps({"deeds": ["pause"], "guard": 1}))
    (tmp_path / f"{made.uuid}.quiesced").write_text(json.dumps({"deeds": ["pause"], "guard": 1}))
    made.handle.suspend()
    monkeypatch.setattr(healing, "THAW_SECONDS", 0.5)
    what = healing.HealSpec(libvirtd.uri, made.uuid, str(tmp_path / "scratch"), str(tmp_path))

    with DomainLock(tmp_path, made.uuid, "its guard"):
        busy = healing.heal(what)
    healed = healing.heal(what)

    assert busy.done == []
    assert any("does not confirm" in one for one in busy.failed)
    assert (healed.done, healed.failed) == ([f"thawed and resumed domain {made.uuid}"], [])
    assert made.state()[0] == 1
    assert [one.uuid for one in thaw_guard.marks(tmp_path)] == [other.uuid]  # each domain has its own turn


@pytest.mark.feature("C11")
def test_marks_of_domains_that_are_gone_are_dropped(connection: Connection, blank_domain, tmp_path: Path) -> None:
    paused = blank_domain([])
    paused.handle.suspend()
    stopped = blank_domain([], running=False)
    for name, text in (
        (str(uuid.UUID(int=5)), json.dumps({"deeds": ["freeze"], "guard": 1})),
        (stopped.uuid, json.dumps({"deeds": ["freeze", "pause"], "guard": 1})),
        (paused.uuid, "{"),  # unreadable: undo everything
    ):
        (tmp_path / f"{name}.quiesced").write_text(text)
    assert len(thaw_guard.marks(tmp_path)) == 3
    assert thaw_guard.heal(connection, tmp_path, 0.2) == (paused.uuid,)  # it has no agent to ask
    assert paused.state()[0] == 1
    assert [one.uuid for one in thaw_guard.marks(tmp_path)] == [paused.uuid]


@pytest.mark.feature("C11")
def test_a_guest_that_is_held_too_long_is_let_go_while_its_engine_still_waits(
    libvirtd: Libvirtd, blank_domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = blank_domain([])
    made.handle.suspend()
    monkeypatch.setattr(thaw_guard, "HELD_SECONDS_MAX", 0.2)
    reading, writing = os.pipe()
    left: list[set[str]] = []
    with os.fdopen(reading) as lines:
        guard = threading.Thread(target=lambda: left.append(thaw_guard.obey(lines, libvirtd.uri, made.uuid)))
        guard.start()
        try:
            os.write(writing, b"+pause\n")
            wait_until(lambda: made.state()[0] == 1, 20, "the guard to resume")
        finally:
            os.close(writing)
            guard.join()
    assert left == [{"pause"}]  # the engine has not said that it is certain


@pytest.mark.feature("C11")
def test_a_guard_goes_on_after_its_time_and_lets_go_of_the_lock(
    libvirtd: Libvirtd, blank_domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = blank_domain([])
    mark = tmp_path / f"{made.uuid}.quiesced"
    mark.write_text(json.dumps({"deeds": ["freeze"], "guard": os.getpid()}))
    monkeypatch.setattr(thaw_guard, "UNDO_SECONDS", 0.0)
    monkeypatch.setattr(thaw_guard, "_ROUND_SECONDS", 0.0)
    lock = DomainLock(tmp_path, made.uuid, "an engine that died")
    lock.acquire()
    own = (libvirtd.uri, made.uuid, mark, {"freeze"}, lock.fd)
    guard = threading.Thread(target=thaw_guard._undo_until, args=own)
    guard.start()
    try:
        wait_until(lambda: _free(tmp_path, made.uuid), 10, "the lock")
        assert guard.is_alive()  # no agent has confirmed
    finally:
        mark.unlink()
        guard.join(30)
    assert not guard.is_alive()


def test_a_mark_that_cannot_be_written_has_its_type(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError):
        thaw_guard._write_mark(tmp_path / "gone" / "x.quiesced", thaw_guard.Mark("x", ("freeze",), 1))


def test_the_end_of_the_pipe_leaves_what_was_not_undone() -> None:
    assert thaw_guard.listen(io.StringIO("")) == set()
    assert thaw_guard.listen(io.StringIO("+freeze\n-freeze\n+pause\n")) == {"pause"}
    assert thaw_guard.listen(io.StringIO("+freeze\n+pause\n-pause\n")) == {"freeze"}
    assert thaw_guard.listen(io.StringIO("+freeze\n-freeze\n")) == set()
