"""rclone through every interruption of what lies behind it, on a real sshd and a real S3 server behind a proxy.

An upload that was interrupted cannot go on (`abilities.resume` says so): it fails, leaves nothing, and its backup is made anew.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.storage.rclone import RcloneStorage
from engine.storage.rclone_daemon import Patience
from engine.units import MIB
from tests.servers.proxy import Proxy
from tests.servers.rclone import RcloneRemotes, sftp_remote
from tests.servers.small_disk import small_disk
from tests.servers.sshd import Sshd
from tests.storage_faults import Exposed, FullStorage, StorageInterruptions

pytestmark = [pytest.mark.feature("S14"), pytest.mark.feature("C12")]

SHORT = Patience(
    connect_seconds=2, stall_seconds=2, answer_seconds=12, commit_seconds=12, abort_seconds=4, retries=2, attempts=3,
    pause_seconds=0.05, pause_seconds_max=0.5, reading_attempts=4,
)  # fmt: skip
DEFAULT = Patience()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


def on_ssh(server: Sshd, line: Proxy, tmp_path: Path, folder: Path) -> Exposed:
    sections = {}
    for name, port in (("direct", 0), ("far", line.port)):
        (tmp_path / name).mkdir()
        sections[name] = sftp_remote(server, tmp_path / name, port)
    remotes = RcloneRemotes(tmp_path / "rclone.conf", **sections)
    return Exposed(
        open=lambda: RcloneStorage(remotes.config("far", folder), SHORT),
        honest=lambda: RcloneStorage(remotes.config("direct", folder), SHORT),
        everything=lambda: sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir()),
        line=line,
        stop=server.stop,
        start=server.start,
        waits={"connect": DEFAULT.connect_seconds, "stall": DEFAULT.stall_seconds, "pause": DEFAULT.pause_seconds_max},
        revoke=lambda: revoke_key(server),
    )


def revoke_key(server: Sshd) -> Callable[[], object]:
    authorized = server.folder / "authorized_keys"
    before = authorized.read_text()
    authorized.write_text("")
    server.kill_sessions()
    return lambda: authorized.write_text(before)


@pytest.mark.share_class(8)  # what SFTP and FTP go through too
class TestRcloneOnSshInterrupted(StorageInterruptions):
    @pytest.fixture
    def exposed(self, sshd: Sshd, tmp_path: Path) -> Iterator[Exposed]:
        with Proxy(sshd.port) as line:
            yield on_ssh(sshd, line, tmp_path, tmp_path / "storage")


@pytest.mark.share_class(2)
class TestRcloneOnSshFull(FullStorage):
    @pytest.fixture
    def full(self, sshd: Sshd, tmp_path: Path) -> Iterator[Exposed]:
        with Proxy(sshd.port) as line, small_disk(tmp_path / "disk", 12 * MIB) as disk:
            yield on_ssh(sshd, line, tmp_path, disk / "storage")
