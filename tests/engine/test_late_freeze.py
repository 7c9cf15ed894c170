"""A freeze that timed out comes all the same, when its agent gets to it: whoever has died by then, the guest ends thawed.

One guest whose agent hangs in the middle of a freeze, and a database that writes all the while; an engine in a process of its
own asks it to freeze, gives up, pauses it, and is killed there, alone or with its guard, libvirtd, or all of them. Then the
agent goes on, and freezes.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import Config
from agent.heal import heal_marked
from engine.hypervisor import thaw_guard
from tests.servers import guest_writer
from tests.servers.guest import RealGuest
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

BOUND_SECONDS = 60.0  # on a busy machine; 3 s on an idle one

_ENGINE = """
import sys
from pathlib import Path
from engine.hypervisor import quiesce
from engine.hypervisor.connection import open_connection
from engine.hypervisor.lock import DomainLock
uri, domain, folder, seconds = sys.argv[1:]
quiesce._THAW_SECONDS = 0.5
with open_connection(uri) as connection, DomainLock(Path(folder), domain) as lock:
    with quiesce.quiesce(
        connection.domain(domain), "freeze_or_pause", Path(folder), int(seconds), lock_fd=lock.fd
    ) as quiesced:
        print(quiesced.reached, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def guest(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealGuest]:
    with RealGuest(libvirtd.uri, tmp_path_factory.mktemp("guest") / "guest") as guest:
        guest_writer.start(guest)
        yield guest


@pytest.fixture
def config(libvirtd: Libvirtd, tmp_path: Path) -> Config:
    return Config(
        libvirt_uri=libvirtd.uri,
        run_folder=tmp_path,
        scratch_folder=tmp_path / "scratch",
        engine_command=(sys.executable, "-m", "engine.worker"),
    )


@contextlib.contextmanager
def engine(config: Config, guest: RealGuest, freeze_seconds: int) -> Iterator["subprocess.Popen[str]"]:
    """Run an engine that asks for a freeze; killed at the block's end."""
    command = [sys.executable, "-c", _ENGINE, config.libvirt_uri, guest.uuid]
    child = subprocess.Popen(
        [*command, str(config.lock_folder), str(freeze_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def agent_started(config: Config) -> Iterator[None]:
    """Do for the time of the block what bm-agent does about guests from its start on."""
    loop = asyncio.new_event_loop()
    healing = loop.create_task(heal_marked(config))
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait({healing})))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(healing.cancel)
        thread.join()
        loop.close()


def the_mark(config: Config) -> thaw_guard.Mark:
    wait_until(lambda: thaw_guard.marks(config.lock_folder), 30, "the mark of a freeze")
    (mark,) = thaw_guard.marks(config.lock_folder)
    return mark


def assert_recovers(config: Config, guest: RealGuest) -> None:
    """Let the guest's agent go on as soon as the guest runs: then it freezes, and somebody has to undo that."""
    wait_until(lambda: guest.state()[0] == 1, BOUND_SECONDS, "the guest to run")
    assert thaw_guard.marks(config.lock_folder)  # nobody believes in a thaw that the guest has not confirmed
    before = guest.freeze_calls()
    guest.release_freeze()
    wait_until(lambda: not thaw_guard.marks(config.lock_folder), BOUND_SECONDS, "the guest's word that it is thawed")
    assert guest.freeze_status() == "thawed"
    assert guest.state()[0] == 1
    guest_writer.wait_for_more(guest)
    assert guest.freeze_calls()[len(before) :][:2] == ["freeze", "thaw"]  # it did come late


@pytest.mark.feature("C11", "T17")
@pytest.mark.parametrize("dies", ["engine", "engine and libvirtd", "all"])
def test_a_late_freeze_is_undone_whoever_dies(config: Config, guest: RealGuest, libvirtd: Libvirtd, dies: str) -> None:
    guest.hold_freeze()
    with engine(config, guest, 1) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "paused"
        assert guest.state()[0] == 3
        mark = the_mark(config)
        assert set(mark.deeds) == {"freeze", "pause"}
        if "libvirtd" in dies or dies == "all":
            libvirtd.kill()
        if dies == "all":
            os.kill(mark.guard, signal.SIGKILL)
    with contextlib.ExitStack() as stack:
        if "libvirtd" in dies or dies == "all":
            libvirtd.start()
        if dies == "all":
            assert guest.state()[0] == 3  # nobody is left
            stack.enter_context(agent_started(config))
        assert_recovers(config, guest)
    wait_until(lambda: not mark.guarded(), BOUND_SECONDS, "the guard to end")


@pytest.mark.feature("C11")
def test_an_engine_killed_while_it_waits_for_the_freeze(config: Config, guest: RealGuest) -> None:
    guest.hold_freeze()
    with engine(config, guest, 30):
        mark = the_mark(config)
        wait_until(
            lambda: "hook freeze" in guest.run("ps | grep '[f]sfreeze-hook'; true"), 30, "the agent to have the request"
        )
        assert mark.deeds == ("freeze",)
    assert_recovers(config, guest)
    wait_until(lambda: not mark.guarded(), BOUND_SECONDS, "the guard to end")


@pytest.mark.feature("C11")
def test_a_guest_whose_agent_dies_while_it_is_frozen(config: Config, guest: RealGuest) -> None:
    """The next agent knows from its file that the guest is frozen, and obeys the thaw."""
    with engine(config, guest, 30) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "frozen"
        guest.run("touch /run/agent-off; kill -9 $(pidof qemu-ga)")
    held = guest_writer.acknowledged(guest)
    assert json.loads(thaw_guard.mark_path(config.lock_folder, guest.uuid).read_bytes())["deeds"] == ["freeze"]
    guest.run("rm /run/agent-off")
    wait_until(lambda: not thaw_guard.marks(config.lock_folder), BOUND_SECONDS, "the guest's word that it is thawed")
    assert guest.freeze_status() == "thawed"
    wait_until(lambda: guest_writer.acknowledged(guest) > held + 1, BOUND_SECONDS, "the writer to go on")
