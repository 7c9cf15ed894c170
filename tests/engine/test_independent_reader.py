"""What the engine makes of a real domain can be read from FORMAT.md alone, by a reader that shares no line with it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from engine.spec import Settings
from engine.units import MIB
from tests import independent_reader
from tests.engine.rig import Rig, digest
from tests.servers.guest import DiskFile


@pytest.mark.feature("T3")
@pytest.mark.feature("T12")
@pytest.mark.parametrize("encrypted", [True, False])
def test_every_type_of_backup_is_read_by_somebody_else(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, *, encrypted: bool
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri, encrypted=encrypted)
    made = []
    for step, kind in enumerate(["full", "incremental", "differential", "incremental", "copy"]):
        rig.settings = Settings(compression_level=3 * (step % 2))  # frames as they are, and compressed ones
        domain.write("vda", step * MIB, 300_000 + step, step + 1)
        domain.write("vda", 6 * MIB, MIB, 9 * (step % 2))  # zeros in their turn
        one = rig.back_up(domain.uuid, type=kind)
        assert one["disks"][0]["type"] == kind
        made.append((one["backup_id"], digest(disk.path, "qcow2")))

    for backup_id, expected in made:
        secret = ("a passphrase",) if encrypted else ()
        image = independent_reader.restore(tmp_path / "storage", domain.uuid, backup_id, "vda", *secret)
        assert hashlib.sha256(image).hexdigest() == expected
