"""Healing beside a storage that goes away again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine import heal as heals
from engine.heal import HealSpec, heal
from engine.units import MIB
from tests.engine.rig import Rig
from tests.servers.guest import DiskFile


@pytest.mark.feature("C11")
def test_a_whole_backup_keeps_record_and_checkpoint_though_the_storage_goes_away(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(4 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    made = rig.back_up(domain.uuid)
    told = heals._tell_whole

    def tell_and_lose(*arguments: Any) -> None:
        told(*arguments)
        shutil.move(tmp_path / "storage", tmp_path / "unmounted")
        (tmp_path / "storage").write_text("")  # no connection can be made any more

    monkeypatch.setattr(heals, "_tell_whole", tell_and_lose)
    what = HealSpec(
        rig.uri,
        domain.uuid,
        str(tmp_path / "scratch"),
        str(tmp_path / "locks"),
        rig.target,
        domain.uuid,
        made["backup_id"],
    )

    healed = heal(what)

    assert healed.failed == []
    assert healed.record is not None
    assert [one.getName()[-36:] for one in domain.handle.listAllCheckpoints()] == [made["backup_id"]]
