"""The whole product over a bucket: full, incremental, verification, restore of each, deletion; what is unfinished goes with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cleanup import clean_storage
from engine.storage.s3_parts import PART_BYTES_MIN
from engine.units import MIB
from tests.engine.rig import Rig, digest, new_storage
from tests.engine.storage.test_s3 import QUICK
from tests.servers.guest import DiskFile


@pytest.mark.feature("S5")
@pytest.mark.feature("S6")
def test_backups_in_a_bucket(tmp_path: Path, libvirtd: Any, blank_domain: Any, weed: Any) -> None:
    place = weed.place(QUICK, part_size_bytes=PART_BYTES_MIN)
    target, key = new_storage(tmp_path / "unused")
    rig = Rig(tmp_path, libvirtd.uri, replace(target, local=None, s3=place.spec.s3), key)
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(32 * MIB)
    domain = blank_domain([disk])
    made, expected = [], []
    for step, size in enumerate((24 * MIB, 3 * MIB), 1):
        domain.write("vda", step * MIB, size, step)
        made.append(rig.back_up(domain.uuid))
        expected.append(digest(disk.path, "qcow2"))

    assert [one["disks"][0]["type"] for one in made] == ["full", "incremental"]
    assert rig.verify(domain.uuid).state == "completed"
    ids = [one["backup_id"] for one in made]
    for number, backup_id in enumerate(ids):
        restored = rig.restore_to(tmp_path / f"out{number}", domain.uuid, backup_id)
        assert digest(restored["vda"]) == expected[number]
    assert {one["backup"]["backup_id"] for one in rig.reindex()} == set(ids)

    # Parts of a segment, as a killed engine leaves them, are no object: a listing does not show them, and they go all the same.
    place.plant_unfinished(f"servers/{domain.uuid}/{ids[0]}/vda/0001.data")
    assert rig.delete(domain.uuid, *ids).state == "completed"
    with place.open() as storage:
        assert clean_storage(storage, rig.host, tmp_path / "locks") == []
    left = [name for name in place.files() if name.startswith("servers/") and "deleted" not in name]
    assert left == [], left
