"""An FTP server by pyftpdlib in a process of its own: MLSD, TLS without session reuse, and what vsftpd cannot be made to do.

    with Pyftpdlib(folder) as server:
        storage = FtpStorage(server.config(folder / "backups"))

It shares no process with the test, since it must be killed like any other server.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.spec import FtpConfig
from tests.servers.certificate import make_certificate

START_SECONDS_MAX = 20.0
USERNAME = "backup-test"
PASSWORD = "correct horse"
# Serves as argv[1] (JSON) says until its stdin ends; prints its port.
_SERVER = """
import json, logging, sys, threading, os, select
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
from pyftpdlib.servers import FTPServer
logging.getLogger("pyftpdlib").addHandler(logging.FileHandler(sys.argv[2]))
logging.getLogger("pyftpdlib").setLevel(logging.DEBUG)
asked = json.loads(sys.argv[1])
authorizer = DummyAuthorizer()
authorizer.add_user(asked["username"], asked["password"], "/", perm=asked["permissions"])
class Handler(TLS_FTPHandler if asked["certificate"] else FTPHandler):
    pass
Handler.authorizer = authorizer
Handler.max_login_attempts = 3
Handler.auth_failed_timeout = 0
if asked["certificate"]:
    Handler.certfile = asked["certificate"]
    Handler.tls_control_required = Handler.tls_data_required = True
for command in asked["missing"]:
    Handler.proto_cmds = {name: one for name, one in Handler.proto_cmds.items() if name != command}
if asked["masquerade"]:
    Handler.masquerade_address = asked["masquerade"]
server = FTPServer((asked["address"], asked["port"]), Handler)
server.max_cons = 64
server.max_cons_per_ip = asked["connections"]
print(server.address[1], flush=True)
def watch():
    for line in sys.stdin:
        if line.strip() == "cut":
            server.ioloop.call_later(0, lambda: ([one.close() for one in list(server.ioloop.socket_map.values()) if one is not server], print("done", flush=True)))
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
server.serve_forever(timeout=0.05)
"""


class Pyftpdlib:
    """An FTP server whose one user may do what `permissions` say (pyftpdlib's letters) wherever this process may.

    `missing` are commands that it does not know; `masquerade` is the address that it puts into its replies to PASV;
    `connections` is how many it takes, 0 for any number.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: bool = True,
        address: str = "127.0.0.1",
        permissions: str = "elradfmwMT",
        missing: tuple[str, ...] = (),
        masquerade: str = "",
        connections: int = 0,
    ) -> None:
        self.folder = folder / "pyftpdlib"
        self.port = 0
        self.address = address
        self.certificate = ""
        self._tls = tls
        self._asked: dict[str, Any] = {
            "username": USERNAME,
            "password": PASSWORD,
            "permissions": permissions,
            "missing": missing,
            "masquerade": masquerade,
            "connections": connections,
            "address": address,
            "certificate": "",
        }
        self._process: subprocess.Popen[str] | None = None

    def config(self, path: Path | str, **changes: Any) -> FtpConfig:
        """Return the settings of a storage in `path` on this server, its certificate trusted; `changes` replace fields."""
        config = FtpConfig(
            host=self.address,
            port=self.port,
            username=USERNAME,
            password=PASSWORD,
            path=str(path),
            tls_disabled=not self._tls,
            ca_certificate=self.certificate,
        )
        return replace(config, **changes)

    def start(self) -> None:
        """Start listening: on a free port the first time, on the same port after `stop`."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, json.dumps({**self._asked, "port": self.port}), str(self.folder / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; we end it in `stop`
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"pyftpdlib does not start: {self.log()}")
        self.port = int(line)
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            with socket.create_connection((self.address, self.port), timeout=START_SECONDS_MAX) as probe:
                if probe.recv(3) == b"220":
                    return
        raise RuntimeError("pyftpdlib does not answer")

    def stop(self) -> None:
        """End the server and every session at once, as a crash of the machine would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def kill_sessions(self) -> None:
        """End every connection that is open now; the server takes new ones."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("cut\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def log(self) -> str:
        """Return every command and reply so far, as the server saw them."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            if self._tls:
                made = make_certificate(self.folder)
                self.certificate = made.pem
                both = self.folder / "both.pem"
                both.touch(mode=0o600)
                both.write_text(made.key_path.read_text() + made.pem)
                self._asked["certificate"] = str(both)
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
