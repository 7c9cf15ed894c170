"""Backups of real domains, restored and compared byte by byte."""

from pathlib import Path
from typing import Any

import pytest

from engine.units import KIB, MIB
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile


@pytest.mark.feature("T1")
@pytest.mark.feature("T2")
@pytest.mark.feature("T6")
@pytest.mark.feature("T7")
@pytest.mark.feature("T11")
def test_every_point_of_a_chain_is_what_the_disk_was(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(64 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, 5 * MIB, 0x11)
    domain.write("vda", 40 * MIB, 64 * KIB, 0x22)
    points = {}
    for step, start in enumerate((1 * MIB, 40 * MIB + 16 * KIB, 63 * MIB)):
        made = rig.back_up(domain.uuid)
        points[made["backup_id"]] = digest(disk.path, "qcow2")
        assert [one["type"] for one in made["disks"]] == ["full" if step == 0 else "incremental"]
        assert made["disks"][0]["fallback_reason"] == ("first" if step == 0 else "")
        domain.write("vda", start, 200 * KIB, 0x30 + step)

    for backup_id, expected in points.items():
        restored = rig.restore_to(tmp_path / backup_id, domain.uuid, backup_id)
        assert digest(restored["vda"]) == expected
    assert reason(rig.verify(domain.uuid)) == ""
    assert reason(rig.verify(domain.uuid, with_key=False)) == ""
