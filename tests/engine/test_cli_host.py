"""bm-engine's verbs that look after a host: prune, estimate, inventory, cleanup; on a real domain and a real storage."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import cli
from engine.retention import PRESETS
from engine.units import KIB, MIB
from tests.engine.rig import Rig, digest
from tests.servers.guest import BlankDomain, DiskFile

DAY = timedelta(days=1)


class Host:
    """A domain whose backups a rig makes at any time of the past, and the command that a person uses on the same storage."""

    def __init__(self, folder: Path, uri: str, blank_domain: Any) -> None:
        self.folder = folder
        self.disk = DiskFile("vda", folder / "vda.qcow2").create(16 * MIB)
        self.domain: BlankDomain = blank_domain([self.disk])
        self.rig = Rig.make(folder, uri)
        self.storage = folder / "storage.json"
        self.storage.write_text(json.dumps({"type": "local", "path": str(folder / "storage")}))
        self.host = ("--libvirt", uri, "--scratch", str(folder / "scratch"), "--locks", str(folder / "locks"))
        self.environment = {
            **os.environ,
            "BM_CATALOG": str(folder / "catalog"),
            "BM_AGENT_STATE_FOLDER": str(folder / "agent"),
            "BM_PASSPHRASE": "a passphrase",
        }

    def back_up(self, ago: timedelta, pattern: int, kind: str = "incremental") -> str:
        self.domain.write("vda", 0, MIB, pattern)
        now = datetime.now(UTC) - ago
        return str(self.rig.back_up(self.domain.uuid, now=now, type=kind, full_interval_days=0)["backup_id"])

    def run(self, verb: str, *arguments: str, status: int = 0, storage: bool = True, **environment: str) -> Any:
        where = ["--storage", str(self.storage)] if storage else []
        host = (
            self.host
            if verb in {"backup", "restore", "delete", "prune", "estimate", "cleanup", "heal", "forget"}
            else ()
        )
        command = [sys.executable, "-m", "engine.cli", verb, "--json", *where, *host, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**self.environment, **environment}
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout else None

    def stored(self) -> set[str]:
        return {path.name for path in (self.folder / "storage" / "servers" / self.domain.uuid).iterdir()}


@pytest.fixture
def host(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> Host:
    return Host(tmp_path, libvirtd.uri, blank_domain)


# ---- prune -------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C5")
@pytest.mark.feature("R13")
@pytest.mark.feature("R18")
def test_prune_shows_what_would_go_and_deletes_only_when_that_is_confirmed(host: Host) -> None:
    old = [host.back_up(40 * DAY, 1, "full"), host.back_up(39 * DAY, 2)]
    middle = [host.back_up(20 * DAY, 3, "full"), host.back_up(19 * DAY, 4)]
    active = [host.back_up(3 * DAY, 5, "full"), host.back_up(2 * DAY, 6)]
    expected = digest(host.disk.path, "qcow2")
    before = host.stored()
    rules = (host.domain.name, "--keep-last", "0", "--keep-days", "30")

    shown = host.run("prune", *rules)

    assert shown["deleted"] is None
    assert host.stored() == before == {*old, *middle, *active}
    assert shown["plan"]["delete"] == [old[1], old[0]]  # newest first
    by_id = {one["backup_id"]: one for one in shown["plan"]["backups"]}
    assert {reason["rule"] for reason in by_id[active[0]]["reasons"]} == {"active_chain", "age"}
    assert by_id[middle[0]]["expire_time"] is not None
    assert not by_id[old[0]]["kept"]

    done = host.run("prune", "--yes", *rules)
    assert sorted(done["result"]["backup_ids"]) == sorted(old)
    assert host.stored() == {*middle, *active}
    assert host.run("prune", "--yes", *rules)["deleted"] is None  # a second time there is nothing to do
    out = host.folder / "out"
    out.mkdir()
    host.run("restore", "--to", str(out), host.domain.name)
    assert digest(out / "vda.raw") == expected
    assert host.run("verify", host.domain.name)["result"]["damaged_count"] == 0


@pytest.mark.feature("C5")
@pytest.mark.feature("R11")
def test_prune_refuses_on_an_enrolled_host(host: Host) -> None:
    made = [host.back_up(40 * DAY, 1, "full"), host.back_up(DAY, 2, "full")]
    (host.folder / "agent").mkdir()
    (host.folder / "agent" / "identity.json").write_text("{}")
    rules = (host.domain.name, "--yes", "--keep-last", "0")

    assert host.run("prune", *rules, status=4)["error"]["reason"] == "HOST_ENROLLED"

    assert host.stored() == set(made)
    host.run("prune", "--unmanaged", *rules)
    assert host.stored() == {made[1]}


@pytest.mark.feature("C5")
@pytest.mark.feature("R20")
def test_prune_keeps_what_is_damaged_and_finishes_an_interrupted_deletion(host: Host) -> None:
    made = [host.back_up(ago * DAY, ago, "full") for ago in (50, 40, 30, 2)]
    (host.folder / "storage" / "servers" / host.domain.uuid / made[1] / "vda" / "0000.data").unlink()
    rules = (host.domain.name, "--yes", "--keep-last", "0")
    host.run("prune", *rules, status=-9, BM_KILL_AT="unlisted")

    host.run("prune", *rules)

    assert host.stored() == {made[1], made[3]}


@pytest.mark.feature("C5")
@pytest.mark.parametrize(
    "rules", [(), ("--time-zone", "Mars/Olympus", "--daily", "1"), ("--time-zone", "../etc/passwd", "--daily", "1")]
)
def test_rules_that_will_not_do_are_refused(host: Host, rules: tuple[str, ...]) -> None:
    assert host.run("prune", host.domain.name, *rules, status=2)["error"]["reason"] == "INVALID_FIELD"


@pytest.mark.feature("R2")
def test_the_parser_knows_every_preset() -> None:
    assert set(cli._PRESETS) == set(PRESETS)


# ---- estimate ----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C4")
def test_estimate_tells_what_the_next_backup_would_read(host: Host) -> None:
    def since(storage: bool = False) -> Any:
        (disk,) = host.run("estimate", host.domain.name, storage=storage)["disks"]
        return disk

    assert since()["since"] == []
    made = host.back_up(DAY, 1)
    host.domain.write("vda", 4 * MIB, 64 * KIB, 1)
    host.domain.write("vda", 8 * MIB, 64 * KIB, 1)
    running = since()
    assert [(one["backup_id"], one["dirty_bytes"]) for one in running["since"]] == [(made, 128 * KIB)]
    assert 0 < running["full_bytes"] <= 4 * MIB
    host.domain.handle.destroy()
    assert since()["since"] == running["since"]

    host.domain.handle.create()
    read = host.rig.back_up(host.domain.uuid)["disks"][0]
    assert read["data_bytes"] == 128 * KIB
    assert since()["since"][0]["dirty_bytes"] == 0


# ---- inventory ---------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C9")
def test_the_hosts_own_catalog_follows_what_is_done(host: Host) -> None:
    def known(*arguments: str, storage: bool = False) -> tuple[list[str], int]:
        found = host.run("inventory", *arguments, storage=storage)
        return [one["backup"]["backup_id"] for one in found["backups"]], len(found["unreadable"])

    host.run("init")
    assert known() == ([], 0)
    first = host.run("backup", host.domain.name)["result"]["backup_id"]
    assert known() == ([], 0)  # nobody knows what else lies there
    assert known(storage=True) == ([first], 0)
    second = host.run("backup", "--type", "full", host.domain.name)["result"]["backup_id"]
    assert known(host.domain.name) == ([first, second], 0)
    assert host.run("inventory", storage=False)["backups"] == host.run("list")["backups"]
    host.run("delete", "--yes", host.domain.name, first)
    assert known() == ([second], 0)
    assert host.run("inventory", "nobody", storage=False, status=3)["error"]["reason"] == "BACKUP_NOT_FOUND"

    (file,) = (host.folder / "catalog").glob("*/*.json")
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole.replace(b"full", b"copy", 1)):
        file.write_bytes(damaged)
        assert known() == ([], 1)
        assert known(storage=True) == ([second], 0)
        assert known() == ([second], 0)
    file.unlink()
    host.run("reindex")
    assert known() == ([second], 0)


@pytest.mark.feature("C9")
def test_a_catalog_is_not_believed_after_the_engine_that_changed_it_died(host: Host) -> None:
    host.run("init", "--encrypt")
    first = host.run("backup", host.domain.name)["result"]["backup_id"]
    host.run("reindex")

    host.run("backup", host.domain.name, status=-9, BM_KILL_AT="committed")

    assert host.run("inventory", storage=False)["backups"] == []
    found = [one["backup"]["backup_id"] for one in host.run("inventory")["backups"]]
    assert found[0] == first
    assert len(found) == 2
    assert len(host.run("inventory", storage=False)["backups"]) == 2


# ---- cleanup -----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C7")
@pytest.mark.feature("C11")
def test_cleanup_leaves_nothing_of_an_engine_that_died(host: Host) -> None:
    host.run("init")
    made = host.run("backup", host.domain.name)["result"]["backup_id"]
    host.domain.write("vda", 0, MIB, 9)
    host.run("backup", host.domain.name, status=-9, BM_KILL_AT="stored")
    assert len(host.stored()) == 2
    assert host.domain.handle.jobStats()["type"] != 0

    host.run("heal", storage=False)
    assert host.domain.handle.jobStats()["type"] == 0
    assert len(host.domain.handle.listAllCheckpoints()) == 2
    done = host.run("cleanup", "--domain", host.domain.name)["done"]

    assert len(done) == 2, done  # the attempt on the storage, and its checkpoint
    assert host.stored() == {made}
    assert [one.getName()[-36:] for one in host.domain.handle.listAllCheckpoints()] == [made]
    assert host.run("cleanup")["done"] == []
    assert host.run("backup", host.domain.name)["result"]["disks"][0]["type"] == "incremental"
    assert len(host.run("forget", host.domain.name, storage=False)["done"]) == 1
    assert host.domain.handle.listAllCheckpoints() == []
