"""An administrator's day with nothing but bmctl: storage, backups, damage, restore, delete; all below it is real."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.units import MIB
from tests.clients.bmctl import Bmctl, Ended
from tests.e2e.world import PASSPHRASE, World
from tests.engine.rig import digest
from tests.servers.guest import DiskFile
from tests.waiting import wait_until_async


@pytest.mark.feature("M14", "M15", "S24", "S4")
async def test_a_day(  # a short name: it is part of the path of a socket, and these end at 107 bytes
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(64 * MIB)
    domain = blank_domain([disk])
    async with World(tmp_path / "w", libvirtd) as world:
        bmctl = Bmctl(tmp_path)
        bmctl.log_in(world.controller.api, world.controller.authority_pem, world.controller.admin_token)

        async def good(*arguments: str, **environment: str) -> Any:
            ended: Ended = await asyncio.to_thread(bmctl, *arguments, "-o", "json", **environment)
            assert ended.code == 0, ended
            return ended.json

        async def reported() -> bool:
            domains = (await good("hypervisor", "domains", "kvm1"))["domains"]
            return domain.name in {one["name"] for one in domains}

        await wait_until_async(reported, 30, "the agent to report the domain")
        await good("server", "register", domain.name, "--hypervisor", "kvm1", "--name", "web1")
        place = world.sshd.config(tmp_path / "vault")
        where = ("--host", place.host, "--port", str(place.port), "--username", place.username, "--path", place.path)
        secrets = {"BMCTL_SFTP_PRIVATE_KEY": place.private_key, "BMCTL_ENCRYPTION_PASSPHRASE": PASSPHRASE}
        await good("storage", "add", "sftp", "vault", *where, "--encrypt", **secrets)
        tested = await good("storage", "test", "vault", "--hypervisor", "kvm1", "--wait")
        assert {"connect", "write", "delete"} <= {step["name"] for step in tested["job"]["result"]["test"]["steps"]}
        assert (await good("storage", "show", "vault"))["storage"]["sftp"]["host_key"].startswith("ssh-")
        nowhere = (*where[:-1], f"{place.path}/no/parent")
        await good("storage", "add", "sftp", "wrong", *nowhere, **secrets)
        with bmctl.on_terminal("storage", "test", "wrong", "--hypervisor", "kvm1", "--wait") as terminal:
            assert await asyncio.to_thread(terminal.end) == 1, terminal.screen()
        for said in ("✗ connect and log in", "Make the folder that is missing", "STORAGE_PATH_INVALID", "- write"):
            assert said in " ".join(terminal.screen().split())
        await good("storage", "delete", "wrong", "--yes")

        domain.write("vda", 0, 20 * MIB, 1)
        with bmctl.on_terminal("backup", "start", "web1", "--storage", "vault", "--wait") as terminal:
            assert await asyncio.to_thread(terminal.end) == 0, terminal.screen()
        assert "● completed" in terminal.screen()
        domain.write("vda", 7 * MIB, MIB, 2)
        second = (await good("backup", "start", "web1", "--storage", "vault", "--wait"))["job"]["result"]["backup"]
        wanted = digest(disk.path, "qcow2")
        listed = (await good("backup", "list", "--server", "web1"))["backups"]
        assert [one["disks"][0]["type"] for one in listed] == ["BACKUP_TYPE_INCREMENTAL", "BACKUP_TYPE_FULL"]
        assert all(one["encrypted"] for one in listed)

        domain.write("vda", 0, 64 * MIB, 0xEE)
        restored = await good("backup", "restore", "--server", "web1", "--yes", "--wait")
        assert restored["job"]["result"]["restore"]["server_started"]
        assert restored["job"]["backup_id"] == second["backup_id"]
        assert digest(disk.path, "qcow2") == wanted
        verified = await good("backup", "verify", second["backup_id"], "--wait")
        assert verified["job"]["result"]["verify"]["damaged_count"] == 0

        deleted = await good("backup", "delete", listed[1]["backup_id"], "--yes", "--wait")
        assert (
            len(deleted["job"]["result"]["delete"]["backup_ids"]) == 2
        )  # the incremental cannot live without its full
        assert (await good("backup", "list"))["backups"] == []
