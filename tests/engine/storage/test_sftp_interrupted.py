"""SFTP through every interruption, on a real sshd behind a proxy, and on a disk that is too small."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.storage.sftp import SftpStorage
from engine.storage.sftp_connect import Patience
from engine.units import MIB
from tests.servers.proxy import Proxy
from tests.servers.small_disk import small_disk
from tests.servers.sshd import Sshd
from tests.storage_faults import Exposed, FullStorage, StorageInterruptions

pytestmark = [pytest.mark.feature("S4"), pytest.mark.feature("C12")]

SHORT = Patience(
    connect_seconds=2,
    stall_seconds=1,
    sync_seconds=3,
    attempts=2,
    pause_seconds=0.05,
    pause_seconds_max=0.5,
    enduring_attempts=3,
    enduring_seconds=20,
)
DEFAULT = Patience()  # its sync_seconds are no wait for a dead peer: that one the kernel notices after stall_seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


def expose(server: Sshd, line: Proxy, folder: Path) -> Exposed:
    config = server.config(folder)
    return Exposed(
        open=lambda: SftpStorage(replace(config, port=line.port), SHORT),
        honest=lambda: SftpStorage(config, SHORT),
        everything=lambda: sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir()),
        line=line,
        stop=server.stop,
        start=server.start,
        waits={"connect": DEFAULT.connect_seconds, "stall": DEFAULT.stall_seconds, "pause": DEFAULT.pause_seconds_max},
        revoke=lambda: revoke(server),
    )


def revoke(server: Sshd) -> Callable[[], object]:
    """Take our key off the server's list, and end the sessions that it let in."""
    authorized = server.folder / "authorized_keys"
    before = authorized.read_text()
    authorized.write_text("")
    server.kill_sessions()
    return lambda: authorized.write_text(before)


class TestSftpInterrupted(StorageInterruptions):
    @pytest.fixture
    def exposed(self, server: Sshd, tmp_path: Path) -> Iterator[Exposed]:
        with Proxy(server.port) as line:
            yield expose(server, line, tmp_path / "storage")


class TestSftpFull(FullStorage):
    @pytest.fixture
    def full(self, server: Sshd, tmp_path: Path) -> Iterator[Exposed]:
        with Proxy(server.port) as line, small_disk(tmp_path / "disk", 12 * MIB) as disk:
            yield expose(server, line, disk / "storage")
