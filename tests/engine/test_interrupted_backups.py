"""Whole backups over S3, FTP and rclone that are broken off: while they read, at their commit; what stays are whole backups alone.

    engine ──► Proxy: cut once, or cut and closed for good ──► gateway, vsftpd, sshd: away, or with other credentials

Either the backup is whole or it fails by name. The next one is good, and cleans up: nothing else lies there then, uploads in parts and
temporary names included. SFTP and local have this in test_stress_storage.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.cleanup import clean_storage
from engine.spec import Settings, StorageSpec
from engine.storage.open import open_storage
from engine.storage.s3_parts import PART_BYTES_MIN
from engine.units import MIB
from tests.engine.aftermath import At, assert_host_is_clean, assert_restores, assert_verifies
from tests.engine.rig import Rig, reason
from tests.engine.storage import test_ftp_interrupted as on_ftp
from tests.engine.storage import test_rclone_interrupted as on_rclone
from tests.engine.storage import test_s3_interrupted as on_s3
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.proxy import Proxy
from tests.servers.rclone import RcloneRemotes, sftp_remote
from tests.servers.sshd import Sshd

pytestmark = [pytest.mark.feature("C12"), pytest.mark.feature("N15")]


@dataclass
class Way:
    """A storage behind a line: `far` are its settings over it, `near` past it, as fields of a StorageSpec."""

    line: Proxy
    far: dict[str, Any]
    near: dict[str, Any]
    everything: Callable[[], list[str]]
    revoke: Callable[[], Callable[[], object]]


@contextmanager
def over_s3(server: Any) -> Iterator[Way]:
    with Proxy(server.port) as line:
        place = server.place(on_s3.SHORT, part_size_bytes=PART_BYTES_MIN)
        near = place.spec.s3
        far = replace(near, endpoint=f"http://127.0.0.1:{line.port}")
        yield Way(line, {"s3": far}, {"s3": near}, place.files, lambda: on_s3.revoke(server))


@contextmanager
def over_ftp(folder: Path) -> Iterator[Way]:
    front = on_ftp.Front(folder, "reuse")
    with front.server, front.line() as line:
        near = front.server.config(folder / "storage")
        far = replace(near, host=line.host, port=line.port, skip_tls_verify=True)
        yield Way(line, {"ftp": far}, {"ftp": near}, lambda: files(folder / "storage"), front.revoke)


@contextmanager
def over_rclone(folder: Path) -> Iterator[Way]:
    with Sshd(folder) as server, Proxy(server.port) as line:
        (folder / "near").mkdir()
        remotes = RcloneRemotes(
            folder / "rclone.conf",
            far=sftp_remote(server, folder, line.port),
            near=sftp_remote(server, folder / "near"),
        )
        far, near = (remotes.config(name, folder / "storage") for name in ("far", "near"))
        where = folder / "storage"
        yield Way(line, {"rclone": far}, {"rclone": near}, lambda: files(where), lambda: on_rclone.revoke_key(server))


def files(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir())


@pytest.fixture(params=["s3", "ftp", "rclone"])
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    for module in (on_s3, on_ftp, on_rclone):
        kind = module.__name__.split("_")[1]
        # Few tries, but none given up because this machine is busy: nothing here is about silence.
        patience = replace(module.SHORT, connect_seconds=10, stall_seconds=20)
        monkeypatch.setattr(f"engine.storage.{kind}.Patience", lambda patience=patience: patience)
    match request.param:
        case "s3":
            made = over_s3(request.getfixturevalue("juicefs"))
        case "ftp":
            made = over_ftp(tmp_path)
        case _:
            made = over_rclone(tmp_path)
    with made as found:
        yield found


@dataclass
class Scene:
    rig: Rig
    way: Way
    domain: BlankDomain

    def clean(self) -> None:
        """Clean up as a person does after all is over."""
        with open_storage(self.spec(self.way.near)) as storage:
            clean_storage(storage, self.rig.host, self.rig.folder / "locks")
            storage.remove_stale(-1)

    def spec(self, fields: dict[str, Any]) -> StorageSpec:
        return replace(self.rig.target, **{"local": None, "s3": None, "ftp": None, "rclone": None, **fields})

    def assert_only(self, *made: dict[str, Any]) -> None:
        """These backups lie there, whole, and nothing else of the server."""
        assert {one["backup"]["backup_id"] for one in self.rig.reindex()} == {one["backup_id"] for one in made}
        everything = self.way.everything()
        there = {name.split("/")[2] for name in everything if name.startswith("servers/")}
        assert there == {one["backup_id"] for one in made}
        assert not [name for name in everything if ".part" in name or "(upload)" in name or ".probe" in name]


@pytest.fixture
def scene(tmp_path: Path, libvirtd: Any, blank_domain: Any, way: Way) -> Scene:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(24 * MIB)])
    fill(domain, 0, 6)
    rig = Rig.make(tmp_path / "host", libvirtd.uri)
    rig.settings = Settings(compression_level=0, workers=2)
    made = Scene(rig, way, domain)
    rig.target = made.spec(way.far)
    return made


def fill(domain: BlankDomain, first: int, count: int) -> None:
    for number in range(first, first + count):
        domain.write("vda", number * MIB, MIB, number % 255 + 1)


@pytest.mark.share(18)
@pytest.mark.parametrize("fault", ["cut", "gone", "revoked"])
@pytest.mark.parametrize("moment", ["read", "commit"])
def test_a_backup_that_is_broken_off_is_whole_or_nothing(scene: Scene, moment: str, fault: str) -> None:
    rig, way, domain = scene.rig, scene.way, scene.domain
    first = rig.back_up(domain.uuid)
    fill(domain, 3, 16)
    mend: list[Callable[[], object]] = []

    def strike() -> None:
        if fault == "revoked":
            mend.append(way.revoke())
            return
        if fault == "gone":
            way.line.refuse()
            mend.append(lambda: way.line.refuse(on=False))
        way.line.cut()

    report = At("read", strike, 4 * MIB) if moment == "read" else At("commit", strike)
    try:
        outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid))
    finally:
        for act in mend:
            act()

    assert report.fired.is_set(), outcome
    assert_host_is_clean(rig, domain)
    kept = [first]
    if outcome.result is not None:
        assert fault == "cut"
        kept.append(outcome.result)
        assert_restores(rig, domain, outcome.result["backup_id"])
    elif fault == "revoked":
        assert reason(outcome) == "STORAGE_LOGIN_FAILED"
    else:
        assert reason(outcome) == "STORAGE_UNREACHABLE"
        assert fault == "gone" or rig.target.rclone is not None, "what can resume does"
    second = rig.back_up(domain.uuid)
    assert [one["type"] for one in second["disks"]] == ["incremental"]
    assert_restores(rig, domain, second["backup_id"])
    scene.clean()
    scene.assert_only(*kept, second)
    assert_verifies(rig, domain)
