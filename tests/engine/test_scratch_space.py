"""A guest that overwrites faster than there is room for: its backup is given up, and it never notices.

The guest writes to a raw disk of its own, as fast as it can, the blocks of which have to be saved into the scratch files first.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from engine.hypervisor.connection import DomainEvent, open_connection
from engine.source import scratch, watch
from engine.spec import Settings
from engine.units import MIB
from tests.engine.aftermath import At, assert_host_is_clean, assert_only
from tests.engine.rig import Rig, reason
from tests.servers.guest import RealGuest
from tests.servers.libvirtd import Libvirtd
from tests.servers.small_disk import fill, shared_disk
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def guest(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealGuest]:
    folder = tmp_path_factory.mktemp("guest") / "guest"
    with RealGuest(libvirtd.uri, folder, ("qcow2", "qcow2", "raw")) as guest:
        yield guest


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Libvirtd) -> Rig:
    slow = Settings(read_limit=4 * MIB, compression_level=1)  # longer than the guest needs to overwrite it all
    rig = Rig.make(tmp_path, libvirtd.uri, encrypted=False)
    rig.settings = slow
    return rig


@contextlib.contextmanager
def events_of(rig: Rig, guest: RealGuest) -> Iterator[list[DomainEvent]]:
    """Collect what libvirt tells of the guest's life."""
    seen: list[DomainEvent] = []
    with open_connection(rig.uri) as connection:
        connection.watch_domain(connection.domain(guest.uuid), seen.append)
        yield seen


def overwrite(guest: RealGuest, mib: int) -> None:
    """Begin to overwrite so much of vdc, past the guest's page cache; /run/wrote is there when it is done."""
    write = f"dd if=/dev/zero of=/dev/vdc bs=1M count={mib} oflag=direct && touch /run/wrote"
    with contextlib.suppress(libvirt.libvirtError):  # it may be stopped before it has answered that it began
        guest.guest_exec(f"rm -f /run/wrote; ( {write} ) </dev/null >/dev/null 2>&1 &")


def has_written(guest: RealGuest) -> bool:
    with contextlib.suppress(libvirt.libvirtError):  # the guest stands still, so its agent does
        return "yes" in guest.guest_exec("[ -e /run/wrote ] && echo yes; true")
    return False


def look_away(monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool]) -> None:
    """Let the watch see room where there is none, as if it came late."""
    real = scratch.free_room
    monkeypatch.setattr(watch, "free_room", lambda folder: real(folder) if until() else 1 << 50)


def stopped(seen: list[DomainEvent]) -> bool:
    return any(one.change == "suspended" and one.io_error for one in seen)


@pytest.mark.feature("C11", "T11")
def test_a_fast_guest_ends_the_backup_before_it_is_stopped(rig: Rig, guest: RealGuest, libvirtd: Libvirtd) -> None:
    with shared_disk(libvirtd, rig.folder / "scratch", 240 * MIB), events_of(rig, guest) as seen:
        report = At("read", lambda: overwrite(guest, 250))
        outcome = rig.run(report=report, backup=rig.backup_job(guest.uuid, consistency="none"))

        assert (outcome.state, reason(outcome)) == ("failed", "SCRATCH_SHORT")
        assert seen == []  # neither paused nor resumed
        assert_host_is_clean(rig, guest)
        assert_only(rig.folder / "storage", guest.uuid)
        wait_until(lambda: has_written(guest), 60, "the guest's write")
    failure = outcome.failure
    print(failure)
    assert failure is not None
    assert failure["facts"]["path"] == str(rig.folder / "scratch")
    assert int(failure["facts"]["needed"]) > int(failure["facts"]["free"])
    assert failure["facts"]["path"] in failure["message"]


@pytest.mark.feature("C11")
def test_a_guest_that_found_no_room_all_the_same_goes_on(
    rig: Rig, guest: RealGuest, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_and_write() -> None:
        fill(rig.folder / "scratch")
        overwrite(guest, 40)

    with shared_disk(libvirtd, rig.folder / "scratch", 240 * MIB), events_of(rig, guest) as seen:
        look_away(monkeypatch, lambda: stopped(seen))
        outcome = rig.run(report=At("read", fill_and_write), backup=rig.backup_job(guest.uuid, consistency="none"))
        (rig.folder / "scratch" / "somebody-elses").unlink()

        assert (outcome.state, reason(outcome)) == ("failed", "SCRATCH_SHORT")
        assert stopped(seen)
        assert_host_is_clean(rig, guest)
        assert_only(rig.folder / "storage", guest.uuid)
        wait_until(lambda: has_written(guest), 60, "the guest's write")


@pytest.mark.feature("C11")
def test_a_moment_without_room_costs_the_guest_a_moment_and_not_the_backup(
    rig: Rig, guest: RealGuest, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_away(monkeypatch, lambda: False)
    rig.settings = Settings()

    with shared_disk(libvirtd, rig.folder / "scratch", 240 * MIB), events_of(rig, guest) as seen:

        def squeeze() -> None:
            give_back = fill(rig.folder / "scratch")
            overwrite(guest, 8)
            wait_until(lambda: stopped(seen), 30, "the guest to stop")
            give_back()
            wait_until(lambda: has_written(guest), 30, "the guest to go on")

        outcome = rig.run(report=At("read", squeeze), backup=rig.backup_job(guest.uuid, consistency="none"))
        assert reason(outcome) == ""
        assert_host_is_clean(rig, guest)
