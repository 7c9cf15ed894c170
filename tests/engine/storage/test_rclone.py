"""rclone as a storage, on the real program: the contract, which remotes are accepted, and every way the program ends."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from engine.spec import StorageSpec
from tests.servers.rclone import RcloneRemotes, obscured, sftp_remote
from tests.servers.sshd import Sshd
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace


@dataclass(frozen=True)
class RcloneFolder(FolderPlace):
    """rclone shows neither links nor pipes, so who lists by it cannot know of them; they have a test of their own below."""

    def plant_odd(self, folder: str) -> list[str]:
        return []

    def outside_is_whole(self) -> bool:
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def remotes(server, tmp_path) -> RcloneRemotes:
    """`disk` is a folder of this machine, `nas` an SSH server; `sealed` and `named` lie on the disk."""
    return RcloneRemotes(
        tmp_path / "rclone.conf",
        disk={"type": "local"},
        nas=sftp_remote(server, tmp_path),
        sealed={"type": "crypt", "remote": f"disk:{tmp_path}/sealed", "password": obscured("a passphrase")},
        named={"type": "alias", "remote": f"disk:{tmp_path}"},
    )


@pytest.mark.feature("S14")
@pytest.mark.share(6)  # each test on one of the remotes; `make kill` has all
class TestRclone(StorageContract):
    @pytest.fixture(params=["disk", "nas"])
    def place(self, request, server, remotes, tmp_path):
        folder = tmp_path / "storage"
        spec = StorageSpec("r", "i", rclone=remotes.config(request.param, folder))
        return RcloneFolder(spec, folder, server.kill_sessions if request.param == "nas" else None)
