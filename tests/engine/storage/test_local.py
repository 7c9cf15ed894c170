"""The local file system as a storage: the contract, and what only local files can show."""

import errno
import os
import subprocess

import pytest

from engine.errors import ObjectExists, StorageDenied, StorageError, StorageFull
from engine.spec import LocalConfig, StorageSpec
from engine.storage import local
from engine.storage.local import LocalStorage
from engine.units import MIB
from tests.servers.small_disk import remount_read_only, small_disk
from tests.storage_contract import StorageContract
from tests.storage_faults import Exposed, FullStorage
from tests.storage_places import FolderPlace
from tests.waiting import wait_until


@pytest.mark.feature("S3")
class TestLocal(StorageContract):
    @pytest.fixture
    def place(self, tmp_path):
        folder = tmp_path / "storage"
        config = LocalConfig(path=str(folder))
        return FolderPlace(StorageSpec(repository_id="r", installation_id="i", local=config), folder)


@pytest.mark.feature("S3")
class TestLocalFull(FullStorage):
    @pytest.fixture
    def full(self, tmp_path):
        with small_disk(tmp_path / "disk", 12 * MIB) as disk:
            path = disk / "storage"
            yield Exposed(
                open=lambda: LocalStorage(str(path)),
                honest=lambda: LocalStorage(str(path)),
                everything=lambda: sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()),
            )


@pytest.mark.feature("S3")
@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_quota_that_is_used_up_is_a_full_storage(tmp_path, monkeypatch, code, call):
    """NFS tells of both as late as in fsync."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with LocalStorage(str(tmp_path)) as storage:
        storage.put("d/kept", b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(StorageFull):
                storage.put("d/object", b"x")
        assert [path.name for path in (tmp_path / "d").iterdir()] == ["kept"]


@pytest.mark.feature("S3")
def test_the_folder_is_made_but_not_its_parent(tmp_path):
    LocalStorage(str(tmp_path / "new")).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    with pytest.raises(StorageError) as caught:
        LocalStorage(str(tmp_path / "no/parent"))
    assert caught.value.reason == "STORAGE_PATH_INVALID"
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        LocalStorage(str(tmp_path / "file"))


def test_no_link_leads_out_of_the_root(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    with LocalStorage(str(tmp_path / "storage")) as storage:
        (tmp_path / "storage/door").symlink_to(outside)
        for work in (
            lambda: storage.open("door/secret"),
            lambda: storage.size("door/secret"),
            lambda: storage.delete("door/secret"),
            lambda: storage.put("door/new", b""),
            lambda: storage.sweep("door"),
        ):
            with pytest.raises(StorageError):
                work()
        assert list(storage.list("door")) == []
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    with small_disk(tmp_path / "disk", 4 * MIB) as disk, LocalStorage(str(disk / "storage")) as storage:
        storage.put("kept", bytes(1 * MIB))
        with pytest.raises(StorageFull) as caught:
            storage.put("d/large", bytes(8 * MIB))
        assert caught.value.reason == "STORAGE_FULL"
        assert [entry.name for entry in storage.list()] == ["kept"]
        assert [path.name for path in (disk / "storage").iterdir()] == ["kept"]


def test_a_read_only_disk_is_readable_and_denies_the_rest(tmp_path):
    with small_disk(tmp_path / "disk", 4 * MIB) as disk:
        with LocalStorage(str(disk)) as storage:
            storage.put("d/object", b"x")
        remount_read_only(disk)
        with LocalStorage(str(disk)) as storage:
            assert storage.get("d/object") == b"x"
            with pytest.raises(StorageDenied) as caught:
                storage.put("d/new", b"")
            assert caught.value.reason == "STORAGE_PERMISSION_DENIED"
            with pytest.raises(StorageDenied):
                storage.delete("d/object")


def test_without_links_an_exclusive_rename_does_it(tmp_path, monkeypatch):
    def no_links(*args, **options):
        raise OSError(errno.EPERM, "this file system has no links")

    monkeypatch.setattr(os, "link", no_links)
    with LocalStorage(str(tmp_path / "storage")) as storage:
        storage.put("d/object", b"first")
        upload = storage.create("d/other")
        upload.__enter__()
        (tmp_path / "storage/d/other").write_bytes(b"quicker")
        with pytest.raises(ObjectExists):
            upload.__exit__(None, None, None)
        assert storage.get("d/object") == b"first"
        assert {entry.name for entry in storage.list()} == {"d/object", "d/other"}
        assert len(list((tmp_path / "storage/d").iterdir())) == 2


def test_a_repeated_link_reported_as_taken_is_ours(tmp_path, monkeypatch):
    link = os.link

    def link_twice(*args, **options):
        link(*args, **options)
        link(*args, **options)

    monkeypatch.setattr(os, "link", link_twice)
    with LocalStorage(str(tmp_path / "storage")) as storage:
        storage.put("object", b"x")
        assert storage.get("object") == b"x"


def test_a_swallowed_write_error_makes_no_object(tmp_path):
    with small_disk(tmp_path / "disk", 2 * MIB) as disk, LocalStorage(str(disk)) as storage:
        upload = storage.create("object")
        upload.__enter__()
        with pytest.raises(StorageFull):
            upload.write(bytes(4 * MIB))
        with pytest.raises(StorageError):
            upload.__exit__(None, None, None)
        assert list(disk.iterdir()) == []


@pytest.mark.feature("C12")
def test_a_mount_that_goes_away_is_a_typed_failure_without_a_resume(tmp_path):
    """The file system's disk is served by a process that dies; what the kernel gives up on, it reports as an I/O error."""
    image, served, disk = tmp_path / "image", tmp_path / "served", tmp_path / "disk"
    disk.mkdir()
    served.touch()
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], check=True)
    node = f"driver=file,node-name=disk,filename={image}"
    export = f"type=fuse,id=disk,node-name=disk,mountpoint={served},writable=on"
    server = subprocess.Popen(["qemu-storage-daemon", "--blockdev", node, "--export", export])
    try:
        wait_until(lambda: served.stat().st_size == 32 * MIB, 20, "the image to be served")
        subprocess.run(["mount", "-o", "loop", str(served), str(disk)], check=True)
        try:
            storage = LocalStorage(str(disk / "storage"))
            assert not storage.abilities.resume
            upload = storage.create("object")
            upload.__enter__()
            upload.write(bytes(1 * MIB))
            server.kill()
            server.wait()
            with pytest.raises(StorageError) as caught:
                upload.__exit__(None, None, None)
            assert caught.value.reason == "STORAGE_FAILED"
            storage.close()
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "--lazy", str(served)], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.feature("S3")
def test_the_disk_is_told_to_begin_while_an_object_is_written(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(local, "begin_writeback", lambda _, start, end: told.append((start, end)))
    with LocalStorage(str(tmp_path)) as storage, storage.create("object") as sink:
        for _ in range(9):
            sink.write(bytes(MIB))
    assert told == [(0, 4 * MIB), (4 * MIB, 8 * MIB)]
