"""A mixed domain whose guest writes all the time: every point of every run is what the disks were at its instant, byte by byte."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.units import KIB, MIB
from tests.engine.mixed import ALL, assert_is, at_each_instant, mixed_domain, types, writing
from tests.engine.rig import Rig
from tests.servers.guest import BlankDomain, file_of

SIZE_BYTES = 8 * MIB
ROUNDS = 5


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> Iterator[BlankDomain]:
    with mixed_domain(tmp_path, blank_domain, SIZE_BYTES) as made:
        yield made


class Scribbler:
    """Writes and discards at random, of any length, across the borders of clusters."""

    def __init__(self, domain: BlankDomain, seed: int) -> None:
        self._domain = domain
        self._chance = random.Random(seed)
        self.count = 0

    def write(self) -> None:
        chance = self._chance
        start = chance.randrange(0, SIZE_BYTES, 512)
        length = min(chance.randrange(512, 300 * KIB, 512), SIZE_BYTES - start)
        target = chance.choice(ALL)
        if chance.random() < 0.2:
            self._domain.discard(target, start, length)
        else:
            self._domain.write(target, start, length, chance.randrange(1, 256))
        self.count += 1


@pytest.mark.feature("T8")
@pytest.mark.feature("T11")
@pytest.mark.feature("T28")
@pytest.mark.share(2)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_writes_before_at_and_after_each_instant(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rig = Rig.make(tmp_path, libvirtd.uri)
    instants = at_each_instant(monkeypatch)
    scribbler = Scribbler(domain, seed)
    kinds = ["full"] + ["incremental" if number % 3 else "differential" for number in range(1, ROUNDS)]
    made = []
    with writing(scribbler.write):
        for kind in kinds:
            before = scribbler.count
            made.append(rig.back_up(domain.uuid, type=kind, consistency="none"))
            assert scribbler.count > before  # it was no quiet disk that was backed up

    assert [types(one) for one in made[1:]] == [dict.fromkeys(ALL, (kind, "")) for kind in kinds[1:]]
    for one, expected in zip(made, instants, strict=True):
        assert_is(rig, domain, one["backup_id"], expected)


@pytest.mark.feature("T8")
@pytest.mark.feature("T17")
@pytest.mark.feature("T28")
def test_a_guest_that_writes_to_a_qcow2_and_a_raw_disk_finds_both_of_one_instant(
    tmp_path: Path, libvirtd: Any, real_guest: Any
) -> None:
    """It writes a number to vda, synced, and then to vdb, on and on: what comes back is equal, or vda is one ahead."""
    guest = real_guest(formats=("qcow2", "raw"))
    rig = Rig.make(tmp_path, libvirtd.uri)
    guest.start_writer()

    found = []
    for number in range(3):
        made = rig.back_up(guest.uuid, consistency="freeze")
        assert types(made) == dict.fromkeys(("vda", "vdb"), ("full", "first") if number == 0 else ("incremental", ""))
        restored = rig.restore_to(tmp_path / f"out{number}", guest.uuid, made["backup_id"])
        found.append([int(file_of(restored[disk], "/counter")) for disk in ("vda", "vdb")])

    assert all(first - second in {0, 1} for first, second in found)
    assert found == sorted(found)
    assert found[0] != found[-1]
