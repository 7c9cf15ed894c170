"""An engine that is killed in the middle of a backup: the next one for the same job goes on at the same instant, or begins anew."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine import spec
from engine.coverage import Coverage
from engine.extents import Extent
from engine.heal import Healed, HealSpec, heal
from engine.ids import new_id
from engine.resume import check_within, remaining
from engine.spec import BackupJob, Job
from engine.unfinished import NotResumable
from engine.units import MIB
from tests.engine.aftermath import assert_host_is_clean, assert_only
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import BlankDomain, DiskFile
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("C12")

KILLED = -9
HEADER_SALT = slice(120, 152)  # FORMAT.md, "Header"
DISK_BYTES = 24 * MIB
WENT_ON, BEGAN_ANEW = "at the same instant", "was begun anew"


@dataclass
class Scene:
    """One domain with two disks and the backup of them that is killed."""

    rig: Rig
    domain: BlankDomain
    content: dict[str, bytearray]  # what the guest has written, by disk: nothing else is believed about an image in use
    job: Job

    def run(self, kill_at: str = "", restarts: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Run an engine process for the job, killed at a step; return its exit status and events."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.engine.small_segments"],
            input=spec.dump(self.rig.operation(replace(self.job, restarts=restarts))).encode(),
            env={**os.environ, "BM_KILL_AT": kill_at},
            capture_output=True,
            check=False,
            timeout=120,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def kill(self, step: str, restarts: int = 0) -> None:
        status, events = self.run(step, restarts)
        assert status == KILLED, (step, events[-3:])

    def go_on(self, restarts: int = 1) -> dict[str, Any]:
        """Run the job once more; return its `finished` event."""
        status, events = self.run("", restarts)
        assert status == 0, events
        return next(event for event in events if event["type"] == "finished")

    def heal(self, resume_job_id: str = "") -> Healed:
        backup = self.backup
        return heal(
            HealSpec(
                self.rig.uri, self.domain.uuid, str(self.rig.folder / "scratch"), str(self.rig.folder / "locks"),
                self.rig.target, self.domain.uuid, backup.backup_id, resume_job_id,
            )
        )  # fmt: skip

    @property
    def backup(self) -> BackupJob:
        assert self.job.backup is not None
        return self.job.backup

    def digests(self) -> dict[str, str]:
        """Return what the disks hold now."""
        return {disk: hashlib.sha256(content).hexdigest() for disk, content in self.content.items()}

    def write(self, disk: str, start: int, length: int, pattern: int) -> None:
        self.domain.write(disk, start, length, pattern)
        self.content[disk][start : start + length] = bytes([pattern]) * length

    def write_meanwhile(self, seed: int = 7) -> None:
        """Write here and there, over what is stored already and what is not, over data and over holes."""
        chance = random.Random(seed)
        for disk in self.content:
            for number in range(12):
                self.write(disk, chance.randrange(DISK_BYTES // MIB) * MIB, MIB // 2, 200 + number)

    def next_job(self, **options: Any) -> None:
        """Make the job that comes next the one that is killed."""
        self.job = Job(
            new_id(datetime.now(UTC)), backup=self.rig.backup_job(self.domain.uuid, consistency="pause", **options)
        )

    def assert_whole(
        self,
        finished: dict[str, Any],
        expected: dict[str, str],
        *before: dict[str, Any],
    ) -> None:
        """The backup is whole, is of the expected instant, the host is clean, and the next backup is good."""
        assert finished["failure"] is None, finished
        made = finished["result"]
        assert_host_is_clean(self.rig, self.domain)
        assert not list((self.rig.folder / "locks").glob("*.unfinished"))
        assert_only(self.rig.folder / "storage", self.domain.uuid, *before, made)
        assert reason(self.rig.verify(self.domain.uuid)) == ""
        restored = self.rig.restore_to(self.rig.folder / "out", self.domain.uuid, made["backup_id"])
        assert {disk: digest(path) for disk, path in restored.items()} == expected
        after = self.rig.back_up(self.domain.uuid)
        assert {one["type"] for one in after["disks"]} == {"incremental"}, after
        restored = self.rig.restore_to(self.rig.folder / "after", self.domain.uuid, after["backup_id"])
        assert {disk: digest(path) for disk, path in restored.items()} == self.digests()


@pytest.fixture
def make_scene(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> Callable[..., Scene]:
    def make(*formats: str, encrypted: bool = True) -> Scene:
        disks = [
            DiskFile(f"vd{'abc'[number]}", tmp_path / f"vd{'abc'[number]}.{form}", form).create(DISK_BYTES)
            for number, form in enumerate(formats or ("qcow2", "qcow2"))
        ]
        domain = blank_domain(disks)
        rig = Rig.make(tmp_path, libvirtd.uri, encrypted=encrypted)
        content = {disk.target: bytearray(DISK_BYTES) for disk in disks}
        scene = Scene(rig, domain, content, Job(""))
        scene.next_job()
        for disk in content:
            for number in range(1, DISK_BYTES // MIB, 2):
                scene.write(disk, number * MIB, MIB, number)
        return scene

    return make


@pytest.mark.parametrize(
    "step",
    ["noted", "segment", "segment:2", "segment:3", "segment:4", "segment:6", "stored", "job_ended", "lease_held"],
)
@pytest.mark.share(2)
def test_a_full_goes_on_at_its_instant(make_scene: Callable[..., Scene], step: str) -> None:
    scene = make_scene()
    expected = scene.digests()

    scene.kill(step)
    scene.write_meanwhile()
    assert scene.heal(scene.job.job_id).resumable
    finished = scene.go_on()

    assert any(WENT_ON in warning for warning in finished["warnings"]), finished
    scene.assert_whole(finished, expected)


@pytest.mark.parametrize("kind", ["incremental", "differential", "copy"])
@pytest.mark.parametrize("formats", [("qcow2", "qcow2"), ("raw", "qcow2")])
@pytest.mark.share(3)
def test_every_type_goes_on(make_scene: Callable[..., Scene], kind: str, formats: tuple[str, ...]) -> None:
    scene = make_scene(*formats)
    before = [scene.rig.back_up(scene.domain.uuid)]
    scene.write_meanwhile(1)
    if kind == "differential":
        before.append(scene.rig.back_up(scene.domain.uuid))
        scene.write_meanwhile(2)
    scene.next_job(type=kind)
    expected = scene.digests()

    scene.kill("segment:2")
    scene.write_meanwhile()
    assert scene.heal(scene.job.job_id).resumable
    finished = scene.go_on()

    assert any(WENT_ON in warning for warning in finished["warnings"]), finished
    assert {one["type"] for one in finished["result"]["disks"]} == {kind}
    scene.assert_whole(finished, expected, *before)


def test_what_is_not_encrypted_goes_on_too(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("qcow2", encrypted=False)
    expected = scene.digests()
    scene.kill("segment:2")
    scene.write_meanwhile()
    scene.assert_whole(scene.go_on(), expected)


def test_killed_again_and_again(make_scene: Callable[..., Scene]) -> None:
    """Each engine brings it a segment further; no salt stands in two of them, so no key and nonce were used twice."""
    scene = make_scene()
    expected = scene.digests()
    salts: list[bytes] = []
    for restarts in range(4):
        scene.kill("segment", restarts)
        scene.write_meanwhile(restarts)
        files = sorted((scene.rig.folder / "storage").rglob("*.data"))
        assert len(files) == restarts + 1
        salts = [file.read_bytes()[HEADER_SALT] for file in files]
    finished = scene.go_on(4)
    files = sorted((scene.rig.folder / "storage").rglob("*.data"))
    after = [file.read_bytes()[HEADER_SALT] for file in files]
    assert len(set(after)) == len(files) == 6
    assert set(salts) <= set(after)
    scene.assert_whole(finished, expected)


def test_a_segment_that_was_half_written_is_written_anew(make_scene: Callable[..., Scene]) -> None:
    """Also one that was finished, and whose engine died before it could note it."""
    scene = make_scene("qcow2")
    expected = scene.digests()
    scene.kill("segment:2")
    note = next((scene.rig.folder / "locks").glob("*.unfinished"))
    assert note.stat().st_mode & 0o777 == 0o600
    content = json.loads(note.read_text())
    (disk,) = content["disks"]
    folder = scene.rig.folder / "storage" / "servers" / scene.domain.uuid / scene.backup.backup_id / "vda"
    forgotten = disk["segments"].pop()
    assert sorted(path.name for path in folder.iterdir()) == ["0000.data", "0001.data"]
    note.write_text(json.dumps(content))
    (folder / "0001.data.0123456789ab.part").write_bytes(b"half")
    salt = (folder / "0001.data").read_bytes()[HEADER_SALT]

    finished = scene.go_on()

    assert any("from 1 finished segments" in warning for warning in finished["warnings"]), finished
    assert (folder / "0001.data").read_bytes()[HEADER_SALT] != salt
    assert forgotten["number"] == 1
    scene.assert_whole(finished, expected)


def test_a_note_holds_no_secret(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("qcow2")
    scene.kill("segment")
    text = next((scene.rig.folder / "locks").glob("*.unfinished")).read_text()
    for secret in scene.backup.server_keys.values():
        assert secret not in text
    scene.heal()


def test_libvirtd_was_restarted_between(make_scene: Callable[..., Scene], libvirtd: Any) -> None:
    scene = make_scene()
    expected = scene.digests()
    scene.kill("segment:2")
    libvirtd.restart()
    scene.write_meanwhile()
    assert scene.heal(scene.job.job_id).resumable
    finished = scene.go_on()
    assert any(WENT_ON in warning for warning in finished["warnings"]), finished
    scene.assert_whole(finished, expected)


# ---- what makes it begin anew ---------------------------------------------------------------------------------------------


def assert_begun_anew(scene: Scene, finished: dict[str, Any], why: str = "") -> None:
    (warning,) = [one for one in finished["warnings"] if BEGAN_ANEW in one]
    assert why in warning
    scene.assert_whole(finished, scene.digests())


@pytest.mark.parametrize("step", ["prepared", "intent", "begun", "thawed", "mapped"])
@pytest.mark.share(2)
def test_killed_before_anything_was_noted(make_scene: Callable[..., Scene], step: str) -> None:
    scene = make_scene()
    scene.kill(step)
    scene.write_meanwhile()
    healed = scene.heal(scene.job.job_id)
    assert not healed.resumable
    assert not healed.failed
    assert_begun_anew(scene, scene.go_on())


@pytest.mark.parametrize("healed", [True, False])
def test_the_domain_was_started_anew_between(make_scene: Callable[..., Scene], healed: bool) -> None:
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    scene.domain.handle.destroy()
    scene.domain.handle.create()
    scene.write_meanwhile()
    if healed:
        assert not scene.heal(scene.job.job_id).resumable
    assert_begun_anew(scene, scene.go_on())


def test_the_domain_was_stopped_between(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    scene.domain.handle.destroy()
    finished = scene.go_on()
    assert finished["failure"] is None, finished
    assert finished["result"]["consistency"] == "offline"
    assert any("the domain was stopped" in warning for warning in finished["warnings"])
    scene.domain.handle.create()
    scene.assert_whole(finished, scene.digests())


def test_somebody_ended_the_block_job_between(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    scene.domain.handle.abortJob()
    wait_until(lambda: scene.domain.handle.jobStats()["type"] == 0, 30, "the job's end")
    scene.write_meanwhile()
    assert_begun_anew(scene, scene.go_on(), "block job has ended")


@pytest.mark.parametrize("loss", ["gone", "cut", "damaged", "intent", "all"])
def test_something_was_lost_on_the_storage_between(make_scene: Callable[..., Scene], loss: str) -> None:
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    folder = scene.rig.folder / "storage" / "servers" / scene.domain.uuid / scene.backup.backup_id
    segment = folder / "vda" / "0000.data"
    if loss == "gone":
        segment.unlink()
    elif loss == "cut":
        os.truncate(segment, segment.stat().st_size - 1)
    elif loss == "damaged":
        data = bytearray(segment.read_bytes())
        data[-100] ^= 1
        segment.write_bytes(data)
    elif loss == "intent":
        (folder / "intent.json").unlink()
    else:
        shutil.rmtree(folder)
    scene.write_meanwhile()
    assert_begun_anew(scene, scene.go_on())


def test_another_backup_was_made_between(make_scene: Callable[..., Scene]) -> None:
    """It ends the job that it finds and takes its own instant; the first job, asked for again, is a new backup after it."""
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    scene.write_meanwhile(3)
    other = scene.rig.back_up(scene.domain.uuid)
    assert not list((scene.rig.folder / "locks").glob("*.unfinished"))
    scene.write_meanwhile(4)
    finished = scene.go_on()
    assert finished["failure"] is None, finished
    assert any(BEGAN_ANEW in one for one in finished["warnings"])
    scene.assert_whole(finished, scene.digests(), other)


def test_the_definition_was_changed_between(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    scene.domain.handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, "changed", None, None, 2)
    assert_begun_anew(scene, scene.go_on(), "definition")


def test_changes_that_lack_what_is_stored_are_not_believed() -> None:
    """Whatever it means that the record of changes differs from what finished segments hold: it is not gone on with."""
    covered = Coverage()
    covered.add([(0, 10), (20, 30)])
    check_within([Extent(0, 15), Extent(18, 20)], covered)
    check_within([Extent(0, 100)], covered)
    for changes in ([], [Extent(0, 30 - 11)], [Extent(0, 9), Extent(20, 10)], [Extent(1, 40)]):
        with pytest.raises(NotResumable):
            check_within(changes, covered)


def test_what_remains_ascends_behind_what_is_stored() -> None:
    """A zero extent that had overtaken data is stored already; zeros before it count as data, so that pieces ascend."""
    covered = Coverage()
    covered.add([(0, 10), (20, 30)])
    extents = [Extent(0, 12), Extent(12, 13, zero=True), Extent(25, 15, zero=True), Extent(40, 5)]
    assert list(remaining(extents, covered)) == [
        Extent(10, 2),
        Extent(12, 8),
        Extent(30, 10, zero=True),
        Extent(40, 5),
    ]


def test_without_a_restart_nothing_stays(make_scene: Callable[..., Scene]) -> None:
    """The agent gives up: the same tidying as ever, and no note is left."""
    scene = make_scene("qcow2")
    scene.kill("segment:2")
    healed = scene.heal()
    assert not healed.resumable
    assert not healed.failed
    assert_host_is_clean(scene.rig, scene.domain)
    assert not list((scene.rig.folder / "locks").glob("*.unfinished"))
    assert_only(scene.rig.folder / "storage", scene.domain.uuid)
