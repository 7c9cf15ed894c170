"""A real OpenSSH server of our own: own keys, own configuration, a free port on loopback; everything gone at the block's end.

    with Sshd(folder) as server:
        storage = SftpStorage(server.config(folder / "backups"))

Needs `sshd`; where we are root, sshd's empty folder /run/sshd is made for the time (see sshd_folder.py).
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from engine.spec import SftpConfig
from tests.servers.sshd_folder import SshdFolder

START_SECONDS_MAX = 20.0
_PORT_TRIES = 5


class Sshd:
    """An sshd that lets the user of this process in by one key and serves SFTP.

    `denied` are SFTP requests to refuse and extensions not to offer, by the names of sftp-server's -P (`fsync`, `limits`,
    `statvfs`); `read_only` refuses every change; `options` are further lines for sshd_config.
    """

    def __init__(
        self, folder: Path, *, denied: Sequence[str] = (), read_only: bool = False, options: Sequence[str] = ()
    ) -> None:
        self.folder = folder / "sshd"
        self.port = 0
        self.username = pwd.getpwuid(os.geteuid()).pw_name
        self.private_key, self._public_key = key_pair()
        self._host_private_key, self.host_key = key_pair()
        self._denied, self._read_only, self._options = denied, read_only, options
        self._process: subprocess.Popen[bytes] | None = None
        self._system_folder = SshdFolder()

    def config(self, path: Path | str, **changes: Any) -> SftpConfig:
        """Return the settings of a storage in `path` on this server, host key pinned; `changes` replace fields."""
        config = SftpConfig(
            host="127.0.0.1",
            port=self.port,
            username=self.username,
            path=str(path),
            private_key=self.private_key,
            host_key=self.host_key,
        )
        return replace(config, **changes)

    def start(self) -> None:
        """Start listening: on a free port the first time, on the same port after `stop`."""
        for attempt in range(1, _PORT_TRIES + 1):
            if not self.port or attempt > 1:
                self.port = free_port()
            self._process = subprocess.Popen(
                [_program("sshd"), "-D", "-E", str(self.log_path), "-f", str(self._write_config())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; we end it in `stop`
            )
            if self._listens():
                return
            self.stop()  # someone else took the port in between
        raise RuntimeError(f"sshd does not start: {self.log_path.read_text(errors='replace')}")

    def stop(self) -> None:
        """End the server and every session at once, as a crash of the machine would."""
        if self._process is None:
            return
        processes = [*self._sessions(), psutil.Process(self._process.pid)]
        _kill(processes)
        self._process.wait()
        self._process = None

    def kill_sessions(self) -> int:
        """End the sessions that are open now, and return how many processes that were; the server takes new ones."""
        sessions = self._sessions()
        _kill(sessions)
        return len(sessions)

    def change_host_key(self) -> None:
        """Stop, and start with another host key, as after a reinstallation."""
        self.stop()
        self._host_private_key, self.host_key = key_pair()
        self.start()

    @property
    def log_path(self) -> Path:
        return self.folder / "sshd.log"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
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
        self._system_folder.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _write_config(self) -> Path:
        self._system_folder.acquire()
        host_key, authorized = self.folder / "host_key", self.folder / "authorized_keys"
        host_key.touch(mode=0o600)
        host_key.write_text(self._host_private_key)
        authorized.write_text(self._public_key + "\n")
        server = "internal-sftp" + (" -R" if self._read_only else "")
        if self._denied:
            server += " -P " + ",".join(self._denied)
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {authorized}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100",
            f"Subsystem sftp {server}",
            *self._options,
        ]
        path = self.folder / "sshd_config"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _listens(self) -> bool:
        """Wait until our own process answers; False if it ended instead."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    if probe.recv(4) == b"SSH-" and self._process.poll() is None:
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


def key_pair() -> tuple[str, str]:
    """Return a new Ed25519 key: the private one in OpenSSH's PEM form, the public one as `type base64`."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def free_port() -> int:
    """Return a TCP port that nobody on loopback listens on now; it may be taken by the time it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str) -> str:
    """Return a program's absolute path, which sshd insists on."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError(f"{name} is missing: apt-get install openssh-server")
    return found


def _kill(processes: list[psutil.Process]) -> None:
    """Kill processes that may be ending by themselves, and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + START_SECONDS_MAX
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline:
            raise RuntimeError(f"these do not end: {processes}")
        time.sleep(0.005)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
