"""Backups of a guest that does not run and was not stopped by us: it is as before afterwards.

The guests are one sector long: SeaBIOS starts what the first sector of their disk holds.
"""

from pathlib import Path

import pytest

from engine.units import MIB
from tests.engine.aftermath import PAUSED, assert_host_is_clean, assert_restores
from tests.engine.rig import Rig, reason, result
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.servers.small_disk import fill, shared_disk
from tests.waiting import wait_until

SUSPENDED, IO_ERROR = 7, 5
_SLEEP = "<features><acpi/></features><pm><suspend-to-mem enabled='yes'/></pm>"
_HALT = bytes.fromhex("f4 eb fd")  # hlt; jmp to it
# Port 0x604 is the power management's control word: sleep type 1 is suspend to memory, bit 13 begins it.
_SUSPEND = bytes.fromhex("ba 04 06  b8 00 24  ef") + _HALT  # mov dx, 604h; mov ax, 2400h; out dx, ax
# BIOS call 13h, function 3: write one sector, cylinder 1, head 0, sector 1 of the first disk, from the boot sector's memory.
_WRITE = bytes.fromhex("31 c0 8e c0  b8 01 03  bb 00 7c  b9 01 01  ba 80 00  cd 13") + _HALT


def _bootable(path: Path, code: bytes) -> DiskFile:
    """Make a disk whose first sector is run at the start."""
    disk = DiskFile("vda", path, "raw").create(16 * MIB)
    with path.open("r+b") as file:
        file.write(code.ljust(510, b"\0") + b"\x55\xaa")
    return disk


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Libvirtd) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


@pytest.mark.feature("T17", "T18", "T19", "T20")
def test_a_guest_that_sleeps_goes_on_sleeping(rig: Rig, blank_domain, tmp_path: Path) -> None:
    domain: BlankDomain = blank_domain([_bootable(tmp_path / "vda.raw", _SUSPEND)], elements=_SLEEP)
    wait_until(lambda: domain.state()[0] == SUSPENDED, 30, "the guest to fall asleep")

    made = rig.back_up(domain.uuid)

    assert made["consistency"] == "paused"
    assert rig.report.warnings == []
    assert any("suspended already" in info for info in rig.report.infos)
    assert_restores(rig, domain, made["backup_id"])
    assert rig.back_up(domain.uuid, consistency="none")["consistency"] == "crash"
    assert rig.back_up(domain.uuid, consistency="pause")["consistency"] == "paused"
    assert reason(rig.run(backup=rig.backup_job(domain.uuid, consistency="freeze"))) == "QUIESCE_FAILED"
    assert_host_is_clean(rig, domain, SUSPENDED)


@pytest.mark.feature("T17", "T20")
def test_a_guest_that_an_io_error_had_stopped_stays_stopped_and_its_owner_hears_of_it(
    rig: Rig, blank_domain, libvirtd: Libvirtd, tmp_path: Path
) -> None:
    with shared_disk(libvirtd, tmp_path / "images", 40 * MIB) as folder:
        disk = _bootable(folder / "vda.raw", _WRITE)
        give_back = fill(folder)
        domain: BlankDomain = blank_domain([disk])
        try:
            wait_until(lambda: domain.state() == (PAUSED, IO_ERROR), 30, "the guest to stop for want of room")
            for mode, reached in (("freeze_or_pause", "paused"), ("none", "crash")):
                outcome = rig.run(backup=rig.backup_job(domain.uuid, consistency=mode))
                assert (outcome.state, result(outcome)["consistency"]) == ("completed_with_warnings", reached)
                assert any("I/O error" in warning for warning in outcome.warnings)
                assert domain.state() == (PAUSED, IO_ERROR)
            assert_host_is_clean(rig, domain, PAUSED)
            give_back()
            domain.handle.resume()
            assert domain.state()[0] == 1
        finally:
            domain.close()
