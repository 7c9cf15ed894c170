"""FTP and FTPS through every interruption, on a real vsftpd behind a proxy: the line to it, and the server itself."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from engine.storage.ftp import FtpStorage
from engine.storage.sftp_connect import Patience
from engine.units import MIB
from tests.servers.proxy import Proxy
from tests.servers.small_disk import small_disk
from tests.servers.sshd import free_port
from tests.servers.vsftpd import Tls, Vsftpd
from tests.shares import share
from tests.storage_faults import Exposed, FullStorage, StorageInterruptions

pytestmark = [pytest.mark.feature("S13"), pytest.mark.feature("C12")]

LINE_HOST = "127.0.0.77"  # the same ports as the server's, on another address
PORTS = 12
SHORT = Patience(
    connect_seconds=2,
    stall_seconds=1,
    sync_seconds=3,
    attempts=3,
    pause_seconds=0.05,
    pause_seconds_max=0.5,
    enduring_attempts=3,
    enduring_seconds=20,
)
DEFAULT = Patience()


def free_ports() -> range:
    """Return ports for data connections that nobody listens on at the line's address."""
    while True:
        first = free_port()
        with ExitStack() as stack, suppress(OSError, OverflowError):
            for port in range(first, first + PORTS):
                stack.enter_context(socket.socket()).bind((LINE_HOST, port))
            return range(first, first + PORTS)


class Front:
    """A vsftpd whose data connections can be led through a line too."""

    def __init__(self, folder: Path, tls: Tls) -> None:
        self.ports = free_ports()
        options = [f"pasv_min_port={self.ports[0]}", f"pasv_max_port={self.ports[-1]}", "delay_failed_login=0"]
        self.server = Vsftpd(folder, tls=tls, options=options)

    def line(self) -> Proxy:
        return Proxy(self.server.port, LINE_HOST, self.ports)

    def expose(self, line: Proxy, folder: Path) -> Exposed:
        direct = self.server.config(folder)
        over_line = replace(direct, host=line.host, port=line.port, skip_tls_verify=True)
        return Exposed(
            open=lambda: FtpStorage(over_line, patience=SHORT),
            honest=lambda: FtpStorage(direct, patience=SHORT),
            everything=lambda: sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir()),
            line=line,
            stop=self.server.stop,
            start=self.server.start,
            waits={
                "connect": DEFAULT.connect_seconds,
                "stall": DEFAULT.stall_seconds,
                "pause": DEFAULT.pause_seconds_max,
            },
            revoke=self.revoke,
            forgets_writers=False,  # vsftpd: lock_upload_files, until its data_connection_timeout of 300 s
        )

    def revoke(self) -> Callable[[], object]:
        """Take our user's password away, and end the sessions that it let in."""
        shadow = self.server.folder / "shadow"
        before = shadow.read_text()
        shadow.write_text(before.partition(":")[0] + ":!:19000:0:99999:7:::\n")
        self.server.kill_sessions()
        return lambda: shadow.write_text(before)


@pytest.fixture(scope="module", params=share(["reuse", "none"], "front", 2))
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    made = Front(tmp_path_factory.mktemp("server"), request.param)
    with made.server:
        yield made


class TestFtpInterrupted(StorageInterruptions):
    @pytest.fixture
    def exposed(self, front: Front, tmp_path: Path) -> Iterator[Exposed]:
        with front.line() as line:
            yield front.expose(line, tmp_path / "storage")


class TestFtpFull(FullStorage):
    @pytest.fixture
    def full(self, tmp_path: Path) -> Iterator[Exposed]:
        with small_disk(tmp_path / "disk", 12 * MIB) as disk:
            front = Front(tmp_path, "reuse")  # it sees only what was mounted before its start
            with front.server, front.line() as line:
                yield front.expose(line, disk / "storage")
