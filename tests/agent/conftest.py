"""A scripted controller, an agent with an imitated engine, and commands for it."""

import itertools
import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2
from tests.agent.imitated_engine import backup
from tests.agent.scripted_controller import ScriptedController
from tests.servers.agent import Agent
from tests.waiting import wait_until

ENGINE = (sys.executable, "-m", "tests.agent.imitated_engine")
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0LWxpbmUtb25lLW9mLXRoZS1rZXk\nc2VjcmV0LWxpbmUtdHdvLW9mLXRoZS1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"


@dataclass
class Scene:
    """What a test of the whole agent works with."""

    folder: Path
    controller: ScriptedController
    agent: Agent
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def place(self, script: list[dict[str, Any]]) -> Path:
        """Make a storage folder with a script for the engine that works there."""
        folder = self.folder / f"storage-{next(self.numbers)}"
        folder.mkdir()
        (folder / "script.json").write_text(json.dumps(script))
        return folder

    def seen(self, place: Path, what: str) -> list[dict[str, Any]]:
        """Return what the engine noted there."""
        file = place / "seen.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [one for one in map(json.loads, lines) if one["what"] == what]

    def wait_seen(self, place: Path, what: str, count: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.seen(place, what)) >= count, 20, f"{count} times {what}")
        return self.seen(place, what)

    def run(self, place: Path, **options: Any) -> command_pb2.Command:
        """Send a command to run something there, and return it."""
        command = run_command(place, **options)
        self.controller.send(command)
        return command

    def cancel(self, command: command_pb2.Command, grace_seconds: float | None = None) -> command_pb2.Command:
        cancel = command_pb2.Command(
            command_id=fresh_id(), job_id=command.job_id, attempt=command.attempt, generation=command.generation
        )
        cancel.cancel.SetInParent()
        if grace_seconds is not None:
            cancel.cancel.grace.FromMilliseconds(int(grace_seconds * 1000))
        self.controller.send(cancel)
        return cancel

    def finished(self, command: command_pb2.Command, seconds: float = 20) -> event_pb2.OperationFinished:
        return self.controller.wait_event(command.job_id, "finished", seconds).finished

    def connected(self, count: int = 1) -> None:
        self.controller.until(
            lambda: len(self.controller.heartbeats) and len(self.controller.hellos) >= count, "a session"
        )

    def storage_has(self, command: command_pb2.Command, job_id: str) -> None:
        """Let tidying up find the command's backup whole on the storage, made by the job `job_id`."""
        work = command.run.backup
        record = {
            "server_id": work.server_id, "job_id": job_id, "backup": backup(work.backup_id), "unreadable_disks": [],
        }  # fmt: skip
        (self.agent.scratch_folder / "record").write_text(json.dumps(record))

    def healed(self) -> list[dict[str, Any]]:
        """Return what the engine was asked to tidy up."""
        file = self.agent.scratch_folder / "healed.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def fresh_id() -> str:
    return str(uuid.uuid4())


def run_command(
    place: Path,
    *,
    verb: str = "backup",
    job_id: str = "",
    attempt: int = 1,
    generation: int = 1,
    server_id: str = "server-1",
    storage_id: str = "",
    deadline_seconds: float = 60,
    workers: int = 4,
    sftp: bool = False,
    rate: int = 0,
) -> command_pb2.Command:
    command = command_pb2.Command(
        command_id=fresh_id(), job_id=job_id or fresh_id(), attempt=attempt, generation=generation, epoch=7
    )
    command.deadline.FromMilliseconds(int(deadline_seconds * 1000))
    run = command.run
    run.storage.storage_id = storage_id or str(place)
    run.storage.repository_id = "repository"
    run.storage.installation_id = "installation"
    if sftp:
        run.storage.sftp.host, run.storage.sftp.username, run.storage.sftp.path = "backup.example", "u", str(place)
        run.storage.sftp_private_key, run.storage.sftp_key_passphrase = KEY, "correct horse battery"
    else:
        run.storage.local.path = str(place)
    run.limits.worker_threads = workers
    run.limits.bandwidth_bytes_per_second = rate
    work = getattr(run, verb)
    work.SetInParent()
    if verb in {"backup", "restore", "verify", "delete"}:
        work.server_id = server_id
    if verb in {"backup", "restore"}:
        work.domain_uuid = fresh_id()
        work.backup_id = "018f0000-0000-7000-8000-000000000001"
    if verb in {"backup", "restore", "verify"}:
        work.server_keys.add(key_id="k1", key=bytes(range(32)))
    return command


@pytest.fixture
def controller() -> Iterator[ScriptedController]:
    with ScriptedController() as controller:
        yield controller


@pytest.fixture
def scene(tmp_path: Path, controller: ScriptedController) -> Iterator[Scene]:
    agent = Agent(
        tmp_path / "agent",
        controller=controller.address,
        token=controller.enrollment_token,
        libvirt_uri="test:///default",
        engine_command=ENGINE,
        cancel_word_seconds=0.5,
    )
    with agent:
        yield Scene(tmp_path, controller, agent)
