"""bmctl against the real controller, with hypervisors that speak the real protocol and say what the test wants."""

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2, session_service_pb2
from clients.gen.backupmanager.v1 import backup_pb2, disk_pb2, failure_pb2, job_pb2
from engine.units import MIB
from tests.clients.bmctl import Bmctl, Ended
from tests.servers.controller import Controller
from tests.servers.sshd import free_port
from tests.servers.station import Session, Station, domain


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Controller(tmp_path / "controller") as running:
        yield running


@pytest.fixture
def bmctl(tmp_path: Path, controller: Controller) -> Bmctl:
    runner = Bmctl(tmp_path)
    runner.log_in(controller.api, controller.authority_pem, controller.admin_token)
    return runner


async def off(runner: Bmctl, *arguments: str) -> Ended:
    """Run bmctl in a thread while the hypervisor's side goes on here."""
    return await asyncio.to_thread(runner, *arguments)


async def prepared(bmctl: Bmctl, session: Session) -> None:
    """Report a domain, register it as a server, and add a storage."""
    await session.report([domain("web1", "vda", "vdb")])
    while True:  # the report is stored a moment after it was sent
        ended = await off(bmctl, "server", "register", "web1", "--hypervisor", "hv1", "-o", "json")
        if ended.code == 0:
            break
        assert ended.error["reason"] == "INVALID_FIELD", ended
    add = ("storage", "add", "local", "nas", "--path", "/srv/nas", "--allow-local")
    assert (await off(bmctl, *add)).code == 0


def backed_up(command: command_pb2.Command) -> dict[str, Any]:
    """Return what an agent reports of a finished backup: its result, and its record for the catalog."""
    work, storage_id = command.run.backup, command.run.storage.storage_id
    backup_id = work.backup_id
    disks = [
        disk_pb2.DiskBackup(
            disk=name,
            type=disk_pb2.BACKUP_TYPE_FULL,
            chain_id=backup_id,
            size_bytes=1 << 30,
            data_bytes=700 * MIB,
            stored_bytes=300 * MIB,
            sha256="ab" * 32,
            fallback_reason="first",
        )
        for name in ("vda", "vdb")
    ]
    result = job_pb2.BackupResult(
        backup_id=backup_id,
        disks=disks,
        consistency=disk_pb2.CONSISTENCY_REACHED_PAUSED,
        quiesce_duration=Duration(nanos=120_000_000),
    )
    record = event_pb2.BackupRecord(
        backup=backup_pb2.Backup(
            backup_id=backup_id,
            server_id=work.server_id,
            storage_id=storage_id,
            job_id=command.job_id,
            create_time=work.create_time,
            disks=disks,
            consistency=disk_pb2.CONSISTENCY_REACHED_PAUSED,
            stored_bytes=600 * MIB,
            path=f"servers/{work.server_id}/{backup_id}",
            domain_name="web1",
        ),
        manifest_digest="cd" * 32,
        domain_uuid=work.domain_uuid,
        needed_backup_ids=[backup_id],
    )
    return {"result": job_pb2.JobResult(backup=result), "record": record}


@pytest.mark.feature("N3", "N4")
def test_first_login_as_bm_controller_printed_it(tmp_path: Path, controller: Controller) -> None:
    fresh = Bmctl(tmp_path)
    (tmp_path / "token").write_text(controller.admin_token)

    arguments = ("--fingerprint", controller.fingerprint, "--token-file", str(tmp_path / "token"))
    ended = fresh("login", controller.api, *arguments)

    assert ended.code == 0, ended.err
    version = fresh("version", "-o", "json").json["controller"]
    assert version["installation_id"] == controller.installation_id
    assert version["token_scope"] == "ACCESS_SCOPE_ADMIN"


@pytest.mark.feature("N4")
def test_tokens_from_birth_to_end(bmctl: Bmctl, controller: Controller, tmp_path: Path) -> None:
    made = bmctl("token", "create", "eyes", "--scope", "viewer", "--lifetime", "1d", "-o", "json").json
    viewer = Bmctl(tmp_path / "viewer")
    (tmp_path / "viewer").mkdir()
    viewer.log_in(controller.api, controller.authority_pem, made["secret"])

    assert viewer("server", "list", "-o", "json").json == {"servers": []}
    refused = viewer("token", "list", "-o", "json")
    assert (refused.code, refused.error["reason"]) == (5, "PERMISSION_DENIED")

    assert bmctl("token", "revoke", "eyes", "--yes").code == 0
    ended = viewer("server", "list", "-o", "json")
    assert (ended.code, ended.error["reason"]) == (5, "UNAUTHENTICATED")
    assert "● revoked" in bmctl("token", "list").out
    assert bmctl("token", "revoke", "eyes", "--yes").code == 3  # no token of that name works any more


@pytest.mark.feature("S0", "S20", "S28")
def test_storages_from_birth_to_end(bmctl: Bmctl, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    add = ("storage", "add", "sftp", "far", "--host", "backup.example.net", "--username", "bm", "--path", "/srv")

    made = bmctl(
        *add, "--key-file", str(key), "--encrypt", "-o", "json", BMCTL_ENCRYPTION_PASSPHRASE="a long passphrase"
    )

    assert made.code == 0, made.err
    storage = made.json["storage"]
    assert {one["name"] for one in storage["secrets"]} == {"sftp_private_key", "encryption_passphrase"}
    assert storage["encryption"]["enabled"]
    again = bmctl(*add, "--key-file", str(key), "-o", "json")
    assert (again.code, again.error["reason"]) == (4, "STORAGE_EXISTS")

    changed = bmctl("storage", "update", "far", "--name", "away", "--read-only", "--upload-limit", "5M", "-o", "json")
    assert changed.code == 0, changed.err
    assert changed.json["storage"]["read_only"]
    assert changed.json["storage"]["limits"]["bandwidth_bytes_per_second"] == 5 << 20
    assert changed.json["storage"]["sftp"] == storage["sftp"]
    assert bmctl("storage", "show", "far").code == 3
    assert "● read-only" in bmctl("storage", "list").out
    assert bmctl("storage", "delete", "away", "--yes").code == 0
    assert bmctl("storage", "list", "-o", "json").json == {"storages": []}

    wrong = bmctl("storage", "add", "local", "x", "--path", "relative", "--allow-local", "-o", "json")
    assert (wrong.code, wrong.error["reason"]) == (2, "INVALID_FIELD")
    assert wrong.error["facts"]["field"]


@pytest.mark.feature("N3")
async def test_hypervisors_and_servers(bmctl: Bmctl, controller: Controller) -> None:
    station = await Station.enroll(controller, "hv1")
    again = await off(bmctl, "hypervisor", "enroll", "hv1", "-o", "json")
    assert (again.code, again.error["reason"]) == (4, "HYPERVISOR_EXISTS")
    assert (await off(bmctl, "hypervisor", "enroll", "hv2")).out.startswith("bm1.")

    async with station.session() as session:
        await prepared(bmctl, session)
        shown = (await off(bmctl, "hypervisor", "show", "hv1", "-o", "json")).json["hypervisor"]
        assert (shown["state"], shown["hypervisor_id"]) == ("HYPERVISOR_STATE_ONLINE", station.hypervisor_id)
        domains = (await off(bmctl, "hypervisor", "domains", "hv1", "-o", "json")).json["domains"]
        server = (await off(bmctl, "server", "show", "web1", "-o", "json")).json["server"]
        assert domains[0]["server_id"] == server["server_id"]
        assert [disk["disk"] for disk in server["disks"]] == ["vda", "vdb"]

        assert (await off(bmctl, "hypervisor", "ban", "hv1")).code == 0
        await session.ended()
    assert "● banned" in (await off(bmctl, "hypervisor", "list")).out
    assert (await off(bmctl, "hypervisor", "unban", "hv1")).code == 0
    updated = await off(bmctl, "server", "update", "web1", "--name", "www", "--external-id", "4711", "-o", "json")
    assert (updated.json["server"]["name"], updated.json["server"]["external_id"]) == ("www", "4711")
    assert (await off(bmctl, "server", "delete", "4711", "--yes")).code == 0
    assert (await off(bmctl, "server", "list", "-o", "json")).json == {"servers": []}
    assert "www" in (await off(bmctl, "server", "list", "--deleted")).out


@pytest.mark.feature("M14", "M8", "M15", "N7")
async def test_a_backup_and_its_restore(bmctl: Bmctl, controller: Controller) -> None:
    station = await Station.enroll(controller, "hv1")
    async with station.session() as session:
        await prepared(bmctl, session)

        waiting = asyncio.create_task(off(bmctl, "backup", "start", "web1", "--storage", "nas", "--wait"))
        command = await session.command()
        await session.accept(command)
        await session.progress(command, 256 * MIB, 1024 * MIB)
        busy = await off(bmctl, "backup", "start", "web1", "--storage", "nas", "-o", "json")
        assert (busy.code, busy.error["reason"]) == (4, "VM_BUSY")
        assert busy.error["facts"]["job_id"] == command.job_id
        backup_id = command.run.backup.backup_id
        await session.finish(command, job_pb2.JOB_STATE_COMPLETED, **backed_up(command))
        ended = await waiting

        assert ended.code == 0, ended.err
        assert "● completed" in ended.out
        assert backup_id in ended.out
        assert "paused, quiet for 120 ms" in ended.out
        listed = (await off(bmctl, "backup", "list", "--server", "web1", "-o", "json")).json["backups"]
        assert [one["backup_id"] for one in listed] == [backup_id]
        assert listed[0]["stored_bytes"] == 600 * MIB
        assert "600 MiB" in (await off(bmctl, "backup", "list")).out

        restore = ("backup", "restore", "--server", "web1", "--disk", "vda", "--yes", "--wait", "-o", "json")
        waiting = asyncio.create_task(off(bmctl, *restore))
        command = await session.command()
        assert list(command.run.restore.disks) == ["vda"]
        await session.accept(command)
        failure = failure_pb2.Failure(reason="CHAIN_BROKEN", message="it is broken", metadata={"missing": "x"})
        await session.finish(command, job_pb2.JOB_STATE_FAILED, failure=failure)
        ended = await waiting
        assert ended.code == 7, ended.err
        assert ended.json["job"]["failure"]["reason"] == "CHAIN_BROKEN"
        jobs = (await off(bmctl, "job", "list", "--state", "failed", "--type", "restore", "-o", "json")).json["jobs"]
        assert [job["job_id"] for job in jobs] == [command.job_id]


@pytest.mark.feature("M7")
async def test_cancel_ends_the_job(bmctl: Bmctl, controller: Controller) -> None:
    station = await Station.enroll(controller, "hv1")
    async with station.session() as session:
        await prepared(bmctl, session)
        start = ("backup", "start", "web1", "--storage", "nas", "--request-id", str(uuid.uuid4()), "-o", "json")
        job_id = (await off(bmctl, *start)).json["job_id"]
        assert (await off(bmctl, *start)).json["job_id"] == job_id  # the same id twice is one job
        command = await session.command()
        await session.accept(command)

        cancelling = asyncio.create_task(off(bmctl, "job", "cancel", job_id, "--wait", "-o", "json"))
        cancel = await session.command()
        assert cancel.WhichOneof("body") == "cancel"
        failure = failure_pb2.Failure(reason="CANCELLED", message="the work was cancelled")
        await session.finish(command, job_pb2.JOB_STATE_CANCELLED, failure=failure)
        ended = await cancelling
        assert ended.code == 8, ended.err
        assert ended.json["job"]["state"] == "JOB_STATE_CANCELLED"
        assert (await off(bmctl, "job", "cancel", job_id, "-o", "json")).error["reason"] == "JOB_ENDED"
        assert (await off(bmctl, "job", "log", job_id, "-o", "json")).code == 0
    await Station.enroll(controller, "hv2")  # and never dials
    away = await off(bmctl, "storage", "test", "nas", "--hypervisor", "hv2", "-o", "json")
    assert (away.code, away.error["reason"]) == (6, "HYPERVISOR_UNREACHABLE")


@pytest.mark.feature("M14", "X16")
async def test_watching_outlives_the_controller(tmp_path: Path) -> None:
    ports = {"listen": f"127.0.0.1:{free_port()}", "agent_listen": f"127.0.0.1:{free_port()}"}
    with Controller(tmp_path / "controller", **ports) as controller:
        bmctl = Bmctl(tmp_path)
        bmctl.log_in(controller.api, controller.authority_pem, controller.admin_token)
        station = await Station.enroll(controller, "hv1")
        async with station.session() as session:
            await prepared(bmctl, session)
            waiting = bmctl.start("backup", "start", "web1", "--storage", "nas", "--wait")
            try:
                command = await session.command()
                await session.accept(command)
                assert waiting.stdout is not None
                line = ""
                while "running" not in line:
                    line = await asyncio.to_thread(waiting.stdout.readline)
                    assert line, "bmctl ended"
                await asyncio.to_thread(controller.kill)
                line = await asyncio.to_thread(waiting.stdout.readline)
                assert "no answer from the controller" in line
                await asyncio.to_thread(controller.start)
                work = session_service_pb2.OperationStatus(
                    job_id=command.job_id, attempt=command.attempt, generation=command.generation, epoch=command.epoch
                )
                async with station.session(work) as second:
                    await second.finish(command, job_pb2.JOB_STATE_COMPLETED, **backed_up(command))
                    out, err = await asyncio.to_thread(waiting.communicate, timeout=60)
            finally:
                waiting.kill()
                waiting.wait()
        assert waiting.returncode == 0, err
        assert "● completed" in out
        assert command.run.backup.backup_id in out


def test_what_is_not_there_is_3(bmctl: Bmctl) -> None:
    nothing = str(uuid.uuid4())
    for arguments in (
        ("server", "show", "nobody"),
        ("storage", "show", "nothing"),
        ("hypervisor", "show", "nowhere"),
        ("backup", "show", nothing),
        ("job", "show", nothing),
        ("job", "watch", nothing),
    ):
        ended = bmctl(*arguments, "-o", "json")
        assert (ended.code, ended.out) == (3, ""), arguments
        assert ended.error["reason"].endswith("_NOT_FOUND")
