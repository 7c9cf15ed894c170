"""The test of a storage: tells what works and how fast, finds what a storage only pretends, leaves nothing behind."""

import pytest

from engine.errors import ObjectNotFound, StorageError, StorageFull, StorageUnreachable
from engine.storage.check import storage_test
from engine.storage.local import LocalStorage
from engine.storage.sftp import SftpStorage
from engine.units import KIB
from tests.faults import FaultyStorage, Operation, full, unreachable
from tests.servers.sshd import Sshd

STEPS = ["write", "size", "refuse_second_write", "read", "range_read", "list", "delete"]

pytestmark = pytest.mark.feature("S24")


@pytest.fixture
def storage(tmp_path):
    with FaultyStorage(LocalStorage(str(tmp_path / "storage"))) as storage:
        yield storage


def test_a_good_storage_passes_every_step(storage, tmp_path):
    steps = storage_test(storage)
    assert [step.name for step in steps] == STEPS
    assert all(step.seconds > 0 for step in steps)
    assert [step.name for step in steps if step.bytes_per_second] == ["write", "read"]
    assert list((tmp_path / "storage").iterdir()) == []


def test_it_works_over_sftp(tmp_path):
    with Sshd(tmp_path) as server, SftpStorage(server.config(tmp_path / "storage")) as storage:
        assert [step.name for step in storage_test(storage)] == STEPS
        assert list((tmp_path / "storage").iterdir()) == []


def test_rates_and_latencies_are_what_the_clock_says(storage):
    ticks = iter(range(1000))
    steps = {step.name: step for step in storage_test(storage, 64 * KIB, lambda: float(next(ticks)))}
    assert (steps["write"].seconds, steps["write"].bytes_per_second) == (1.0, 64 * KIB)
    assert (steps["range_read"].seconds, steps["range_read"].bytes_per_second) == (1 / 8, 0)


@pytest.mark.parametrize("operation", ["create", "write", "commit", "size", "open", "read", "list", "delete"])
def test_a_step_that_fails_is_the_error_and_nothing_stays(storage, tmp_path, operation: Operation):
    storage.fail(operation, times=1, error=full if operation == "write" else unreachable)
    with pytest.raises(StorageFull if operation == "write" else StorageUnreachable):
        storage_test(storage, 64 * KIB)
    assert list((tmp_path / "storage").iterdir()) == []


def test_changed_bytes_are_noticed(storage):
    storage.flip("test/*", offset=60_000)
    with pytest.raises(StorageError) as caught:
        storage_test(storage, 64 * KIB)
    assert caught.value.facts["step"] == "read"


def test_a_short_object_is_noticed(storage):
    storage.truncate("test/*", end=100)
    with pytest.raises(StorageError) as caught:
        storage_test(storage, 64 * KIB)
    assert caught.value.facts["step"] == "write"


def test_a_lost_object_is_noticed(storage):
    storage.lose("test/*")
    with pytest.raises(ObjectNotFound):
        storage_test(storage, 64 * KIB)


def test_a_storage_that_overwrites_is_noticed(storage, monkeypatch, tmp_path):
    put = storage.put

    def overwrite(name, data):
        storage.delete(name)
        put(name, data)

    monkeypatch.setattr(storage, "put", overwrite)
    with pytest.raises(StorageError) as caught:
        storage_test(storage, 64 * KIB)
    assert caught.value.facts["step"] == "refuse_second_write"
    assert list((tmp_path / "storage").iterdir()) == []


def test_a_delete_that_does_not_is_noticed(storage, monkeypatch):
    monkeypatch.setattr(storage, "delete", lambda name: None)
    with pytest.raises(StorageError) as caught:
        storage_test(storage, 64 * KIB)
    assert caught.value.facts["step"] == "delete"
