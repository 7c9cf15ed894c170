"""An engine is killed at every step of every kind of work; then the host has no trace of it, and the storage whole backups only."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from engine.failpoint import BACKUP_STEPS, DELETE_STEPS, RESTORE_STEPS, UNDO_STEPS
from engine.spec import DeleteJob, Job
from tests.engine.kill_world import Point, World, Worlds
from tests.engine.rig import digest, reason

EVERY_DISK = ("qcow2", "raw", "block", "mixed")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, libvirtd: Any) -> Iterator[Worlds]:
    with Worlds(tmp_path_factory.mktemp("kill"), libvirtd.uri) as made:
        yield made


@contextlib.contextmanager
def at(point: Point) -> Iterator[None]:
    """Name the kill point in whatever goes wrong there."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"killed at {point}")
        raise


@pytest.mark.feature("C11")
def test_every_step_is_one_at_which_an_engine_is_killed(worlds: Worlds, capsys: pytest.CaptureFixture[str]) -> None:
    """What these jobs reach is what the tests below go through; a step that is reached and not listed is a mistake, too."""
    reached: dict[str, set[str]] = {"backup": set(), "restore": set(), "delete": set()}
    counts: Counter[str] = Counter()
    for disks, running in ((disks, running) for disks in EVERY_DISK for running in (True, False)):
        with worlds.get(disks, running=running) as world:
            for walk in (backups, restores, deletions):
                for verb, steps in walk(world):
                    reached[verb] |= {*steps}
                    counts[verb] += len(world.every_point(steps))

    assert reached == {"backup": {*BACKUP_STEPS, *UNDO_STEPS}, "restore": {*RESTORE_STEPS}, "delete": {*DELETE_STEPS}}
    with capsys.disabled():
        print(f"\nkill points: {counts.total()} ({dict(counts)})")


def backups(world: World) -> Iterator[tuple[str, tuple[str, ...]]]:
    world.begin_anew()
    yield "backup", world.run(world.backup_job()).steps
    for kind in ("incremental", "full"):
        yield "backup", world.run(world.backup_job(type=kind, consistency="pause")).steps
    refused = world.run(world.backup_job(), refuse=True).steps
    yield "backup", tuple(point.step for point in world.every_point(refused) if point.step in UNDO_STEPS)


def restores(world: World) -> Iterator[tuple[str, tuple[str, ...]]]:
    made = world.rig.back_up(world.uuid)["backup_id"]
    yield "restore", world.run(world.restore_job(made, world.uuid)).steps
    if world.domain.handle.isActive():
        return
    yield "restore", world.steps_to_files(made)
    world.lose_domain()
    yield "restore", world.run(world.restore_job(made, world.uuid)).steps


def deletions(world: World) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "delete", world.run(deletion(world)).steps


# ---- backups ----------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C11")
@pytest.mark.feature("N15")
@pytest.mark.parametrize("kind", ["incremental", "full"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("disks", EVERY_DISK)
def test_a_backup_killed_anywhere_is_healed(worlds: Worlds, disks: str, running: bool, kind: str) -> None:
    with worlds.get(disks, running=running) as world:
        world.begin_anew()
        world.rig.back_up(world.uuid)
        options = {"type": kind, "consistency": "pause" if disks == "mixed" else "none"}
        for point in world.points(world.run(world.backup_job(**options)).steps):
            with at(point):
                world.scribble()
                job = world.backup_job(**options)
                world.kill(job, point)
                healed = world.heal(job.backup)
                world.assert_no_trace()
                listed = world.assert_only_whole_backups()
                assert job.backup is not None
                assert (job.backup.backup_id in listed) == (healed.record is not None)
                world.assert_next_is_good()


@pytest.mark.feature("C11")
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_the_next_backup_alone_tidies_up(worlds: Worlds, running: bool) -> None:
    """Without an agent nobody heals; whoever takes the domain's lock next does."""
    with worlds.get("mixed", running=running) as world:
        world.begin_anew()
        world.rig.back_up(world.uuid)
        for point in world.points(world.run(world.backup_job(consistency="pause")).steps):
            with at(point):
                world.scribble()
                world.kill(world.backup_job(consistency="pause"), point)
                world.settle()
                world.assert_next_is_good()
                world.assert_no_trace()
                world.assert_only_whole_backups()


@pytest.mark.feature("C7")
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_cleanup_by_hand_leaves_no_trace(worlds: Worlds, running: bool) -> None:
    with worlds.get("mixed", running=running) as world:
        world.begin_anew()
        world.rig.back_up(world.uuid)
        for point in world.points(world.run(world.backup_job()).steps):
            with at(point):
                world.kill(world.backup_job(consistency="pause"), point)
                world.clean_up()
                world.assert_no_trace()
                world.assert_only_whole_backups()
        world.assert_next_is_good()


@pytest.mark.feature("S29")
@pytest.mark.parametrize("disks", ["qcow2"])
def test_the_first_backup_of_all_killed_anywhere(worlds: Worlds, disks: str) -> None:
    with worlds.get(disks, running=True) as world:
        world.begin_anew()
        for point in world.points(world.run(world.backup_job()).steps):
            with at(point):
                world.begin_anew()
                job = world.backup_job()
                world.kill(job, point)
                world.settle()
                made = world.rig.back_up(world.uuid, consistency="none")
                world.assert_restores(made["backup_id"], world.digests())
                world.assert_no_trace()
                world.assert_only_whole_backups()


@pytest.mark.feature("C11")
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("disks", ["qcow2", "mixed"])
def test_a_backup_that_fails_is_killed_while_it_takes_itself_away(worlds: Worlds, disks: str, running: bool) -> None:
    """Its lease is lost at the end; and what it left is removed by the next one, which is killed at that too."""
    with worlds.get(disks, running=running) as world:
        world.begin_anew()
        world.rig.back_up(world.uuid)
        for point in undo_points(world, world.run(world.backup_job(), refuse=True).steps):
            with at(point):
                world.scribble()
                job = world.backup_job()
                world.kill(job, point, refuse=True)
                world.heal(job.backup)
                world.assert_no_trace()
                world.assert_only_whole_backups()
                world.assert_next_is_good()
        stored = Point("stored", 1)
        world.kill(world.backup_job(), stored)
        for point in undo_points(world, world.run(world.backup_job()).steps):
            with at(point):
                world.kill(world.backup_job(), stored)
                world.kill(world.backup_job(), point)
                world.assert_next_is_good()
                world.assert_no_trace()
                world.assert_only_whole_backups()


def undo_points(world: World, steps: tuple[str, ...]) -> list[Point]:
    return world.points(tuple(step for step in steps if step in UNDO_STEPS))


# ---- restores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C11")
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("disks", EVERY_DISK)
def test_a_restore_killed_anywhere_can_be_run_again(worlds: Worlds, disks: str, running: bool) -> None:
    with worlds.get(disks, running=running) as world:
        world.begin_anew()
        made, expected = world.rig.back_up(world.uuid), world.digests()
        job = world.restore_job(made["backup_id"], world.uuid)
        points = world.points(world.run(job).steps)
        world.set_state(running=running)
        world.assert_next_is_good("full")  # so that there are bitmaps again to be dropped
        for point in points:
            with at(point):
                world.set_state(running=running)
                world.scribble()
                world.kill(job, point)
                world.heal()
                world.run(job)
                assert world.digests() == expected
                world.set_state(running=running)
                world.assert_no_trace()
                world.assert_only_whole_backups()
                world.assert_next_is_good("full")


@pytest.mark.feature("T25")
@pytest.mark.parametrize("disks", ["qcow2", "raw", "mixed"])
def test_a_restore_of_a_domain_that_is_gone_killed_anywhere_can_be_run_again(worlds: Worlds, disks: str) -> None:
    with worlds.get(disks, running=False) as world:
        world.begin_anew()
        made, expected = world.rig.back_up(world.uuid), world.digests()
        job = world.restore_job(made["backup_id"], world.uuid)
        world.lose_domain()
        for point in world.points(world.run(job).steps):
            with at(point):
                world.lose_domain()
                world.kill(job, point)
                world.heal()
                world.run(job)
                assert world.digests() == expected
                world.assert_no_trace()
                world.assert_only_whole_backups()
                assert not world.strangers()
        world.assert_next_is_good("full")


@pytest.mark.feature("C11")
@pytest.mark.parametrize("disks", ["qcow2", "mixed"])
def test_a_restore_to_files_killed_anywhere_leaves_no_half_file_under_its_name(worlds: Worlds, disks: str) -> None:
    with worlds.get(disks, running=False) as world:
        world.begin_anew()
        made, expected = world.rig.back_up(world.uuid), world.digests()
        for number, point in enumerate(world.points(world.steps_to_files(made["backup_id"]))):
            with at(point):
                folder = world.folder / f"files{number}"
                folder.mkdir()
                job = world.restore_job(made["backup_id"], "", str(folder))
                world.kill(job, point)
                for file in folder.glob("vd*.raw"):
                    assert digest(file) == expected[file.stem]
                    file.unlink()
                world.run(job)
                assert {file.stem: digest(file) for file in folder.glob("vd*.raw")} == expected
                assert sorted(one.name for one in folder.iterdir()) == [f"{disk}.raw" for disk in sorted(expected)]


# ---- deletions --------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("R19")
@pytest.mark.parametrize("remedy", ["asked again", "next backup"])
@pytest.mark.parametrize("disks", ["qcow2", "mixed"])
def test_a_deletion_killed_anywhere_is_finished(worlds: Worlds, disks: str, remedy: str) -> None:
    """Nothing that is listed meanwhile lacks its data; a backup whose deletion had begun goes, another one stays whole."""
    with worlds.get(disks, running=False) as world:
        world.begin_anew()
        first = world.rig.back_up(world.uuid)["backup_id"]
        world.scribble()
        for point in world.points(world.run(deletion(world)).steps):
            with at(point):
                job = deletion(world)
                world.kill(job, point)
                world.assert_whole()
                if remedy == "asked again" and world.left_of(job):
                    world.run(job)
                made = world.rig.back_up(world.uuid, consistency="none")
                assert remedy == "next backup" or not world.left_of(job)
                world.assert_restores(made["backup_id"], world.digests())
                world.assert_no_trace()
                world.assert_only_whole_backups()
        assert reason(world.rig.verify(world.uuid, first)) == ""


def deletion(world: World) -> Job:
    """Return the deletion of two new backups that build one upon the other."""
    made = []
    for _ in range(2):
        world.scribble()
        made.append(world.rig.back_up(world.uuid)["backup_id"])
    return Job(made[0], delete=DeleteJob(world.uuid, tuple(made), world.uuid))
