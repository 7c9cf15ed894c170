"""Raw disks of running domains beside qcow2 ones: real incrementals as long as QEMU runs, an explained full after that."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
from tests.engine.rig import Rig, reason
from tests.servers.guest import BlankDomain

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
