"""A storage that fails in the middle of a deletion, or of a commit: what is offered for a restore has all its data.

an honest run, its calls counted ──► the same with the n-th call failing, once or with everything after it
  ──► each backup that a reindex finds restores byte by byte ──► the same again on an honest storage finishes the work
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from engine.attempt import AttemptIdentity, attempt, commit
from engine.errors import BackupManagerError, StorageUnreachable
from engine.format import names
from engine.spec import ReindexJob, Settings
from engine.storage.base import Storage
from engine.storage.local import LocalStorage
from engine.work import Work
from tests.engine.format.samples import FULL, INCREMENTAL, SERVER
from tests.engine.hostile import World, make_world
from tests.engine.rig import RecordingReport, reason, result
from tests.faults import FaultyStorage, Operation
from tests.shares import share


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch, encrypted=True)


@contextlib.contextmanager
def as_it_was(world: World) -> Iterator[None]:
    """Put the storage back after the block."""
    kept = world.rig.folder / "kept"
    shutil.copytree(world.root, kept)
    try:
        yield
    finally:
        shutil.rmtree(world.root)
        kept.rename(world.root)
        world.lie = lambda _: None


def offered(world: World) -> set[str]:
    """Return the server's backups that a reindex finds; each of them restores byte by byte."""
    world.lie = lambda _: None
    found = result(world.rig.run(reindex=ReindexJob(SERVER)))
    assert found["unreadable"] == []
    backup_ids = {one["backup"]["backup_id"] for one in world.rig.report.records}
    for backup_id in backup_ids:
        assert reason(world.restore(backup_id)) == ""
    return backup_ids


# ---- deletions ----------------------------------------------------------------------------------------------------------


def calls_of_a_deletion(world: World, going: tuple[str, ...]) -> list[Operation]:
    """Return the operations of a deletion that nothing disturbs, in their order."""
    opened: list[FaultyStorage] = []
    with as_it_was(world):
        world.lie = opened.append
        assert reason(world.rig.delete(SERVER, *going)) == ""
    return [operation for storage in opened for operation, _ in storage.calls]


@pytest.mark.feature("R19")
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("going", [(INCREMENTAL,), (FULL, INCREMENTAL)], ids=["one", "all"])
def test_a_deletion_that_fails_anywhere_leaves_no_manifest_without_its_data(
    world: World, going: tuple[str, ...], *, lasting: bool
) -> None:
    calls = calls_of_a_deletion(world, going)
    assert {"create", "commit", "list", "delete", "sweep", "read"} <= set(calls)
    for position in share(range(len(calls)), f"deletion {going} {lasting}", 4):
        before = Counter(calls[:position])
        operations: list[Operation] = list(get_args(Operation)) if lasting else [calls[position]]

        def fail(
            storage: FaultyStorage, before: Counter[Operation] = before, those: list[Operation] = operations
        ) -> None:
            for one in those:
                storage.fail(one, after_calls=before[one], times=None if lasting else 1)

        with as_it_was(world):
            world.lie = fail
            outcome = world.rig.delete(SERVER, *going)
            assert reason(outcome) == "STORAGE_UNREACHABLE"
            left = offered(world)
            assert {FULL, INCREMENTAL} - set(going) <= left
            again = world.rig.delete(SERVER, *going)
            assert reason(again) in {"", "BACKUP_NOT_FOUND"}  # the latter: all of it was gone before it failed
            assert offered(world) == {FULL, INCREMENTAL} - set(going)
            folders = {path.name for path in (world.root / "servers" / SERVER).glob("*")}
            assert folders == {FULL, INCREMENTAL} - set(going)


# ---- commits ------------------------------------------------------------------------------------------------------------

BACKUP = names.backup_name(SERVER, INCREMENTAL)
MANIFEST = names.manifest_name(SERVER, INCREMENTAL, "vda")
SEGMENT = names.segment_name(SERVER, INCREMENTAL, "vda", 0)


def back_up_again(world: World, storage: Storage, *, reopens: bool) -> BackupManagerError | None:
    """Upload the incremental once more as a backup does; return what it failed with."""
    data = {name: world.path(name).read_bytes() for name in (SEGMENT, MANIFEST, BACKUP)}
    shutil.rmtree(world.path(names.backup_folder(SERVER, INCREMENTAL)))

    def reopen() -> Storage:
        if not reopens:
            raise StorageUnreachable(storage="local", step="connect", detail="made by a test")
        return LocalStorage(str(world.root))

    identity = AttemptIdentity(SERVER, INCREMENTAL, "job-2", "test-host")
    work = Work(RecordingReport(), Settings())
    try:
        with attempt(storage, reopen, identity, datetime.now(UTC), work):
            storage.put(SEGMENT, data[SEGMENT])
            commit(storage, {MANIFEST: data[MANIFEST]}, (BACKUP, data[BACKUP]))
    except BackupManagerError as error:
        return error
    return None


@pytest.mark.feature("R19")
@pytest.mark.feature("C12")
@pytest.mark.parametrize("reopens", [True, False], ids=["back at once", "gone"])
@pytest.mark.parametrize("name", [MANIFEST, BACKUP], ids=["manifest", "backup"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("step", ["create", "first byte", "middle", "commit", "open", "read", "lost", "cut", "changed"])
def test_a_manifest_whose_upload_is_cut_makes_no_backup_or_a_whole_one(
    world: World, step: str, name: str, *, lasting: bool, reopens: bool
) -> None:
    times = None if lasting else 1
    with LocalStorage(str(world.root)) as inner:
        storage = FaultyStorage(inner)
        match step:
            case "first byte" | "middle":
                storage.fail("write", name=name, after_bytes=0 if step == "first byte" else 400, times=times)
            case "create" | "commit" | "open" | "read":
                storage.fail(step, name=name, times=times)
            case "lost":
                storage.lose(name)
            case "cut":
                storage.truncate(name, end=300)
            case "changed":
                storage.flip(name, offset=300)
        error = back_up_again(world, storage, reopens=reopens)

    assert error is None or error.reason in {"STORAGE_UNREACHABLE", "STORAGE_FAILED", "OBJECT_NOT_FOUND"}
    left = offered(world)
    assert FULL in left
    if error is None:
        assert left == {FULL, INCREMENTAL}
    elif reopens:
        assert left == {FULL}
        assert not world.path(names.backup_folder(SERVER, INCREMENTAL)).exists()
    elif name == MANIFEST:
        assert left == {FULL}  # an orphan, which the next backup removes
    if lasting and step not in {"lost"}:
        assert error is not None
