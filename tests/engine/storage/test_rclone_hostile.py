"""A remote that lies, behind the real rclone: listings without an end, objects that do not stop; and one that is merely large."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engine.errors import ObjectTruncated, StorageError, StorageUnreachable
from engine.storage import rclone_wire
from engine.storage.rclone import Items, RcloneStorage
from engine.storage.rclone_wire import Wire
from engine.units import KIB, MIB
from tests.engine.storage.test_rclone import QUICK
from tests.servers.endless_s3 import EndlessS3
from tests.servers.rclone import RcloneRemotes
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("S14")
GROWTH_BYTES = 12 * MIB


@pytest.fixture
def endless() -> Iterator[EndlessS3]:
    with EndlessS3() as server:
        server.keys = 1000
        yield server


@pytest.fixture
def remotes(endless: EndlessS3, tmp_path: Path) -> RcloneRemotes:
    endless_remote = {
        "type": "s3", "provider": "Other", "endpoint": f"http://127.0.0.1:{endless.port}",
        "access_key_id": "key", "secret_access_key": "secret",
    }  # fmt: skip
    return RcloneRemotes(tmp_path / "rclone.conf", cloud=endless_remote, disk={"type": "local"})


@pytest.fixture
def storage(remotes: RcloneRemotes, monkeypatch: pytest.MonkeyPatch) -> Iterator[RcloneStorage]:
    """A storage there, which was opened as if the server had been honest for that moment."""
    monkeypatch.setattr(rclone_wire, "GROWTH_BYTES_MAX", GROWTH_BYTES)
    monkeypatch.setattr(RcloneStorage, "_find_root", lambda *_, **__: None)
    with RcloneStorage(remotes.config("cloud", "bucket/x"), QUICK) as storage:
        yield storage


@pytest.mark.parametrize("names", [True, False])
def test_a_listing_without_an_end_ends_and_rclone_stays_small(
    storage: RcloneStorage, endless: EndlessS3, monkeypatch: pytest.MonkeyPatch, *, names: bool
) -> None:
    if not names:  # pages without a name take no memory, only time
        endless.names = False
        monkeypatch.setattr(storage, "patience", replace(QUICK, answer_seconds=1, attempts=1))
    process = psutil.Process(storage._daemon.pid)
    before = process.memory_info().rss
    with pytest.raises(StorageError) as caught:
        list(storage.folders("servers"))
    if names:
        assert "more names" in str(caught.value)
        assert process.memory_info().rss < before + 4 * GROWTH_BYTES
    else:
        assert isinstance(caught.value, StorageUnreachable)
    last = (-1, 0.0)

    def is_silent() -> bool:
        nonlocal last
        if last[0] != endless.pages:
            last = (endless.pages, time.monotonic())
        return time.monotonic() > last[1] + 0.5

    wait_until(is_silent, 10, "rclone to ask no more")
    assert process.is_running()


def test_an_object_that_does_not_stop_is_read_no_further(storage: RcloneStorage, endless: EndlessS3) -> None:
    endless.object_name, endless.object_bytes = "object", 64 * KIB
    with suppress(StorageUnreachable):
        assert len(storage.get("object")) == 64 * KIB  # what is wrong in it the frames' own digests tell
    assert endless.sent_bytes < 64 * MIB
    endless.object_bytes = 1 << 50
    with pytest.raises(ObjectTruncated):
        storage.get("object")
    assert psutil.Process(storage._daemon.pid).memory_info().rss < 256 * MIB


def test_what_is_too_much_for_one_answer_is_listed_folder_by_folder(
    remotes: RcloneRemotes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RcloneStorage(remotes.config("disk", tmp_path / "storage"), QUICK) as storage:
        wanted = {f"servers/s{one}/b{two}/object" for one in range(2) for two in range(20)}
        for name in wanted:
            path = tmp_path / "storage" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(7))
        asked, real = [], storage._list

        def counted(wire: Wire, fs: str, folder: str = "", **options: bool) -> Items:
            asked.append(folder)
            return real(wire, fs, folder, **options)

        monkeypatch.setattr(storage, "_list", counted)
        monkeypatch.setattr(rclone_wire, "ANSWER_BYTES_MAX", 5 * KIB)
        assert {entry.name for entry in storage.list()} == wanted
        assert len(asked) > 40
        monkeypatch.setattr(rclone_wire, "ANSWER_BYTES_MAX", 1 * KIB)
        with pytest.raises(StorageError, match="more names"):
            list(storage.list())
        storage.put("servers/s0/b0/after", b"x")
        assert storage.get("servers/s0/b0/after") == b"x"
