"""Adding a storage of any type: by options for scripts, by questions for people; and what each type shows of itself."""

import pytest

from clients.cli import storage_fields
from clients.cli.failures import Usage
from clients.cli.storage_fields import FIELDS, checked
from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2
from tests.clients import rows
from tests.clients.bmctl import Bmctl
from tests.clients.canned import Canned

S3 = ("storage", "add", "s3", "cloud", "--bucket", "vm-backups", "--access-key", "AKID")


@pytest.mark.feature("S5", "S13", "S14", "S28")
def test_each_type_by_options_its_secret_from_the_environment_or_a_file(bmctl: Bmctl, canned: Canned, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    where = (
        "--endpoint",
        "https://s3.example.net:9000/",
        "--s3-concurrency",
        "4",
        "--part-size",
        "64",
        "--addressing",
        "path",
    )
    ended = [
        bmctl(*S3, *where, "--ca-file", str(secret), BMCTL_S3_SECRET_KEY="hush"),
        bmctl("storage", "add", "ftp", "old", "--host", "ftp.example.net", "--username", "bm", "--path", "/vm",
              "--tls-max", "1.2", "--skip-tls-verify", "--password-file", str(secret)),
        bmctl("storage", "add", "rclone", "box", "--remote", "box", "--path", "vm", "--force"),
    ]  # fmt: skip
    assert [one.code for one in ended] == [0, 0, 0], ended
    s3, ftp, rclone = canned.calls["CreateStorage"]
    assert s3.s3 == storage_pb2.S3Config(
        bucket="vm-backups", access_key="AKID", endpoint="https://s3.example.net:9000", concurrency=4,
        part_size_bytes=64 << 20, addressing=storage_pb2.S3_ADDRESSING_PATH, ca_certificate="hush\n",
    )  # fmt: skip
    assert ftp.ftp == storage_pb2.FtpConfig(
        host="ftp.example.net",
        username="bm",
        path="/vm",
        tls_version_max=storage_pb2.FTP_TLS_VERSION_1_2,
        skip_tls_verify=True,
    )
    assert rclone.rclone == storage_pb2.RcloneConfig(remote="box", path="vm", force=True)
    assert (s3.secrets.s3_secret_key, ftp.secrets.ftp_password) == ("hush", "hush")
    assert not rclone.secrets.ByteSize()
    assert not any("hush" in one.out + one.err for one in ended)


@pytest.mark.feature("S28")
def test_a_script_is_told_what_is_missing_and_asked_nothing(bmctl: Bmctl, canned: Canned) -> None:
    for arguments, option in (
        (("storage", "add", "s3"), "NAME"),
        (("storage", "add", "s3", "cloud"), "--bucket"),
        (S3, "--secret-key-file"),
        ((*S3, "--endpoint", "s3.example.net"), "--endpoint"),
    ):
        ended = bmctl(*arguments, BMCTL_OUTPUT="json")
        assert (ended.code, ended.error["facts"]["field"]) == (2, option)
    assert not canned.calls["CreateStorage"]


@pytest.mark.feature("S5", "S24", "S28")
def test_a_person_is_asked_for_each_field_corrected_at_once_and_offered_a_test(bmctl: Bmctl, canned: Canned) -> None:
    canned.jobs[rows.JOB].state = canned.jobs[rows.FAILED_JOB].state
    with bmctl.on_terminal("storage", "add") as terminal:
        for asked, answer in (
            ("Type [sftp]: ", "s3"),
            ("Name: ", "no spaces, please"),
            ("1 to 64 letters", "cloud"),
            ("Endpoint: ", "s3.example.net"),
            ("a URL such as", "https://s3.example.net"),
            ("Region [us-east-1]: ", ""),
            ("Bucket: ", "vm-backups"),
            ("Prefix: ", ""),
            ("Access key: ", "AKID"),
            ("Encrypt [y/N]", "n"),
            ("The secret key: ", "hush"),
            ("Test it now from which one? `-` for none [hv1]: ", ""),
        ):
            terminal.wait_for(asked)
            terminal.write(f"{answer}\n")
        terminal.end()
        assert "hush" not in terminal.screen()
    request = canned.calls["CreateStorage"][0]
    assert request.name == "cloud"
    assert request.s3 == storage_pb2.S3Config(
        bucket="vm-backups", access_key="AKID", endpoint="https://s3.example.net", region="us-east-1"
    )
    assert request.secrets.s3_secret_key == "hush"
    assert canned.calls["TestStorage"][0].hypervisor_id == "hv1"


@pytest.mark.feature("S3", "S13", "S14", "S28")
@pytest.mark.parametrize(
    ("kind", "dialog", "config"),
    [
        (
            "ftp",
            (("Host: ", "ftp://h"), ("a name or an address alone", "ftp.example.net"), ("Port [21]: ", "0"),
             ("a number from 1 to 65535", ""), ("Username: ", "bm"), ("Path: ", "vm"), ("an absolute path", "/vm"),
                ("Tls disabled [y/N]", "n"),
             ("Encrypt [y/N]", "n"), ("assword: ", "hush")),
            storage_pb2.FtpConfig(host="ftp.example.net", port=21, username="bm", path="/vm"),
        ),
        (
            "rclone",
            (("Remote: ", "box:"), ("without a colon", "box"), ("Path: ", "vm"), ("Encrypt [y/N]", "n")),
            storage_pb2.RcloneConfig(remote="box", path="vm"),
        ),
        (
            "local",
            (("Path: ", "srv"), ("an absolute path", "/srv/nas"), ("Allow it [y/N]", "y"), ("Encrypt [y/N]", "n")),
            storage_pb2.LocalConfig(path="/srv/nas"),
        ),
    ],
)  # fmt: skip
def test_a_person_is_led_through_the_other_types_too(bmctl: Bmctl, canned: Canned, kind, dialog, config) -> None:
    with bmctl.on_terminal("storage", "add") as terminal:
        for asked, answer in (("Type [sftp]: ", kind), ("Name: ", "old"), *dialog, ("`-` for none [hv1]: ", "-")):
            terminal.wait_for(asked)
            terminal.write(f"{answer}\n")
        assert terminal.end() == 0
        assert "hush" not in terminal.screen()
    request = canned.calls["CreateStorage"][0]
    assert getattr(request, kind) == config
    assert request.secrets.ftp_password == ("hush" if kind == "ftp" else "")
    assert request.allow_local == (kind == "local")
    assert not canned.calls["TestStorage"]


@pytest.mark.feature("S28", "S13")
def test_update_keeps_secrets_that_are_not_given_and_refuses_settings_of_another_type(
    bmctl: Bmctl, canned: Canned
) -> None:
    canned.storages[1].ftp.CopyFrom(storage_pb2.FtpConfig(host="h", username="bm", path="/vm"))
    assert bmctl("storage", "update", "offsite", "--port", "2121", "--skip-tls-verify").code == 0
    request = canned.calls["UpdateStorage"][0]
    assert list(request.update_mask.paths) == ["ftp"]
    assert (request.storage.ftp.port, request.storage.ftp.skip_tls_verify, request.storage.ftp.host) == (
        2121,
        True,
        "h",
    )
    assert not request.secrets.ByteSize()
    assert bmctl("storage", "update", "offsite", "--password-file", "-", stdin="new\n").code == 0
    assert canned.calls["UpdateStorage"][1].secrets == storage_service_pb2.StorageSecrets(ftp_password="new")
    wrong = bmctl("storage", "update", "offsite", "--bucket", "b", BMCTL_OUTPUT="json")
    assert wrong.error["facts"] == {"field": "--bucket", "problem": "a storage of the type ftp has no such setting"}


@pytest.mark.feature("S2")
def test_types_shows_the_matrix_and_show_what_is_particular(bmctl: Bmctl, canned: Canned) -> None:
    canned.storages[0].s3.CopyFrom(
        storage_pb2.S3Config(bucket="vm", prefix="east", access_key="AKID", region="eu-central-1")
    )
    shown = bmctl("storage", "show", "nas").out
    for part in ("s3://vm/east", "AWS", "eu-central-1", "AKID", "8 at once"):
        assert part in shown
    shown = bmctl("storage", "types").out
    lines = {line[:26].strip(): line[26:].split() for line in shown.splitlines()}
    assert lines["Can"] == ["local", "s3"]
    assert lines["resume"] == ["-", "✓"]
    assert "as the server" in shown


def test_every_field_of_the_interface_has_an_option_and_every_option_a_field() -> None:
    for kind, fields in FIELDS.items():
        config = storage_service_pb2.CreateStorageRequest.DESCRIPTOR.fields_by_name[kind].message_type
        assert config is not None
        assert {field.name for field in fields} == set(config.fields_by_name), kind
    kinds = storage_service_pb2.CreateStorageRequest.DESCRIPTOR.oneofs_by_name["config"].fields
    assert {one.name for one in kinds} == set(FIELDS) == set(storage_fields.ABOUT)


@pytest.mark.parametrize(
    ("kind", "name", "wrong", "right"),
    [
        ("sftp", "host", "sftp://h", "h"),
        ("sftp", "port", "0", "22"),
        ("sftp", "path", "srv", "/srv"),
        ("sftp", "path", "/srv/../etc", "/srv"),
        ("sftp", "bind_address", "eth0", "192.0.2.7"),
        ("s3", "bucket", "b/c", "b.c"),
        ("s3", "part_size_bytes", "3", "5"),
        ("s3", "endpoint", "https://user@host", "http://host:9000"),
        ("rclone", "remote", "box:", "box"),
        ("ftp", "tls_version_max", "1.1", "1.3"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_given(kind: str, name: str, wrong: str, right: str) -> None:
    field = next(one for one in FIELDS[kind] if one.name == name)
    checked(field, right)
    with pytest.raises(Usage) as caught:
        checked(field, wrong)
    assert caught.value.facts["field"] == field.flag
