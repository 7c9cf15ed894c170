"""The test of a storage: tells what works and how fast, finds what a storage only pretends, leaves nothing behind."""

import time
from dataclasses import replace

import pytest

from engine.errors import ObjectNotFound, StorageError, StorageFull, StorageUnreachable
from engine.storage.base import Storage
from engine.storage.check import Trial, storage_test
from engine.storage.local import LocalStorage
from engine.storage.sftp import SftpStorage
from engine.units import KIB
from tests.faults import FaultyStorage, Operation, full, unreachable
from tests.servers.sshd import Sshd

STEPS = ["write", "rename", "size", "refuse_second_write", "read", "range_read", "list", "delete"]

pytestmark = pytest.mark.feature("S24")


@pytest.fixture
def storage(tmp_path):
    with FaultyStorage(LocalStorage(str(tmp_path / "storage"))) as storage:
        yield storage


def tried(storage: Storage, byte_count: int = 64 * KIB) -> Trial:
    """Test a storage, and return the trial, of a failed test too."""
    trial = Trial()
    storage_test(storage, trial, byte_count)
    return trial


def test_a_good_storage_passes_every_step(storage, tmp_path):
    begun: list[str] = []
    trial = Trial(begun.append)
    storage_test(storage, trial)
    steps = trial.steps
    assert begun == STEPS
    assert trial.pending == ["connect", "repository"]  # which are the caller's
    assert trial.hints == []
    assert not any(step.failed for step in steps)
    assert [step.name for step in steps] == STEPS
    assert all(step.seconds > 0 for step in steps)
    assert [step.name for step in steps if step.bytes_per_second] == ["write", "read"]
    assert list((tmp_path / "storage").iterdir()) == []


def test_it_works_over_sftp(tmp_path):
    with Sshd(tmp_path) as server, SftpStorage(server.config(tmp_path / "storage")) as storage:
        assert [step.name for step in tried(storage).steps] == STEPS
        assert list((tmp_path / "storage").iterdir()) == []


def test_rates_and_latencies_are_what_the_clock_says(storage):
    ticks = iter(range(1000))
    trial = Trial(clock=lambda: float(next(ticks)))
    storage_test(storage, trial, 64 * KIB)
    steps = {step.name: step for step in trial.steps}
    assert (steps["rename"].seconds, steps["rename"].bytes_per_second) == (1.0, 0)
    assert (steps["write"].seconds, steps["write"].bytes_per_second) == (1.0, 64 * KIB)
    assert (steps["range_read"].seconds, steps["range_read"].bytes_per_second) == (1 / 8, 0)


@pytest.mark.parametrize("operation", ["create", "write", "commit", "size", "open", "read", "list", "delete"])
def test_a_step_that_fails_is_the_error_and_nothing_stays(storage, tmp_path, operation: Operation):
    storage.fail(operation, times=1, error=full if operation == "write" else unreachable)
    with pytest.raises(StorageFull if operation == "write" else StorageUnreachable):
        tried(storage)
    assert list((tmp_path / "storage").iterdir()) == []


def test_changed_bytes_are_noticed(storage):
    storage.flip("test/*", offset=60_000)
    with pytest.raises(StorageError) as caught:
        tried(storage)
    assert caught.value.facts["step"] == "read"


def test_a_short_object_is_noticed(storage):
    storage.truncate("test/*", end=100)
    with pytest.raises(StorageError) as caught:
        tried(storage)
    assert caught.value.facts["step"] == "size"


def test_a_lost_object_is_noticed(storage):
    storage.lose("test/*")
    with pytest.raises(ObjectNotFound):
        tried(storage)


def test_a_storage_that_overwrites_is_noticed(storage, monkeypatch, tmp_path):
    put = storage.put

    def overwrite(name, data):
        storage.delete(name)
        put(name, data)

    monkeypatch.setattr(storage, "put", overwrite)
    with pytest.raises(StorageError) as caught:
        tried(storage)
    assert caught.value.facts["step"] == "refuse_second_write"
    assert list((tmp_path / "storage").iterdir()) == []


def test_a_delete_that_does_not_is_noticed(storage, monkeypatch):
    monkeypatch.setattr(storage, "delete", lambda name: None)
    with pytest.raises(StorageError) as caught:
        tried(storage)
    assert caught.value.facts["step"] == "delete"


@pytest.mark.parametrize(
    ("operation", "times", "failed"),
    [("create", 1, "write"), ("commit", 1, "write"), ("size", 1, "size"), ("read", 1, "read"), ("delete", 1, "delete")],
)
def test_a_failed_step_keeps_what_had_worked_and_what_was_not_come_to(storage, operation, times, failed):
    storage.fail(operation, times=times, error=unreachable)
    trial = Trial()
    with pytest.raises(StorageUnreachable):
        storage_test(storage, trial, 64 * KIB)
    position = STEPS.index(failed)
    assert [(step.name, step.failed) for step in trial.steps] == [
        *((name, False) for name in STEPS[:position]),
        (failed, True),
    ]
    assert trial.pending == ["connect", "repository", *STEPS[position + 1 :]]
    assert trial.steps[-1].seconds > 0


def test_where_nothing_is_renamed_the_end_of_an_upload_is_called_complete(storage, monkeypatch):
    monkeypatch.setattr(storage, "abilities", replace(storage.abilities, atomic_rename=False))
    trial = Trial()
    trial.adapt(storage)
    assert trial.pending == ["connect", "repository", "write", "complete", *STEPS[2:]]
    storage_test(storage, trial, 64 * KIB)
    assert "complete" in [step.name for step in trial.steps]
    assert trial.pending == ["connect", "repository"]


def test_hints_of_the_storage_and_of_its_clock_are_kept(storage, monkeypatch):
    monkeypatch.setattr(storage, "hints", ("another type is faster",))
    trial = Trial()
    trial.adapt(storage)
    storage_test(storage, trial, 64 * KIB, lambda: time.time() - 3600)
    assert trial.hints == [
        "another type is faster",
        "the storage's clock is 60 minutes ahead of this hypervisor's: set both by NTP",
    ]
