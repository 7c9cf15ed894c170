"""From a one-time token to an identity, and the settings and locks of the command line."""

import base64
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent import config, identity
from agent.errors import CertificateUnusable, ConfigInvalid, NotEnrolled
from agent.main import main
from tests.agent.conftest import ENGINE
from tests.agent.scripted_controller import ScriptedController
from tests.clients.authority import Authority
from tests.servers.agent import Agent


def make_agent(folder: Path) -> Agent:
    return Agent(folder, libvirt_uri="test:///default", engine_command=ENGINE, start=False)


@pytest.mark.feature("N3")
def test_enrollment_stores_one_private_file(tmp_path: Path, controller: ScriptedController) -> None:
    agent = make_agent(tmp_path)

    outcome = agent.enroll(controller.address, controller.enrollment_token + "\n")

    assert outcome.returncode == 0, outcome.stderr
    file = agent.state_folder / "identity.json"
    assert file.stat().st_mode & 0o777 == 0o600
    own = identity.load(file)
    assert own.hypervisor_id == "hypervisor-1"
    assert own.address == f"127.0.0.1:{controller.session_port}"
    assert own.key not in outcome.stdout + outcome.stderr
    assert "PRIVATE" not in repr(own)
    assert not list(agent.state_folder.glob(".*"))


@pytest.mark.feature("N3")
def test_a_second_enrollment_needs_to_be_meant(tmp_path: Path, controller: ScriptedController) -> None:
    agent = make_agent(tmp_path)
    agent.enroll(controller.address, controller.enrollment_token)
    first = (agent.state_folder / "identity.json").read_text()

    refused = agent.enroll(controller.address, controller.enrollment_token)
    assert refused.returncode == 1
    assert "ALREADY_ENROLLED" in refused.stderr
    assert (agent.state_folder / "identity.json").read_text() == first

    assert agent.enroll(controller.address, controller.enrollment_token, "--renew").returncode == 0
    assert (agent.state_folder / "identity.json").read_text() != first


@pytest.mark.feature("N3")
def test_another_authority_gets_no_token(tmp_path: Path, controller: ScriptedController) -> None:
    data = json.dumps({"secret": controller.token, "ca": Authority("someone else").fingerprint}).encode()
    agent = make_agent(tmp_path)

    outcome = agent.enroll(controller.address, "bm1." + base64.urlsafe_b64encode(data).decode())

    assert outcome.returncode == 1
    assert "AUTHORITY_CHANGED" in outcome.stderr
    assert not (agent.state_folder / "identity.json").exists()


@pytest.mark.feature("N3")
def test_a_used_token_is_refused_in_words(tmp_path: Path, controller: ScriptedController) -> None:
    token = controller.enrollment_token
    controller.token = "another"

    outcome = make_agent(tmp_path).enroll(controller.address, token)

    assert outcome.returncode == 1
    assert "ENROLLMENT_TOKEN_INVALID" in outcome.stderr
    assert "one-time-secret" not in outcome.stderr


def test_the_token_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["enroll", "--help"])

    assert "--token " not in capsys.readouterr().out


def test_one_agent_per_state_folder(tmp_path: Path) -> None:
    with make_agent(tmp_path) as agent:
        agent.start()
        first = agent.process
        agent.process = None
        try:
            while not agent.log_file.read_text().count("started version"):
                assert first is not None
                assert first.poll() is None
            agent.start()
            assert agent.wait_ended() == 1
        finally:
            agent.process = first
        assert "AGENT_RUNNING" in agent.log


def test_a_certificate_for_another_key_is_refused(controller: ScriptedController) -> None:
    (key, _), (_, request) = identity.make_request(), identity.make_request()

    with pytest.raises(CertificateUnusable):
        identity.check_pair(key, controller.sign(request), controller.authority.pem)


def test_two_thirds(controller: ScriptedController) -> None:
    controller.certificate_life = timedelta(days=90)
    key, request = identity.make_request()
    own = identity.Identity("h", "i", "a:1", controller.authority.pem, controller.sign(request), key)

    assert abs(own.renew_time - datetime.now(UTC) - timedelta(days=60)) < timedelta(minutes=1)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"hypervisor_id": 1}'])
def test_a_damaged_identity_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity.json").write_text(text)

    with pytest.raises(NotEnrolled) as caught:
        identity.load(tmp_path / "identity.json")

    assert caught.value.facts["problem"] == "is damaged"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("colour = 1", "colour"),
        ('state_folder = "relative"', "state_folder"),
        ('log_level = "loud"', "log_level"),
        ("engine_command = []", "engine_command"),
        ('engine_command = ["engine"]', "engine_command"),
        ('controllers = "a:1"', "controllers"),
        ('controllers = ["a"]', "controllers"),
        ("cancel_word_seconds = -1", "cancel_word_seconds"),
        ("libvirt_uri = 5", "libvirt_uri"),
        ("= broken", "the file"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, text: str, field: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)

    with pytest.raises(ConfigInvalid) as caught:
        config.load(file, {})

    assert caught.value.facts["field"] == field


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('log_level = "debug"\nstate_folder = "/a"')

    loaded = config.load(
        file,
        {
            "BM_AGENT_STATE_FOLDER": "/b",
            "BM_AGENT_ENGINE_COMMAND": "/bin/x 'a b'",
            "HOME": "/",
            "BM_AGENT_CONTROLLERS": "a.example:1, [::1]:2",
        },
    )

    assert loaded.controllers == ("a.example:1", "[::1]:2")
    assert (str(loaded.state_folder), loaded.log_level, loaded.engine_command) == ("/b", "debug", ("/bin/x", "a b"))
    with pytest.raises(ConfigInvalid):
        config.load(file, {"BM_AGENT_STATE": "/b"})


def test_help_is_light() -> None:
    heavy = ("grpc", "google.protobuf", "libvirt", "cryptography", "paramiko")
    program = f"import sys, agent.main; print([one for one in {heavy} if one in sys.modules])"

    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert outcome.stdout.strip() == "[]"
