"""What a backup builds upon is lost, changed or damaged: checkpoints, bitmaps, disks, and the chain on the storage."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.format import documents, manifest, names
from engine.format.crypto import StorageKey
from engine.ids import new_id
from engine.spec import RestoreJob, VerifyJob
from engine.units import KIB, MIB
from tests.engine.aftermath import (
    INCREMENTAL,
    SHUTOFF,
    assert_host_is_clean,
    assert_next_is_good,
    assert_only,
    assert_verifies,
    full,
)
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    made.write("vda", 0, 3 * MIB, 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


# ---- checkpoints and bitmaps ------------------------------------------------------------------------------------------------


@pytest.mark.feature("T7")
@pytest.mark.parametrize("loss", ["note", "definition"])
def test_a_host_that_forgot_its_checkpoints_still_makes_an_incremental(
    rig: Rig, domain: BlankDomain, loss: str
) -> None:
    rig.back_up(domain.uuid)
    domain.write("vda", 5 * MIB, MIB, 2)
    if loss == "note":
        (note,) = domain.handle.listAllCheckpoints()
        note.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    else:
        domain.handle.destroy()
        domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        domain.connection.defineXML(domain.xml())
        domain.handle.create()
    domain.write("vda", 9 * MIB, MIB, 3)

    assert_next_is_good(rig, domain, INCREMENTAL)
    assert_host_is_clean(rig, domain)
    assert len(domain.handle.listAllCheckpoints()) == 1


@pytest.mark.feature("T26")
def test_a_bitmap_removed_behind_our_back_makes_a_full(rig: Rig, domain: BlankDomain) -> None:
    made = rig.back_up(domain.uuid)
    (node,) = [one["inserted"]["node-name"] for one in domain.qmp("query-block") if "inserted" in one]
    (bitmap,) = [name for name in checkpoint_names(domain) if made["backup_id"] in name]
    domain.qmp("block-dirty-bitmap-remove", node=node, name=bitmap)
    domain.write("vda", 5 * MIB, MIB, 2)

    assert_next_is_good(rig, domain, full("bitmap_lost"))
    domain.write("vda", 6 * MIB, MIB, 2)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert len(checkpoint_names(domain)) == 1


@pytest.mark.feature("T26")
def test_a_killed_qemu_makes_a_full_and_its_broken_bitmaps_go(
    rig: Rig, domain: BlankDomain, libvirtd: Libvirtd
) -> None:
    rig.back_up(domain.uuid)
    domain.handle.destroy()  # the bitmap is stored
    domain.handle.create()
    domain.write("vda", 5 * MIB, MIB, 2)
    os.kill(libvirtd.qemu_pid(domain.name), signal.SIGKILL)
    wait_until(lambda: not domain.handle.isActive(), 20, "libvirt to notice")
    domain.handle.create()
    domain.write("vda", 7 * MIB, MIB, 3)

    after = assert_next_is_good(rig, domain, full("bitmap_inconsistent"))
    assert [after["backup_id"] in name for name in checkpoint_names(domain)] == [True]
    domain.write("vda", 8 * MIB, MIB, 4)
    assert_next_is_good(rig, domain, INCREMENTAL)
    domain.handle.destroy()
    assert [one["name"] for one in bitmaps_in(domain.disks[0].path)] == checkpoint_names(domain)
    assert "in-use" not in json.dumps(bitmaps_in(domain.disks[0].path))


@pytest.mark.feature("T24")
@pytest.mark.feature("T26")
def test_a_killed_qemu_and_a_backup_of_the_stopped_domain(rig: Rig, domain: BlankDomain, libvirtd: Libvirtd) -> None:
    rig.back_up(domain.uuid)
    domain.handle.destroy()
    domain.handle.create()
    domain.write("vda", 5 * MIB, MIB, 2)
    os.kill(libvirtd.qemu_pid(domain.name), signal.SIGKILL)
    wait_until(lambda: not domain.handle.isActive(), 20, "libvirt to notice")

    after = assert_next_is_good(rig, domain, full("bitmap_inconsistent"))
    assert_host_is_clean(rig, domain, SHUTOFF)
    assert [after["backup_id"] in one["name"] for one in bitmaps_in(domain.disks[0].path)] == [True]
    assert_next_is_good(rig, domain, INCREMENTAL)


def checkpoint_names(domain: BlankDomain) -> list[str]:
    return sorted(one.getName() for one in domain.handle.listAllCheckpoints())


def bitmaps_in(image: Path) -> list[dict[str, Any]]:
    """Return the bitmaps that a stopped domain's image holds."""
    shown = subprocess.run(["qemu-img", "info", "--output=json", image], check=True, capture_output=True).stdout
    found: list[dict[str, Any]] = json.loads(shown)["format-specific"]["data"].get("bitmaps", [])
    return found


# ---- disks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T27")
def test_a_grown_disk_is_backed_up_in_full(rig: Rig, domain: BlankDomain) -> None:
    first, before = rig.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    domain.handle.blockResize("vda", 24 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    domain.write("vda", 20 * MIB, MIB, 2)

    assert_next_is_good(rig, domain, full("disk_resized"))
    domain.write("vda", 21 * MIB, MIB, 3)
    second = assert_next_is_good(rig, domain, INCREMENTAL)
    old = rig.restore_to(rig.folder / "old", domain.uuid, first["backup_id"])
    assert digest(old["vda"]) == before
    assert reason(rig.restore(domain.uuid, first["backup_id"])) == ""
    with (rig.folder / "expected").open("wb") as file:
        file.write(old["vda"].read_bytes() + bytes(8 * MIB))
    assert digest(domain.disks[0].path, "qcow2") == digest(rig.folder / "expected")
    assert reason(rig.restore(domain.uuid, second["backup_id"])) == ""


@pytest.mark.feature("T27")
def test_a_backup_larger_than_the_disk_is_refused_and_the_guest_goes_on(rig: Rig, domain: BlankDomain) -> None:
    domain.handle.blockResize("vda", 24 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    made = rig.back_up(domain.uuid)
    domain.handle.destroy()
    domain.disks[0].path.unlink()
    domain.disks[0].create(16 * MIB)
    domain.handle.create()
    domain.write("vda", 0, MIB, 9)
    before = digest(domain.disks[0].path, "qcow2")

    assert reason(rig.restore(domain.uuid, made["backup_id"])) == "DISK_MISMATCH"
    assert_host_is_clean(rig, domain)
    assert digest(domain.disks[0].path, "qcow2") == before


@pytest.mark.feature("T26")
@pytest.mark.parametrize("place", ["another file", "the same file"])
def test_a_disk_replaced_under_its_name_is_backed_up_in_full(
    rig: Rig, domain: BlankDomain, tmp_path: Path, place: str
) -> None:
    first = rig.back_up(domain.uuid)
    domain.handle.destroy()
    if place == "another file":
        new = DiskFile("vda", tmp_path / "new.qcow2").create(16 * MIB)
        domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        domain.disks = (new,)
        domain.connection.defineXML(domain.xml())
    else:
        domain.disks[0].path.unlink()
        domain.disks[0].create(16 * MIB)
    domain.handle.create()
    domain.write("vda", 2 * MIB, MIB, 7)

    assert_next_is_good(rig, domain, full("disk_replaced" if place == "another file" else "bitmap_lost"))
    domain.write("vda", 4 * MIB, MIB, 8)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert len(checkpoint_names(domain)) == 1
    assert reason(rig.verify(domain.uuid, first["backup_id"])) == ""


@pytest.mark.feature("T28")
@pytest.mark.feature("M17")
def test_a_disk_comes_and_goes(rig: Rig, blank_domain: Any, tmp_path: Path) -> None:
    vda = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([vda], elements="<features><acpi/></features>")  # QEMU hot-plugs by ACPI
    rig.back_up(domain.uuid)
    vdb = DiskFile("vdb", tmp_path / "vdb.qcow2").create(8 * MIB)
    both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.handle.attachDeviceFlags(vdb.xml(), both)
    domain.disks = (vda, vdb)
    domain.write("vdb", MIB, MIB, 5)
    domain.write("vda", 6 * MIB, MIB, 5)

    with_it = assert_next_is_good(rig, domain, {**INCREMENTAL, "vdb": ("full", "first")})
    expected = digest(vdb.path, "qcow2")
    domain.handle.destroy()
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    domain.disks = (vda,)
    domain.connection.defineXML(domain.xml())
    domain.handle.create()
    domain.write("vda", 7 * MIB, MIB, 5)

    without = assert_next_is_good(rig, domain, INCREMENTAL)
    assert [one["disk"] for one in without["disks"]] == ["vda"]
    restored = rig.restore_to(tmp_path / "removed", domain.uuid, with_it["backup_id"], disks=("vdb",))
    assert digest(restored["vdb"]) == expected
    assert_verifies(rig, domain)


# ---- the chain on the storage -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Chain:
    """A full and two incrementals of one disk on a local storage; `disk` is what it was at the last one."""

    rig: Rig
    domain: BlankDomain
    full: str
    middle: str
    last: str
    disk: str

    def path(self, backup_id: str, name: str = "vda/0000.data") -> Path:
        return self.rig.folder / "storage" / "servers" / self.domain.uuid / backup_id / name

    def change(self, backup_id: str, offset: int, name: str = "vda/0000.data") -> None:
        """Flip a bit; a negative offset counts from the end."""
        path = self.path(backup_id, name)
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    def restore(self, backup_id: str) -> str:
        return reason(self.rig.restore(self.domain.uuid, backup_id))


@pytest.fixture
def chain(rig: Rig, domain: BlankDomain) -> Chain:
    ids = []
    for step in range(3):
        ids.append(rig.back_up(domain.uuid)["backup_id"])
        last = digest(domain.disks[0].path, "qcow2")
        domain.write("vda", (4 + step) * MIB, 300 * KIB, 0x40 + step)
    return Chain(rig, domain, ids[0], ids[1], ids[2], last)


DAMAGES: dict[str, tuple[Callable[[Chain], None], str, bool]] = {
    # what is done, why the restore refuses, whether the size shows it (then the next backup is a full)
    "header": (lambda chain: chain.change(chain.full, 20), "SEGMENT_CORRUPT", False),
    "index": (lambda chain: chain.change(chain.middle, -200), "SEGMENT_CORRUPT", False),
    "footer": (lambda chain: chain.change(chain.full, -40), "SEGMENT_CORRUPT", False),
    "cut": (lambda chain: os.truncate(chain.path(chain.full), 900), "SEGMENT_CORRUPT", True),
    "missing": (lambda chain: chain.path(chain.middle).unlink(), "CHAIN_BROKEN", True),
    "swapped": (lambda chain: swap(chain.path(chain.middle), chain.path(chain.last)), "SEGMENT_CORRUPT", False),
    "manifest": (lambda chain: chain.change(chain.last, 50, "vda/manifest.json"), "CHAIN_BROKEN", False),
}


def swap(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.feature("M15")
@pytest.mark.feature("C2")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_before_the_domain_is_touched(chain: Chain, damage: str) -> None:
    act, why, _shown = DAMAGES[damage]
    act(chain)
    before, started = digest(chain.domain.disks[0].path, "qcow2"), chain.domain.handle.ID()

    assert chain.restore(chain.last) == why
    assert (digest(chain.domain.disks[0].path, "qcow2"), chain.domain.handle.ID()) == (before, started)
    assert_host_is_clean(chain.rig, chain.domain)
    verified = chain.rig.verify(chain.domain.uuid)
    assert reason(verified) == "VERIFY_FAILED"
    if damage != "manifest":
        assert reason(chain.rig.verify(chain.domain.uuid, chain.last)) == "VERIFY_FAILED"


@pytest.mark.feature("T26")
@pytest.mark.parametrize("damage", [name for name, (_act, _why, shown) in DAMAGES.items() if shown])
def test_a_chain_whose_data_is_not_there_is_not_built_upon(chain: Chain, damage: str) -> None:
    DAMAGES[damage][0](chain)

    assert_next_is_good(chain.rig, chain.domain, full("chain_broken"))
    chain.domain.write("vda", 9 * MIB, MIB, 2)
    assert_next_is_good(chain.rig, chain.domain, INCREMENTAL)
    assert len(checkpoint_names(chain.domain)) == 1


@pytest.mark.feature("C2")
@pytest.mark.feature("T16")
@pytest.mark.parametrize("with_key", [True, False])
def test_a_flipped_byte_in_a_frame_is_named_with_its_range(chain: Chain, *, with_key: bool) -> None:
    chain.change(chain.middle, 170)  # just behind the header

    outcome = chain.rig.verify(chain.domain.uuid, chain.last, with_key=with_key)

    assert reason(outcome) == "VERIFY_FAILED"
    assert outcome.result is not None
    (damage,) = outcome.result["damaged"]
    assert (damage["backup_id"], damage["frame"]) == (chain.middle, 0)
    assert damage["object_name"] == names.segment_name(chain.domain.uuid, chain.middle, "vda", 0)
    whole = (4 * MIB, 4 * MIB + 320 * KIB) if with_key else (0, 16 * MIB)
    assert (damage["start"], damage["end"]) == whole
    assert reason(chain.rig.verify(chain.domain.uuid, chain.full)) == ""
    # A restore finds it only as it reads; then the domain is left stopped, and an older point brings it back.
    assert chain.restore(chain.last) == "FRAME_CORRUPT"
    assert chain.domain.state()[0] == SHUTOFF
    assert chain.restore(chain.full) == ""


@pytest.mark.feature("T26")
@pytest.mark.feature("R19")
@pytest.mark.parametrize("change", ["flipped", "cut", "later version"])
def test_an_unreadable_backup_costs_one_full_and_can_be_deleted(chain: Chain, change: str) -> None:
    rig, domain, path = chain.rig, chain.domain, chain.path(chain.last, "backup.json")
    if change == "flipped":
        chain.change(chain.last, 50, "backup.json")
    elif change == "cut":
        os.truncate(path, 100)
    else:
        body = json.loads(path.read_bytes().splitlines()[0])
        path.write_bytes(documents.wrap(documents.to_json({**body, "version": 99}), bytes(32)))

    assert chain.restore(chain.last) == ("MANIFEST_UNSUPPORTED" if change == "later version" else "MANIFEST_CORRUPT")
    assert_host_is_clean(rig, domain)
    made = assert_next_is_good(rig, domain, full("chain_unreadable"))
    domain.write("vda", 9 * MIB, MIB, 2)
    after = assert_next_is_good(rig, domain, INCREMENTAL)
    # What cannot be read may need anything: only together with it, or after it, may others go.
    assert reason(rig.delete(domain.uuid, chain.middle)) == "STILL_NEEDED"
    assert reason(rig.delete(domain.uuid, after["backup_id"])) == "STILL_NEEDED"
    assert reason(rig.delete(domain.uuid, chain.last)) == ""
    assert reason(rig.delete(domain.uuid, chain.full, chain.middle)) == ""
    assert_only(rig.folder / "storage", domain.uuid, made, after)
    assert_verifies(rig, domain)


@pytest.mark.feature("T26")
def test_a_damaged_disk_manifest_costs_one_full(chain: Chain) -> None:
    chain.change(chain.last, 50, "vda/manifest.json")

    assert_next_is_good(chain.rig, chain.domain, full("chain_unreadable"))
    chain.domain.write("vda", 9 * MIB, MIB, 2)
    assert_next_is_good(chain.rig, chain.domain, INCREMENTAL)
    assert chain.restore(chain.middle) == ""


@pytest.mark.feature("M15")
def test_a_backup_put_in_the_place_of_another_is_noticed(chain: Chain) -> None:
    """backup.json of the same id from an earlier state of the storage: authentic, and not what the catalog knows."""
    rig, domain = chain.rig, chain.domain
    path = chain.path(chain.full, "backup.json")
    (known,) = [r["backup"]["manifest_digest"] for r in rig.reindex() if r["backup"]["backup_id"] == chain.full]
    key = rig.key
    assert key is not None
    name = names.backup_name(domain.uuid, chain.full)
    server = manifest.load_server(path.read_bytes(), name, key.server_key(domain.uuid))
    older = dataclasses.replace(server, consistency_asked="none")
    path.write_bytes(manifest.dump(older, key.server_key(domain.uuid)))
    job = RestoreJob(domain.uuid, domain.uuid, chain.full, manifest_digest=known, server_keys=rig.keys(domain.uuid))
    before = domain.handle.ID()

    assert reason(rig.run(restore=job)) == "MANIFEST_CORRUPT"
    assert domain.handle.ID() == before
    shutil.copy(chain.path(chain.middle, "backup.json"), path)
    assert chain.restore(chain.full) == "MANIFEST_CORRUPT"
    assert domain.handle.ID() == before


# ---- keys -------------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T14")
def test_a_wrong_key_is_known_before_anything_is_touched(chain: Chain) -> None:
    rig, domain = chain.rig, chain.domain
    assert rig.key is not None
    wrong = {rig.key.key_id: StorageKey.generate(rig.key.key_id).server_key(domain.uuid).secret.hex()}
    before, started = digest(domain.disks[0].path, "qcow2"), domain.handle.ID()

    assert reason(rig.run(restore=RestoreJob(domain.uuid, domain.uuid, chain.last, server_keys=wrong))) == "WRONG_KEY"
    out = rig.folder / "out"
    out.mkdir()
    into = RestoreJob(domain.uuid, "", chain.last, target_folder=str(out), server_keys=wrong)
    assert reason(rig.run(restore=into)) == "WRONG_KEY"
    assert reason(rig.run(verify=VerifyJob(domain.uuid, chain.last, wrong))) == "WRONG_KEY"
    assert reason(rig.run(backup=replace(rig.backup_job(domain.uuid), server_keys=wrong))) == "WRONG_KEY"
    assert reason(rig.run(restore=RestoreJob(domain.uuid, domain.uuid, chain.last))) == "KEY_MISSING"
    assert list(out.iterdir()) == []
    assert (digest(domain.disks[0].path, "qcow2"), domain.handle.ID()) == (before, started)
    assert_host_is_clean(rig, domain)
    assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("T14")
@pytest.mark.parametrize("key_id", ["", "another"])
def test_a_forged_backup_is_neither_restored_nor_built_upon(chain: Chain, key_id: str) -> None:
    """Who can write to the storage and has no key puts a newest backup there that claims the real one's checkpoint."""
    rig, domain = chain.rig, chain.domain
    forged = forge(chain, new_id(datetime.now(UTC)), key_id and new_id(datetime.now(UTC)))
    before = domain.handle.ID()

    assert chain.restore(forged) == ("KEY_MISSING" if key_id else "MANIFEST_CORRUPT")
    assert reason(rig.run(verify=VerifyJob(domain.uuid, forged, rig.keys(domain.uuid)))) in {"VERIFY_FAILED", ""}
    assert domain.handle.ID() == before
    assert_host_is_clean(rig, domain)
    for number in range(2):
        made = assert_next_is_good(rig, domain, INCREMENTAL)
        assert forged not in made["needed_backup_ids"]
        domain.write("vda", (10 + number) * MIB, MIB, 2)
    assert len(checkpoint_names(domain)) == 1


def forge(chain: Chain, backup_id: str, key_id: str) -> str:
    """Write a backup made from the clear parts of the chain's last one, dated years ahead, plain or under a key of one's own."""
    key = StorageKey.generate(key_id).server_key(chain.domain.uuid) if key_id else None
    sealing = {"key_id": key_id, "key_check": key.check.hex() if key else ""}
    later = (datetime.now(UTC) + timedelta(days=1000)).isoformat()
    new: dict[str, Any] = {"backup_id": backup_id, "create_time": later, **sealing}
    uuid = chain.domain.uuid
    data = chain.path(chain.last, "vda/manifest.json").read_bytes()
    disk = manifest.load_disk(data, names.manifest_name(uuid, chain.last, "vda"))
    layers = (*disk.layers[:-1], dataclasses.replace(disk.layers[-1], backup_id=backup_id))
    disk = dataclasses.replace(disk, layers=layers, sealed={}, **new)
    data = chain.path(chain.last, "backup.json").read_bytes()
    server = manifest.load_server(data, names.backup_name(uuid, chain.last))
    disk_data = manifest.dump(disk, key)
    disks = (manifest.summarize(disk, disk_data),)
    server = dataclasses.replace(server, disks=disks, sealed=manifest.Definition("", "", {}), **new)
    chain.path(backup_id, "vda").mkdir(parents=True)
    shutil.copy(chain.path(chain.last), chain.path(backup_id))
    chain.path(backup_id, "vda/manifest.json").write_bytes(disk_data)
    chain.path(backup_id, "backup.json").write_bytes(manifest.dump(server, key))
    return backup_id


@pytest.mark.feature("T26")
def test_a_storage_that_turns_encrypted_gets_one_explained_full(rig: Rig, domain: BlankDomain) -> None:
    plain = dataclasses.replace(rig, target=replace(rig.target, key_id=""), key=None)
    old, expected = plain.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    domain.write("vda", 5 * MIB, MIB, 2)

    assert_next_is_good(rig, domain, full("encryption_changed"))
    domain.write("vda", 6 * MIB, MIB, 2)
    assert_next_is_good(rig, domain, INCREMENTAL)
    restored = plain.restore_to(rig.folder / "plain", domain.uuid, old["backup_id"])
    assert digest(restored["vda"]) == expected
    domain.write("vda", 7 * MIB, MIB, 2)
    assert_next_is_good(plain, domain, full("encryption_changed"))


# ---- zeros ------------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T2")
@pytest.mark.feature("M15")
def test_zeros_between_layers_overwrite_what_was_there(rig: Rig, tmp_path: Path, blank_domain: Any) -> None:
    """Regions are written, zeroed, discarded and written again; restores go over a disk that is full of other data."""
    disks = [
        DiskFile("vda", tmp_path / "a.qcow2").create(16 * MIB),
        DiskFile("vdb", tmp_path / "b.raw", "raw").create(8 * MIB),
    ]
    domain = blank_domain(disks)
    domain.write("vda", 0, 16 * MIB, 1)
    domain.write("vdb", 0, 8 * MIB, 1)
    points = []

    def point() -> None:
        made = rig.back_up(domain.uuid)
        points.append((made["backup_id"], [digest(disk.path, disk.format) for disk in disks]))

    point()
    zero(domain, "vda", 2 * MIB, 3 * MIB)
    zero(domain, "vdb", MIB, 2 * MIB, unmap=True)
    point()
    zero(domain, "vda", 8 * MIB + 32 * KIB, 4 * MIB, unmap=True)
    domain.write("vda", 3 * MIB, 96 * KIB, 4)
    point()
    domain.write("vda", 9 * MIB, MIB, 5)
    zero(domain, "vda", 3 * MIB, 64 * KIB)
    domain.write("vdb", MIB, 100 * KIB, 6)
    point()

    for backup_id, expected in reversed(points):
        for disk, size in (("vda", 16 * MIB), ("vdb", 8 * MIB)):
            domain.write(disk, 0, size, 0xEE)
        assert reason(rig.restore(domain.uuid, backup_id)) == ""
        assert [digest(disk.path, disk.format) for disk in disks] == expected
        restored = rig.restore_to(tmp_path / backup_id, domain.uuid, backup_id)
        assert [digest(restored[disk.target]) for disk in disks] == expected
    assert_verifies(rig, domain)


def zero(domain: BlankDomain, target: str, start: int, length: int, *, unmap: bool = False) -> None:
    """Write zeros as a guest does by a write-zeroes request, with `unmap` as a discard that reads as zeros."""
    import libvirt_qemu

    command = f'qemu-io -d {domain.device(target)} "write -z {"-u" if unmap else ""} {start} {length}"'
    libvirt_qemu.qemuMonitorCommand(domain.handle, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)


# ---- restored over ----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T26")
def test_a_backup_after_a_restore_is_a_full_that_says_so(chain: Chain) -> None:
    rig, domain = chain.rig, chain.domain
    assert chain.restore(chain.middle) == ""
    domain.write("vda", 9 * MIB, MIB, 2)

    assert_next_is_good(rig, domain, full("restored_over"))
    domain.write("vda", 10 * MIB, MIB, 2)
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert_host_is_clean(rig, domain)
