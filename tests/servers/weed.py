"""A real SeaweedFS with its S3 gateway: own folder, free ports on loopback; everything gone at the block's end.

    with Weed(folder) as server:
        storage = S3Storage(server.config(server.bucket()))

It takes some seconds until a bucket can be written: tests share one (the fixture `weed`).
"""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.s3 import S3Server, free_ports
from tests.waiting import wait_until

START_SECONDS_MAX = 60.0
_TRIES = 3


class Weed(S3Server):
    """One process: master, volumes, filer, gateway."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "weed"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again after `stop`, on the same ports and data."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._start()
                return
            except (TimeoutError, RuntimeError):
                self.stop()
                if attempt == _TRIES:
                    raise
                self.port = 0  # someone else may have taken a port in between

    def stop(self) -> None:
        """End it at once, as a crash of its machine would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reload(self) -> None:
        """Take up a changed secret: told to, it reads its settings again."""
        assert self._process is not None
        self._write_identity()
        self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> Self:
        (self._folder / "data").mkdir(parents=True)
        try:
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

    def _start(self) -> None:
        if not self.port:
            self._ports = free_ports(4, also=10_000)
            self.port = self._ports[3]
        master, volume, filer, gateway = self._ports
        self._write_identity()
        self._process = subprocess.Popen(
            [
                Path(sys.executable).parent / "weed", "-logtostderr=true", "server", f"-dir={self._folder}/data",
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}",
                "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={gateway}", f"-s3.config={self._folder}/s3.json",
                "-master.volumeSizeLimitMB=256", "-volume.max=64", "-master.telemetry=false",
                "-s3.port.iceberg=0", "-s3.port.lance=0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "log").open("wb"),
            start_new_session=True,  # Ctrl-C is for us; we end it in `stop`
        )  # fmt: skip
        wait_until(self._answers, START_SECONDS_MAX, "SeaweedFS to take an object")

    def _write_identity(self) -> None:
        identity = {
            "name": "test",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self._folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"SeaweedFS ended: {(self._folder / 'log').read_text(errors='replace')[-2000:]}")
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client(timeout_seconds=2)
        with suppress(BotoCoreError, ClientError):
            with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"x")
            return True
        return False
