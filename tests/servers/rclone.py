"""Configurations of rclone for remotes that lie on this machine, each in a file as the engine demands it: ours, 0600.

    remotes = RcloneRemotes(tmp_path / "rclone.conf", disk={"type": "local"}, nas=sftp_remote(sshd, tmp_path))
    storage = RcloneStorage(remotes.config("nas", "/srv/backups"))

Needs `rclone`, which the engine starts itself.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.spec import RcloneConfig
from tests.servers.s3 import S3Server
from tests.servers.sshd import Sshd


class RcloneRemotes:
    """The file `path` with the sections that are given by name."""

    def __init__(self, path: Path, **sections: Mapping[str, str]) -> None:
        self.path = path
        self._sections: dict[str, Mapping[str, str]] = {}
        self.add(**sections)

    def add(self, **sections: Mapping[str, str]) -> None:
        """Write the file anew, with more or other sections."""
        self._sections |= sections
        lines = []
        for name, section in self._sections.items():
            lines += [f"[{name}]", *(f"{option} = {value}" for option, value in section.items()), ""]
        self.path.touch(mode=0o600)
        self.path.write_text("\n".join(lines))

    def config(self, remote: str, path: Path | str, **changes: Any) -> RcloneConfig:
        """Return the settings of a storage in the folder `path` of a remote; `changes` replace fields."""
        return replace(RcloneConfig(remote=remote, path=str(path), config_path=str(self.path)), **changes)


def sftp_remote(server: Sshd, folder: Path, port: int = 0) -> dict[str, str]:
    """Return the section of a remote on an SSH server; its key is written to `folder`. `port` is that of a proxy before it."""
    key, hosts = folder / "rclone_key", folder / "rclone_known_hosts"
    key.touch(mode=0o600)
    key.write_text(server.private_key)
    hosts.write_text(f"[127.0.0.1]:{port or server.port} {server.host_key}\n")
    return {
        "type": "sftp",
        "host": "127.0.0.1",
        "port": str(port or server.port),
        "user": server.username,
        "key_file": str(key),
        "known_hosts_file": str(hosts),
    }


def s3_remote(server: S3Server) -> dict[str, str]:
    """Return the section of a remote on an S3 server."""
    return {
        "type": "s3",
        "provider": "Other",
        "endpoint": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
    }


def obscured(password: str) -> str:
    """Return a password in the form that rclone keeps in its file; rclone makes it from standard input."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RCLONE_")}
    done = subprocess.run(
        ["rclone", "obscure", "-"], input=password, capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()
