"""Raw disks of running domains beside qcow2 ones: real incrementals as long as QEMU runs, an explained full after that."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.hypervisor.checkpoints import checkpoint_name
from engine.units import KIB, MIB
from tests.engine.mixed import (
    ALL,
    RAW,
    assert_is,
    at_each_instant,
    digests,
    mixed_domain,
    transient_bitmaps,
    types,
    write_all,
)
from tests.engine.rig import Rig, digest, new_storage, reason, result
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.loop import loop_device

FULL = dict.fromkeys(ALL, ("full", "first"))
INCREMENTAL = dict.fromkeys(ALL, ("incremental", ""))


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> Iterator[BlankDomain]:
    with mixed_domain(tmp_path, blank_domain) as made:
        write_all(made, 0, 5 * MIB, 0x11)
        yield made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


@pytest.mark.feature("T8")
@pytest.mark.feature("T11")
@pytest.mark.feature("T28")
def test_every_point_of_a_mixed_domain_is_what_its_disks_were(
    rig: Rig, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    instants = at_each_instant(monkeypatch)
    points = {}
    for step, start in enumerate((1 * MIB, 9 * MIB + 16 * KIB, 15 * MIB)):
        made = rig.back_up(domain.uuid)
        assert types(made) == (FULL if step == 0 else INCREMENTAL)
        points[made["backup_id"]] = digests(domain)
        write_all(domain, start, 200 * KIB, 0x30 + step)
    last, read = rig.back_up(domain.uuid), rig.report.done
    points[last["backup_id"]] = digests(domain)

    assert instants == list(points.values())
    for backup_id, expected in points.items():
        assert_is(rig, domain, backup_id, expected)
    assert read <= len(ALL) * 256 * KIB  # what was written since, in pieces of 64 KiB
    # one record a disk, that of the newest point
    assert [len(names) for names in transient_bitmaps(domain).values()] == [1, 1]
    assert reason(rig.verify(domain.uuid)) == ""


@pytest.mark.feature("T8")
@pytest.mark.feature("T26")
@pytest.mark.feature("C12")
def test_after_a_restart_of_the_domain_a_raw_disk_is_an_explained_full_beside_an_incremental(
    rig: Rig, domain: BlankDomain
) -> None:
    rig.back_up(domain.uuid)
    domain.handle.destroy()
    domain.handle.create()
    write_all(domain, 3 * MIB, MIB, 0x44)

    made = rig.back_up(domain.uuid)
    assert types(made) == {"vda": ("incremental", ""), **dict.fromkeys(RAW, ("full", "bitmap_lost"))}
    assert_is(rig, domain, made["backup_id"], digests(domain))
    write_all(domain, 7 * MIB, MIB, 0x45)

    after = rig.back_up(domain.uuid)
    assert types(after) == INCREMENTAL
    assert_is(rig, domain, after["backup_id"], digests(domain))


@pytest.mark.feature("T8")
@pytest.mark.feature("T26")
def test_a_stopped_raw_disk_is_a_full_each_time_and_so_is_the_first_after_it(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    domain.handle.destroy()

    for why in ("bitmap_lost", "untracked"):
        made = rig.back_up(domain.uuid)
        assert types(made) == {"vda": ("incremental", ""), **dict.fromkeys(RAW, ("full", why))}
    domain.handle.create()
    write_all(domain, 2 * MIB, MIB, 0x21)
    running = rig.back_up(domain.uuid)

    assert types(running) == {"vda": ("incremental", ""), **dict.fromkeys(RAW, ("full", "untracked"))}
    assert_is(rig, domain, running["backup_id"], digests(domain))
    assert types(rig.back_up(domain.uuid)) == INCREMENTAL


@pytest.mark.feature("T8")
def test_a_paused_domain_is_recorded_too(rig: Rig, domain: BlankDomain) -> None:
    domain.handle.suspend()
    rig.back_up(domain.uuid)
    domain.handle.resume()
    write_all(domain, 6 * MIB, MIB, 0x21)
    domain.handle.suspend()

    made = rig.back_up(domain.uuid)

    assert types(made) == INCREMENTAL
    assert_is(rig, domain, made["backup_id"], digests(domain))


@pytest.mark.feature("T3")
@pytest.mark.feature("T4")
@pytest.mark.feature("T8")
def test_differentials_and_copies_of_raw_disks(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    write_all(domain, 1 * MIB, 64 * KIB, 2)
    rig.back_up(domain.uuid)
    write_all(domain, 2 * MIB, 64 * KIB, 3)
    copy, at_copy = rig.back_up(domain.uuid, type="copy"), digests(domain)
    write_all(domain, 3 * MIB, 64 * KIB, 4)

    differential, expected = rig.back_up(domain.uuid, type="differential"), digests(domain)

    assert types(copy) == dict.fromkeys(ALL, ("copy", ""))
    assert types(differential) == dict.fromkeys(ALL, ("differential", ""))
    assert_is(rig, domain, copy["backup_id"], at_copy)
    assert_is(rig, domain, differential["backup_id"], expected)


@pytest.mark.feature("T8")
def test_two_storages_follow_one_raw_disk_each_with_a_record_of_its_own(rig: Rig, domain: BlankDomain) -> None:
    other = replace(rig)
    other.target, other.key = new_storage(rig.folder / "other", encrypted=False)
    made = {}
    for step, one in enumerate((rig, other, rig, rig, other)):
        made = one.back_up(domain.uuid)
        assert types(made) == (FULL if step < 2 else INCREMENTAL)
        assert_is(one, domain, made["backup_id"], digests(domain))
        write_all(domain, (step + 5) * MIB, 64 * KIB, 0x50 + step)

    assert [len(names) for names in transient_bitmaps(domain).values()] == [2, 2]


@pytest.mark.feature("R19")
def test_with_the_backups_of_a_raw_disk_its_record_goes(rig: Rig, domain: BlankDomain) -> None:
    made = [rig.back_up(domain.uuid)["backup_id"] for _ in range(2)]

    assert reason(rig.delete(domain.uuid, *made, domain_uuid=domain.uuid)) == ""

    assert transient_bitmaps(domain) == {}
    assert domain.handle.listAllCheckpoints() == []


@pytest.mark.feature("T8")
@pytest.mark.feature("T11")
def test_raw_disks_alone_and_of_odd_sizes(tmp_path: Path, rig: Rig, blank_domain: Any) -> None:
    """There is no qcow2 beside them, so no checkpoint of libvirt's at all."""
    disks = [DiskFile(name, tmp_path / f"{name}.raw", "raw").create(8 * MIB + 512 * 3) for name in ("vda", "vdb")]
    with disks[1].path.open("r+b") as file:
        file.truncate(8 * MIB + 1000)  # QEMU rounds it up to 1024
    domain = blank_domain(disks)
    domain.write("vda", 8 * MIB, 1024, 1)
    domain.write("vdb", 8 * MIB - 512, 1024, 2)
    rig.back_up(domain.uuid)
    domain.write("vda", 8 * MIB + 512, 1024, 3)
    domain.write("vdb", 8 * MIB, 1024, 4)

    made = rig.back_up(domain.uuid)

    assert set(types(made).values()) == {("incremental", "")}
    restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
    for disk in disks:
        content = restored[disk.target].read_bytes()
        now = disk.path.read_bytes()
        assert content == now.ljust(len(content), b"\0")
    assert domain.handle.listAllCheckpoints() == []


@pytest.mark.feature("T8")
def test_a_qcow2_image_of_the_old_version_is_recorded_in_memory_too(
    tmp_path: Path, rig: Rig, blank_domain: Any
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB, "-o", "compat=0.10")])
    rig.back_up(domain.uuid)
    domain.write("vda", 3 * MIB, MIB, 3)

    made = rig.back_up(domain.uuid)

    assert types(made) == {"vda": ("incremental", "")}
    assert_is(rig, domain, made["backup_id"], digests(domain))


@pytest.mark.feature("T27")
@pytest.mark.feature("T26")
def test_a_raw_disk_that_grew_is_an_explained_full(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    domain.handle.blockResize("vdb", 20 * MIB, 1)  # VIR_DOMAIN_BLOCK_RESIZE_BYTES
    domain.write("vdb", 18 * MIB, MIB, 9)

    for expected in (("full", "disk_resized"), ("incremental", "")):
        made = rig.back_up(domain.uuid)
        assert types(made) == {**INCREMENTAL, "vdb": expected}
        assert_is(rig, domain, made["backup_id"], digests(domain))


@pytest.mark.feature("T26")
def test_where_qemu_refuses_to_record_the_backup_is_made_and_the_next_one_a_full(rig: Rig, domain: BlankDomain) -> None:
    rig.back_up(domain.uuid)
    job = rig.backup_job(domain.uuid)
    node = next(one["inserted"] for one in domain.qmp("query-block") if "disk1" in one["qdev"])["node-name"]
    name = checkpoint_name(rig.target.repository_id, job.backup_id)
    domain.qmp("block-dirty-bitmap-add", node=node, name=name)

    made = result(rig.run(backup=job))

    assert any("will not be known" in one for one in rig.report.warnings)
    assert_is(rig, domain, made["backup_id"], digests(domain))
    write_all(domain, 9 * MIB, MIB, 7)
    after = rig.back_up(domain.uuid)
    assert types(after) == {"vda": ("incremental", ""), **dict.fromkeys(RAW, ("full", "untracked"))}
    assert [len(names) for names in transient_bitmaps(domain).values()] == [1, 1]


# ---- left out ----------------------------------------------------------------------------------------------------------

LEFT_OUT = {
    "read-only": ("vdx", "<readonly/>", "read-only"),
    "shareable": ("vdx", "<shareable/>", "shared"),
    "transient": ("vdx", "<transient/>", "transient"),
    "removable": ("sdx", "", "removable"),
}


@pytest.mark.feature("T10")
@pytest.mark.feature("T11")
def test_a_disk_with_an_io_thread_is_not_read_where_that_would_crash_qemu(
    tmp_path: Path, rig: Rig, blank_domain: Any
) -> None:
    disks = [
        DiskFile(name, tmp_path / f"{name}.raw", "raw", bus="scsi" if name == "sda" else "virtio").create(4 * MIB)
        for name in ("vda", "vdb", "sda")
    ]
    xml = disks[1].xml().replace(" type='raw'", " type='raw' iothread='1'") + disks[2].xml()
    controller = "<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='2'/></controller>"
    domain = blank_domain(disks[:1], devices=controller + xml, elements="<iothreads>2</iothreads>")
    version = domain.qmp("query-version")["qemu"]

    outcome = rig.run(backup=rig.backup_job(domain.uuid))

    assert domain.state()[0] == 1  # it runs
    made = result(outcome)
    if version["major"] < 9:
        assert set(types(made)) == {"vda"}
        assert [any(f"disk {one} " in warning for warning in outcome.warnings) for one in ("vdb", "sda")] == [True] * 2
        domain.handle.destroy()
        made = rig.back_up(domain.uuid)
    assert set(types(made)) == {"vda", "vdb", "sda"}


@pytest.mark.feature("T10")
@pytest.mark.feature("X17")
@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_disk_that_cannot_be_backed_up_is_left_out_with_its_reason_and_the_others_are_made(
    tmp_path: Path, rig: Rig, blank_domain: Any, kind: str
) -> None:
    target, mark, word = LEFT_OUT[kind]
    other = DiskFile(target, tmp_path / "other.raw", "raw", bus="usb" if kind == "removable" else "virtio").create(MIB)
    xml = other.xml().replace("</disk>", f"{mark}</disk>")
    if kind == "removable":
        xml = "<controller type='usb' model='qemu-xhci'/>" + xml.replace("bus='usb'", "bus='usb' removable='on'")
    disks = [
        DiskFile("vda", tmp_path / "a.qcow2").create(4 * MIB),
        DiskFile("vdb", tmp_path / "b.raw", "raw").create(4 * MIB),
    ]
    domain = blank_domain(disks, devices=xml)
    domain.write("vdb", MIB, MIB, 5)

    for expected in (("full", "first"), ("incremental", "")):
        outcome = rig.run(backup=rig.backup_job(domain.uuid))
        made = result(outcome)
        assert outcome.state == "completed_with_warnings"
        assert types(made) == {"vda": expected, "vdb": expected}
        assert any(f"disk {target} was left out" in one and word in one for one in outcome.warnings)
        (record,) = [one["backup"] for one in rig.reindex() if one["backup"]["backup_id"] == made["backup_id"]]
        assert [(one["disk"], one["reason"]) for one in record["skipped"]] == [(target, "DISK_UNSUPPORTED")]
        assert_is(rig, domain, made["backup_id"], digests(domain))

    alone = rig.run(backup=rig.backup_job(domain.uuid, disks=(target,)))
    assert reason(alone) == "DISK_UNSUPPORTED"


# ---- restored ------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("M15")
@pytest.mark.feature("T26")
@pytest.mark.feature("C12")
def test_any_point_comes_back_into_the_raw_file_and_the_block_device(rig: Rig, domain: BlankDomain) -> None:
    points = {}
    for step in range(3):
        made = rig.back_up(domain.uuid)
        points[made["backup_id"]] = digests(domain)
        write_all(domain, step * 3 * MIB, 4 * MIB, 0x60 + step)

    for backup_id, expected in reversed(points.items()):
        outcome = rig.restore(domain.uuid, backup_id)
        assert reason(outcome) == ""
        assert digests(domain) == expected
        write_all(domain, 0, 16 * MIB, 0x70)

    after = rig.back_up(domain.uuid)
    assert types(after) == dict.fromkeys(ALL, ("full", "restored_over"))
    assert_is(rig, domain, after["backup_id"], digests(domain))


@pytest.mark.feature("C12")
def test_one_raw_disk_is_restored_and_the_others_stay(rig: Rig, domain: BlankDomain) -> None:
    made, then = rig.back_up(domain.uuid), digests(domain)
    write_all(domain, 0, 16 * MIB, 0x70)
    now = digests(domain)

    assert reason(rig.restore(domain.uuid, made["backup_id"], disks=("vdc",))) == ""

    assert digests(domain) == {**now, "vdc": then["vdc"]}


@pytest.mark.feature("T25")
def test_a_server_that_is_gone_comes_back_with_its_raw_disks(tmp_path: Path, rig: Rig, blank_domain: Any) -> None:
    with loop_device(tmp_path / "volume", 8 * MIB) as device:
        disks = [
            DiskFile("vda", tmp_path / "vda.raw", "raw").create(4 * MIB),
            DiskFile("vdb", device, "raw", kind="block"),
        ]
        domain = blank_domain(disks)
        write_all(domain, MIB, MIB, 5)
        rig.back_up(domain.uuid)
        write_all(domain, 3 * MIB, 64 * KIB, 6)
        made, expected = rig.back_up(domain.uuid), digests(domain)
        write_all(domain, 0, 4 * MIB, 7)
        domain.close()
        disks[0].path.unlink()

        assert reason(rig.restore(domain.uuid, made["backup_id"])) == ""

        assert {disk.target: digest(disk.path) for disk in disks} == expected
        domain.close()
