"""Stopped domains with snapshots below them."""

import subprocess
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.units import MIB
from tests.engine.rig import Rig, digest
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
@pytest.mark.feature("T7")
def test_a_stopped_domain_that_was_backed_up_above_its_snapshot_goes_on_from_there(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, 4 * MIB, 0x11)
    overlay = tmp_path / "overlay.qcow2"
    take_snapshot(domain, overlay)
    domain.write("vda", 9 * MIB, MIB, 0x33)
    rig.back_up(domain.uuid)
    domain.write("vda", MIB, MIB, 0x44)
    domain.handle.destroy()

    for _ in range(2):
        made = rig.back_up(domain.uuid)

        assert [(one["type"], one["fallback_reason"]) for one in made["disks"]] == [("incremental", "")]
        restored = rig.restore_to(tmp_path / made["backup_id"], domain.uuid, made["backup_id"])
        assert digest(restored["vda"]) == digest(overlay, "qcow2")


@pytest.mark.feature("T26")
@pytest.mark.parametrize("running", [False, True])
def test_an_overlay_whose_base_was_folded_into_it_by_hand_is_not_trusted(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, *, running: bool
) -> None:
    """What was discarded below before the snapshot is in no record any more: the overlay never held it."""
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, 4 * MIB, 0x11)
    rig.back_up(domain.uuid)
    domain.discard("vda", MIB, MIB)
    overlay = tmp_path / "overlay.qcow2"
    take_snapshot(domain, overlay)
    domain.write("vda", 9 * MIB, MIB, 0x33)
    domain.handle.destroy()
    subprocess.run(["qemu-img", "rebase", "-f", "qcow2", "-b", "", overlay], check=True)
    (tmp_path / "vda.qcow2").unlink()
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    domain.connection.defineXML(domain.xml().replace("vda.qcow2", "overlay.qcow2"))
    if running:
        domain.handle.create()

    made = rig.back_up(domain.uuid)

    assert [(one["type"], one["fallback_reason"]) for one in made["disks"]] == [("full", "disk_replaced")]
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert digest(restored["vda"]) == digest(overlay, "qcow2")
