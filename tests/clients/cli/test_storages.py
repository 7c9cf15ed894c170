"""Storages: their many settings, and secrets that come from files, the environment or a prompt and go nowhere else."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients.cli.storage_settings import has_passphrase
from clients.gen.backupmanager.v1 import storage_pb2
from tests.clients import rows
from tests.clients.bmctl import Bmctl
from tests.clients.canned import Canned

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0IGtleSBib2R5\n-----END OPENSSH PRIVATE KEY-----\n"
PASSPHRASE = "correct horse battery staple"
SFTP = ("storage", "add", "sftp", "far", "--host", "backup.example.net", "--username", "bm", "--path", "/srv")


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text(KEY)
    return str(path)


@pytest.mark.feature("S4", "S28")
def test_sftp_with_all_settings(bmctl: Bmctl, canned: Canned, key_file: str, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    limits = ("--workers", "8", "--upload-limit", "20M", "--read-limit", "1G", "--io-priority", "idle")
    secrets = ("--key-file", key_file, "--encrypt", "--passphrase-file", str(tmp_path / "passphrase"))
    more = ("--port", "2222", "--host-key", "ssh-ed25519 AAAA", "--compression-level", "9", "--cpu-priority", "low")

    ended = bmctl(*SFTP, *limits, *secrets, *more)

    assert ended.code == 0, ended.err
    request = canned.calls["CreateStorage"][0]
    assert request.sftp == storage_pb2.SftpConfig(
        host="backup.example.net", port=2222, username="bm", path="/srv", host_key="ssh-ed25519 AAAA"
    )
    assert request.secrets.sftp_private_key == KEY
    assert request.secrets.encryption_passphrase == PASSPHRASE
    assert request.encryption_enabled
    assert request.compression == storage_pb2.Compression(enabled=True, level=9)
    assert request.limits == storage_pb2.StorageLimits(
        worker_threads=8,
        bandwidth_bytes_per_second=20 << 20,
        read_bytes_per_second=1 << 30,
        io_priority=storage_pb2.WORK_PRIORITY_IDLE,
        cpu_priority=storage_pb2.WORK_PRIORITY_LOW,
    )
    assert PASSPHRASE not in ended.out + ended.err
    assert "BEGIN" not in ended.out + ended.err


@pytest.mark.feature("S28")
def test_secrets_from_the_environment(bmctl: Bmctl, canned: Canned) -> None:
    environment = {"BMCTL_SFTP_PRIVATE_KEY": KEY, "BMCTL_ENCRYPTION_PASSPHRASE": PASSPHRASE}

    assert bmctl(*SFTP, "--encrypt", "--no-compress", **environment).code == 0

    request = canned.calls["CreateStorage"][0]
    assert request.secrets.sftp_private_key == KEY
    assert request.secrets.encryption_passphrase == PASSPHRASE
    assert not request.compression.enabled
    assert request.HasField("compression")
    assert not request.HasField("limits")


@pytest.mark.feature("S26", "S28")
def test_a_passphrase_is_asked_for_twice(bmctl: Bmctl, canned: Canned, key_file: str) -> None:
    for again, code in ((PASSPHRASE, 0), ("something else", 2)):
        with bmctl.on_terminal(*SFTP, "--key-file", key_file, "--encrypt") as terminal:
            terminal.wait_for("The encryption passphrase: ")
            terminal.write(f"{PASSPHRASE}\n")
            terminal.wait_for("Once more: ")
            terminal.write(f"{again}\n")
            assert terminal.end() == code, terminal.screen()
            assert PASSPHRASE not in terminal.screen()
    assert len(canned.calls["CreateStorage"]) == 1


@pytest.mark.feature("S4")
def test_the_passphrase_of_a_key_is_asked_for_where_it_has_one(bmctl: Bmctl, canned: Canned, tmp_path: Path) -> None:
    made = {}
    for name, phrase in (("open", ""), ("closed", "key words")):
        path = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(path)], check=True)
        made[name] = path.read_text()
    assert not has_passphrase(made["open"])
    assert has_passphrase(made["closed"])
    assert has_passphrase("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")

    with bmctl.on_terminal(*SFTP, "--key-file", str(tmp_path / "closed")) as terminal:
        terminal.wait_for("The key's passphrase: ")
        terminal.write("key words\n")
        assert terminal.end() == 0, terminal.screen()
    assert canned.calls["CreateStorage"][0].secrets.sftp_key_passphrase == "key words"


@pytest.mark.feature("S28")
def test_without_a_way_to_a_secret_it_says_which(bmctl: Bmctl, canned: Canned, key_file: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for arguments, option in (
        ((), "--key-file"),
        (("--key-file", str(tmp_path / "absent")), "--key-file"),
        (("--key-file", str(tmp_path / "empty")), "--key-file"),
        (("--key-file", key_file, "--encrypt"), "--passphrase-file"),
    ):
        ended = bmctl(*SFTP, *arguments, BMCTL_OUTPUT="json")
        assert (ended.code, ended.error["facts"]["field"]) == (2, option)
    assert not canned.calls["CreateStorage"]


@pytest.mark.feature("S3")
def test_local_says_what_it_accepts(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl("storage", "add", "local", "here", "--path", "/mnt/b", "--allow-local").code == 0
    request = canned.calls["CreateStorage"][0]
    assert (request.local.path, request.allow_local, request.name) == ("/mnt/b", True, "here")


def test_a_file_describes_a_storage(bmctl: Bmctl, canned: Canned, tmp_path: Path) -> None:
    described: dict[str, Any] = {
        "name": "far",
        "sftp": {"host": "h", "username": "bm", "path": "/srv"},
        "secrets": {"sftp_private_key": KEY},
        "limits": {"worker_threads": 2},
    }
    path = tmp_path / "storage.json"
    path.write_text(json.dumps(described))

    assert bmctl("storage", "add", "--file", str(path)).code == 0
    assert bmctl("storage", "add", "--file", "-", stdin=json.dumps(described)).code == 0

    first, second = canned.calls["CreateStorage"]
    assert first == second
    assert first.secrets.sftp_private_key == KEY
    assert first.limits.worker_threads == 2


@pytest.mark.feature("S28")
@pytest.mark.parametrize(
    "text",
    ["{", '{"nme": "x"}', '{"name": 5}', '{"secrets": {"sftp_private_key": 271828182}}', '["x"]', '{"local": "x"}'],
)
def test_a_wrong_file_is_refused_without_quoting_it(bmctl: Bmctl, canned: Canned, text: str) -> None:
    ended = bmctl("storage", "add", "--file", "-", stdin=text)
    assert ended.code == 2
    assert "[INVALID_FIELD]" in ended.err
    assert "271828182" not in ended.err
    assert not canned.calls["CreateStorage"]


def test_add_needs_a_type_or_a_file(bmctl: Bmctl) -> None:
    assert bmctl("storage", "add").code == 2
    ended = bmctl("storage", "add", "--file", "x", "local", "n", "--path", "/p")
    assert ended.code == 2


@pytest.mark.feature("S20")
def test_update_changes_only_what_is_given(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl("storage", "update", "offsite", "--disable", "--read-only", "--upload-limit", "0").code == 0

    request = canned.calls["UpdateStorage"][0]
    assert request.storage.storage_id == rows.OFFSITE
    assert request.storage.etag == "4"
    assert set(request.update_mask.paths) == {"enabled", "read_only", "limits"}
    assert (request.storage.enabled, request.storage.read_only) == (False, True)
    assert request.storage.limits.bandwidth_bytes_per_second == 0
    assert request.storage.limits.worker_threads == 4  # the mask takes the whole message, so the rest is kept here
    assert not request.HasField("secrets") or not request.secrets.ByteSize()


@pytest.mark.feature("S4", "S28")
def test_update_of_place_and_secrets(bmctl: Bmctl, canned: Canned, key_file: str) -> None:
    arguments = ("--host", "new.example.net", "--host-key", "", "--key-file", key_file, "--compression-threads", "3")
    ended = bmctl("storage", "update", "offsite", *arguments)
    assert ended.code == 0, ended.err

    request = canned.calls["UpdateStorage"][0]
    assert set(request.update_mask.paths) == {"sftp", "compression"}
    assert (request.storage.sftp.host, request.storage.sftp.host_key) == ("new.example.net", "")
    assert (request.storage.sftp.port, request.storage.sftp.username) == (2222, "bm")
    assert (request.storage.compression.threads, request.storage.compression.level) == (3, 3)
    assert request.secrets.sftp_private_key == KEY

    wrong = bmctl("storage", "update", "nas", "--port", "22")
    assert wrong.code == 2
    assert "a storage of the type local has no such setting" in wrong.err


@pytest.mark.feature("S24")
def test_test_and_reindex_start_jobs(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl("storage", "test", "offsite", "--hypervisor", "hv1", "-o", "json").json == {"job_id": rows.JOB}
    reindexed = bmctl("storage", "reindex", "offsite", "--hypervisor", "hv1", "--server", "web1", "-o", "json")
    assert reindexed.json == {"job_id": rows.JOB}
    request = canned.calls["ReindexStorage"][0]
    assert (request.storage_id, request.hypervisor_id, request.server_id) == ("offsite", "hv1", "web1")
    assert canned.calls["TestStorage"][0].request_id


@pytest.mark.feature("N10")
def test_reconcile_starts_a_job_and_needs_no_hypervisor(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl("storage", "reconcile", "offsite", "-o", "json").json == {"job_id": rows.JOB}
    request = canned.calls["ReconcileStorage"][0]
    assert (request.storage_id, request.hypervisor_id) == ("offsite", "")
    assert request.request_id


@pytest.mark.feature("N12")
def test_the_recovery_sheet_is_plain_text_with_the_closed_key_and_the_way_back(bmctl: Bmctl, canned: Canned) -> None:
    sheet = bmctl("storage", "key", "export", "offsite").out
    assert "backup-manager key 1\n{}\n" in sheet, "byte for byte"
    for part in (
        "RECOVERY SHEET OF STORAGE",
        "keys/k1.json",
        "bm-engine restore --storage storage.json",
        '"type": "sftp"',
    ):
        assert part in sheet
    assert "\x1b" not in sheet
    assert bmctl("storage", "key", "export", "offsite", "-o", "json").json["keys"][0]["key_id"] == "k1"


@pytest.mark.feature("S0")
def test_a_probe_asks_for_the_present_place_with_what_differs(bmctl: Bmctl, canned: Canned) -> None:
    ended = bmctl("storage", "probe", "offsite", "--hypervisor", "hv1", "--host", "new.example.net", "--port", "2200")

    assert ended.code == 0, ended.err
    request = canned.calls["ProbeStorage"][0]
    present = next(one for one in rows.storages() if one.name == "offsite").sftp
    assert (request.sftp.host, request.sftp.port, request.hypervisor_id) == ("new.example.net", 2200, "hv1")
    assert (request.sftp.path, request.sftp.username) == (present.path, present.username)
    assert request.request_id
    assert not request.secrets.ByteSize()

    nothing = bmctl("storage", "probe", "offsite", "--hypervisor", "hv1")
    assert nothing.code == 2
    assert "nothing of another place" in nothing.err
    assert len(canned.calls["ProbeStorage"]) == 1


@pytest.mark.feature("S25", "S28")
def test_a_further_passphrase_goes_in_alone(bmctl: Bmctl, canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "further").write_text(f"{PASSPHRASE}\n")

    ended = bmctl("storage", "key", "add-passphrase", "offsite", "--passphrase-file", str(tmp_path / "further"))

    assert ended.code == 0, ended.err
    request = canned.calls["UpdateStorage"][0]
    assert request.secrets.added_passphrase == PASSPHRASE
    assert not request.secrets.encryption_passphrase
    assert list(request.update_mask.paths) == []
    assert PASSPHRASE not in ended.out + ended.err
