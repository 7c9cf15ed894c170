"""The veto: no deletion ever takes data that a surviving manifest needs."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import chain
from engine.chain import DataFile, Point
from engine.format.layout import SegmentRef
from engine.format.manifest import DiskManifest, Layer
from tests.engine.format.samples import RELAXED, Writing, disk_manifest


def backup_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


def make(number: int, needed: tuple[int, ...] = (), disk: str = "vda", segments: int = 1) -> DiskManifest:
    """Return a manifest of backup `number` that builds on the backups `needed`."""
    refs = tuple(SegmentRef(one, 500, 300, 2, "ab" * 32, "cd" * 32) for one in range(segments))
    layers = tuple(Layer(backup_id(one), refs) for one in (*needed, number))
    parent = backup_id(needed[-1]) if needed else ""
    return disk_manifest(Writing(), backup_id(number), disk, 8192, layers, parent)


def points(*numbers: int, disk: str = "vda") -> frozenset[Point]:
    return frozenset(Point(backup_id(number), disk) for number in numbers)


@pytest.mark.feature("R19")
def test_a_manifest_needs_its_own_files_and_its_ancestors():
    value = make(3, (1, 2), segments=2)

    assert chain.needs(value) == {DataFile(backup_id(number), "vda", one) for number in (1, 2, 3) for one in (0, 1)}
    assert chain.needed_points(value) == points(1, 2, 3)


@pytest.mark.feature("R19")
def test_an_ancestor_is_needed_and_a_tail_is_not():
    found = [make(1), make(2, (1,)), make(3, (1, 2))]
    one, two, three = (next(iter(points(number))) for number in (1, 2, 3))

    assert chain.needed_by(found, points(1)) == {one: frozenset({two, three})}
    assert chain.needed_by(found, points(2)) == {two: frozenset({three})}
    assert chain.needed_by(found, points(3)) == {}
    assert chain.needed_by(found, points(2, 3)) == {}
    assert chain.needed_by(found, points(1, 2, 3)) == {}
    assert chain.needed_by(found, points(1, 3)) == {one: frozenset({two})}


@pytest.mark.feature("R19")
def test_a_differential_does_not_need_the_incrementals_before_it():
    found = [make(1), make(2, (1,)), make(3, (1,))]

    assert chain.needed_by(found, points(2)) == {}


@pytest.mark.feature("R19")
def test_what_a_refused_deletion_needs_is_refused_too():
    """3 needs 2 only, as a synthetic full might; 2 stays because of it, and so does 1, which 2 needs."""
    found = [make(1), make(2, (1,)), dataclasses.replace(make(3, (2,)), type="full", parent_backup_id="")]

    assert chain.needed_by(found, points(1, 2)).keys() == points(1, 2)


@pytest.mark.feature("R19")
def test_disks_do_not_need_each_other():
    found = [make(1), make(2, (1,)), make(1, disk="vdb")]

    assert chain.needed_by(found, points(1, disk="vdb")) == {}


@pytest.mark.feature("R19")
def test_a_point_without_a_manifest_is_still_protected_by_those_that_need_it():
    assert chain.needed_by([make(2, (1,))], points(1)).keys() == points(1)


@st.composite
def histories(draw):
    """Any manifests that need any earlier backups, and any set to delete."""
    count = draw(st.integers(1, 8))
    found = [
        make(
            number,
            tuple(sorted(draw(st.sets(st.integers(0, number - 1), max_size=3)))) if number else (),
            segments=draw(st.integers(1, 2)),
        )
        for number in range(count)
    ]
    return found, points(*draw(st.sets(st.integers(0, count - 1))))


@pytest.mark.feature("R19")
@RELAXED
@given(history=histories())
def test_after_what_is_allowed_every_survivor_has_all_it_needs(history):
    found, deleting = history

    vetoes = chain.needed_by(found, deleting)
    gone = deleting - vetoes.keys()
    survivors = [one for one in found if Point(one.backup_id, one.disk) not in gone]

    for one in survivors:
        assert not chain.needed_points(one) & gone
        assert not {Point(file.backup_id, file.disk) for file in chain.needs(one)} & gone


@pytest.mark.feature("R19")
@RELAXED
@given(history=histories())
def test_nothing_is_refused_without_a_survivor_that_needs_it(history):
    found, deleting = history
    by_point = {Point(one.backup_id, one.disk): one for one in found}

    vetoes = chain.needed_by(found, deleting)
    gone = deleting - vetoes.keys()

    assert vetoes.keys() <= deleting
    for point, users in vetoes.items():
        assert users == {
            user for user, one in by_point.items() if user not in gone | {point} and point in chain.needed_points(one)
        }
        assert users
