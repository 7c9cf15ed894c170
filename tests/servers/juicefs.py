"""A real JuiceFS gateway: S3 as an older MinIO speaks it, without conditional writes. Free port on loopback, own folder.

with Juicefs(folder) as server:
    storage = S3Storage(server.config(server.bucket()))
"""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.s3 import S3Server, free_ports
from tests.waiting import wait_until

START_SECONDS_MAX = 30.0
_TRIES = 3


class Juicefs(S3Server):
    """The gateway's process; objects lie as chunks in its folder, names in an SQLite file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "juicefs"
        self._meta = f"sqlite3://{self._folder}/meta.db"
        self._program = str(Path(sys.executable).parent / "juicefs")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again after `stop`, on the same port and data."""
        for attempt in range(1, _TRIES + 1):
            if not self.port or attempt > 1:
                (self.port,) = free_ports(1)
            self._process = subprocess.Popen(
                [
                    self._program, "gateway", "--multi-buckets", "--keep-etag", "--no-banner", "--no-usage-report",
                    f"--cache-dir={self._folder}/cache", "--metrics=127.0.0.1:0", self._meta, f"127.0.0.1:{self.port}",
                ],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(self._folder / "log").open("wb"),
                start_new_session=True,  # Ctrl-C is for us; we end it in `stop`
            )  # fmt: skip
            try:
                wait_until(self._answers, START_SECONDS_MAX, "the JuiceFS gateway to answer")
                return
            except (TimeoutError, RuntimeError):
                self.stop()
                if attempt == _TRIES:
                    raise

    def stop(self) -> None:
        """End it at once, as a crash of its machine would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reload(self) -> None:
        """Take up a changed secret; it does that only at a start."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        (self._folder / "data").mkdir(parents=True)
        try:
            subprocess.run(
                [self._program, "format", "--storage=file", f"--bucket={self._folder}/data/", self._meta, "volume"],
                env=self._environment(),
                check=True,
                capture_output=True,
            )
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        secrets = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        return {**os.environ, **secrets, "HOME": str(self._folder)}  # it writes a log below HOME

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the gateway ended: {(self._folder / 'log').read_text(errors='replace')[-2000:]}")
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError):
            self.client(timeout_seconds=2).list_buckets()
            return True
        return False
