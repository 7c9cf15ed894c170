"""A storage described by a file: YAML says what JSON says, is refused like it, and never quoted."""

import json
from pathlib import Path

import pytest

from clients.cli import storage_file
from clients.cli.failures import Usage
from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2
from tests.clients.bmctl import Bmctl
from tests.clients.canned import Canned

YAML = """\
# the buckets of the east
name: cloud
s3:
  endpoint: https://s3.example.net:9000
  bucket: vm-backups
  access_key: AKID
  addressing: S3_ADDRESSING_PATH
  ca_certificate: |
    -----BEGIN CERTIFICATE-----
    abc
    -----END CERTIFICATE-----
encryption_enabled: yes
limits: {worker_threads: 8, bandwidth_bytes_per_second: 20000000}
"""
PLAIN = {
    "name": "cloud",
    "s3": {
        "endpoint": "https://s3.example.net:9000",
        "bucket": "vm-backups",
        "access_key": "AKID",
        "addressing": "S3_ADDRESSING_PATH",
        "ca_certificate": "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
    },
    "encryption_enabled": True,
    "limits": {"worker_threads": 8, "bandwidth_bytes_per_second": "20000000"},
}
SECRET = "hunter2"


def read(folder: Path, text: str, name: str = "storage.yaml") -> storage_service_pb2.CreateStorageRequest:
    path = folder / name
    path.write_text(text)
    request = storage_service_pb2.CreateStorageRequest()
    storage_file.fill(str(path), request)
    return request


def test_yaml_says_what_json_says(tmp_path: Path) -> None:
    expected = storage_service_pb2.CreateStorageRequest(
        name="cloud",
        s3=storage_pb2.S3Config(
            endpoint="https://s3.example.net:9000", bucket="vm-backups", access_key="AKID",
            addressing=storage_pb2.S3_ADDRESSING_PATH,
            ca_certificate="-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
        ),
        encryption_enabled=True,
        limits=storage_pb2.StorageLimits(worker_threads=8, bandwidth_bytes_per_second=20_000_000),
    )  # fmt: skip
    assert read(tmp_path, YAML) == expected
    assert read(tmp_path, json.dumps(PLAIN), "storage.json") == expected
    assert read(tmp_path, json.dumps(PLAIN), "named by chance.yml") == expected, "JSON is YAML too"
    assert read(tmp_path, YAML, "no suffix") == expected


@pytest.mark.feature("S28")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "fields with their values"),
        ("- name: x", "fields with their values"),
        (f"secrets:\n  s3_secret_key: {SECRET}\n  s3_secret_key: {SECRET}", "a field twice: line 3"),
        (f"name: x\nsecrets: {{s3_secret_key: !{SECRET} x}}", "line 2, column 26"),
        (f"secrets: {{s3_secret_key: *{SECRET}}}", "line 1, column"),
        (f"secrets: {{s3_secret_key: '{SECRET}", "not YAML"),
        (f"secrets: {{s3_secret_key: @{SECRET}}}", "quotes"),
        (f"a: {SECRET}\n---\nb: {SECRET}", "not YAML"),
        (f"secrets: {{s3_secret_key: [{SECRET}]}}", "secrets.s3_secret_key takes another kind"),
        ("secrets: {s3_secret_key: 0123}", "s3_secret_key"),  # a number, in another base even
        ("secrets: {s3_secret_key: no}", "s3_secret_key"),
        ("secrets: {s3_secret_key: 2026-11-23}", "a date"),
        ("name: !!binary aHVudGVyMg==", "a date or another"),
        ("name: !!python/object/apply:os.getcwd []", "line 1"),
        (f"nme: {SECRET}", "no field `nme` in a storage"),
        (f"limits: {{worker: {SECRET}}}", "no field `worker` in limits"),
        (f"secrets: {{{SECRET}: x}}", "no field of that name in secrets"),
        (f"secrets: {SECRET}", "no field of that name in secrets"),
        ("local: {path: /p}\nftp: {path: /p}", "two types"),
        (f'{{"name": "{SECRET}", "name": "x"}}', "a field twice"),
        (f'{{"name": "{SECRET}"', "not YAML: line 1"),
        ("limits: {worker_threads: many}", "worker_threads"),
        ("local: {path: \x07}", "not YAML"),
        ("name: " + "[" * 5000, "not YAML"),
        ("name: " + "[" * 60 + "]" * 60, "not YAML"),
        ("&a name: [*a, *a]", "not fit"),
        ("a: &a [x,x,x]\nb: &b [*a,*a,*a]\nname: [*b,*b,*b]", "not fit"),
        ("defaults: &a {x: *a}", "another value that no field has"),
    ],
)
def test_what_is_no_storage_is_refused_and_never_quoted(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(Usage) as caught:
        read(tmp_path, text)
    assert caught.value.facts["field"] == "--file"
    problem = str(caught.value.facts["problem"])
    assert told in problem
    assert SECRET not in problem
    assert "0123" not in problem
    assert caught.value.__cause__ is None


@pytest.mark.feature("S28")
def test_its_secrets_may_stay_out_of_it(bmctl: Bmctl, canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    (tmp_path / "phrase").write_text("correct horse\n")
    files = ("--secret-key-file", str(tmp_path / "secret"), "--passphrase-file", str(tmp_path / "phrase"))
    ended = bmctl("storage", "add", "--file", "-", *files, stdin=YAML)
    assert ended.code == 0, ended
    (request,) = canned.calls["CreateStorage"]
    assert request.secrets == storage_service_pb2.StorageSecrets(
        s3_secret_key="hush", encryption_passphrase="correct horse"
    )
    wrong = bmctl("storage", "add", *files, "local", "n", "--path", "/p", BMCTL_OUTPUT="json")
    assert (wrong.code, wrong.error["facts"]["field"]) == (2, "storage add")


@pytest.mark.parametrize(
    "text", ["{", f'{{"name": "{SECRET}", "name": "x"}}', f'{{"name": {SECRET}}}', '{"name": NaN}']
)
def test_what_is_not_json_is_refused_alike(tmp_path: Path, text: str) -> None:
    with pytest.raises(Usage) as caught:
        read(tmp_path, text, "storage.json")
    assert "storage.json" in caught.value.facts["problem"]
    assert SECRET not in caught.value.facts["problem"]
