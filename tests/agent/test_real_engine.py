"""The agent with the real engine: what the two say to each other fits."""

import sys
from pathlib import Path

import pytest

from clients.gen.backupmanager.v1 import job_pb2
from tests.agent.conftest import run_command
from tests.agent.scripted_controller import ScriptedController
from tests.servers.agent import Agent

REPOSITORY = "01a20693-bb1d-7000-8000-000000000001"
INSTALLATION = "01a20693-bb1d-7000-8000-000000000002"


@pytest.mark.feature("S24", "M7")
def test_the_real_engine_tries_a_storage_and_reports(tmp_path: Path, controller: ScriptedController) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    with Agent(
        tmp_path / "agent",
        controller=controller.address,
        token=controller.enrollment_token,
        libvirt_uri="test:///default",
        engine_command=(sys.executable, "-m", "engine.worker"),
    ) as agent:
        command = run_command(storage, verb="test")
        command.run.storage.repository_id, command.run.storage.installation_id = REPOSITORY, INSTALLATION
        controller.send(command)

        finished = controller.wait_event(command.job_id, "finished").finished

        assert finished.state == job_pb2.JOB_STATE_COMPLETED, finished
        assert {step.name for step in finished.result.test.steps} >= {"write", "read"}

        missing = run_command(storage, verb="verify", server_id="01a20693-bb1d-7000-8000-000000000003")
        missing.run.storage.repository_id, missing.run.storage.installation_id = REPOSITORY, INSTALLATION
        del missing.run.verify.server_keys[:]
        missing.run.verify.backup_id = "01a20693-bb1d-7000-8000-000000000004"
        controller.send(missing)

        failed = controller.wait_event(missing.job_id, "finished").finished
        assert failed.state == job_pb2.JOB_STATE_FAILED
        assert failed.failure.reason == "BACKUP_NOT_FOUND", agent.log
