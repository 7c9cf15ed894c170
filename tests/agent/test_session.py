"""The stream: cut, refused, flooded, renewed."""

import hashlib
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from agent import identity, storage_means
from clients.gen.backupmanager.agent.v1 import session_service_pb2
from clients.gen.backupmanager.v1 import hypervisor_pb2, job_pb2
from tests.agent.conftest import ENGINE, KEY, Scene
from tests.agent.scripted_controller import MESSAGE_BYTES_MAX, ScriptedController
from tests.servers.agent import Agent
from tests.waiting import wait_until

FINISH = {"do": "finish", "state": "completed"}
WAIT = {"do": "wait", "file": "go"}


@pytest.mark.feature("S14", "S15")
def test_a_remote_that_was_configured_is_told_by_a_new_hello(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    config = tmp_path / "rclone.conf"
    monkeypatch.setenv("BM_AGENT_RCLONE_CONFIG_FILE", str(config))
    scene: Scene = request.getfixturevalue("scene")  # its agent reads the environment when it starts
    scene.connected()
    assert scene.controller.hellos[0].capabilities.rclone_remotes_known
    assert not scene.controller.hellos[0].capabilities.rclone_remotes

    config.write_text("[box]\ntype = local\npass = hunter2\n")

    scene.controller.until(lambda: scene.controller.hellos[-1].capabilities.rclone_remotes, "another hello")
    assert list(scene.controller.hellos[-1].capabilities.rclone_remotes) == [hashlib.sha256(b"box").hexdigest()]
    assert b"hunter2" not in scene.controller.hellos[-1].SerializeToString()


@pytest.mark.feature("N9", "N14")
def test_hello_heartbeats_and_inventory(scene: Scene) -> None:
    scene.connected()
    (hello,) = scene.controller.hellos
    scene.controller.until(lambda: len(scene.controller.heartbeats) >= 3, "heartbeats")
    scene.controller.until(lambda: scene.controller.inventories, "the inventory")

    assert hello.protocol_version == 1
    assert list(hello.capabilities.storage_types) == list(
        storage_means.look(Path("/etc/backup-manager/rclone.conf")).types
    )
    assert hello.capabilities.libvirt_version.count(".") == 2
    assert hello.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(hello.time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(seconds=60)
    assert scene.controller.heartbeats[0].scratch_free_bytes > 0
    report = scene.controller.inventories[0]
    assert (report.version, report.part, report.part_count) == (1, 0, 1)
    assert [domain.name for domain in report.domains] == ["test"]  # of libvirt's own test driver
    assert report.domains[0].state == hypervisor_pb2.DOMAIN_STATE_RUNNING


@pytest.mark.feature("X16")
def test_a_cut_stream_loses_nothing_and_repeats_nothing(scene: Scene) -> None:
    scene.connected()
    commands = []
    for number in range(4):
        place = scene.place([{"do": "log", "message": "here"}, FINISH])
        commands.append(scene.run(place, server_id=f"server-{number}"))
        scene.controller.cut()
        scene.connected(number + 2)

    for command in commands:
        assert scene.finished(command, 60).state == job_pb2.JOB_STATE_COMPLETED

    assert len(scene.controller.events) == 8
    wait_until(lambda: not list(scene.agent.state_folder.glob("operations/*")), 20, "the folders' end")


@pytest.mark.feature("X16")
def test_events_wait_until_they_are_acknowledged(scene: Scene) -> None:
    scene.controller.acknowledge = False
    command = scene.run(scene.place([FINISH]))
    scene.finished(command)
    scene.controller.stored.clear()  # as if the controller had lost them before it stored them
    scene.controller.events.clear()
    scene.controller.acknowledge = True

    scene.controller.cut()

    assert scene.finished(command).state == job_pb2.JOB_STATE_COMPLETED
    folder = scene.agent.state_folder / "operations" / f"{command.job_id}.1"
    wait_until(lambda: not folder.exists(), 20, "the folder's end")


@pytest.mark.feature("X16")
def test_receipts_in_the_stream_trim_the_outbox(scene: Scene) -> None:
    scene.controller.acknowledge = False
    command = scene.run(scene.place([FINISH]))
    scene.finished(command)
    folder = scene.agent.state_folder / "operations" / f"{command.job_id}.1"
    assert folder.exists()

    scene.controller.send_event_receipts()

    wait_until(lambda: not folder.exists(), 20, "the folder's end")


@pytest.mark.feature("X9")
@pytest.mark.parametrize("verdict", [session_service_pb2.VERDICT_CANCEL, session_service_pb2.VERDICT_UNKNOWN])
def test_a_welcome_may_end_an_operation(scene: Scene, verdict: int) -> None:
    place = scene.place([WAIT])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    scene.controller.verdicts[command.job_id] = verdict

    scene.controller.cut()

    assert scene.finished(command).state == job_pb2.JOB_STATE_CANCELLED


@pytest.mark.feature("N3")
def test_a_banned_agent_says_why_and_comes_back_rarely(scene: Scene) -> None:
    scene.connected()
    scene.controller.refusal = (grpc.StatusCode.PERMISSION_DENIED, "this hypervisor is banned")
    scene.controller.cut()
    scene.controller.until(lambda: "this hypervisor is banned" in scene.agent.log, "the reason in the log")

    (line,) = [line for line in scene.agent.log.splitlines() if "this hypervisor is banned" in line]

    assert float(line.rpartition("retry_seconds=")[2]) >= 15
    assert len(scene.controller.serials) == 2


@pytest.mark.feature("N9", "P1")
def test_a_flood_of_log_lines_is_bounded(scene: Scene) -> None:
    scene.connected()
    scene.controller.go_offline()
    before = memory_bytes(scene.agent.pid)
    scene.controller.go_online()
    scene.connected(2)
    place = scene.place([{"do": "log", "message": "x" * 1500, "count": 25_000}, FINISH])  # 37 MB

    command = scene.run(place)
    scene.finished(command, 60)

    scene.controller.until(
        lambda: any("left out" in line.entry.message for line in scene.controller.log_lines), "the mark"
    )
    assert memory_bytes(scene.agent.pid) - before < 60 << 20
    assert scene.controller.largest_message <= MESSAGE_BYTES_MAX
    sequences = [line.entry.sequence for line in scene.controller.log_lines]
    assert sequences == sorted(sequences)
    assert sequences[-1] == 25_000


@pytest.mark.feature("M14")
def test_progress_is_at_most_one_a_second(scene: Scene) -> None:
    place = scene.place([{"do": "progress", "count": 5000, "total": 5000}, WAIT, FINISH])
    command = scene.run(place)
    scene.wait_seen(place, "waits")
    scene.controller.until(
        lambda: any(one.progress.bytes_done == 5000 for one in scene.controller.progress), "the last"
    )
    (place / "go").touch()
    scene.finished(command)

    times = [one.progress.report_time.ToDatetime() for one in scene.controller.progress]
    assert len(times) <= 5
    assert scene.controller.progress[-1].progress.stage == "read"


@pytest.mark.feature("S28", "N16")
def test_secrets_are_in_no_file_no_log_and_no_process_list(scene: Scene) -> None:
    place = scene.place([{"do": "log", "message": KEY.splitlines()[1]}, WAIT, {"do": "crash"}])
    command = scene.run(place, sftp=True)
    (process,) = scene.wait_seen(place, "process")
    scene.wait_seen(place, "waits")
    secrets = [*KEY.splitlines()[1:3], "correct horse battery", bytes(range(32)).hex()]
    agent_key = json.loads((scene.agent.state_folder / "identity.json").read_text())["key"].splitlines()[1]

    for pid in (process["pid"], scene.agent.pid):
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert not [secret for secret in secrets if secret.encode() in seen]
    own_words = {f"{command.job_id}.1/events.jsonl"}  # what the engine itself wrote there on purpose of this test
    for file in scene.agent.folder.rglob("*"):
        if file.is_file() and f"{file.parent.name}/{file.name}" not in own_words:
            text = file.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in text], file
            assert agent_key.encode() not in text or file.name == "identity.json"
    os.kill(process["pid"], signal.SIGKILL)
    (place / "go").touch()  # for the engine that follows
    scene.finished(command)
    scene.controller.until(lambda: scene.controller.log_lines, "the log")
    assert scene.controller.log_lines[0].entry.message == "[secret] 0"
    assert (scene.agent.state_folder / "identity.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.feature("N3")
def test_a_certificate_is_renewed_at_two_thirds_of_its_life(tmp_path: Path) -> None:
    with ScriptedController(certificate_life=timedelta(seconds=8)) as controller:
        agent = Agent(
            tmp_path,
            controller=controller.address, token=controller.enrollment_token, libvirt_uri="test:///default", engine_command=ENGINE,
        )  # fmt: skip
        with agent:
            first = identity.load(agent.state_folder / "identity.json")
            controller.certificate_life = timedelta(days=90)
            controller.until(lambda: len(set(controller.serials)) == 2, "a session with a new certificate", 30)
            second = identity.load(agent.state_folder / "identity.json")

            assert controller.renewals == 1
            assert second.key != first.key
            assert second.expire_time > first.expire_time
            assert second.hypervisor_id == first.hypervisor_id


@pytest.mark.feature("N3")
def test_an_expired_certificate_is_said_clearly_and_a_new_one_is_taken_up(tmp_path: Path) -> None:
    with ScriptedController(certificate_life=timedelta(seconds=0)) as controller:
        agent = Agent(tmp_path, libvirt_uri="test:///default", engine_command=ENGINE, start=False)
        with agent:
            assert agent.enroll(controller.address, controller.enrollment_token).returncode == 0
            agent.start()
            controller.until(lambda: "CERTIFICATE_EXPIRED" in agent.log, "the reason in the log")
            assert not controller.hellos

            controller.certificate_life = timedelta(days=1)
            assert agent.enroll(controller.address, controller.enrollment_token, "--renew").returncode == 0

            controller.until(lambda: controller.hellos, "a session")


@pytest.mark.feature("X16")
def test_the_controller_comes_back(scene: Scene) -> None:
    scene.connected()
    scene.controller.go_offline()
    scene.controller.until(lambda: "no session" in scene.agent.log, "the end of the session")
    scene.controller.go_online()

    scene.connected(2)

    scene.finished(scene.run(scene.place([FINISH])))


def memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)
