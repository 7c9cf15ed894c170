"""FTP and FTPS as a storage, on real servers: the contract, who is let in, and every way a connection ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.errors import ObjectExists, ObjectNotFound
from engine.spec import StorageSpec
from tests.servers.pyftpdlib import Pyftpdlib
from tests.servers.vsftpd import Vsftpd
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace

pytestmark = pytest.mark.feature("S13")


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


@dataclass(frozen=True)
class FtpPlace(FolderPlace):
    """`shows_links`: the server's listings tell a link from what it leads to."""

    shows_links: bool = True

    def plant_odd(self, folder: str) -> list[str]:
        return super().plant_odd(folder) if self.shows_links else []


def place_on(server: Vsftpd | Pyftpdlib, folder: Path) -> FtpPlace:
    spec = StorageSpec(repository_id="r", installation_id="i", ftp=server.config(folder))
    return FtpPlace(spec, folder, server.kill_sessions, shows_links=isinstance(server, Vsftpd))


@pytest.mark.share(3)
class TestFtp(StorageContract):
    """Each test goes to one of the servers, and to all of them in `make kill`."""

    @pytest.fixture(
        params=["server", "plain_server", "modern_server"], ids=["vsftpd-tls", "vsftpd-plain", "pyftpdlib-tls"]
    )
    def place(self, request, tmp_path):
        return place_on(request.getfixturevalue(request.param), tmp_path / "storage")

    def test_a_link_or_a_pipe_is_no_object(self, storage, place):
        """FTP has no word for a link: SIZE and RETR follow it."""
        FolderPlace.plant_odd(place, "")
        for name in ("link", "door", "loop", "pipe"):
            with pytest.raises(ObjectExists):
                storage.put(name, b"x")
        for name in ("door", "loop", "pipe"):
            with pytest.raises(ObjectNotFound):
                storage.size(name)
        assert place.outside_is_whole()


@pytest.fixture
def modern_place(modern_server, tmp_path):
    return place_on(modern_server, tmp_path / "storage")


def test_a_folder_that_leads_back_is_listed_once(modern_place):
    """Where MLSD calls a link what it leads to, such a listing still ends."""
    with modern_place.open() as storage:
        storage.put("d/object", b"x")
        FolderPlace.plant_odd(modern_place, "d")
        assert "d/object" in [entry.name for entry in storage.list()]


def test_a_sweep_removes_links_that_look_like_folders(modern_place):
    with modern_place.open() as storage:
        storage.put("d/object", b"x")
        FolderPlace.plant_odd(modern_place, "d")
        storage.sweep("d")
    assert modern_place.traces() == []
    assert modern_place.outside_is_whole()


def test_a_server_of_plain_unix_listings(plain_server, tmp_path):
    """The times of LIST are a wall clock's minutes; they become Unix seconds, never too early."""
    with place_on(plain_server, tmp_path / "storage").open() as storage:
        storage.put("d/object", b"x")
        written = (tmp_path / "storage/d/object").stat().st_mtime
        (entry,) = storage.list()
        assert -60 <= entry.modified_time - written <= 60
