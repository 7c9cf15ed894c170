"""Stopped domains in the ways that a host's daily life brings: snapshots below them, a start in the middle of a backup."""

from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.units import MIB
from tests.engine.aftermath import RUNNING, SHUTOFF, At, assert_host_is_clean, assert_only
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile


def take_snapshot(domain: Any, overlay: Path) -> None:
    """Put an overlay above vda, as `virsh snapshot-create-as --disk-only --no-metadata` does."""
    xml = f"<domainsnapshot><disks><disk name='vda'><source file='{overlay}'/></disk></disks></domainsnapshot>"
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    domain.handle.snapshotCreateXML(xml, flags)


@pytest.mark.feature("T24")
@pytest.mark.feature("T26")
@pytest.mark.parametrize("kind", ["incremental", "differential"])
def test_a_stopped_domain_with_a_snapshot_since_the_last_backup_loses_nothing(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, kind: str
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, MIB, 0x11)
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 0x22)
    overlay = tmp_path / "overlay.qcow2"
    take_snapshot(domain, overlay)
    domain.write("vda", 9 * MIB, MIB, 0x33)
    domain.handle.destroy()

    made = rig.back_up(domain.uuid, type=kind)

    assert made["disks"][0]["type"] == "full"
    assert made["disks"][0]["fallback_reason"] in {"bitmap_lost", "disk_replaced"}
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert digest(restored["vda"]) == digest(overlay, "qcow2")

    domain.handle.create()
    domain.write("vda", 11 * MIB, MIB, 0x44)
    after = rig.back_up(domain.uuid)
    restored = rig.restore_to(tmp_path / "after", domain.uuid, after["backup_id"])
    assert digest(restored["vda"]) == digest(overlay, "qcow2")


@pytest.mark.feature("T24")
@pytest.mark.parametrize("stops_again", [False, True])
def test_a_start_during_the_backup_of_a_raw_disk_leaves_no_torn_backup(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, *, stops_again: bool
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.raw", "raw").create(16 * MIB)
    domain = blank_domain([disk], running=False)
    rig = Rig.make(tmp_path, libvirtd.uri)

    def start() -> None:
        domain.handle.create()
        domain.write("vda", 3 * MIB, MIB, 0x55)
        if stops_again:
            domain.handle.destroy()

    report = At("read", start)
    outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

    assert report.fired.is_set()
    assert reason(outcome) == "VM_BUSY"
    assert_only(tmp_path / "storage", domain.uuid)
    assert_host_is_clean(rig, domain, SHUTOFF if stops_again else RUNNING)
    made = rig.back_up(domain.uuid)
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path)
