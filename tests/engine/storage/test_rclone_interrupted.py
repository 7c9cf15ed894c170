"""rclone through every interruption of what lies behind it, on a real sshd and a real S3 server behind a proxy.

An upload that was interrupted cannot go on (`abilities.resume` says so): it fails, leaves nothing, and its backup is made anew.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.storage.rclone import RcloneStorage
from engine.storage.rclone_daemon import Patience
from engine.units import MIB
from tests.engine.storage import test_s3_interrupted as on_s3
from tests.servers.proxy import Proxy
from tests.servers.rclone import RcloneRemotes, s3_remote, sftp_remote
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


def on_bucket(server: Any, line: Proxy, tmp_path: Path) -> Exposed:
    """A bucket of a real S3 server; what lies there, unfinished uploads too, the other client tells."""
    place = server.place(on_s3.SHORT)
    config = place.spec.s3
    sections = {
        "direct": s3_remote(server),
        "far": {**s3_remote(server), "endpoint": f"http://127.0.0.1:{line.port}"},
    }
    remotes, where = RcloneRemotes(tmp_path / "rclone.conf", **sections), f"{config.bucket}/{config.prefix}"

    def revoke() -> Callable[[], object]:
        return on_s3.revoke(server)

    return Exposed(
        open=lambda: RcloneStorage(remotes.config("far", where), SHORT),
        honest=lambda: RcloneStorage(remotes.config("direct", where), SHORT),
        everything=place.files,
        line=line,
        stop=server.stop,
        start=server.start,
        waits={"connect": DEFAULT.connect_seconds, "stall": DEFAULT.stall_seconds, "pause": DEFAULT.pause_seconds_max},
        revoke=revoke,
        give_up_seconds=120.0,
    )


@pytest.mark.share_class(8)  # what SFTP and FTP go through too
class TestRcloneOnS3Interrupted(StorageInterruptions):
    @pytest.fixture
    def exposed(self, juicefs: Any, tmp_path: Path) -> Iterator[Exposed]:
        with Proxy(juicefs.port) as line:
            yield on_bucket(juicefs, line, tmp_path)


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
