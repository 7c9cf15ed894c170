"""The upload limit: every byte written is taken from the bucket first, and nothing else is."""

from collections.abc import Iterator

import pytest

from engine.errors import Cancelled
from engine.spec import LocalConfig, StorageSpec
from engine.storage import local
from engine.storage.local import LocalStorage
from engine.storage.throttled import PIECE_BYTES_MAX, ThrottledStorage
from engine.units import MIB
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace


class Bucket:
    """Counts what it grants; refuses after `limit` bytes."""

    def __init__(self, limit: int = 1 << 62) -> None:
        self.taken: list[int] = []
        self._limit = limit

    def portions(self, total: int, bytes_max: int) -> Iterator[int]:
        while total > 0:
            byte_count = min(total, bytes_max)
            if sum(self.taken) + byte_count > self._limit:
                raise Cancelled
            self.taken.append(byte_count)
            yield byte_count
            total -= byte_count


class TestThrottled(StorageContract):
    @pytest.fixture
    def place(self, tmp_path):
        folder = tmp_path / "storage"
        return FolderPlace(StorageSpec("r", "i", local=LocalConfig(str(folder))), folder)

    @pytest.fixture
    def storage(self, place):
        with ThrottledStorage(place.open(), Bucket()) as storage:
            yield storage


@pytest.mark.feature("P8")
def test_every_written_byte_is_taken_in_small_pieces(tmp_path):
    bucket = Bucket()
    with ThrottledStorage(LocalStorage(str(tmp_path)), bucket) as storage:
        with storage.create("object") as sink:
            sink.write(bytes(4 * MIB + 5))
            sink.write(memoryview(bytes(16)).cast("Q"))
        assert sum(bucket.taken) == 4 * MIB + 5 + 16
        assert max(bucket.taken) == PIECE_BYTES_MAX


@pytest.mark.feature("P8")
def test_reading_takes_nothing(tmp_path):
    bucket = Bucket()
    with ThrottledStorage(LocalStorage(str(tmp_path)), bucket) as storage:
        storage.put("object", bytes(1000))
        taken = sum(bucket.taken)
        assert len(storage.get("object")) == 1000
        storage.delete("object")
        assert sum(bucket.taken) == taken == 1000


def test_a_bucket_that_ends_the_wait_ends_the_upload(tmp_path):
    with ThrottledStorage(LocalStorage(str(tmp_path)), Bucket(limit=1 * MIB)) as storage:
        with pytest.raises(Cancelled):
            storage.put("object", bytes(2 * MIB))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.feature("P8")
def test_what_an_upload_sends_twice_at_its_end_is_taken_before_the_next_byte(tmp_path, monkeypatch):
    """A connection lost at the end of an object: the object is there, and its second sending is owed by what comes next."""

    class Resending(local._LocalUpload):
        resent_bytes = 0

        def __exit__(self, kind, error, trace):
            super().__exit__(kind, error, trace)
            self.resent_bytes += 3 * MIB

    monkeypatch.setattr(local, "_LocalUpload", Resending)
    bucket = Bucket()
    with ThrottledStorage(LocalStorage(str(tmp_path)), bucket) as storage:
        storage.put("first", bytes(1000))
        assert sum(bucket.taken) == 1000
        storage.put("second", b"x")
        assert sum(bucket.taken) == 3 * MIB + 1001
        assert max(bucket.taken) == PIECE_BYTES_MAX
