"""rclone as a storage, on the real program: the contract, which remotes are accepted, and every way the program ends."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from engine.errors import (
    InvalidSpec,
    ObjectNotFound,
    RcloneConfigInvalid,
    RcloneMissing,
    RcloneRemoteRefused,
    StorageError,
    StoragePathInvalid,
    StorageUnreachable,
)
from engine.spec import StorageSpec, dump
from engine.storage.base import Storage
from engine.storage.open import open_storage
from engine.storage.rclone import RcloneStorage
from engine.storage.rclone_daemon import Patience, environment
from engine.storage.rclone_errors import failure
from engine.storage.rclone_remote import Remote, hints_for, why_impossible, why_refused
from engine.storage.rclone_wire import Lost, Refused, UploadStream
from engine.units import MIB
from tests.engine.rig import Rig, digest, reason
from tests.servers.guest import DiskFile
from tests.servers.rclone import RcloneRemotes, obscured, s3_remote, sftp_remote
from tests.servers.s3 import BucketPlace
from tests.servers.sshd import Sshd
from tests.servers.weed import Weed
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace
from tests.waiting import wait_until

QUICK = Patience(connect_seconds=3, stall_seconds=5, retries=1, attempts=3, pause_seconds=0.01, reading_attempts=3)


@dataclass(frozen=True)
class RcloneFolder(FolderPlace):
    """rclone shows neither links nor pipes, so who lists by it cannot know of them; they have a test of their own below."""

    def plant_odd(self, folder: str) -> list[str]:
        return []

    def outside_is_whole(self) -> bool:
        return True


@dataclass(frozen=True)
class RcloneBucket(BucketPlace):
    """A bucket that rclone writes to; `bucket` and `prefix` are where the other client looks."""

    key_prefix: str = ""

    def open(self) -> Storage:  # type: ignore[override]  # another backend's than the place's own
        return open_storage(self.spec)

    @property
    def where(self) -> str:  # type: ignore[override]  # a property is as good as a field to who reads it
        return f"{self.bucket}/{self.key_prefix}"

    @property
    def bucket(self) -> str:
        return self.server.shared_bucket

    @property
    def prefix(self) -> str:
        return f"{self.key_prefix}/"

    def plant(self, name: bytes, data: bytes = b"?") -> None:
        if not {b"", b".", b".."} & set(name.split(b"/")):  # rclone would look for folders of such names
            super().plant(name, data)

    def plant_unfinished(self, name: str) -> None:
        self.plant(f"{name}.abc.part".encode(), b"half")


def bucket_place(weed: Weed, remotes: RcloneRemotes) -> RcloneBucket:
    remotes.add(cloud=s3_remote(weed))
    prefix = f"rclone/{os.urandom(6).hex()}"
    config = remotes.config("cloud", f"{weed.shared_bucket}/{prefix}")
    return RcloneBucket(weed, StorageSpec("r", "i", rclone=config), None, None, prefix)  # type: ignore[arg-type]  # no patience: it opens no S3Storage


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def remotes(server, tmp_path) -> RcloneRemotes:
    """`disk` is a folder of this machine, `nas` an SSH server; `sealed` and `named` lie on the disk."""
    return RcloneRemotes(
        tmp_path / "rclone.conf",
        disk={"type": "local"},
        nas=sftp_remote(server, tmp_path),
        sealed={"type": "crypt", "remote": f"disk:{tmp_path}/sealed", "password": obscured("a passphrase")},
        named={"type": "alias", "remote": f"disk:{tmp_path}"},
    )


@pytest.mark.feature("S14")
@pytest.mark.share(6)  # each test on one of the remotes; `make kill` has all
class TestRclone(StorageContract):
    @pytest.fixture(params=["disk", "nas", "bucket"])
    def place(self, request, server, remotes, tmp_path):
        if request.param == "bucket":
            return bucket_place(request.getfixturevalue("weed"), remotes)
        folder = tmp_path / "storage"
        spec = StorageSpec("r", "i", rclone=remotes.config(request.param, folder))
        return RcloneFolder(spec, folder, server.kill_sessions if request.param == "nas" else None)


def test_links_and_pipes_are_not_shown(remotes, tmp_path):
    place = FolderPlace(StorageSpec("r", "i"), tmp_path / "storage")
    for remote in ("disk", "nas"):
        with RcloneStorage(remotes.config(remote, place.folder)) as storage:
            storage.put(f"{remote}/object", b"x")
            place.plant_odd(remote)
            assert [entry.name for entry in storage.list(remote)] == [f"{remote}/object"]
            assert list(storage.folders(remote)) == []
            assert place.outside_is_whole()


@pytest.mark.parametrize("remote", ["sealed", "named"])
def test_a_remote_on_a_remote_works(remotes, tmp_path, remote):
    with RcloneStorage(remotes.config(remote, "backups")) as storage:
        data = os.urandom(3 * MIB)
        storage.put("d/object", data)
        assert storage.get("d/object") == data
        reader = storage.open("d/object")
        assert reader.read_at(1 * MIB + 7, 1000) == data[1 * MIB + 7 :][:1000]
        assert [(entry.name, entry.size_bytes) for entry in storage.list()] == [("d/object", 3 * MIB)]
        storage.delete("d/object")
        assert list(storage.list()) == []


def test_the_folder_is_made_but_not_its_parent(remotes, tmp_path):
    for remote in ("disk", "nas"):
        with pytest.raises(ObjectNotFound):
            RcloneStorage(remotes.config(remote, tmp_path / remote), make=False)
        assert not (tmp_path / remote).exists()
        RcloneStorage(remotes.config(remote, tmp_path / remote)).close()
        assert (tmp_path / remote).is_dir()
        with pytest.raises(StoragePathInvalid) as caught:
            RcloneStorage(remotes.config(remote, tmp_path / "no" / "parent"))
        assert caught.value.facts["cause"] == "missing"
        assert not (tmp_path / "no").exists()


# ---- the configuration and the program ----------------------------------------------------------------------------------


@pytest.mark.feature("S15")
class TestConfiguration:
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_a_file_that_others_may_read_is_refused(self, remotes, tmp_path, mode):
        remotes.path.chmod(mode)
        with pytest.raises(RcloneConfigInvalid) as caught:
            RcloneStorage(remotes.config("disk", tmp_path / "storage"))
        assert caught.value.facts["path"] == str(remotes.path)
        assert "0600" in caught.value.facts["problem"]

    def test_a_file_of_somebody_else_is_refused(self, remotes, tmp_path):
        os.chown(remotes.path, 12345, -1)
        with pytest.raises(RcloneConfigInvalid):
            RcloneStorage(remotes.config("disk", tmp_path / "storage"))

    @pytest.mark.parametrize("path", ["nothing", "."])
    def test_what_is_no_file_is_refused(self, remotes, tmp_path, path):
        with pytest.raises(RcloneConfigInvalid):
            RcloneStorage(remotes.config("disk", tmp_path / "storage", config_path=str(tmp_path / path)))

    def test_a_remote_that_it_does_not_have_is_named(self, remotes, tmp_path):
        with pytest.raises(RcloneConfigInvalid) as caught:
            RcloneStorage(remotes.config("absent", tmp_path / "storage"))
        assert "absent" in caught.value.facts["problem"]

    def test_an_encrypted_file_that_nothing_opens_is_told(self, remotes, tmp_path):
        remotes.path.write_text("# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\n" + "A" * 80 + "\n")
        with pytest.raises(RcloneConfigInvalid) as caught:
            RcloneStorage(remotes.config("disk", tmp_path / "storage"))
        assert "encrypted" in caught.value.facts["problem"]

    def test_it_is_never_changed(self, remotes, tmp_path):
        before = (remotes.path.read_bytes(), remotes.path.stat().st_mtime_ns)
        with RcloneStorage(remotes.config("nas", tmp_path / "storage")) as storage:
            storage.put("object", b"x")
        assert (remotes.path.read_bytes(), remotes.path.stat().st_mtime_ns) == before

    def test_no_secret_is_in_an_argument_an_error_or_a_log(self, remotes, tmp_path, caplog):
        caplog.set_level(logging.DEBUG)
        remotes.add(bad={"type": "s3", "provider": "Other", "access_key_id": "accesskey-7", "secret_access_key": "hush-hush-8",
                         "endpoint": "http://127.0.0.1:1"})  # fmt: skip
        with RcloneStorage(remotes.config("disk", tmp_path / "storage")) as storage:
            process = psutil.Process(storage._daemon.pid)
            password = process.environ()["RCLONE_RC_PASS"]
            assert not any(password in argument for argument in process.cmdline())
        with pytest.raises(StorageError) as caught:
            RcloneStorage(remotes.config("bad", "bucket/x"), QUICK)
        for secret in (password, "hush-hush-8", "accesskey-7"):
            assert secret not in caplog.text + str(caught.value) + repr(caught.value.facts)
        assert caught.value.reason == "STORAGE_UNREACHABLE"
        assert caught.value.facts["cause"] == "refused"

    def test_what_the_host_sets_for_rclone_or_aws_does_not_reach_it(self, remotes, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere")
        monkeypatch.setenv("RCLONE_DRY_RUN", "true")
        monkeypatch.setenv("RCLONE_BIND", "192.0.2.1")
        monkeypatch.setenv("RCLONE_CONFIG_PASS", "opens the file")
        found = environment(remotes.config("disk", "/x", s3_concurrency=7), "word", tmp_path, Patience())
        assert not {"AWS_CA_BUNDLE", "RCLONE_DRY_RUN", "RCLONE_BIND"} & set(found)
        assert found["RCLONE_CONFIG_PASS"] == "opens the file"
        assert found["RCLONE_S3_UPLOAD_CONCURRENCY"] == "7"

    def test_a_host_without_rclone_is_told_what_to_do(self, remotes, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
        with pytest.raises(RcloneMissing) as caught:
            RcloneStorage(remotes.config("disk", tmp_path / "storage"))
        assert "Install rclone" in caught.value.message

    @pytest.mark.parametrize("remote", ["", "a:b", ":sftp,host=evil", "-x", "a,b", "a/b"])
    def test_what_is_no_name_of_a_remote_is_an_invalid_field(self, remotes, remote):
        with pytest.raises(InvalidSpec) as caught:
            RcloneStorage(remotes.config(remote, "x"))
        assert caught.value.facts["field"] == "rclone.remote"


@pytest.mark.feature("D18", "D19")
def test_connections_come_from_the_bind_address(remotes, tmp_path):
    folder = tmp_path / "storage"
    with RcloneStorage(remotes.config("nas", folder, bind_address="127.0.0.9")) as storage:
        storage.put("object", b"x")
        ends = {
            one.laddr.ip
            for one in psutil.Process(storage._daemon.pid).net_connections()
            if one.raddr and one.laddr.port
        }
        assert "127.0.0.9" in ends
    with pytest.raises(StorageError):
        RcloneStorage(remotes.config("nas", folder, bind_address="192.0.2.77"), QUICK)


# ---- which remotes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "features", "kind"),
    [
        ({"type": "mega"}, {"PutStream": True}, "mega"),
        ({"type": "dropbox"}, {"PutStream": True}, "dropbox"),
        ({"type": "s3", "storage_class": "DEEP_ARCHIVE"}, {"PutStream": True}, "s3"),
        ({"type": "s3", "storage_class": "GLACIER"}, {"PutStream": True}, "s3"),
        ({"type": "s3", "storage_class": "GLACIER_IR"}, {"PutStream": True}, None),
        ({"type": "azureblob", "access_tier": "archive"}, {"PutStream": True}, "azureblob"),
        ({"type": "azureblob", "access_tier": "cool"}, {"PutStream": True}, None),
        ({"type": "http"}, {"PutStream": False}, "http"),
        ({"type": "sftp"}, {"PutStream": True}, None),
    ],
)
@pytest.mark.feature("S16", "S17")
def test_remotes_that_are_no_place_for_backups_are_refused(section, features, kind):
    found = why_refused(Remote((section,), features))
    assert (found and found[0]) == kind


@pytest.mark.feature("S17")
def test_a_refused_remote_is_looked_for_below_others_and_can_be_forced(remotes, tmp_path):
    remotes.add(
        slow={"type": "mega", "user": "u", "pass": obscured("p")},
        outer={"type": "alias", "remote": "inner:x"},
        inner={"type": "crypt", "remote": "slow:y", "password": obscured("p")},
        joined={"type": "union", "upstreams": f"disk:{tmp_path} slow:z"},
    )
    for remote in ("slow", "outer", "joined"):
        with pytest.raises(RcloneRemoteRefused) as caught:
            RcloneStorage(remotes.config(remote, "x"))
        assert caught.value.facts["kind"] == "mega"
        assert "force" in caught.value.message
    remotes.add(cold={"type": "alias", "remote": f"disk:{tmp_path}", "storage_class": "GLACIER"})
    with pytest.raises(RcloneRemoteRefused):
        RcloneStorage(remotes.config("cold", "x"))
    RcloneStorage(remotes.config("cold", "x", force=True)).close()


def test_a_remote_that_cannot_rename_is_refused_even_if_forced():
    assert why_impossible(Remote(({"type": "sia"},), {"PutStream": True})) is not None
    assert why_impossible(Remote(({"type": "s3"},), {"PutStream": True})) is None
    assert why_impossible(Remote(({"type": "crypt"}, {"type": "s3"}), {"PutStream": True})) is not None


@pytest.mark.feature("S18")
def test_a_hint_names_the_better_way():
    (hint,) = hints_for(Remote(({"type": "crypt"}, {"type": "s3"}), {}))
    assert "S3" in hint
    (hint,) = hints_for(Remote(({"type": "webdav", "url": "https://u1.your-storagebox.de"},), {}))
    assert "port 23" in hint
    assert hints_for(Remote(({"type": "sftp"},), {})) == ()


@pytest.mark.parametrize(
    ("text", "kind", "cause"),
    [
        ("couldn't connect SSH: dial tcp: lookup nas.invalid: no such host", "STORAGE_UNREACHABLE", "dns"),
        ("couldn't connect SSH: dial tcp 127.0.0.1:1: connect: connection refused", "STORAGE_UNREACHABLE", "refused"),
        ("couldn't connect SSH: ssh: handshake failed: ssh: unable to authenticate", "STORAGE_LOGIN_FAILED", "key"),
        ("couldn't connect SSH: ssh: handshake failed: knownhosts: key mismatch", "STORAGE_HOST_KEY_CHANGED", ""),
        ("update: close failed: sftp: no space left on device", "STORAGE_FULL", ""),
        ("googleapi: Error 403: storageQuotaExceeded", "STORAGE_FULL", "quota"),
        ("SignatureDoesNotMatch: The request signature\n\tstatus code: 403", "STORAGE_LOGIN_FAILED", "password"),
        ("NoSuchBucket: gone\n\tstatus code: 404", "STORAGE_BUCKET_NOT_FOUND", ""),
        (
            "Get https://x/?X-Amz-Signature=abc: x509: certificate signed by unknown authority",
            "STORAGE_UNTRUSTED",
            "untrusted",
        ),
        ("didn't find section in config file", "RCLONE_CONFIG_INVALID", ""),
        ("open /x: permission denied", "STORAGE_PERMISSION_DENIED", ""),
        ("something with hush-hush", "STORAGE_FAILED", ""),
    ],
)
def test_what_rclone_says_becomes_reason_and_cause(text, kind, cause):
    found = failure(Refused(500, text), label="l", step="s", name="n", config_path="c", secrets=["hush-hush"])
    assert (found.reason, found.facts.get("cause", "")) == (kind, cause)
    assert "hush-hush" not in str(found)
    assert "Signature=" not in str(found)


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# ---- ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C12")
@pytest.mark.parametrize("remote", ["disk", "nas"])
def test_rclone_killed_in_an_upload_leaves_nothing_under_the_name_and_is_started_again(remotes, tmp_path, remote):
    with RcloneStorage(remotes.config(remote, tmp_path / "storage"), QUICK) as storage:

        def upload() -> None:
            with storage.create("d/object") as sink:
                for number in range(16):
                    sink.write(os.urandom(1 * MIB))
                    if number == 8:
                        psutil.Process(storage._daemon.pid).kill()

        with pytest.raises(StorageUnreachable):
            upload()
        assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []
        storage.put("d/object", b"after")
        assert storage.get("d/object") == b"after"


def test_rclone_killed_between_requests_costs_nothing(remotes, tmp_path):
    with RcloneStorage(remotes.config("disk", tmp_path / "storage"), QUICK) as storage:
        storage.put("object", b"content")
        for call in (
            lambda: storage.get("object"),
            lambda: [entry.name for entry in storage.list()],
            lambda: storage.put("other", b"x"),
        ):
            process = psutil.Process(storage._daemon.pid)
            process.kill()
            wait_until(partial(has_ended, process), 10, "its end")
            call()
        assert sorted(entry.name for entry in storage.list()) == ["object", "other"]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_rclone_ends_with_its_engine(remotes, tmp_path, signum):
    program = (
        "import sys; from engine.spec import *; from engine.storage.rclone import RcloneStorage;"
        "s = RcloneStorage(load(RcloneConfig, sys.stdin.readline())); print(s._daemon.pid, flush=True); sys.stdin.readline()"
    )
    engine = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert engine.stdin is not None
    assert engine.stdout is not None
    try:
        engine.stdin.write(dump(remotes.config("disk", tmp_path / "storage")) + "\n")
        engine.stdin.flush()
        rclone = psutil.Process(int(engine.stdout.readline()))
        engine.send_signal(signum)
        engine.wait(10)
        wait_until(partial(has_ended, rclone), 10, "rclone's end")
    finally:
        engine.kill()
        engine.communicate()


@pytest.mark.feature("C12")
def test_a_form_that_is_cut_in_its_first_bytes_is_no_object(remotes, tmp_path):
    """rclone takes what it could read of a short stream for the whole, unless it is told to keep nothing back."""
    with RcloneStorage(remotes.config("disk", tmp_path / "storage")) as storage:
        stream = storage.wire().upload(storage.fs, "d", "object", {}, 10)
        stream.send(b"x" * 1000)
        stream.abort(10)
        assert list(storage.list()) == []


@pytest.mark.feature("C12", "S18")
def test_on_s3_an_upload_that_is_cut_or_whose_rclone_is_killed_leaves_nothing(weed, remotes):
    place = bucket_place(weed, remotes)
    assert place.spec.rclone is not None
    with RcloneStorage(place.spec.rclone, QUICK) as storage:
        assert "S3" in storage.hints[0]
        for size in (1000, 12 * MIB):  # a part of a part, and more than one part
            stream = storage.wire().upload(storage.fs, "d", "object", {}, 10)
            stream.send(b"x" * size)
            stream.abort(10)
            assert place.keys() == []

        def upload() -> None:
            with storage.create("d/object") as sink:
                for number in range(24):
                    sink.write(os.urandom(1 * MIB))
                    if number == 16:
                        psutil.Process(storage._daemon.pid).kill()

        with pytest.raises(StorageUnreachable):
            upload()
        assert place.keys() == []
        data = os.urandom(12 * MIB)
        with storage.create("d/object") as sink:
            sink.write(data)
        assert storage.get("d/object") == data
        assert place.keys() == [f"{place.prefix}d/object"]


@pytest.mark.feature("S14", "B2")
def test_a_server_is_backed_up_and_restored(tmp_path, remotes, libvirtd, blank_domain):
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)])
    rig = Rig.make(tmp_path, libvirtd.uri)
    rig.target = replace(rig.target, local=None, rclone=remotes.config("nas", tmp_path / "storage"))
    domain.write("vda", 0, 6 * MIB, 7)
    rig.back_up(domain.uuid)
    domain.write("vda", 2 * MIB, 1 * MIB, 9)
    second = rig.back_up(domain.uuid)
    assert second["disks"][0]["type"] == "incremental"
    expected = digest(tmp_path / "vda.qcow2", "qcow2")
    restored = rig.restore_to(tmp_path / "out", domain.uuid, second["backup_id"])
    assert digest(restored["vda"]) == expected
    assert reason(rig.verify(domain.uuid)) == ""


@pytest.mark.feature("C12", "P8")
def test_a_small_object_whose_answer_was_lost_is_sent_again_and_there_once(remotes, tmp_path, monkeypatch):
    real = UploadStream.finish
    lost: list[UploadStream] = []

    def lose_once(stream, seconds):
        real(stream, seconds)
        if not lost:
            lost.append(stream)
            raise Lost("the answer")

    monkeypatch.setattr(UploadStream, "finish", lose_once)
    with RcloneStorage(remotes.config("disk", tmp_path / "storage"), QUICK) as storage:
        upload = storage.create("d/object")
        with upload as sink:
            sink.write(b"content")
        assert upload.resent_bytes == len(b"content")
        assert storage.get("d/object") == b"content"
    assert [path.name for path in (tmp_path / "storage" / "d").iterdir()] == ["object"]
