"""bm-engine as somebody on call uses it: the real command, a real domain, a real storage, no controller."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.units import MIB
from tests.engine.rig import digest
from tests.servers.guest import DiskFile
from tests.waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "bm-engine.md"
PASSPHRASE = "a passphrase that is nowhere else"


class Engine:
    """The command with one storage file."""

    def __init__(self, folder: Path, uri: str = "") -> None:
        self.folder = folder
        self.storage = folder / "storage.json"
        self.storage.write_text(json.dumps({"type": "local", "path": str(folder / "vault")}))
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(PASSPHRASE + "\n")
        self.environment = {**os.environ, "BM_CATALOG": str(folder / "catalog")}
        self.host = ("--libvirt", uri, "--scratch", str(folder / "scratch"), "--locks", str(folder / "locks"))

    def command(self, verb: str, *arguments: str, host: bool = False) -> list[str]:
        options = ["--storage", str(self.storage), "--passphrase-file", str(self.passphrase)]
        local = list(self.host) if host else []
        return [sys.executable, "-m", "engine.cli", "--output", "json", verb, *options, *local, *arguments]

    def run(self, verb: str, *arguments: str, host: bool = False, status: int = 0) -> Any:
        command = self.command(verb, *arguments, host=host)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        assert done.returncode == status, (done.stdout, done.stderr)
        assert PASSPHRASE not in done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.mark.feature("C2")
@pytest.mark.feature("C3")
@pytest.mark.feature("C12")
def test_a_domain_is_backed_up_and_restored_by_hand(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(32 * MIB)
    domain = blank_domain([disk])
    engine = Engine(tmp_path, libvirtd.uri)
    engine.run("init", "--encrypt")
    domain.write("vda", 0, 9 * MIB, 1)
    made, expected = [], []
    for pattern in (2, 3):
        made.append(engine.run("backup", domain.name, host=True)["result"]["backup_id"])
        expected.append(digest(disk.path, "qcow2"))
        domain.write("vda", 3 * MIB, MIB, pattern)

    listed = engine.run("list", domain.name)["backups"]
    assert [one["backup"]["backup_id"] for one in listed] == made
    assert engine.run("verify", domain.name)["result"]["damaged_count"] == 0
    assert engine.run("verify", "--without-key", domain.uuid, made[1])["result"]["frames"] > 0
    (tmp_path / "out").mkdir()
    engine.run("restore", "--to", str(tmp_path / "out"), domain.name, made[0], host=True)
    assert digest(tmp_path / "out" / "vda.raw") == expected[0]
    engine.run("restore", "--yes", "--stop-grace", "0", domain.name, host=True)
    assert digest(disk.path, "qcow2") == expected[1]
    (tmp_path / "xml").mkdir()
    definitions = engine.run("reindex", "--definitions", str(tmp_path / "xml"))["definitions"]
    assert all(domain.uuid in Path(one).read_text() for one in definitions)
    assert len(definitions) == 2
    assert (
        engine.run("delete", "--yes", domain.name, made[0], host=True, status=4)["failure"]["reason"] == "STILL_NEEDED"
    )
    engine.run("delete", "--yes", domain.name, *made, host=True)
    assert engine.run("list")["backups"] == []


@pytest.mark.feature("C12")
def test_a_name_that_two_servers_had_is_refused(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    engine = Engine(tmp_path, libvirtd.uri)
    engine.run("init", "--encrypt")
    uuids = []
    for number in range(2):
        domain = blank_domain([DiskFile("vda", tmp_path / f"{number}.qcow2").create(8 * MIB)])
        xml = domain.handle.XMLDesc(0)
        engine.run("backup", domain.name, host=True)
        uuids.append(domain.uuid)
        domain.handle.destroy()
        domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        if number == 0:
            name = domain.name
        else:  # a server of another id takes the name over
            domain.connection.defineXML(xml.replace(f"<name>{domain.name}<", f"<name>{name}<"))
            engine.run("backup", domain.uuid, host=True)

    refused = engine.run("verify", name, status=2)["error"]

    assert refused["reason"] == "INVALID_FIELD"
    assert all(uuid in refused["message"] for uuid in uuids)
    assert engine.run("verify", uuids[0])["result"]["damaged_count"] == 0
    assert len(engine.run("list", domain.name)["backups"]) == 2


@pytest.mark.feature("S26")
def test_a_wrong_passphrase_is_refused_before_anything_is_written(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)
    domain = blank_domain([disk])
    engine = Engine(tmp_path, libvirtd.uri)
    engine.run("init", "--encrypt")
    engine.run("backup", domain.name, host=True)
    engine.passphrase.write_text("another")
    (tmp_path / "out").mkdir()

    for arguments in (
        ("restore", "--to", str(tmp_path / "out")),
        ("verify",),
        ("reindex", "--definitions", str(tmp_path)),
    ):
        refused = engine.run(
            arguments[0], *arguments[1:], *(() if "reindex" in arguments else (domain.name,)), status=5
        )
        assert refused["error"]["reason"] == "WRONG_KEY"
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.feature("C8")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_leaves_nothing(tmp_path: Path, libvirtd: Any, blank_domain: Any, number: int) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(64 * MIB)
    domain = blank_domain([disk])
    engine = Engine(tmp_path, libvirtd.uri)
    engine.run("init", "--encrypt")
    domain.write("vda", 0, 32 * MIB, 1)
    slow = engine.command("backup", "--read-limit", "1000000", domain.name, host=True)
    with subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=engine.environment) as process:
        wait_until(lambda: list((tmp_path / "vault").glob("servers/*/*/vda")), 30, "the first bytes on the storage")
        process.send_signal(number)
        assert process.wait(30) == 8

    assert not list((tmp_path / "vault").glob("servers/*"))
    assert domain.handle.jobStats()["type"] == 0
    assert not domain.handle.listAllCheckpoints()
    assert engine.run("backup", domain.name, host=True)["state"].startswith("completed")


@pytest.mark.parametrize(
    ("description", "status", "reason"),
    [
        ({"type": "local", "path": "/nonexistent/folder"}, 3, "STORAGE_PATH_INVALID"),
        ({"type": "tape"}, 2, "INVALID_FIELD"),
        ({"type": "sftp", "host": "127.0.0.1"}, 2, "INVALID_FIELD"),
        ({"type": "local", "path": "/tmp", "surprise": 1}, 2, "INVALID_FIELD"),
    ],
)
def test_a_storage_file_that_does_not_do_is_refused(
    tmp_path: Path, description: dict[str, Any], status: int, reason: str
) -> None:
    engine = Engine(tmp_path)
    engine.storage.write_text(json.dumps(description))

    refused = engine.run("list", status=status)

    assert not reason or refused["error"]["reason"] == reason


def test_help_is_quick_to_load() -> None:
    """What --help imports decides what it costs: no library of ours but the parser."""
    program = "import sys, engine.cli; engine.cli._parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"paramiko", "libvirt", "grpc", "cryptography", "zstandard", "engine.jobs", "engine.spec"} & set(loaded)


def test_the_page_names_every_verb_and_only_these() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "engine.cli", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"},
    ).stdout  # fmt: skip
    verbs = set(re.findall(r"^    ([\w-]+)(?: |$)", help_text, re.MULTILINE)) - {"VERB"}
    assert verbs == set(re.findall(r"^\| `bm-engine ([\w-]+)", PAGE.read_text(), re.MULTILINE))
