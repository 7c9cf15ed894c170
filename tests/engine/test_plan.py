"""Full or incremental, and why: every reason once, and what wins when there are several."""

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import pytest

from engine import plan
from engine.format.layout import SegmentRef
from engine.format.manifest import DiskManifest, Layer
from engine.plan import Choice, DiskState, Wish
from engine.units import GIB
from tests.engine.format.samples import Writing, disk_manifest

NOW = datetime.fromisoformat("2026-11-23T04:00:00+00:00")
KEY, OTHER_KEY = "00000000-0000-7000-8000-00000000aaaa", "00000000-0000-7000-8000-00000000bbbb"


def point(number: int, *needed: int, **changes: Any) -> DiskManifest:
    """Return the manifest of backup `number`, made at day `number`, with the checkpoint of that number."""
    layers = tuple(
        Layer(backup_id(one), (SegmentRef(0, 500, 300, 2, "ab" * 32, "cd" * 32),)) for one in (*needed, number)
    )
    made = disk_manifest(Writing(), backup_id(number), "vda", GIB, layers, backup_id(needed[-1]) if needed else "")
    time = (NOW - timedelta(days=10 - number)).isoformat()
    return dataclasses.replace(
        made, **{"checkpoint": f"cp{number}", "create_time": time, "key_id": "", "key_check": "", **changes}
    )


def backup_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


def choose(points: list[DiskManifest], wish: dict[str, Any] | None = None, **options: Any) -> Choice:
    """Choose for a disk whose checkpoints are those of `tracking` ("" for one that counts)."""
    asked = {"type": "incremental", "full_interval_days": 0, "key_id": "", "now": NOW, **(wish or {})}
    known = {"unreadable", "whole"}
    state = {
        "disk": "vda", "size_bytes": GIB, "path": "/images/vda.qcow2", "tracking": {"cp2": ""},
        **{name: value for name, value in options.items() if name not in known},
    }  # fmt: skip
    rest = {name: value for name, value in options.items() if name in known}
    return plan.choose(Wish(**asked), DiskState(**state), points, **rest)


CHAIN = [point(1), point(2, 1)]


@pytest.mark.feature("T2")
def test_a_whole_chain_and_a_good_bitmap_make_an_incremental() -> None:
    assert choose(CHAIN) == Choice("vda", "incremental", CHAIN[1], "")
    assert choose(CHAIN, {"type": "differential"}) == Choice("vda", "differential", CHAIN[1], "")
    assert choose(CHAIN, {"type": "copy"}) == Choice("vda", "copy", None, "")


@pytest.mark.feature("T26")
@pytest.mark.parametrize(
    ("points", "wish", "options", "why"),
    [
        ([], {}, {}, "first"),
        ([], {}, {"unreadable": True}, "chain_unreadable"),
        (CHAIN, {"type": "full"}, {}, "requested"),
        (CHAIN, {"full_interval_days": 7}, {}, "interval_due"),
        (CHAIN, {}, {"tracking": {}}, "bitmap_lost"),
        (CHAIN, {}, {"tracking": {}, "unreadable": True}, "chain_unreadable"),
        (CHAIN, {}, {"tracking": {}, "path": "/images/other.qcow2"}, "disk_replaced"),
        (CHAIN, {}, {"tracking": {}, "elsewhere": (backup_id(3), backup_id(4))}, "storage_changed"),
        (CHAIN, {}, {"tracking": {}, "elsewhere": (backup_id(1), backup_id(4))}, "bitmap_lost"),
        (CHAIN, {}, {"tracking": {}, "displaced": True}, "foreign_checkpoint"),
        (CHAIN, {}, {"tracking": {}, "displaced": True, "path": "/images/other.qcow2"}, "disk_replaced"),
        (CHAIN, {}, {"tracking": {"cp2": "foreign_checkpoint"}}, "foreign_checkpoint"),
        (CHAIN, {}, {"tracking": {"cp2": "bitmap_inconsistent"}}, "bitmap_inconsistent"),
        (CHAIN, {}, {"size_bytes": 2 * GIB}, "disk_resized"),
        ([point(1), point(2, 1, checkpoint="")], {}, {}, "untracked"),
        (CHAIN, {}, {"restored_time": NOW}, "restored_over"),
        (CHAIN[1:], {}, {}, "chain_broken"),
        (CHAIN[1:], {}, {"unreadable": True}, "chain_unreadable"),
        (CHAIN, {}, {"whole": lambda _: False}, "chain_broken"),
        (CHAIN, {"key_id": KEY}, {}, "encryption_changed"),
        ([point(1, key_id=KEY), point(2, 1, key_id=KEY)], {}, {}, "encryption_changed"),
        ([point(1, key_id=KEY), point(2, key_id=OTHER_KEY)], {"key_id": KEY}, {}, "encryption_changed"),
    ],
)
def test_each_doubt_makes_a_full_with_its_reason(
    points: list[DiskManifest], wish: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    assert choose(points, wish, **options) == Choice("vda", "full", None, why)


@pytest.mark.feature("T26")
def test_what_cannot_be_read_is_no_obstacle_to_a_chain_that_can() -> None:
    assert choose(CHAIN, unreadable=True) == Choice("vda", "incremental", CHAIN[1], "")


@pytest.mark.feature("T26")
def test_a_restore_before_the_last_point_is_of_no_account() -> None:
    assert choose(CHAIN, restored_time=NOW - timedelta(days=9)).type == "incremental"


@pytest.mark.feature("T14")
@pytest.mark.parametrize("key_id", ["", OTHER_KEY])
def test_with_a_key_nothing_that_is_not_sealed_with_it_becomes_a_parent(key_id: str) -> None:
    """A forged backup dated ahead claims the real one's checkpoint, and changes nothing."""
    sealed = [point(1, key_id=KEY), point(2, 1, key_id=KEY)]
    forged = point(99, 1, key_id=key_id, checkpoint="cp2")

    assert choose([*sealed, forged], {"key_id": KEY}) == Choice("vda", "incremental", sealed[1], "")


@pytest.mark.feature("T4")
def test_a_copy_is_never_a_parent() -> None:
    copy = point(3, type="copy", checkpoint="")

    assert choose([*CHAIN, copy]) == Choice("vda", "incremental", CHAIN[1], "")
    assert choose([copy]) == Choice("vda", "full", None, "first")


@pytest.mark.feature("T26")
def test_a_chain_ends_before_a_manifest_cannot_hold_it() -> None:
    points = [point(number, *range(1, number)) for number in (1, 511, 512)]
    points += [dataclasses.replace(points[0], backup_id=backup_id(number)) for number in range(2, 511)]
    tracking = {"cp512": "", "cp511": ""}

    assert choose(points, tracking=tracking) == Choice("vda", "full", None, "chain_long")
    assert choose(points, {"type": "differential"}, tracking=tracking).type == "differential"
    shorter = [one for one in points if one.backup_id != backup_id(512)]
    assert choose(shorter, tracking=tracking).type == "incremental"
