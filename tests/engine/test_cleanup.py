"""What a cleanup of a storage takes away beside dead backups: the objects of tests that were killed long ago, and nothing else."""

import os
import time
from pathlib import Path

import pytest

from engine.cleanup import clean_storage
from engine.orphans import ORPHAN_AGE
from engine.storage.check import Trial, storage_test
from engine.storage.local import LocalStorage


class Killed(BaseException):
    """Stands for the end of the process: nothing tidies up after it."""


@pytest.mark.feature("C7", "S24")
def test_what_a_killed_test_of_the_storage_left_goes_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_at(step: str) -> None:
        if step == "list":
            monkeypatch.setattr(LocalStorage, "delete", lambda *_: None)
            raise Killed

    with LocalStorage(str(tmp_path / "storage")) as storage:
        with pytest.raises(Killed), monkeypatch.context():
            storage_test(storage, Trial(begin=kill_at), 1000)
        monkeypatch.undo()
        left = {entry.name for entry in storage.list("test")}
        assert len(left) == 2
        storage.put("test/notes.txt", b"somebody's own")
        assert clean_storage(storage, "host", tmp_path / "locks") == []

        old = time.time() - ORPHAN_AGE.total_seconds() - 60
        for path in (tmp_path / "storage" / "test").iterdir():
            os.utime(path, (old, old))
        done = clean_storage(storage, "host", tmp_path / "locks")

        assert {sentence.split()[1].rstrip(",") for sentence in done} == left
        assert [entry.name for entry in storage.list()] == ["test/notes.txt"]
