"""A clock that jumps between backups, back by a day or ten years ahead: never a wrong backup, and never fulls for ever."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import chain
from engine.surroundings import Surroundings
from engine.units import MIB
from tests.engine.aftermath import assert_host_is_clean, assert_next_is_good, assert_only, assert_verifies
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import BlankDomain, DiskFile

NOW = datetime.now(UTC)
JUMPS = {"back by a day": -timedelta(days=1), "ten years ahead": timedelta(days=3653)}
INCREMENTAL = {"vda": ("incremental", "")}


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)])
    made.write("vda", 0, MIB, 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


@pytest.mark.feature("T2")
@pytest.mark.feature("T29")
@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_costs_a_full_at_most(rig: Rig, domain: BlankDomain, jump: str) -> None:
    """Each incremental builds on the backup before it, whatever the times say; a full from the future does not stay for ever."""
    away, made = JUMPS[jump], []
    for step, time in enumerate([NOW, NOW + away, NOW + timedelta(hours=1), NOW + timedelta(hours=2)]):
        domain.write("vda", step * MIB, MIB, step + 2)
        made.append(rig.back_up(domain.uuid, now=time))
    kinds = [(one["disks"][0]["type"], one["disks"][0]["fallback_reason"]) for one in made]

    if away < timedelta(0):
        assert kinds == [("full", "first"), *[("incremental", "")] * 3]
        assert [one["disks"][0]["parent_backup_id"] for one in made[1:]] == [one["backup_id"] for one in made[:-1]]
    else:
        assert kinds == [("full", "first"), ("full", "interval_due"), ("full", "interval_due"), ("incremental", "")]
    assert len(domain.handle.listAllCheckpoints()) == 1
    made.append(assert_next_is_good(rig, domain, INCREMENTAL, now=NOW + timedelta(hours=3)))
    assert_verifies(rig, domain)
    for one in made:
        rig.restore_to(rig.folder / one["backup_id"], domain.uuid, one["backup_id"])
    assert_only(rig.folder / "storage", domain.uuid, *made)
    assert_host_is_clean(rig, domain)


@pytest.mark.feature("R19")
def test_a_child_older_than_its_parent_is_deleted_first(rig: Rig, domain: BlankDomain) -> None:
    """A deletion that is interrupted must not leave the child without its parent."""
    parent = rig.back_up(domain.uuid)["backup_id"]
    child = rig.back_up(domain.uuid, now=NOW - timedelta(days=1))["backup_id"]
    assert child < parent

    assert reason(rig.delete(domain.uuid, parent)) == "STILL_NEEDED"
    assert [one["backup"]["backup_id"] for one in rig.reindex()] == [parent, child]
    assert reason(rig.delete(domain.uuid, parent, child)) == ""
    assert rig.reindex() == []


@pytest.mark.feature("R19")
def test_nothing_comes_before_what_it_needs() -> None:
    assert chain.in_order({"late": ["early"], "other": [], "early": []}) == ["early", "late", "other"]
    assert chain.in_order({"a": ["gone", "a"], "b": ["c"], "c": ["b"]}) == ["a", "c", "b"]


@pytest.mark.feature("T26")
@pytest.mark.parametrize("jump", JUMPS)
def test_a_restore_while_the_clock_was_wrong_makes_one_full_and_no_more(
    rig: Rig, domain: BlankDomain, jump: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, expected = rig.back_up(domain.uuid), digest(domain.disks[0].path, "qcow2")
    domain.write("vda", 0, MIB, 7)
    with monkeypatch.context() as patch:
        patch.setattr(Surroundings, "now", lambda _: NOW + JUMPS[jump])
        assert reason(rig.restore(domain.uuid, made["backup_id"])) == ""
    assert digest(domain.disks[0].path, "qcow2") == expected

    why = "restored_over" if JUMPS[jump] > timedelta(0) else "bitmap_lost"
    assert_next_is_good(rig, domain, {"vda": ("full", why)})
    domain.write("vda", MIB, MIB, 8)
    assert_next_is_good(rig, domain, INCREMENTAL)
    domain.handle.destroy()  # the note is in the definition, too
    domain.handle.create()
    domain.write("vda", 2 * MIB, MIB, 9)
    assert_next_is_good(rig, domain, INCREMENTAL)
