"""FTP and FTPS as a storage, on real servers: the contract, who is let in, and every way a connection ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import ObjectExists, ObjectNotFound
from engine.spec import StorageSpec
from engine.storage.sftp_connect import Patience
from tests.servers.pyftpdlib import Pyftpdlib
from tests.servers.vsftpd import Vsftpd
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace

QUICK = Patience(connect_seconds=10, stall_seconds=10, attempts=3, pause_seconds=0.01, enduring_attempts=3)
SHORT = Patience(connect_seconds=1, stall_seconds=1, attempts=2, pause_seconds=0.01, enduring_attempts=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Vsftpd]:
    with Vsftpd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory) -> Iterator[Vsftpd]:
    with Vsftpd(tmp_path_factory.mktemp("plain"), tls="none") as server:
        yield server


@pytest.fixture(scope="module")
def modern_server(tmp_path_factory) -> Iterator[Pyftpdlib]:
    with Pyftpdlib(tmp_path_factory.mktemp("modern")) as server:
        yield server


def place_on(server: Vsftpd | Pyftpdlib, folder: Path) -> FolderPlace:
    spec = StorageSpec(repository_id="r", installation_id="i", ftp=server.config(folder))
    return FolderPlace(spec, folder, server.kill_sessions)


class FtpContract(StorageContract):
    """FTP has no word for a link: SIZE and RETR follow it."""

    def test_a_link_or_a_pipe_is_no_object(self, storage, place):
        for name in place.plant_odd(""):
            with pytest.raises(ObjectExists):
                storage.put(name, b"x")
        for name in ("door", "loop", "pipe"):
            with pytest.raises(ObjectNotFound):
                storage.size(name)
        assert place.outside_is_whole()


@pytest.mark.feature("S13")
class TestVsftpdTls(FtpContract):
    @pytest.fixture
    def place(self, server, tmp_path):
        return place_on(server, tmp_path / "storage")


@pytest.mark.feature("S13")
class TestVsftpdPlain(FtpContract):
    @pytest.fixture
    def place(self, plain_server, tmp_path):
        return place_on(plain_server, tmp_path / "storage")


@pytest.mark.feature("S13")
class TestPyftpdlibTls(FtpContract):
    @pytest.fixture
    def place(self, modern_server, tmp_path):
        return place_on(modern_server, tmp_path / "storage")

    def test_unfinished_and_foreign_names_are_left_out(self, storage, place):
        storage.put("d/object", b"x")
        place.plant_unfinished("d/other")
        for name in (
            b"d/.hidden",
            b"d/with space",
            b"d/-dash",
            b"d/line\nbreak",
            b"d/e.part",
            b"..data/object",
            b"d/\xff\xfe",
        ):
            place.plant(name)
        assert [entry.name for entry in storage.list()] == ["d/object"]

    def test_folders_are_those_directly_inside(self, storage, place):
        for name in ("repository.json", "servers/a/one/disk/0000.data", "servers/b/two/backup.json", "keys/k.json"):
            storage.put(name, b"x")
        place.plant(b"servers/.hidden/x")
        place.plant(b"servers/with space/x")
        assert sorted(storage.folders()) == ["keys", "servers"]
        assert sorted(storage.folders("servers")) == ["a", "b"]
        assert list(storage.folders("never/was")) == []

    def test_a_folder_that_leads_back_is_listed_once(self, storage, place):
        """Its MLSD calls a link what it leads to; that such a listing ends is what we can do."""
        storage.put("d/object", b"x")
        place.plant_odd("d")
        assert "d/object" in [entry.name for entry in storage.list()]
