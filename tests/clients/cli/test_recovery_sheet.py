"""The recovery sheet of each type of storage: what it says of the storage is what the engine takes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clients.cli import recovery_sheet
from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2
from engine import cli_storage, spec

CONFIGS: dict[str, tuple[Any, Any, str]] = {
    "local": (storage_pb2.LocalConfig(path="/srv"), spec.LocalConfig("/srv"), "folder /srv on each hypervisor"),
    "sftp": (
        storage_pb2.SftpConfig(host="h", port=2222, username="u", path="/srv", host_key="ssh-ed25519 AAAA"),
        spec.SftpConfig("h", "u", "/srv", "SECRET\n", 2222, host_key="ssh-ed25519 AAAA"),
        "sftp://u@h:2222/srv",
    ),
    "s3": (
        storage_pb2.S3Config(
            bucket="b",
            region="r",
            access_key="a",
            endpoint="https://s3.example:9000",
            prefix="p/q",
            addressing=storage_pb2.S3_ADDRESSING_VIRTUAL,
            ca_certificate="AUTHORITY\n",
        ),
        spec.S3Config(
            "b", "r", "a", "SECRET", "https://s3.example:9000", "p/q", addressing="virtual", ca_certificate="AUTHORITY"
        ),
        "bucket b/p/q at https://s3.example:9000",
    ),
    "ftp": (
        storage_pb2.FtpConfig(
            host="h", username="u", path="/srv", tls_version_max=storage_pb2.FTP_TLS_VERSION_1_2, skip_tls_verify=True
        ),
        spec.FtpConfig("h", "u", "/srv", "SECRET", tls_version_max="1.2", skip_tls_verify=True),
        "ftps://u@h:21/srv",
    ),
    "rclone": (
        storage_pb2.RcloneConfig(remote="b2", path="bucket/backups", force=True),
        spec.RcloneConfig("b2", "bucket/backups", force=True),
        "b2:bucket/backups of the rclone configuration on each hypervisor",
    ),
}


@pytest.mark.feature("N12")
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_engine_takes_what_the_sheet_says(tmp_path: Path, kind: str) -> None:
    config, expected, place = CONFIGS[kind]
    named: dict[str, Any] = {kind: config}
    storage = storage_pb2.Storage(name="nas", repository_id="r", **named)

    sheet = recovery_sheet.text(storage_service_pb2.ExportStorageKeyResponse(storage=storage))

    assert f"Place:        {place}\n" in sheet
    assert max(map(len, sheet.splitlines())) <= 100
    found = re.search(r"\{.*?\}", sheet, re.DOTALL)
    assert found
    (tmp_path / "key").write_text("SECRET\n")
    (tmp_path / "ca.pem").write_text("AUTHORITY\n")
    file = tmp_path / "storage.json"
    file.write_text(json.dumps(json.loads(found[0])).replace("/root/", f"{tmp_path}/"))
    assert getattr(cli_storage.load_storage_file(str(file)), kind) == expected
    assert ("     AUTHORITY\n" in sheet) == bool(getattr(config, "ca_certificate", ""))
