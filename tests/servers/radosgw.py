"""A real Ceph with its S3 gateway, over HTTPS: one monitor, one OSD in memory, one gateway; everything gone at the block's end.

    with Radosgw(folder) as server:
        storage = S3Storage(server.config(server.bucket()))

Needs Debian's ceph-mon, ceph-osd, ceph-common and radosgw: `make storages` installs them.
"""

import shutil
import subprocess
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.s3 import S3Server, free_ports
from tests.waiting import wait_until

START_SECONDS_MAX = 120.0
_CONFIG = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}/0]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
keyring = {folder}/keyring
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
run_dir = {folder}
crash_dir = {folder}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[mon]
mon_data = {folder}/mon
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_numa_auto_affinity = false
[client.rgw.a]
rgw_frontends = beast ssl_endpoint=127.0.0.1:{port} ssl_certificate={folder}/c.pem ssl_private_key={folder}/k.pem
rgw_data = {folder}/rgw
rgw_run_sync_thread = false
"""


class Radosgw(S3Server):
    """Its processes, in the foreground, so that they end with their numbers."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.scheme = "https"
        self._folder = Path(tempfile.mkdtemp(prefix="bm-rgw-", dir="/tmp"))  # short: it holds sockets
        self._log_folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._make()
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self) -> None:
        mon_port, self.port = free_ports(2)
        folder, fsid = self._folder, str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        self._openssl()
        config = _CONFIG.format(fsid=fsid, folder=folder, mon_port=mon_port, port=self.port)
        (folder / "ceph.conf").write_text(config.lstrip())
        keyring = folder / "keyring"
        for name, caps in (
            ("mon.", {"mon": "allow *"}),
            ("client.admin", {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"}),
            ("osd.0", {"mon": "allow profile osd", "osd": "allow *"}),
            ("client.rgw.a", {"mon": "allow rw", "osd": "allow rwx"}),
        ):
            options = [word for who, cap in caps.items() for word in ("--cap", who, cap)]
            create = [] if keyring.exists() else ["-C"]
            _run("ceph-authtool", *create, str(keyring), "--gen-key", "-n", name, *options)
        monmap = str(folder / "monmap")
        _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}/0]", monmap)
        self._ceph("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", str(keyring))

    def _openssl(self) -> None:
        _run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{self._folder}/k.pem", "-out", f"{self._folder}/c.pem",
        )  # fmt: skip
        self.ca_path = f"{self._folder}/c.pem"
        self.ca_certificate = Path(self.ca_path).read_text()

    def _start(self) -> None:
        self._spawn("ceph-mon", "-i", "a")
        wait_until(lambda: self._asks("mon", "stat"), START_SECONDS_MAX, "the monitor")
        osd_id = str(uuid.uuid4())
        self._ceph("ceph", "osd", "new", osd_id)
        self._ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        self._ceph("ceph", "auth", "import", "-i", str(self._folder / "keyring"))
        self._spawn("ceph-osd", "-i", "0")
        wait_until(lambda: "1 up" in self._asks("osd", "stat"), START_SECONDS_MAX, "the OSD")
        self._spawn("radosgw", "-n", "client.rgw.a")
        self._ceph(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
        )  # fmt: skip
        wait_until(self._answers, START_SECONDS_MAX, "the gateway")

    def _spawn(self, *command: str) -> None:
        self._processes.append(
            subprocess.Popen(
                [*command, "-c", str(self._folder / "ceph.conf"), "-f"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(self._folder / f"{command[0]}.err").open("wb"),
                start_new_session=True,  # Ctrl-C is for us; we end them
            )
        )

    def _ceph(self, *command: str) -> str:
        return _run(*command, "-c", str(self._folder / "ceph.conf"))

    def _asks(self, *words: str) -> str:
        with suppress(subprocess.CalledProcessError):
            return self._ceph("ceph", "--connect-timeout", "5", *words)
        return ""

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError):
            self.client(timeout_seconds=2).list_buckets()
            return True
        return False


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
