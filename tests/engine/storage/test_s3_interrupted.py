"""S3 through every interruption, on real servers behind a proxy: the line, the server, its credentials, its room."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.storage.s3 import S3Storage
from engine.storage.s3_parts import PART_BYTES_MIN
from engine.storage.s3_wire import Patience
from tests.servers.proxy import Proxy
from tests.storage_faults import Exposed, StorageInterruptions

if TYPE_CHECKING:
    from tests.servers.s3 import BucketPlace

pytestmark = [pytest.mark.feature("S5"), pytest.mark.feature("C12")]

SHORT = Patience(
    connect_seconds=2, stall_seconds=3, complete_seconds=5, attempts=4, pause_seconds=0.05, pause_seconds_max=0.5,
    enduring_attempts=5, enduring_seconds=20,
)  # fmt: skip
PATIENT = replace(SHORT, attempts=100, enduring_attempts=100, enduring_seconds=60)
DEFAULT = (
    Patience()
)  # its complete_seconds are no wait for a dead peer: that one the kernel notices after stall_seconds
# SeaweedFS takes seconds to start again: `make kill` has it too.
SERVERS = ["juicefs", "weed"] if os.environ.get("BM_KILL_POINTS") == "all" else ["juicefs"]


def expose(server: Any, line: Proxy, place: "BucketPlace | None" = None) -> Exposed:
    honest: BucketPlace = place or server.place(SHORT, part_size_bytes=PART_BYTES_MIN)
    config = honest.spec.s3
    assert config is not None
    over_line = server.config(config.bucket, prefix=config.prefix, part_size_bytes=PART_BYTES_MIN,
                              endpoint=f"http://127.0.0.1:{line.port}")  # fmt: skip
    return Exposed(
        open=lambda: S3Storage(over_line, SHORT),
        patient=lambda: S3Storage(over_line, PATIENT),
        honest=honest.open,
        everything=honest.files,
        line=line,
        give_up_seconds=120.0,
        stop=server.stop,
        start=server.start,
        waits={"connect": DEFAULT.connect_seconds, "stall": DEFAULT.stall_seconds, "pause": DEFAULT.pause_seconds_max},
        revoke=lambda: revoke(server),
    )


def revoke(server: Any) -> Callable[[], object]:
    """Give our access key another secret."""
    before = server.secret_key

    def change(secret: str) -> None:
        server.secret_key = secret
        server.reload()

    change("somebody-elses")
    return lambda: change(before)


@pytest.mark.share_class(8)  # what SFTP and FTP go through too
class TestS3Interrupted(StorageInterruptions):
    @pytest.fixture(params=SERVERS)
    def exposed(self, request: pytest.FixtureRequest) -> Iterator[Exposed]:
        server = request.getfixturevalue(request.param)
        with Proxy(server.port) as line:
            yield expose(server, line)
