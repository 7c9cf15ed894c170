"""A type for each disk in one run, and what each leaves behind for the next."""

from pathlib import Path
from typing import Any

import pytest

from engine.units import MIB
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile

pytestmark = pytest.mark.feature("C12")


@pytest.mark.feature("T3")
@pytest.mark.feature("T4")
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_mixed_types_in_one_run(tmp_path: Path, libvirtd: Any, blank_domain: Any, state: str) -> None:
    disks = [DiskFile(name, tmp_path / f"{name}.qcow2").create(16 * MIB) for name in ("vda", "vdb")]
    domain = blank_domain(disks)
    rig = Rig.make(tmp_path, libvirtd.uri)
    runs: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["full", "full"]),
        ({"vda": "incremental", "vdb": "full"}, ["incremental", "full"]),
        ({"vda": "full", "vdb": "copy"}, ["full", "copy"]),
        ({"vda": "copy"}, ["copy", "incremental"]),  # vdb counts from its full, not from the copy
        ({"vda": "differential"}, ["differential", "incremental"]),
        ({"vda": "copy", "vdb": "copy"}, ["copy", "copy"]),
        ({}, ["incremental", "incremental"]),
    ]
    made, content, parents = [], [], []
    for number, (types, expected) in enumerate(runs, 1):
        if state == "stopped" and number > 1:
            domain.handle.create()
        for place, disk in enumerate(disks):
            domain.write(disk.target, number * MIB, MIB, 16 * place + number)
        if state == "stopped":
            domain.handle.destroy()
        backup = rig.back_up(domain.uuid, disk_types=types)
        assert [one["type"] for one in backup["disks"]] == expected, (number, backup["disks"])
        made.append(backup["backup_id"])
        parents.append({one["disk"]: one["parent_backup_id"] for one in backup["disks"]})
        content.append({disk.target: digest(disk.path, "qcow2") for disk in disks})

    assert parents[3]["vdb"] == made[1]
    assert parents[4] == {"vda": made[2], "vdb": made[3]}
    assert parents[6] == {"vda": made[4], "vdb": made[4]}
    for number, backup_id in enumerate(made):
        files = rig.restore_to(tmp_path / f"out{number}", domain.uuid, backup_id)
        assert {disk: digest(path) for disk, path in files.items()} == content[number], number


def test_a_type_for_a_disk_that_is_not_there(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    job = rig.backup_job(domain.uuid, disk_types={"vdz": "full"})
    assert reason(rig.run(backup=job)) == "DISK_NOT_FOUND"
