"""A storage that can be reached but does not hand out one object: that object's backup suffers, and no other."""

import random
from pathlib import Path
from typing import Any

import pytest

from engine.catalog import read_history
from engine.errors import StorageDenied, StorageError, StorageUnreachable
from engine.format import names
from engine.spec import Settings
from engine.storage.base import ObjectReader
from engine.storage.local import LocalStorage
from engine.units import MIB
from engine.verify import verify
from engine.work import Work
from tests.engine.rig import RecordingReport, Rig, digest, reason
from tests.servers.guest import DiskFile


class _BadReader(ObjectReader):
    """Reads well until `good_until`, then as a bad sector does."""

    def __init__(self, inner: ObjectReader, error: StorageError, good_until: int) -> None:
        self.size_bytes = inner.size_bytes
        self._inner, self._error, self._good_until = inner, error, good_until

    def read_at(self, offset: int, length: int) -> bytes:
        if offset >= self._good_until and length > 1000 and offset + length < self.size_bytes:
            raise self._error
        return self._inner.read_at(offset, length)

    def close(self) -> None:
        self._inner.close()


class BadStorage(LocalStorage):
    """Raises `error` for the objects whose name ends in one of `bad`, of a data file for frames alone."""

    bad: tuple[str, ...] = ()
    error: StorageError

    def get(self, name: str, *arguments: int) -> bytes:
        if name.endswith(self.bad):
            raise self.error
        return super().get(name, *arguments)

    def open(self, name: str) -> Any:
        inner = super().open(name)
        is_data = self.bad and (parsed := names.parse(name)) is not None and parsed.kind == "segment"
        return _BadReader(inner, self.error, 1) if is_data and name.endswith(self.bad) else inner


EIO = StorageError(storage="local", step="read", detail="Input/output error")
DENIED = StorageDenied(storage="local", step="read", name="backup.json")
GONE = StorageUnreachable(storage="local", step="read", detail="Stale file handle")


@pytest.mark.feature("C2")
@pytest.mark.feature("C3")
def test_one_unreadable_object_is_no_end_of_the_others(tmp_path: Path, blank_domain: Any, libvirtd: Any) -> None:
    disk = DiskFile("vda", tmp_path / "vda.raw", "raw").create(4 * MIB)
    disk.path.write_bytes(random.Random(1).randbytes(4 * MIB))
    domain = blank_domain([disk], running=False)
    rig = Rig.make(tmp_path, libvirtd.uri, encrypted=False)
    first, second = (rig.back_up(domain.uuid)["backup_id"] for _ in range(2))
    with BadStorage(str(rig.folder / "storage")) as storage:
        for error in (EIO, DENIED):
            storage.error, storage.bad = error, (names.backup_name(domain.uuid, first),)
            history = read_history(storage, domain.uuid, {})
            assert [point.server.backup_id for point in history.points] == [second]
            assert history.unreadable == {first: error}
            storage.bad = (names.manifest_name(domain.uuid, first, "vda"),)
            assert [*read_history(storage, domain.uuid, {}).points[0].unreadable] == ["vda"]

            storage.bad = (names.segment_name(domain.uuid, first, "vda", 0),)
            found = verify(storage, domain.uuid, "", {}, Work(RecordingReport(), Settings()))
            assert {one.backup_id for one in found.damaged} == {first}
            assert found.frames >= 1

        storage.error = GONE
        storage.bad = (names.backup_name(domain.uuid, first),)
        with pytest.raises(StorageUnreachable):
            read_history(storage, domain.uuid, {})
        storage.bad = (names.segment_name(domain.uuid, first, "vda", 0),)
        with pytest.raises(StorageUnreachable):
            verify(storage, domain.uuid, "", {}, Work(RecordingReport(), Settings()))

    # A folder in the place of another backup's file: the system's own error, and no reason not to restore this one.
    path = rig.folder / "storage" / names.backup_name(domain.uuid, first)
    path.unlink()
    path.mkdir()
    assert digest(rig.restore_to(tmp_path / "out", domain.uuid, second)["vda"]) == digest(disk.path)
    assert reason(rig.restore(domain.uuid, second[:-1] + ("0" if second[-1] != "0" else "1"))) == "BACKUP_NOT_FOUND"
