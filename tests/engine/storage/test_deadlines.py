"""Storages that hang: real file systems that stand still, and what a caller then gets, and when."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.errors import ObjectExists, StorageError, StorageFull, StorageUnreachable
from engine.health import look
from engine.ids import new_id
from engine.spec import LocalConfig, StorageSpec
from engine.storage import deadlines
from engine.storage.deadlines import Deadlines, DeadlineStorage
from engine.storage.local import LocalStorage
from engine.storage.open import open_storage
from engine.units import KIB, MIB
from engine.work import Stop
from tests.faults import FaultyStorage
from tests.servers.small_disk import small_disk
from tests.servers.standstill import Standstill
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("S3")

QUICK = Deadlines(open_seconds=0.5, call_seconds=0.5, long_seconds=1.5)
PATIENT = Deadlines(open_seconds=20, call_seconds=20, long_seconds=20)
WAIT_SECONDS = 20.0


class TestGuarded(StorageContract):
    @pytest.fixture
    def place(self, tmp_path):
        folder = tmp_path / "storage"
        return FolderPlace(StorageSpec("r", "i", local=LocalConfig(str(folder))), folder)

    @pytest.fixture
    def storage(self, place):
        with guarded(place.folder, PATIENT) as storage:
            yield storage


def guarded(path: Path, seconds: Deadlines = QUICK) -> DeadlineStorage:
    return DeadlineStorage(f"local:{path}", lambda: LocalStorage(str(path)), seconds)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


# ---- file systems that stand still --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Standstill]:
    with Standstill(tmp_path_factory.mktemp("standstill")) as disk:
        yield disk


@pytest.fixture
def folder(disk, tmp_path) -> Path:
    path: Path = disk.folder / tmp_path.name
    return path


@pytest.mark.parametrize("moment", ["create", "write", "commit", "delete", "sweep"])
def test_a_call_that_changes_something_fails_in_time_and_so_does_all_after_it(disk, folder, moment):
    with guarded(folder) as storage:
        storage.put("d/kept", b"x")

        def work() -> None:
            if moment == "delete":
                disk.freeze()
                storage.delete("d/kept")
            elif moment == "sweep":
                disk.freeze()
                storage.sweep("d")
            else:
                if moment == "create":
                    disk.freeze()
                with storage.create("d/object") as sink:
                    for number in range(8):
                        if number == 4 and moment == "write":
                            disk.freeze()
                        sink.write(bytes(MIB))
                    if moment == "commit":
                        disk.freeze()

        try:
            with at_most(10), pytest.raises(StorageUnreachable) as caught:
                work()
            assert "no answer" in caught.value.facts["detail"]
            with at_most(0.2), pytest.raises(StorageUnreachable):
                storage.size("d/kept")
        finally:
            disk.thaw()
    wait_until(lambda: not helpers(), WAIT_SECONDS, "the calls that hung to end")
    with guarded(folder, PATIENT) as storage:
        assert {entry.name for entry in storage.list()} <= {"d/kept", "d/object"}
        with suppress(StorageError):
            assert storage.size("d/object") == 8 * MIB  # what became of a commit that hung is whole, or nothing
        storage.sweep("d")
        assert list(folder.iterdir()) == []


def test_a_read_that_hangs_fails_in_time(disk, folder):
    data = os.urandom(8 * MIB)
    with guarded(folder, PATIENT) as storage:
        storage.put("object", data)
    disk.forget_cached(folder / "object")
    with guarded(folder) as storage:
        reader = storage.open("object")
        disk.stop()
        try:
            with at_most(5), pytest.raises(StorageUnreachable):
                reader.read_at(4 * MIB, MIB)
        finally:
            disk.go_on()
            reader.close()
    with guarded(folder, PATIENT) as storage:
        assert storage.get("object") == data


def test_a_folder_that_hangs_is_not_opened_and_the_health_check_says_so(disk, folder, monkeypatch):
    monkeypatch.setattr(deadlines, "BRIEF", QUICK)
    spec = StorageSpec(new_id(datetime.now(UTC)), new_id(datetime.now(UTC)), local=LocalConfig(str(folder / "deep")))
    folder.mkdir()
    disk.freeze()
    try:
        with at_most(5), pytest.raises(StorageUnreachable) as caught:
            open_storage(spec, brief=True)  # makes the folder
        assert caught.value.facts["storage"] == f"local:{folder}/deep"
    finally:
        disk.thaw()
    wait_until(lambda: not helpers(), WAIT_SECONDS, "the call that hung to end")
    assert not look(spec, Stop()).initialized


def test_an_interrupt_ends_a_call_that_hangs_at_once(disk, folder):
    with guarded(folder, PATIENT) as storage:
        storage.put("d/object", b"x")
        ended: list[BaseException] = []

        def delete() -> None:
            try:
                storage.delete("d/object")
            except StorageUnreachable as error:
                ended.append(error)

        disk.freeze()
        try:
            thread = threading.Thread(target=delete)
            thread.start()
            wait_until(lambda: len(helpers()) > 0, WAIT_SECONDS, "the call to be under way")
            with at_most(2):
                storage.interrupt()
                thread.join(WAIT_SECONDS)
            assert "interrupted" in str(ended[0])
        finally:
            disk.thaw()


def test_a_process_ends_although_a_read_of_it_hangs(disk, folder):
    """What the kernel lets a signal end, as a network mount's waits, keeps no process: here a read of a stopped FUSE server."""
    program = """
import sys
from engine.storage.deadlines import *
from engine.storage.local import LocalStorage
from engine.errors import StorageUnreachable
class Hanging(LocalStorage):
    def size(self, name):
        return len(open(sys.argv[2], "rb", buffering=0).read(4096))
with DeadlineStorage("local:test", lambda: Hanging(sys.argv[1]), Deadlines(5, 0.5, 1)) as storage:
    try:
        storage.size("object")
    except StorageUnreachable as error:
        print(error.facts["detail"])
"""
    folder.mkdir()
    disk.stop()
    try:
        with at_most(15):
            done = subprocess.run(
                [sys.executable, "-c", program, str(folder), str(disk.served)],
                cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=20, check=True,
            )  # fmt: skip
    finally:
        disk.go_on()
    assert done.stdout.startswith("no answer for ")


# ---- the guard itself ---------------------------------------------------------------------------------------------------


def test_a_long_call_may_take_long_while_others_are_answered(tmp_path):
    inner = FaultyStorage(LocalStorage(str(tmp_path)))
    gate = inner.hold("sweep")
    with DeadlineStorage("test", lambda: inner, Deadlines(1, 0.2, 20)) as storage:
        storage.put("d/object", b"x")
        timer = threading.Timer(1.0, gate.open)
        timer.start()
        storage.sweep("d")
        timer.join()
        assert list(storage.list()) == []


def test_a_long_call_is_given_up_when_nobody_answers_others(tmp_path):
    inner = FaultyStorage(LocalStorage(str(tmp_path)))
    gates = [inner.hold("sweep"), inner.hold("usage")]
    with DeadlineStorage("test", lambda: inner, Deadlines(1, 0.2, 20)) as storage:
        with at_most(5), pytest.raises(StorageUnreachable):
            storage.sweep("d")
        for gate in gates:
            gate.open()


def test_the_failed_write_of_a_helper_is_told_and_makes_no_object(tmp_path):
    with small_disk(tmp_path / "disk", 2 * MIB) as disk, guarded(disk, PATIENT) as storage:
        upload = storage.create("object")
        upload.__enter__()
        assert isinstance(first_error(lambda: upload.write(bytes(256 * KIB))), StorageFull)
        with pytest.raises(StorageFull):  # whoever swallows it hears it again
            upload.__exit__(None, None, None)
        assert list(disk.iterdir()) == []


def test_the_last_write_is_told_too(tmp_path):
    with small_disk(tmp_path / "disk", 2 * MIB) as disk, guarded(disk, PATIENT) as storage:
        with pytest.raises(StorageFull):
            storage.put("object", bytes(2 * MIB + 1))
        assert list(disk.iterdir()) == []
        storage.put("object", bytes(1 * MIB))
        with pytest.raises(ObjectExists):
            storage.put("object", b"x")


def test_helpers_are_few_and_end_with_the_storage(tmp_path):
    with guarded(tmp_path / "storage", PATIENT) as storage:
        for number in range(50):
            storage.put(f"d/{number}", b"x")
        assert len(helpers()) == 1
    wait_until(lambda: not helpers(), WAIT_SECONDS, "the helpers to end")


def first_error(work: Callable[[], object]) -> Exception | None:
    for _ in range(64):
        try:
            work()
        except Exception as error:
            return error
    return None


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "storage-call"]
