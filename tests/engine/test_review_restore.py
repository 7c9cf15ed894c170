"""Restores that cannot begin, or are not wanted any more."""

from pathlib import Path
from typing import Any

import pytest

from engine.units import MIB
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile


@pytest.mark.feature("M15")
def test_no_disk_is_touched_when_another_cannot_be_opened(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disks = [
        DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB),
        DiskFile("vdb", tmp_path / "vdb.raw", "raw").create(16 * MIB),
    ]
    domain = blank_domain(disks)
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, MIB, 1)
    made = rig.back_up(domain.uuid)
    domain.write("vda", 0, MIB, 2)
    domain.handle.destroy()
    before = digest(disks[0].path, "qcow2")

    other = blank_domain([disks[1]])

    outcome = rig.restore(domain.uuid, made["backup_id"])

    assert reason(outcome) == "VM_BUSY"
    assert digest(disks[0].path, "qcow2") == before
    other.close()
    assert reason(rig.restore(domain.uuid, made["backup_id"])) == ""
    assert digest(disks[0].path, "qcow2") != before
