"""Damage that keeps every size: verification finds it, notes it on the storage, and the next backup begins a new chain."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.format import names
from engine.format.markers import Damaged
from engine.spec import Settings, VerifyJob
from engine.units import MIB
from tests.engine.aftermath import At, assert_host_is_clean, assert_next_is_good, assert_only
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import BlankDomain, DiskFile

INCREMENTAL = {"vda": ("incremental", "")}
BROKEN = {"vda": ("full", "chain_broken")}


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(24 * MIB)])
    for number in range(12):
        made.write("vda", number * MIB, MIB, number + 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    rig = Rig.make(tmp_path, libvirtd.uri)
    rig.settings = Settings(compression_level=0)  # so that a frame has a known place in its file
    return rig


def flip(rig: Rig, server_id: str, backup_id: str, *offsets: int, name: str = "vda/0000.data") -> None:
    path = rig.folder / "storage" / names.backup_folder(server_id, backup_id) / name
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset] ^= 4
    path.write_bytes(data)


def mark(rig: Rig, server_id: str, backup_id: str) -> Path:
    return rig.folder / "storage" / names.damaged_name(server_id, backup_id, "vda")


@pytest.mark.feature("C2")
@pytest.mark.feature("T16")
@pytest.mark.feature("T26")
@pytest.mark.parametrize("with_key", [True, False])
def test_every_damaged_frame_is_named_and_the_chain_is_given_up(
    rig: Rig, domain: BlankDomain, *, with_key: bool
) -> None:
    full = rig.back_up(domain.uuid)
    domain.write("vda", 13 * MIB, MIB, 99)
    child = rig.back_up(domain.uuid)
    flip(rig, domain.uuid, full["backup_id"], 200, 9 * MIB)

    for _ in range(2):  # the second time the mark is there already
        outcome = rig.verify(domain.uuid, with_key=with_key)
        assert reason(outcome) == "VERIFY_FAILED"
        assert outcome.result is not None
        damaged = outcome.result["damaged"]
        assert [(one["backup_id"], one["frame"]) for one in damaged] == [(full["backup_id"], 0), (full["backup_id"], 2)]
        if with_key:
            assert [(one["start"], one["end"]) for one in damaged] == [(0, 4 * MIB), (8 * MIB, 12 * MIB)]
    path = mark(rig, domain.uuid, full["backup_id"])
    noted = Damaged.load(path.read_bytes(), str(path.relative_to(rig.folder / "storage")))
    assert (noted.count, noted.host) == (2, "test-host")
    assert [(one["backup"]["backup_id"], one["damaged_disks"]) for one in rig.reindex()] == [
        (full["backup_id"], ["vda"]), (child["backup_id"], ["vda"]),
    ]  # fmt: skip

    assert reason(rig.restore(domain.uuid, child["backup_id"])) == "FRAME_CORRUPT"
    domain.handle.create()
    third = assert_next_is_good(rig, domain, {"vda": ("full", "chain_broken")})
    domain.write("vda", 14 * MIB, MIB, 98)
    fourth = assert_next_is_good(rig, domain, INCREMENTAL)
    assert reason(rig.verify(domain.uuid, fourth["backup_id"])) == ""
    assert reason(rig.delete(domain.uuid, full["backup_id"], child["backup_id"])) == ""
    assert_only(rig.folder / "storage", domain.uuid, third, fourth)


@pytest.mark.feature("C2")
@pytest.mark.parametrize(("where", "offset"), [("header", 20), ("index", -200), ("footer", -40)])
def test_a_segment_that_cannot_be_read_at_all_is_noted_and_the_others_are_checked(
    rig: Rig, domain: BlankDomain, where: str, offset: int
) -> None:
    full = rig.back_up(domain.uuid)
    domain.write("vda", 13 * MIB, MIB, 99)
    child = rig.back_up(domain.uuid)
    flip(rig, domain.uuid, full["backup_id"], offset)
    flip(rig, domain.uuid, child["backup_id"], 200)

    outcome = rig.verify(domain.uuid)

    assert outcome.result is not None
    found = [(one["backup_id"], one["frame"], one["start"], one["end"]) for one in outcome.result["damaged"]]
    frame = (child["backup_id"], 0, 13 * MIB, 14 * MIB)
    assert found == [(full["backup_id"], -1, 0, 24 * MIB), frame], where
    assert mark(rig, domain.uuid, full["backup_id"]).exists()
    assert mark(rig, domain.uuid, child["backup_id"]).exists()
    assert_next_is_good(rig, domain, BROKEN)


@pytest.mark.feature("C2")
def test_a_backup_that_builds_on_what_is_just_found_to_be_damaged_is_not_committed(
    rig: Rig, domain: BlankDomain
) -> None:
    full = rig.back_up(domain.uuid)
    domain.write("vda", 13 * MIB, MIB, 99)
    flip(rig, domain.uuid, full["backup_id"], 200)
    other = Rig(rig.folder, rig.uri, rig.target, rig.key)
    report = At("read", lambda: other.verify(domain.uuid))

    assert reason(rig.run(report=report, backup=rig.backup_job(domain.uuid))) == "CHAIN_BROKEN"
    assert_host_is_clean(rig, domain)
    assert_only(rig.folder / "storage", domain.uuid, full)
    assert_next_is_good(rig, domain, BROKEN)


@pytest.mark.feature("C2")
def test_where_nothing_may_be_written_the_damage_is_told_all_the_same(rig: Rig, domain: BlankDomain) -> None:
    full = rig.back_up(domain.uuid)
    flip(rig, domain.uuid, full["backup_id"], 200)

    quiet = rig.run(verify=VerifyJob(domain.uuid, "", rig.keys(domain.uuid), note_damage=False))
    assert (reason(quiet), quiet.warnings) == ("VERIFY_FAILED", [])
    assert not mark(rig, domain.uuid, full["backup_id"]).exists()
    root = str(rig.folder / "storage")
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
        outcome = rig.verify(domain.uuid)
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)

    assert reason(outcome) == "VERIFY_FAILED"
    (warning,) = outcome.warnings
    assert "could not be noted" in warning


@pytest.mark.feature("R19")
@pytest.mark.feature("C3")
@pytest.mark.parametrize("what", ["backup.json", "vda/manifest.json"])
def test_a_manifest_that_cannot_be_read_stops_deletions_and_explains_a_full(
    rig: Rig, domain: BlankDomain, what: str
) -> None:
    full = rig.back_up(domain.uuid)
    domain.write("vda", 13 * MIB, MIB, 99)
    child = rig.back_up(domain.uuid)
    flip(rig, domain.uuid, full["backup_id"], 40, name=what)

    assert reason(rig.delete(domain.uuid, child["backup_id"])) == "STILL_NEEDED"
    listed = {one["backup"]["backup_id"]: one["unreadable_disks"] for one in rig.reindex()}
    assert listed == {child["backup_id"]: []} | ({} if what == "backup.json" else {full["backup_id"]: ["vda"]})
    assert reason(rig.verify(domain.uuid)) == "VERIFY_FAILED"
    third = assert_next_is_good(rig, domain, {"vda": ("full", "chain_unreadable")})
    assert_next_is_good(rig, domain, INCREMENTAL)
    assert reason(rig.delete(domain.uuid, full["backup_id"], child["backup_id"])) == ""
    assert third["backup_id"] in json.dumps(rig.reindex())


@pytest.mark.feature("C2")
def test_no_flipped_byte_anywhere_ever_gives_wrong_bytes(rig: Rig, domain: BlankDomain) -> None:
    """A restore of a damaged backup fails by name, before it publishes anything, or gives what was backed up."""
    rig.settings = Settings()
    rig.back_up(domain.uuid)
    domain.write("vda", 13 * MIB, MIB, 99)
    made, expected = rig.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    folder, out = rig.folder / "storage" / names.server_folder(domain.uuid), rig.folder / "out"
    ends: dict[str, int] = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        whole = path.read_bytes()
        for place in range(7):
            data = bytearray(whole)
            data[(len(data) - 1) * place // 6] ^= 0x20
            path.write_bytes(data)
            outcome = rig.run(restore=restore_to(rig, domain, made["backup_id"], out))
            ends[reason(outcome)] = ends.get(reason(outcome), 0) + 1
            if not reason(outcome):
                assert digest(out / "vda.raw") == expected
            assert reason(outcome) or path.name in {"intent.json", "backup.json", "manifest.json"}, (path, place)
            for file in out.iterdir():
                file.unlink()
        path.write_bytes(whole)
    assert {"SEGMENT_CORRUPT", "FRAME_CORRUPT"} <= set(ends) <= {
        "", "SEGMENT_CORRUPT", "FRAME_CORRUPT", "MANIFEST_CORRUPT", "MANIFEST_UNSUPPORTED", "CHAIN_BROKEN", "FORMAT_INVALID",
    }, ends  # fmt: skip


def restore_to(rig: Rig, domain: BlankDomain, backup_id: str, folder: Path) -> Any:
    from engine.spec import RestoreJob

    folder.mkdir(exist_ok=True)
    return RestoreJob(domain.uuid, "", backup_id, target_folder=str(folder), server_keys=rig.keys(domain.uuid))
