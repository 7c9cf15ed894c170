"""A real controller as a `with` block: the real command in a process of its own, on free ports of the loopback.

    with Controller(folder) as controller:              # bm-controller init, then serve
        async with controller.channel() as channel:     # as its first admin
            stub = system_service_pb2_grpc.SystemServiceStub(channel)

`folder` must be new or empty, and is left to its owner with the state and the log in it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from clients import connect
from tests.waiting import wait_until

if TYPE_CHECKING:
    from grpc import aio

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0
_ROOT = Path(__file__).parents[2]


class Controller:
    """A controller. Keywords are settings; those not given are the defaults, but for folders, ports and a quick tick."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "controller.toml"
        self.log = folder / "controller.log"
        self.admin_token = ""
        self.installation_id = ""
        self.fingerprint = ""
        self.authority_pem = ""
        self.api_port = self.agents_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, Any] = {
            "state_folder": str(self.state),
            "listen": "127.0.0.1:0",
            "agent_listen": "127.0.0.1:0",
            "log_level": "debug",
            "tick_seconds": 0.5,
            **settings,
        }

    @property
    def api(self) -> str:
        """Address of the API."""
        return f"127.0.0.1:{self.api_port}"

    @property
    def agents(self) -> str:
        """Address that enrolled agents dial."""
        return f"127.0.0.1:{self.agents_port}"

    def channel(self, token: str | None = None) -> "aio.Channel":
        """Return a channel to the API, as the admin unless a token is given; "" gives none. Use it as `async with`."""
        secret = self.admin_token if token is None else token
        return connect.channel(self.api, self.authority_pem, token=secret or None)

    def agents_channel(self, key: bytes, chain: bytes, token: str | None = None) -> "aio.Channel":
        """Return a channel to the agents' port with a client certificate."""
        certificate = connect.ClientCertificate(key, chain)
        return connect.channel(self.agents, self.authority_pem, token=token, certificate=certificate)

    def __enter__(self) -> Self:
        self._write_settings()
        lines = dict(line.split(": ", 1) for line in self.command("init").splitlines())
        self.installation_id, self.fingerprint = lines["installation"], lines["authority"]
        self.admin_token = lines["access token"]
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def join(self, first: "Controller") -> None:
        """Become another controller of a first one's installation; its authority and master key lie in our state folder already."""
        self._write_settings()
        self.installation_id, self.fingerprint, self.admin_token = (
            first.installation_id,
            first.fingerprint,
            first.admin_token,
        )

    def change(self, **settings: object) -> None:
        """Change settings; they hold from the next start on."""
        self._settings.update(settings)
        self._write_settings()

    def command(self, verb: str, *arguments: str, status: int = 0) -> str:
        """Run a verb of bm-controller to its end and return what it printed. Raises RuntimeError for another exit status."""
        done = subprocess.run(
            [*self._program(verb), *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != status:
            raise RuntimeError(f"bm-controller {verb} exited with {done.returncode}: {done.stderr}")
        return done.stdout + (done.stderr if status else "")

    def start(self) -> None:
        """Start serving and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._program("serve"), env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ports = wait_until(self._ports, START_SECONDS_MAX, f"bm-controller to be ready, see {self.log}")
        assert ports is not None
        self.api_port, self.agents_port = ports["api"], ports["agents"]
        self.authority_pem, _ = connect.fetch_authority(self.api, expected=self.fingerprint)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        process, self.process = self.process, None
        assert process is not None
        try:
            process.send_signal(number)
            return process.wait(STOP_SECONDS_MAX)
        finally:
            _end(process)

    def kill(self) -> None:
        """End it by kill -9."""
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it in order and start it anew, most likely on other ports."""
        status = self.stop()
        if status:
            raise RuntimeError(f"bm-controller exited with {status}, see {self.log}")
        self.start()

    def close(self) -> None:
        """End it if it still runs. May be called twice."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                _end(process)

    def _write_settings(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # JSON's strings, numbers and lists are TOML's.
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in self._settings.items()))

    def _program(self, verb: str) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "controller.main", verb, "--config", str(self.config)]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BM_CONTROLLER_")}
        return {**kept, "PYTHONPATH": str(_ROOT)}

    def _ports(self) -> dict[str, int] | None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"bm-controller ended with {self.process.returncode}: {self.log.read_text()}")
        try:
            ports: dict[str, int] = json.loads((self.state / "ports.json").read_text())
        except FileNotFoundError:
            return None
        return ports if ports["pid"] == self.process.pid else None


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
