"""A cancel while something is waited for: it ends the wait at once, and what is said of the server is true."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import heal as heals
from engine.heal import HealSpec, heal
from engine.hypervisor.lock import DomainLock
from engine.units import MIB
from engine.work import Stop
from tests.engine.aftermath import assert_host_is_clean, assert_next_is_good
from tests.engine.rig import RecordingReport, Rig, digest
from tests.servers.guest import BlankDomain, DiskFile

PROMPT_SECONDS = 5.0


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)])
    made.write("vda", 0, MIB, 1)
    return made


@pytest.mark.feature("M15")
def test_a_restore_cancelled_while_the_guest_may_shut_down_ends_at_once(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain
) -> None:
    rig, stop = Rig.make(tmp_path, libvirtd.uri), Stop()
    made = rig.back_up(domain.uuid)
    domain.write("vda", MIB, MIB, 2)
    before = digest(domain.disks[0].path, "qcow2")
    rig.stop_grace_seconds = 60  # without a system, nobody hears the wish to shut down

    class CancelInGrace(RecordingReport):
        def info(self, message: str) -> None:
            super().info(message)
            if message.startswith("stopping domain"):
                threading.Timer(0.3, stop.set).start()

    begun = time.monotonic()
    outcome = rig.run(stop, CancelInGrace(), restore=rig.restore_job(domain.uuid, made["backup_id"]))

    assert outcome.state == "cancelled"
    assert time.monotonic() - begun < PROMPT_SECONDS
    assert ["asked to shut down" in warning for warning in outcome.warnings] == [True]
    assert_host_is_clean(rig, domain)
    assert digest(domain.disks[0].path, "qcow2") == before
    rig.stop_grace_seconds = 0
    assert_next_is_good(rig, domain, {"vda": ("incremental", "")})


@pytest.mark.feature("C11")
def test_healing_that_waits_for_a_lock_ends_at_once(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = HealSpec(libvirtd.uri, domain.uuid, str(tmp_path / "scratch"), str(tmp_path / "locks"))
    stop, begun = Stop(), time.monotonic()
    with DomainLock(tmp_path / "locks", domain.uuid, "a long backup"):
        threading.Timer(0.3, stop.set).start()
        healed = heal(what, stop)
    assert time.monotonic() - begun < PROMPT_SECONDS
    assert healed.failed == ["the work was cancelled"]

    monkeypatch.setattr(heals, "THAW_SECONDS", 0.5)
    with DomainLock(tmp_path / "locks", domain.uuid, "a long backup"):
        assert ["is busy" in one for one in heal(what).failed] == [True]
    assert heal(what).failed == []


@pytest.mark.feature("T29")
def test_half_an_interval_before_its_day_a_full_is_due(tmp_path: Path, libvirtd: Any, domain: BlankDomain) -> None:
    rig, now = Rig.make(tmp_path, libvirtd.uri), datetime.now(UTC)
    week = timedelta(days=7)
    day_seconds = 24 * 3600
    rig.back_up(domain.uuid, now=now - week + timedelta(hours=1))

    manual = rig.back_up(domain.uuid, now=now - timedelta(minutes=1))
    scheduled = rig.back_up(domain.uuid, now=now, interval_seconds=day_seconds)

    assert [manual["disks"][0]["type"], scheduled["disks"][0]["type"]] == ["incremental", "full"]
    assert scheduled["disks"][0]["fallback_reason"] == "interval_due"
