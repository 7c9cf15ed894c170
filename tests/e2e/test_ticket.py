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

from clients.gen.backupmanager.v1 import backup_service_pb2, job_pb2
from engine.units import MIB
from tests.e2e.world import HYPERVISOR, PASSPHRASE, World, assert_host_is_clean
from tests.engine.rig import digest
from tests.servers.guest import DiskFile
from tests.waiting import wait_until


def run_it(command: str, folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command that was shown, with a folder of one's own in it."""
    words = shlex.split(command.replace("/path/to/folder", shlex.quote(str(folder))))
    assert words[0] == "bm-engine"
    program = str(Path(sys.executable).parent / words[0])
    return subprocess.run([program, *words[1:], *more], capture_output=True, text=True, check=False, timeout=120)


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

        let_expire(Path(found.path))
        done = run_it(found.command, tmp_path, "--json")
        assert done.returncode == 4
        assert json.loads(done.stdout)["error"]["reason"] == "TICKET_EXPIRED"
        world.agent.stop()
        world.agent.start()
        wait_until(lambda: not Path(found.path).exists(), 20, "the agent to remove the ticket")
