"""The wrapper for faults does what it says, and nothing else: it is itself held to the storages' contract."""

import threading

import pytest

from engine.errors import ObjectNotFound, ObjectTruncated, StorageDenied, StorageFull, StorageUnreachable
from engine.spec import LocalConfig, StorageSpec
from engine.storage.local import LocalStorage
from engine.units import MIB
from tests.faults import FaultyStorage
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace


class TestWithoutFaults(StorageContract):
    @pytest.fixture
    def place(self, tmp_path):
        folder = tmp_path / "storage"
        return FolderPlace(StorageSpec("r", "i", local=LocalConfig(str(folder))), folder)

    @pytest.fixture
    def storage(self, place):
        with FaultyStorage(place.open()) as storage:
            yield storage


@pytest.fixture
def storage(tmp_path):
    with FaultyStorage(LocalStorage(str(tmp_path))) as storage:
        yield storage


def test_a_write_fails_at_the_byte(storage):
    storage.fail("write", after_bytes=3 * MIB)
    storage.put("one", bytes(2 * MIB))
    with pytest.raises(StorageUnreachable):
        storage.put("two", bytes(2 * MIB))
    assert storage.written_bytes == 3 * MIB
    with pytest.raises(StorageUnreachable):
        storage.put("three", b"x")
    assert [entry.name for entry in storage.list()] == ["one"]
    storage.heal().put("three", b"x")


def test_a_full_disk_is_full(storage):
    storage.full(after_bytes=10, name="*.data")
    storage.put("a.json", bytes(100))
    with pytest.raises(StorageFull):
        storage.put("b.data", bytes(11))


def test_calls_fail_as_often_as_asked(storage):
    def denied(label, name):
        return StorageDenied(storage=label, step="delete", name=name)

    storage.put("object", b"x")
    storage.fail("delete", after_calls=1, times=2, error=denied)
    storage.delete("other")
    for _ in range(2):
        with pytest.raises(StorageDenied):
            storage.delete("object")
    storage.delete("object")
    assert storage.calls[-4:] == [("delete", "other"), *[("delete", "object")] * 3]


def test_a_commit_fails_after_everything_was_written(storage):
    storage.fail("commit", name="m", times=1)
    with pytest.raises(StorageUnreachable):
        storage.put("m", b"x")
    assert list(storage.list()) == []
    storage.put("m", b"x")
    assert [call for call in storage.calls if call[1] == "m"] == [("create", "m"), ("write", "m"), ("commit", "m")] * 2


def test_reads_can_lie(storage):
    storage.put("d/object", bytes(100))
    storage.flip("d/*", offset=50, mask=0x80)
    reader = storage.open("d/object")
    assert reader.read_at(0, 50) == bytes(50)
    assert reader.read_at(40, 20) == bytes(10) + b"\x80" + bytes(9)
    reader.close()
    storage.truncate("d/*", end=60)
    assert storage.size("d/object") == 60
    reader = storage.open("d/object")
    with pytest.raises(ObjectTruncated):
        reader.read_at(50, 11)
    reader.close()
    storage.vanish("d/*")
    for look in (storage.open, storage.size, storage.get):
        with pytest.raises(ObjectNotFound):
            look("d/object")
    assert list(storage.list()) == []
    assert storage.heal().get("d/object") == bytes(100)


def test_a_lost_object_seemed_to_be_written(storage):
    storage.lose("*.data")
    storage.put("a.data", b"x")
    with pytest.raises(ObjectNotFound):
        storage.size("a.data")


def test_a_gate_holds_until_opened_or_interrupted(storage):
    storage.put("object", b"x")
    for end in ("open", "interrupt"):
        gate = storage.hold("read")
        ended: list[object] = []

        def read(ended=ended):
            try:
                ended.append(storage.get("object"))
            except StorageUnreachable as error:
                ended.append(error.reason)

        thread = threading.Thread(target=read)
        thread.start()
        assert gate.reached.wait(10)
        assert ended == []
        if end == "open":
            storage.heal()
        else:
            storage.interrupt()
        thread.join(10)
        assert ended == [b"x" if end == "open" else "STORAGE_UNREACHABLE"]
