"""Backups of real domains, restored and compared byte by byte."""

from dataclasses import replace
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


@pytest.mark.feature("M15")
@pytest.mark.feature("M16")
def test_a_restore_into_the_domain_brings_back_the_point_and_starts_it_again(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(64 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 3 * MIB, 2 * MIB, 0x11)
    first, first_digest = rig.back_up(domain.uuid), digest(disk.path, "qcow2")
    domain.write("vda", 4 * MIB, 30 * MIB, 0x22)
    second, second_digest = rig.back_up(domain.uuid), digest(disk.path, "qcow2")
    domain.write("vda", 0, 64 * MIB, 0x33)

    for made, expected in ((second, second_digest), (first, first_digest)):
        outcome = rig.restore(domain.uuid, made["backup_id"])
        assert reason(outcome) == ""
        assert outcome.result is not None
        assert outcome.result["server_started"]
        assert domain.state()[0] == 1
        assert digest(disk.path, "qcow2") == expected

    after = rig.back_up(domain.uuid)
    assert after["disks"][0]["type"] == "full"
    assert after["disks"][0]["fallback_reason"] == "restored_over"


@pytest.mark.feature("T28")
@pytest.mark.feature("T10")
def test_disks_of_mixed_formats_go_together_and_a_cdrom_is_left_out(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disks = [
        DiskFile("vda", tmp_path / "a.qcow2").create(16 * MIB),
        DiskFile("vdb", tmp_path / "b.raw", "raw").create(8 * MIB),
    ]
    cdrom = "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>"
    domain = blank_domain(disks, devices=cdrom)
    rig = Rig.make(tmp_path, libvirtd.uri, encrypted=False)
    domain.write("vda", 0, MIB, 1)
    domain.write("vdb", MIB, MIB, 2)
    rig.back_up(domain.uuid)
    domain.write("vda", 2 * MIB, MIB, 3)
    domain.write("vdb", 3 * MIB, MIB, 4)

    made = rig.back_up(domain.uuid)

    assert [(one["disk"], one["type"], one["fallback_reason"]) for one in made["disks"]] == [
        ("vda", "incremental", ""),
        ("vdb", "incremental", ""),
    ]
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    assert digest(restored["vda"]) == digest(disks[0].path, "qcow2")
    assert digest(restored["vdb"]) == digest(disks[1].path)


@pytest.mark.feature("T24")
def test_a_stopped_domain_is_backed_up_from_its_images(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, MIB, 1)
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    domain.handle.destroy()

    stopped = rig.back_up(domain.uuid)
    assert (stopped["consistency"], stopped["disks"][0]["type"]) == ("offline", "incremental")
    restored = rig.restore_to(tmp_path / "one", domain.uuid, stopped["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path, "qcow2")

    domain.handle.create()
    domain.write("vda", 9 * MIB, MIB, 3)
    running = rig.back_up(domain.uuid)
    assert running["disks"][0]["type"] == "incremental"
    restored = rig.restore_to(tmp_path / "two", domain.uuid, running["backup_id"])
    assert digest(restored["vda"]) == digest(disk.path, "qcow2")


@pytest.mark.feature("R19")
def test_what_is_needed_is_not_deleted_and_what_goes_leaves_nothing(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    full, incremental = rig.back_up(domain.uuid), rig.back_up(domain.uuid)

    assert reason(rig.delete(domain.uuid, full["backup_id"])) == "STILL_NEEDED"
    assert [record["backup"]["backup_id"] for record in rig.reindex()] == [full["backup_id"], incremental["backup_id"]]
    both = rig.delete(domain.uuid, full["backup_id"], incremental["backup_id"])

    assert reason(both) == ""
    assert rig.reindex() == []
    assert not (tmp_path / "storage" / "servers").exists()


@pytest.mark.feature("T3")
@pytest.mark.feature("T4")
def test_a_differential_needs_only_the_full_and_a_copy_leaves_the_chain_alone(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, 4 * MIB, 1)
    full = rig.back_up(domain.uuid)
    domain.write("vda", MIB, MIB, 2)
    first = rig.back_up(domain.uuid)
    copy = rig.back_up(domain.uuid, type="copy")
    domain.write("vda", 9 * MIB, MIB, 3)

    differential, expected = rig.back_up(domain.uuid, type="differential"), digest(disk.path, "qcow2")
    domain.write("vda", 11 * MIB, MIB, 4)
    last, last_expected = rig.back_up(domain.uuid), digest(disk.path, "qcow2")

    assert differential["needed_backup_ids"] == [full["backup_id"], differential["backup_id"]]
    assert last["needed_backup_ids"] == [full["backup_id"], differential["backup_id"], last["backup_id"]]
    assert [one["type"] for one in (*copy["disks"], *last["disks"])] == ["copy", "incremental"]
    assert reason(rig.delete(domain.uuid, first["backup_id"], copy["backup_id"])) == ""
    for made, wanted in ((differential, expected), (last, last_expected)):
        restored = rig.restore_to(tmp_path / made["backup_id"], domain.uuid, made["backup_id"])
        assert digest(restored["vda"]) == wanted


@pytest.mark.feature("S29")
def test_a_storage_that_was_used_is_not_begun_anew_by_a_server_that_is_new_there(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    rig.target = replace(rig.target, initialized=True)

    assert reason(rig.run(backup=rig.backup_job(domain.uuid))) == "REPOSITORY_MISSING"

    assert list((tmp_path / "storage").iterdir()) == []
    assert domain.handle.listAllCheckpoints() == []
    rig.target = replace(rig.target, initialized=False)
    rig.back_up(domain.uuid)
