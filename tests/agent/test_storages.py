"""A storage's access becomes the engine's settings of it, type by type, and its secrets are known to the scrubber."""

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from agent import convert, storage_means
from agent.config import Config, load
from agent.errors import CommandUnsupported, ConfigInvalid
from agent.scrub import MASK, Scrubber, secrets_of, storage_secrets
from agent.storage_means import StorageMeans
from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import storage_pb2
from engine import spec
from tests.agent.conftest import run_command

SECRETS: dict[str, Any] = {
    "sftp_private_key": "the-private-key",
    "sftp_key_passphrase": "the-key-passphrase",
    "s3_secret_key": "the/secret+key",
    "ftp_password": "the ftp pass'word",
}
ACCESS: dict[str, Any] = {
    "local": storage_pb2.LocalConfig(path="/srv"),
    "sftp": storage_pb2.SftpConfig(host="h", username="u", path="/srv"),
    "s3": storage_pb2.S3Config(
        bucket="b",
        region="r",
        access_key="a",
        endpoint="https://e",
        prefix="p",
        part_size_bytes=6 << 20,
        addressing=storage_pb2.S3_ADDRESSING_PATH,
        ca_certificate="c",
        bind_address="192.0.2.7",
    ),
    "ftp": storage_pb2.FtpConfig(
        host="h",
        username="u",
        path="/srv",
        tls_version_max=storage_pb2.FTP_TLS_VERSION_1_2,
        skip_tls_verify=True,
        bind_address="192.0.2.7",
    ),
    "rclone": storage_pb2.RcloneConfig(remote="r", path="p", force=True, bind_address="192.0.2.7"),
}
EXPECTED: dict[str, Any] = {
    "local": spec.LocalConfig("/srv"),
    "sftp": spec.SftpConfig(
        "h", "u", "/srv", SECRETS["sftp_private_key"], key_passphrase=SECRETS["sftp_key_passphrase"]
    ),
    "s3": spec.S3Config(
        "b", "r", "a", SECRETS["s3_secret_key"], "https://e", "p", 8, 6 << 20, "path", "c", "192.0.2.7"
    ),
    "ftp": spec.FtpConfig(
        "h",
        "u",
        "/srv",
        SECRETS["ftp_password"],
        tls_version_max="1.2",
        skip_tls_verify=True,
        bind_address="192.0.2.7",
    ),
    "rclone": spec.RcloneConfig("r", "p", "/etc/somewhere/rclone.conf", 4, force=True, bind_address="192.0.2.7"),
}


def command_for(tmp_path: Path, kind: str) -> command_pb2.Command:
    command = run_command(tmp_path)
    named: dict[str, Any] = {kind: ACCESS[kind]}
    command.run.storage.MergeFrom(command_pb2.StorageAccess(**SECRETS, **named))
    return command


@pytest.mark.feature("S5", "S13", "S14", "S15", "D18")
@pytest.mark.parametrize("kind", sorted(ACCESS))
def test_every_type_of_storage_reaches_the_engine(tmp_path: Path, kind: str) -> None:
    config = Config(rclone_config_file=Path("/etc/somewhere/rclone.conf"))

    made = convert.to_spec(command_for(tmp_path, kind), config, "host", tmp_path / "control.jsonl")

    assert spec.load(spec.Operation, spec.dump(made)) == made
    found = {name: getattr(made.storage, name) for name in ACCESS}
    assert found == {**dict.fromkeys(ACCESS), kind: EXPECTED[kind]}
    assert not [secret for secret in SECRETS.values() if secret in repr(made)]


@pytest.mark.feature("S28")
@pytest.mark.parametrize("kind", sorted(ACCESS))
def test_every_secret_of_every_type_is_scrubbed(tmp_path: Path, kind: str) -> None:
    made = convert.to_spec(command_for(tmp_path, kind), Config(), "host", tmp_path / "control.jsonl")
    own = storage_secrets(made.storage)
    hidden = {one.name for one in fields(EXPECTED[kind]) if not one.repr}
    assert len(own) == len(hidden) == {"local": 0, "sftp": 2, "s3": 1, "ftp": 1, "rclone": 0}[kind]

    scrubber = Scrubber(secrets_of(made))
    for secret in own:
        for said in (f"login with {secret} failed", f"{secret!r}"):
            assert secret not in scrubber.text(said)
            assert MASK in scrubber.text(said)


@pytest.mark.parametrize(("kind", "field", "value"), [("s3", "addressing", 99), ("ftp", "tls_version_max", 99)])
def test_what_only_a_newer_controller_knows_is_refused(tmp_path: Path, kind: str, field: str, value: int) -> None:
    command = command_for(tmp_path, kind)
    setattr(getattr(command.run.storage, kind), field, value)
    with pytest.raises(CommandUnsupported):
        convert.to_spec(command, Config(), "host", tmp_path / "control.jsonl")


@pytest.mark.feature("S15")
def test_where_rclones_configuration_lies_is_a_setting_of_the_host(tmp_path: Path) -> None:
    assert Config().rclone_config_file == Path("/etc/backup-manager/rclone.conf")
    file = tmp_path / "agent.toml"
    file.write_text('rclone_config_file = "/root/rclone.conf"\n')
    assert load(file, {}).rclone_config_file == Path("/root/rclone.conf")
    file.write_text('rclone_config_file = "rclone.conf"\n')
    with pytest.raises(ConfigInvalid):
        load(file, {})


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.mark.feature("S14", "S15")
def test_rclone_is_offered_only_where_its_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_means, "PLACES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "rclone.conf"
    config.write_text("[box]\ntype = local\n")
    assert storage_means.look(config) == StorageMeans(("local", "sftp", "s3", "ftp"))
    program = tmp_path / "rclone"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    offered = ("local", "sftp", "s3", "ftp", "rclone")
    assert storage_means.look(config) == StorageMeans(offered, (digest("box"),), remotes_known=True)
    assert storage_means.look(tmp_path / "absent") == StorageMeans(offered, (), remotes_known=True)
    assert storage_means.look(tmp_path) == StorageMeans(offered), "what cannot be read says nothing"


@pytest.mark.feature("S15")
def test_of_rclones_configuration_only_digests_of_names_are_told(tmp_path: Path) -> None:
    config = tmp_path / "rclone.conf"
    config.write_text("# mine\n[box]\ntype = sftp\npass = hunter2\n\n[b2 east]  \r\nkey = [not one]\n[box]\n")
    told = storage_means.look(config)
    assert set(told.rclone_remotes) == {digest("box"), digest("b2 east")}
    config.write_text("# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\nAAAA[box]\n")
    assert storage_means.look(config) == StorageMeans(told.types)
    config.write_text("".join(f"[r{number}]\n" for number in range(storage_means.REMOTES_MAX + 1)))
    assert not storage_means.look(config).remotes_known
