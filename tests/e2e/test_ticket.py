"""A restore ticket through controller, agent and engine: asked for, used as a person would, and over."""

import json
import shlex
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    job_pb2,
    ticket_pb2,
    ticket_service_pb2,
    ticket_service_pb2_grpc,
)
from engine.units import MIB
from tests.e2e.world import HYPERVISOR, PASSPHRASE, World, assert_host_is_clean
from tests.engine.rig import digest
from tests.servers.guest import DiskFile
from tests.waiting import wait_until, wait_until_async


def run_it(command: str, folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command that was shown, with a folder of one's own in it."""
    words = shlex.split(command.replace("/path/to/folder", shlex.quote(str(folder))))
    assert words[0] == "bm-engine"
    return run_engine(*words[1:], *more)


def content(path: str) -> str:
    return Path(path).read_text()


def run_engine(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).parent / "bm-engine")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=120)


def assert_private(path: Path, job: str, world: World) -> None:
    """The ticket is closed to others and holds what it must and no more; nothing of it stands anywhere else."""
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    held = json.loads(path.read_text())
    assert not held["storage"]["wrapped_keys"]
    assert PASSPHRASE not in path.read_text()
    (server_key,) = held["server_keys"].values()
    told = [job, world.controller.log.read_text(), world.agent.log]
    told += [file.read_bytes().decode("latin-1") for file in world.controller.state.glob("*.sqlite3*")]
    told += [file.read_bytes().decode("latin-1") for file in world.agent.state_folder.glob("journal.sqlite3*")]
    assert len(told) >= 5
    for secret in (held["storage"]["sftp"]["private_key"].splitlines()[1], server_key):
        assert not any(secret in one for one in told)


def let_expire(path: Path) -> None:
    held = json.loads(path.read_text())
    held["expire_time"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    path.write_text(json.dumps(held))


async def assert_it_shows_and_checks_its_backup(command: str, backup_id: str) -> None:
    """What `list` and `verify` say with the same ticket."""
    ticket = shlex.split(command)[3]
    (shown,) = json.loads(run_engine("list", "--ticket", ticket, "--json").stdout)["backups"]
    assert shown["backup"]["backup_id"] == backup_id
    checked = json.loads(run_engine("verify", "--ticket", ticket, "--json").stdout)
    assert checked["state"] == "completed"
    assert checked["result"]["frames"] > 0
    assert not checked["result"]["damaged_count"]


async def assert_it_can_be_taken_back(world: World, asked: Any, out: Path) -> None:
    """Revoked: within moments the command of a second ticket, asked for like the first, only says so."""
    again = backup_service_pb2.CreateRestoreTicketRequest()
    again.CopyFrom(asked)
    again.request_id = str(uuid.uuid4())
    left = (await world.finish((await world.backups.CreateRestoreTicket(again)).job_id)).result.ticket
    secret = json.loads(content(left.path))["storage"]["sftp"]["private_key"]
    tickets = ticket_service_pb2_grpc.TicketServiceStub(world._channel)
    listed = (await tickets.ListTickets(ticket_service_pb2.ListTicketsRequest())).tickets
    assert len(listed) == 2
    (ticket,) = [one for one in listed if one.path == left.path]
    await tickets.RevokeTicket(ticket_service_pb2.RevokeTicketRequest(ticket_id=ticket.ticket_id))

    async def gone() -> bool:
        shown = (await tickets.ListTickets(ticket_service_pb2.ListTicketsRequest(include_ended=True))).tickets
        state = next(one.state for one in shown if one.ticket_id == ticket.ticket_id)
        return state == ticket_pb2.RESTORE_TICKET_STATE_REVOKED

    await wait_until_async(gone, 10, "the agent to take the ticket back")
    done = run_it(left.command, out, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["reason"]) == (4, "TICKET_REVOKED")
    assert secret.splitlines()[1] not in content(left.path)


@pytest.mark.feature("M11")
async def test_the_command_of_a_ticket_restores_and_ends_with_its_time(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disks = {name: DiskFile(name, tmp_path / f"{name}.qcow2").create(16 * MIB) for name in ("vda", "vdb")}
    domain = blank_domain(list(disks.values()))
    async with World(tmp_path / "world", libvirtd) as world:
        server, storage = await world.register(domain), await world.add_sftp()
        for name in disks:
            domain.write(name, 0, 5 * MIB, 1)
        made = await world.good_backup(server, storage)
        expected = {name: digest(disk.path, "qcow2") for name, disk in disks.items()}
        domain.write("vda", 0, 16 * MIB, 0xEE)

        request = backup_service_pb2.CreateRestoreTicketRequest(
            backup_id=made.backup_id, hypervisor_id=HYPERVISOR, request_id=str(uuid.uuid4())
        )
        asked = datetime.now(UTC)
        job = await world.finish((await world.backups.CreateRestoreTicket(request)).job_id)

        assert job.state == job_pb2.JOB_STATE_COMPLETED, job
        found = job.result.ticket
        lifetime = found.expire_time.ToDatetime(tzinfo=UTC) - asked
        assert timedelta(hours=23, minutes=59) < lifetime < timedelta(hours=24, minutes=2)
        assert list(found.disks) == ["vda", "vdb"]
        assert_private(Path(found.path), str(job), world)
        for number, kind in ((1, "raw"), (2, "qcow2")):  # it may be used again
            out = tmp_path / f"out {number}"
            out.mkdir()
            done = run_it(found.command, out, "--format", kind)
            assert done.returncode == 0, done.stderr
            assert {name: digest(out / f"{name}.{kind}", kind) for name in disks} == expected
        assert_host_is_clean(world, domain)
        await assert_it_shows_and_checks_its_backup(found.command, made.backup_id)
        await assert_it_can_be_taken_back(world, request, tmp_path)

        let_expire(Path(found.path))
        done = run_it(found.command, tmp_path, "--json")
        assert done.returncode == 4
        assert json.loads(done.stdout)["error"]["reason"] == "TICKET_EXPIRED"
        world.agent.stop()
        world.agent.start()
        wait_until(lambda: not Path(found.path).exists(), 20, "the agent to remove the ticket")
