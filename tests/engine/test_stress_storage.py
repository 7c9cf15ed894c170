"""The storage goes away, stands still, or is full in the middle of a backup."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.format import names
from engine.format.markers import Intent
from engine.ids import new_id
from engine.spec import LocalConfig, Settings
from engine.spec import TestJob as StorageTestJob
from engine.storage import sftp
from engine.storage.open import open_storage
from engine.storage.sftp_connect import Patience
from engine.units import KIB, MIB
from engine.work import Stop
from tests.engine.aftermath import At, assert_host_is_clean, assert_next_is_good, assert_only, assert_verifies, folders
from tests.engine.rig import Rig, digest, reason
from tests.faults import FaultyStorage
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.proxy import Proxy
from tests.servers.small_disk import small_disk
from tests.servers.sshd import Sshd

INCREMENTAL = {"vda": ("incremental", "")}
DISK_BYTES = 32 * MIB
IMPATIENT = Patience(
    connect_seconds=2, stall_seconds=1, sync_seconds=2, attempts=2, pause_seconds=0.1, enduring_attempts=2
)


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(DISK_BYTES)])
    fill(made, 0, 12)
    return made


def fill(domain: BlankDomain, first: int, count: int) -> None:
    """Write `count` MiB from `first` MiB on, each of another value."""
    for number in range(first, first + count):
        domain.write("vda", number * MIB, MIB, number % 255 + 1)


def slow(rig: Rig) -> Rig:
    """Store without compression, so that what is read is what is sent."""
    rig.settings = Settings(compression_level=0, workers=2)
    return rig


@contextmanager
def on_sftp(tmp_path: Path, uri: str) -> Iterator[tuple[Rig, Sshd, Proxy]]:
    """Give a rig whose storage is reached through a proxy."""
    with Sshd(tmp_path) as sshd, Proxy(sshd.port) as proxy:
        rig = slow(Rig.make(tmp_path, uri))
        config = sshd.config(tmp_path / "storage", port=proxy.port)
        rig.target = replace(rig.target, local=None, sftp=config)
        yield rig, sshd, proxy


@pytest.mark.feature("N15")
def test_the_storage_server_dies_and_what_it_kept_is_removed_by_the_next_backup(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "Patience", lambda: IMPATIENT)
    with on_sftp(tmp_path, libvirtd.uri) as (rig, sshd, _proxy):
        first = rig.back_up(domain.uuid)
        fill(domain, 5, 20)
        job = rig.backup_job(domain.uuid)

        outcome = rig.run(report=At("read", sshd.stop, 4 * MIB), backup=job)

        assert (outcome.state, reason(outcome)) == ("failed", "STORAGE_UNREACHABLE")
        assert any(job.backup_id in warning for warning in outcome.warnings)
        assert_host_is_clean(rig, domain)
        assert folders(tmp_path / "storage", domain.uuid) == sorted([first["backup_id"], job.backup_id])
        sshd.start()
        assert [one["backup"]["backup_id"] for one in rig.reindex()] == [first["backup_id"]]
        second = assert_next_is_good(rig, domain, INCREMENTAL)
        assert_only(tmp_path / "storage", domain.uuid, first, second)
        assert_verifies(rig, domain)


@pytest.mark.feature("C12")
@pytest.mark.parametrize("fault", ["cut", "cut often", "restart"])
def test_a_lost_connection_costs_the_backup_nothing(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, fault: str
) -> None:
    with on_sftp(tmp_path, libvirtd.uri) as (rig, sshd, proxy):
        first = rig.back_up(domain.uuid)
        fill(domain, 5, 20)
        expected = digest(tmp_path / "vda.qcow2", "qcow2")

        def restart() -> None:
            sshd.stop()
            sshd.start()

        def cut_often() -> None:
            proxy.cut_each_after(2 * MIB)
            proxy.cut()

        acts = {"cut": proxy.cut, "cut often": cut_often, "restart": restart}
        report = At("read", acts[fault], 4 * MIB)
        connections = proxy.connections
        outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))
        proxy.cut_each_after(0)

        assert report.fired.is_set()
        assert reason(outcome) == ""
        assert outcome.result is not None
        assert proxy.connections > connections + (5 if fault == "cut often" else 1)
        assert_host_is_clean(rig, domain)
        assert_only(tmp_path / "storage", domain.uuid, first, outcome.result)
        restored = rig.restore_to(tmp_path / "out", domain.uuid, outcome.result["backup_id"])
        assert digest(restored["vda"]) == expected
        assert_verifies(rig, domain)


@pytest.mark.feature("C12")
def test_a_restore_goes_on_after_lost_connections(tmp_path: Path, libvirtd: Any, domain: BlankDomain) -> None:
    with on_sftp(tmp_path, libvirtd.uri) as (rig, _sshd, proxy):
        made, expected = rig.back_up(domain.uuid), digest(tmp_path / "vda.qcow2", "qcow2")
        proxy.cut_each_after(6 * MIB, "down")
        connections = proxy.connections
        restored = rig.restore_to(tmp_path / "out", domain.uuid, made["backup_id"])
        assert digest(restored["vda"]) == expected
        assert proxy.connections > connections + 1
        assert reason(rig.verify(domain.uuid)) == ""


@pytest.mark.feature("N15")
def test_a_connection_cut_at_the_commit_is_settled_one_way_or_the_other(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain
) -> None:
    """Requests between files are repeated, and a manifest of unknown outcome is read: the backup becomes whole."""
    with on_sftp(tmp_path, libvirtd.uri) as (rig, _sshd, proxy):
        report = At("commit", proxy.cut)
        outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

        assert report.fired.is_set()
        assert reason(outcome) == ""
        assert outcome.result is not None
        assert_host_is_clean(rig, domain)
        assert_only(tmp_path / "storage", domain.uuid, outcome.result)
        assert_next_is_good(rig, domain, INCREMENTAL)


@pytest.mark.feature("N15")
def test_a_storage_that_stands_still_is_given_up(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "Patience", lambda: IMPATIENT)
    with on_sftp(tmp_path, libvirtd.uri) as (rig, _sshd, proxy):
        first = rig.back_up(domain.uuid)
        fill(domain, 5, 20)

        outcome = rig.run(report=At("read", proxy.stall, 4 * MIB), backup=rig.backup_job(domain.uuid))

        assert (outcome.state, reason(outcome)) == ("failed", "STORAGE_UNREACHABLE")
        assert_host_is_clean(rig, domain)
        proxy.cut()
        proxy.resume()
        second = assert_next_is_good(rig, domain, INCREMENTAL)
        assert_only(tmp_path / "storage", domain.uuid, first, second)


@pytest.mark.feature("N15")
@pytest.mark.parametrize("fault", ["write", "commit"])
def test_a_folder_that_goes_away_and_stays_away(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    """Not even the clean-up gets through: what is left is no backup, and the next backup removes it."""
    rig = slow(Rig.make(tmp_path, libvirtd.uri))
    first = rig.back_up(domain.uuid)
    fill(domain, 5, 20)

    def unreliable(spec: Any, **options: Any) -> FaultyStorage:
        storage = FaultyStorage(open_storage(spec, **options))
        storage.fail(fault, name="*/0000.data", after_calls=1 if fault == "write" else 0)
        return storage.fail("delete").fail("sweep")

    job = rig.backup_job(domain.uuid)
    with monkeypatch.context() as patch:
        patch.setattr("engine.storage.open.open_storage", unreliable)
        outcome = rig.run(backup=job)

    assert (outcome.state, reason(outcome)) == ("failed", "STORAGE_UNREACHABLE")
    assert any(job.backup_id in warning for warning in outcome.warnings)
    assert_host_is_clean(rig, domain)
    assert job.backup_id in folders(tmp_path / "storage", domain.uuid)
    assert [one["backup"]["backup_id"] for one in rig.reindex()] == [first["backup_id"]]
    second = assert_next_is_good(rig, domain, INCREMENTAL)
    assert_only(tmp_path / "storage", domain.uuid, first, second)


@pytest.mark.feature("N15")
@pytest.mark.feature("S29")
def test_a_place_whose_disk_is_not_mounted_is_not_taken_for_a_new_storage(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain
) -> None:
    rig = Rig.make(tmp_path, libvirtd.uri)
    first = rig.back_up(domain.uuid)
    fill(domain, 5, 2)
    root, elsewhere = tmp_path / "storage", tmp_path / "unmounted"
    root.rename(elsewhere)
    root.mkdir()

    outcome = rig.run(backup=rig.backup_job(domain.uuid))

    assert (outcome.state, reason(outcome)) == ("failed", "REPOSITORY_MISSING")
    assert list(root.iterdir()) == []
    assert_host_is_clean(rig, domain)
    root.rmdir()
    elsewhere.rename(root)
    second = assert_next_is_good(rig, domain, INCREMENTAL)
    assert_only(root, domain.uuid, first, second)
    # Emptied on purpose: a test of the storage, by a person, begins anew.
    root.rename(elsewhere)
    assert reason(rig.run(test=StorageTestJob())) == ""
    assert_next_is_good(rig, domain, {"vda": ("full", "first")})


# ---- full -------------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N15")
@pytest.mark.parametrize("kind", ["local", "sftp"])
@pytest.mark.parametrize("moment", ["upload", "manifest"])
def test_a_full_storage_keeps_its_old_backups_and_nothing_partial(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain, kind: str, moment: str
) -> None:
    with on_sftp(tmp_path, libvirtd.uri) as (rig, sshd, _proxy), small_disk(tmp_path / "small", 48 * MIB) as small:
        root = small / "storage"
        local, remote = LocalConfig(str(root)), sshd.config(root)
        rig.target = replace(
            rig.target, local=local if kind == "local" else None, sftp=remote if kind == "sftp" else None
        )
        first = rig.back_up(domain.uuid)
        fill(domain, 5, 20)
        filler = small / "filler"

        def occupy() -> None:
            """Leave nothing of the disk, whatever is left."""
            with filler.open("wb", buffering=0) as file:
                for piece in (MIB, 4 * KIB, 1):
                    try:
                        while file.write(bytes(piece)) == piece:
                            pass
                    except OSError:
                        continue

        report = At("read", occupy, 4 * MIB) if moment == "upload" else At("commit", occupy)
        outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))

        assert (outcome.state, reason(outcome)) == ("failed", "STORAGE_FULL")
        assert_host_is_clean(rig, domain)
        assert_only(root, domain.uuid, first)
        filler.unlink()
        assert_verifies(rig, domain)
        second = assert_next_is_good(rig, domain, INCREMENTAL)
        assert_only(root, domain.uuid, first, second)


# ---- a cancel ---------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N15")
def test_a_cancel_ends_an_upload_that_stands_still(tmp_path: Path, libvirtd: Any, domain: BlankDomain) -> None:
    """The storage answers nothing, not even to the clean-up: still the job ends within seconds."""
    with on_sftp(tmp_path, libvirtd.uri) as (rig, _sshd, proxy):
        first = rig.back_up(domain.uuid)
        fill(domain, 5, 20)
        stop = Stop()
        timer = threading.Timer(1, stop.set)

        def stall() -> None:
            proxy.stall()
            timer.start()

        begun = datetime.now(UTC)
        outcome = rig.run(stop, At("read", stall, 4 * MIB), backup=rig.backup_job(domain.uuid))

        assert outcome.state == "cancelled"
        assert datetime.now(UTC) - begun < timedelta(seconds=15)
        assert_host_is_clean(rig, domain)
        proxy.cut()
        proxy.resume()
        second = assert_next_is_good(rig, domain, INCREMENTAL)
        assert_only(tmp_path / "storage", domain.uuid, first, second)


# ---- orphans ----------------------------------------------------------------------------------------------------------------


def leave_attempt(rig: Rig, server_id: str, host: str, begun: datetime, *, intent: bool = True) -> str:
    """Put an unfinished backup on the storage and return its id."""
    backup_id = new_id(begun)
    with open_storage(rig.target) as storage:
        if intent:
            data = Intent(server_id, backup_id, new_id(begun), host, begun.isoformat()).dump()
            storage.put(names.intent_name(server_id, backup_id), data)
        storage.put(names.segment_name(server_id, backup_id, "vda", 0), b"half of something")
    for path in (rig.folder / "storage" / names.backup_folder(server_id, backup_id)).rglob("*"):
        os.utime(path, (begun.timestamp(), begun.timestamp()))
    return backup_id


@pytest.mark.feature("N15")
def test_a_backup_removes_only_what_must_be_dead(tmp_path: Path, libvirtd: Any, domain: BlankDomain) -> None:
    rig = Rig.make(tmp_path, libvirtd.uri)
    first = rig.back_up(domain.uuid)
    now, long_ago = datetime.now(UTC), datetime.now(UTC) - timedelta(days=8)
    own = leave_attempt(rig, domain.uuid, "test-host", now)
    others = leave_attempt(rig, domain.uuid, "another-host", now)
    others_old = leave_attempt(rig, domain.uuid, "another-host", long_ago)
    nameless = leave_attempt(rig, domain.uuid, "", now, intent=False)
    nameless_old = leave_attempt(rig, domain.uuid, "", long_ago, intent=False)
    other_server = leave_attempt(rig, new_id(now), "test-host", now)
    part = new_id(long_ago)
    torn = tmp_path / "storage" / "servers" / domain.uuid / part
    torn.mkdir()
    still_written = leave_attempt(rig, domain.uuid, "another-host", long_ago)  # by a host whose clock is behind
    at_work = tmp_path / "storage" / names.segment_name(domain.uuid, still_written, "vda", 0)
    os.utime(at_work, (now.timestamp(), now.timestamp()))
    (torn / "intent.json.0123456789ab.part").write_bytes(b"{")

    second = assert_next_is_good(rig, domain, INCREMENTAL)

    left = folders(tmp_path / "storage", domain.uuid)
    assert left == sorted([first["backup_id"], second["backup_id"], others, nameless, still_written])
    assert not {own, others_old, nameless_old, part} & set(left)
    assert other_server in {path.name for path in (tmp_path / "storage").glob("servers/*/*")}


@pytest.mark.feature("N15")
@pytest.mark.feature("R19")
def test_a_backup_that_lost_its_last_object_is_not_taken_for_an_attempt(
    tmp_path: Path, libvirtd: Any, domain: BlankDomain
) -> None:
    """A full without backup.json looks like a dead attempt of this host, but an incremental needs its data."""
    rig = Rig.make(tmp_path, libvirtd.uri)
    full, incremental = rig.back_up(domain.uuid), rig.back_up(domain.uuid)
    folder = tmp_path / "storage" / "servers" / domain.uuid / full["backup_id"]
    (folder / "backup.json").unlink()

    third = assert_next_is_good(rig, domain, {"vda": ("full", "chain_broken")})

    assert_only(tmp_path / "storage", domain.uuid, full, incremental, third)
    assert reason(rig.delete(domain.uuid, full["backup_id"])) == "STILL_NEEDED"
    assert reason(rig.verify(domain.uuid, incremental["backup_id"])) == ""
    assert reason(rig.delete(domain.uuid, full["backup_id"], incremental["backup_id"])) == ""
    assert_only(tmp_path / "storage", domain.uuid, third)
