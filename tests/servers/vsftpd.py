"""A real vsftpd of our own: own user, own certificate, own configuration, a free port on loopback; all gone at the block's end.

    with Vsftpd(folder) as server:                          # TLS, and the session of the control connection demanded
        storage = FtpStorage(server.config(folder / "backups"))

vsftpd asks the system who may log in. So it runs in a mount namespace of its own, where one user and one PAM service lie over
the system's: nothing is written to the system, not even by a test that is killed. Needs root. What is mounted after the start is
not seen by the server.
"""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import psutil

from engine.spec import FtpConfig
from tests.servers.certificate import make_certificate
from tests.servers.sshd import _kill, free_port

START_SECONDS_MAX = 20.0
USERNAME = "backup-test"
PASSWORD = "correct horse"  # what a test looks for in logs and errors
_PORT_TRIES = 5
_DATA_PORTS = 40
_BELOW_EPHEMERAL = range(12_000, 31_000)  # where the kernel gives nobody a port by itself
_PAM = "auth required pam_unix.so nodelay\naccount required pam_unix.so\n"
_START = (
    'mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/shadow" /etc/shadow && '
    'mount --bind "$1/pam" /etc/pam.d/other && exec vsftpd "$1/vsftpd.conf"'
)
_OLDER_TLS = """openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
MaxProtocol = TLSv1.2
"""
Tls: TypeAlias = Literal["reuse", "1.2", "none"]


class Vsftpd:
    """A vsftpd that lets one user in, who may do what root may.

    `tls`: "reuse" demands that data connections continue the control connection's session; "1.2" knows no newer version; "none"
    speaks plainly. `options` are further lines of the configuration.
    """

    def __init__(
        self, folder: Path, *, tls: Tls = "reuse", address: str = "127.0.0.1", options: Sequence[str] = ()
    ) -> None:
        self.folder = folder / "vsftpd"
        self.port = 0
        self.address = address
        self._tls, self._options = tls, options
        self._process: subprocess.Popen[bytes] | None = None
        self.certificate = ""
        self.data_ports = free_block()

    def config(self, path: Path | str, **changes: Any) -> FtpConfig:
        """Return the settings of a storage in `path` on this server, its certificate trusted; `changes` replace fields."""
        config = FtpConfig(
            host=self.address,
            port=self.port,
            username=USERNAME,
            password=PASSWORD,
            path=str(path),
            tls_disabled=self._tls == "none",
            ca_certificate=self.certificate,
        )
        return replace(config, **changes)

    def start(self) -> None:
        """Start listening: on a free port the first time, on the same port after `stop`."""
        for attempt in range(1, _PORT_TRIES + 1):
            if not self.port or attempt > 1:
                self.port = free_port()
            self._write_config()
            with (self.folder / "output").open("wb") as output:
                self._process = subprocess.Popen(
                    ["unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "sh", str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **self._write_library_config()},
                    start_new_session=True,  # Ctrl-C is for us; we end it in `stop`
                )
            if self._listens():
                return
            self.stop()  # someone else took the port in between
        raise RuntimeError(f"vsftpd does not start: {(self.folder / 'output').read_text(errors='replace')}")

    def stop(self) -> None:
        """End the server and every session at once, as a crash of the machine would."""
        if self._process is not None:
            _kill([*self._sessions(), psutil.Process(self._process.pid)])
            self._process.wait()
            self._process = None

    def kill_sessions(self) -> int:
        """End the sessions that are open now, and return how many processes that were; the server takes new ones."""
        sessions = self._sessions()
        _kill(sessions)
        return len(sessions)

    def log(self) -> str:
        """Return every command and reply so far, as the server saw them."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        (self.folder / "empty").mkdir(parents=True)
        try:
            self._write_accounts()
            self.certificate = make_certificate(self.folder).pem
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _write_accounts(self) -> None:
        digest = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, text=True, check=True, capture_output=True
        ).stdout.strip()
        (self.folder / "passwd").write_text(f"{USERNAME}:x:0:0::/:/bin/sh\n")
        (self.folder / "shadow").write_text(f"{USERNAME}:{digest}:19000:0:99999:7:::\n")
        (self.folder / "shadow").chmod(0o600)
        (self.folder / "pam").write_text(_PAM)

    def _write_config(self) -> None:
        six = ":" in self.address
        lines = [
            "listen=NO" if six else "listen=YES",
            "listen_ipv6=YES" if six else "listen_ipv6=NO",
            f"listen_address{'6' if six else ''}={self.address}",
            f"listen_port={self.port}",
            "background=NO",
            "anonymous_enable=NO",
            "local_enable=YES",
            "write_enable=YES",
            "local_umask=077",
            "local_root=/",
            "pam_service_name=other",
            f"secure_chroot_dir={self.folder}/empty",
            "seccomp_sandbox=NO",
            "delay_failed_login=0",
            "force_dot_files=YES",
            f"pasv_min_port={self.data_ports[0]}",
            f"pasv_max_port={self.data_ports[-1]}",
            "xferlog_enable=YES",
            "log_ftp_protocol=YES",
            f"vsftpd_log_file={self.folder}/log",
            *self._tls_lines(),
            *self._options,
        ]
        (self.folder / "vsftpd.conf").write_text("\n".join(lines) + "\n")

    def _write_library_config(self) -> dict[str, str]:
        """Return the environment that tells OpenSSL which version of TLS is the newest; this vsftpd has no setting for it."""
        if self._tls != "1.2":
            return {}
        path = self.folder / "openssl.cnf"
        path.write_text(_OLDER_TLS)
        return {"OPENSSL_CONF": str(path)}

    def _tls_lines(self) -> list[str]:
        if self._tls == "none":
            return ["ssl_enable=NO"]
        return [
            "ssl_enable=YES",
            "force_local_logins_ssl=YES",
            "force_local_data_ssl=YES",
            "require_ssl_reuse=YES",
            "ssl_ciphers=HIGH",
            f"rsa_cert_file={self.folder}/certificate.pem",
            f"rsa_private_key_file={self.folder}/certificate.key",
        ]

    def _listens(self) -> bool:
        """Wait until our own process answers; False if it ended instead."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            try:
                with socket.create_connection((self.address, self.port), timeout=START_SECONDS_MAX) as probe:
                    if probe.recv(4) == b"220 " and self._process.poll() is None:
                        return True
            except OSError:
                pass
            time.sleep(0.01)
        return False

    def _sessions(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def free_block() -> range:
    """Return ports for data connections in a row that nobody on loopback listens on now."""
    while True:
        first = random.choice(_BELOW_EPHEMERAL)
        ports = range(first, first + _DATA_PORTS)
        if all(_is_free(port) for port in ports):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
