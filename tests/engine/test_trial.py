"""A test of a storage as a job: the result of a failed one says what had worked; bm-engine has the same without a controller."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cli_storage import TYPES, load_storage_file
from engine.errors import InvalidSpec
from engine.spec import FtpConfig, RcloneConfig, S3Config, SftpConfig, StorageSpec
from engine.spec import TestJob as StorageTestJob
from tests.engine.rig import Rig
from tests.servers.sshd import Sshd, free_port, key_pair

STEPS = [
    "connect",
    "repository",
    "write",
    "rename",
    "size",
    "refuse_second_write",
    "read",
    "range_read",
    "list",
    "delete",
]


def tried(rig: Rig, target: StorageSpec) -> Any:
    """Run a test of `target` and return how it ended."""
    rig.target = target
    return rig.run(test=StorageTestJob())


@pytest.mark.feature("S24")
def test_a_test_that_goes_well_tells_each_step_as_a_stage_and_initializes(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path)
    outcome = rig.run(test=StorageTestJob())
    assert outcome.state == "completed"
    assert outcome.result is not None
    assert [step["name"] for step in outcome.result["steps"]] == rig.report.stages == STEPS
    assert outcome.result["pending"] == []
    assert (tmp_path / "storage/repository.json").exists()


@pytest.mark.feature("S24")
def test_a_test_that_fails_tells_what_had_worked_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    with Sshd(tmp_path, read_only=True) as server:
        rig = Rig.make(tmp_path)
        sftp = server.config(tmp_path / "storage")
        for config, reason, worked in (
            (replace(sftp, port=free_port()), "STORAGE_UNREACHABLE", 0),
            (replace(sftp, private_key=key_pair()[0]), "STORAGE_LOGIN_FAILED", 0),
            (sftp, "STORAGE_PERMISSION_DENIED", 1),
        ):
            outcome = tried(rig, replace(rig.target, local=None, sftp=config))
            assert (outcome.state, outcome.failure["reason"]) == ("failed", reason)
            assert outcome.failure["step"] == STEPS[worked]
            assert ". " in outcome.failure["message"]
            steps = outcome.result["steps"]
            assert [(step["name"], step["failed"]) for step in steps] == [
                *((name, False) for name in STEPS[:worked]),
                (STEPS[worked], True),
            ]
            assert outcome.result["pending"] == STEPS[worked + 1 :]
            assert outcome.result["host_key"] == (server.host_key if worked else "")


@pytest.mark.feature("S24")
def test_bm_engine_tests_a_storage_without_a_controller(tmp_path: Path) -> None:
    file = tmp_path / "storage.json"
    file.write_text(json.dumps({"type": "local", "path": str(tmp_path / "vault")}))
    done = bm_engine("test", "--storage", str(file))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(STEPS)
    assert "/s" in next(line for line in lines if " write " in line)
    assert list((tmp_path / "vault").iterdir()) == []  # no repository is made by a test that knows of none
    file.write_text(json.dumps({"type": "local", "path": str(tmp_path / "no/parent")}))
    failed = bm_engine("--output", "json", "test", "--storage", str(file))
    assert failed.returncode == 3
    document = json.loads(failed.stdout)
    assert document["failure"]["reason"] == "STORAGE_PATH_INVALID"
    assert document["result"]["pending"] == STEPS[1:]


@pytest.mark.feature("S5")
@pytest.mark.feature("S13")
@pytest.mark.feature("S14")
def test_a_storage_file_describes_every_type_its_secrets_from_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    s3 = {"type": "s3", "bucket": "b", "region": "r", "access_key": "a"}
    ftp = {"type": "ftp", "host": "h", "username": "u", "path": "/p"}
    sftp = {"type": "sftp", "host": "h", "username": "u", "path": "/p"}
    assert read(tmp_path, {**s3, "secret_key_file": str(secret)}).s3 == S3Config("b", "r", "a", "hush")
    assert read(tmp_path, {**ftp, "password_file": str(secret)}).ftp == FtpConfig("h", "u", "/p", "hush")
    assert read(tmp_path, {**sftp, "private_key_file": str(secret)}).sftp == SftpConfig("h", "u", "/p", "hush\n")
    monkeypatch.setenv("BM_S3_SECRET_KEY", "from the environment")
    monkeypatch.setenv("BM_FTP_PASSWORD", "from the environment")
    assert read(tmp_path, s3).s3 == S3Config("b", "r", "a", "from the environment")
    assert read(tmp_path, ftp).ftp == FtpConfig("h", "u", "/p", "from the environment")
    assert read(tmp_path, {"type": "rclone", "remote": "box", "path": "vm"}).rclone == RcloneConfig("box", "vm")
    assert {"local", "sftp", "s3", "ftp", "rclone"} == set(TYPES)


@pytest.mark.feature("S28")
@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"type": "tape"}, "type"),
        ({"type": ["s3"]}, "type"),
        ({"path": "/x"}, "type"),
        ({"type": "s3", "bucket": "b", "region": "r", "access_key": "a"}, ".secret_key"),
        ({"type": "ftp", "host": "h", "username": "u", "path": "/p", "password": "hush", "passwort": 1}, ".passwort"),
        ({"type": "ftp", "password": "hush", "password_file": "/x"}, "password_file"),
        ({"type": "s3", "secret_key_file": "/no/such/file"}, "secret_key_file"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_without_quoting_a_secret(tmp_path: Path, data: Any, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(tmp_path, data)
    assert caught.value.facts["field"].endswith(field)
    assert "hush" not in str(caught.value)


def read(folder: Path, data: dict[str, Any]) -> StorageSpec:
    file = folder / "storage.json"
    file.write_text(json.dumps(data))
    return load_storage_file(str(file))


def bm_engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
