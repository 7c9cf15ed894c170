"""SFTP as a storage, on a real sshd: the contract, who is let in, and every way a connection ends."""

import base64
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from engine.errors import (
    InvalidSpec,
    ObjectExists,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageHostKeyChanged,
    StorageLoginFailed,
    StorageUnreachable,
)
from engine.spec import SftpConfig, StorageSpec
from engine.storage.sftp import SftpStorage
from engine.storage.sftp_connect import Patience
from engine.units import KIB, MIB
from tests.servers.proxy import Direction, Proxy
from tests.servers.small_disk import remount_read_only, small_disk
from tests.servers.sshd import Sshd, free_port, key_pair
from tests.storage_contract import StorageContract
from tests.storage_places import FolderPlace
from tests.waiting import wait_until

QUICK = Patience(connect_seconds=10, stall_seconds=10, attempts=3, pause_seconds=0.01, enduring_attempts=3)
SHORT = Patience(connect_seconds=1, stall_seconds=1, attempts=2, pause_seconds=0.01, enduring_attempts=2)
WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory) -> Iterator[Sshd]:
    """A server of the bare protocol."""
    with Sshd(tmp_path_factory.mktemp("bare"), denied=("limits", "fsync", "statvfs", "posix-rename")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path) -> Iterator[Sshd]:
    """A server that a test may break."""
    with Sshd(tmp_path) as server:
        yield server


def behind(proxy: Proxy, config: SftpConfig, patience: Patience = QUICK) -> SftpStorage:
    return SftpStorage(replace(config, port=proxy.port), patience)


@pytest.mark.feature("S4")
class TestSftp(StorageContract):
    @pytest.fixture
    def place(self, server, tmp_path):
        folder = tmp_path / "storage"
        config = server.config(folder)
        return FolderPlace(
            StorageSpec(repository_id="r", installation_id="i", sftp=config), folder, server.kill_sessions
        )


@pytest.mark.feature("S4")
class TestSftpWithoutExtensions(StorageContract):
    """A server of the bare protocol: requests of 32 KiB, no fsync, no statvfs."""

    @pytest.fixture
    def place(self, bare_server, tmp_path):
        folder = tmp_path / "storage"
        config = bare_server.config(folder)
        return FolderPlace(
            StorageSpec(repository_id="r", installation_id="i", sftp=config), folder, bare_server.kill_sessions
        )

    def test_usage_is_that_of_the_file_system(self, storage, place):
        assert storage.usage() is None  # what the ability promises, a bare server cannot keep


# ---- who is let in ------------------------------------------------------------------------------------------------------


@pytest.mark.feature("S4")
class TestHostKey:
    def test_it_is_learnt_where_none_is_pinned(self, server, tmp_path):
        with SftpStorage(server.config(tmp_path / "storage", host_key="")) as storage:
            assert storage.host_key == server.host_key

    def test_a_comment_beside_the_pinned_key_is_dropped(self, server, tmp_path):
        with SftpStorage(server.config(tmp_path / "storage", host_key=f" {server.host_key}  root@nas\n")) as storage:
            assert storage.host_key == server.host_key

    def test_another_key_is_refused_before_any_login(self, server, tmp_path):
        _, other = key_pair()
        logged = server.log_path.read_text()
        with pytest.raises(StorageHostKeyChanged) as caught:
            SftpStorage(server.config(tmp_path / "storage", host_key=other))
        assert caught.value.reason == "STORAGE_HOST_KEY_CHANGED"
        shown = fingerprint(server.host_key, tmp_path)
        assert caught.value.facts["seen"] == f"ssh-ed25519 {shown}"
        assert caught.value.facts["pinned"] == f"ssh-ed25519 {fingerprint(other, tmp_path)}"
        assert "Accepted" not in server.log_path.read_text()[len(logged) :]
        assert not (tmp_path / "storage").exists()

    def test_a_learnt_key_is_pinned_for_the_next_connection(self, own_server, tmp_path):
        with SftpStorage(own_server.config(tmp_path / "storage", host_key=""), QUICK) as storage:
            own_server.change_host_key()
            with pytest.raises(StorageHostKeyChanged):
                storage.put("object", b"x")

    def test_of_several_keys_the_pinned_one_is_asked_for(self, tmp_path):
        rsa_path = tmp_path / "rsa"
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(rsa_path)], check=True)
        rsa_key = " ".join(rsa_path.with_suffix(".pub").read_text().split()[:2])
        with Sshd(tmp_path, options=[f"HostKey {rsa_path}"]) as server:
            for pinned in (rsa_key, server.host_key):
                with SftpStorage(server.config(tmp_path / "storage", host_key=pinned)) as storage:
                    assert storage.host_key == pinned

    @pytest.mark.parametrize("text", ["nonsense", "ssh-ed25519", "ssh-ed25519 ???", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA"])
    def test_what_is_no_key_is_an_invalid_spec(self, server, tmp_path, text):
        with pytest.raises(InvalidSpec) as caught:
            SftpStorage(server.config(tmp_path / "storage", host_key=text))
        assert caught.value.facts["field"] == "sftp.host_key"


@pytest.mark.feature("S4")
class TestLogin:
    @pytest.mark.parametrize("passphrase", ["", "correct horse"])
    @pytest.mark.parametrize("form", ["OpenSSH", "TraditionalOpenSSL", "PKCS8"])
    @pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
    def test_every_kind_of_key_is_read(self, server, tmp_path, kind, form, passphrase):
        if (kind, form) == ("ed25519", "TraditionalOpenSSL"):
            return  # there is no such thing
        private, public = make_key(kind, form, passphrase)
        authorized = server.folder / "authorized_keys"
        before = authorized.read_text()
        authorized.write_text(before + public + "\n")
        try:
            config = server.config(tmp_path / "storage", private_key=private, key_passphrase=passphrase)
            with SftpStorage(config) as storage:
                storage.put("object", b"x")
        finally:
            authorized.write_text(before)

    def test_a_passphrase_for_a_key_without_one_does_no_harm(self, server, tmp_path):
        SftpStorage(server.config(tmp_path / "storage", key_passphrase="superfluous")).close()

    @pytest.mark.parametrize("form", ["OpenSSH", "PKCS8"])
    @pytest.mark.parametrize("given", ["", "wrong battery staple"])
    def test_a_wrong_passphrase_is_a_failed_login_that_tells_nothing(self, server, tmp_path, form, given):
        private, _ = make_key("ed25519", form, "correct horse")
        with pytest.raises(StorageLoginFailed) as caught:
            SftpStorage(server.config(tmp_path / "storage", private_key=private, key_passphrase=given))
        assert_tells_nothing(caught.value, [*private.splitlines(), "correct horse", "wrong battery staple"])

    @pytest.mark.parametrize("text", ["", "not a key", "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n"])
    def test_what_is_no_key_is_a_failed_login(self, server, tmp_path, text):
        with pytest.raises(StorageLoginFailed) as caught:
            SftpStorage(server.config(tmp_path / "storage", private_key=text))
        assert "c2VjcmV0" not in str(caught.value)

    def test_a_key_the_server_does_not_know_is_refused(self, server, tmp_path):
        private, _ = key_pair()
        with pytest.raises(StorageLoginFailed) as caught:
            SftpStorage(server.config(tmp_path / "storage", private_key=private))
        assert caught.value.reason == "STORAGE_LOGIN_FAILED"
        assert_tells_nothing(caught.value, private.splitlines()[1:-1])

    def test_a_user_the_server_does_not_know_is_refused(self, server, tmp_path):
        with pytest.raises(StorageLoginFailed):
            SftpStorage(server.config(tmp_path / "storage", username="nobody-of-that-name"))

    def test_neither_spec_nor_storage_shows_the_key(self, server, tmp_path):
        config = server.config(tmp_path / "storage", key_passphrase="correct horse")
        with SftpStorage(config) as storage:
            for text in (repr(config), storage.label, repr(storage)):
                assert "PRIVATE" not in text
                assert "horse" not in text


@pytest.mark.feature("S4")
class TestUnreachable:
    def test_a_refused_port(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            SftpStorage(server.config(tmp_path / "storage", port=free_port()))
        assert caught.value.facts["step"] == "connect"

    def test_an_unknown_host(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            SftpStorage(server.config(tmp_path / "storage", host="no-such-host.invalid"), SHORT)
        assert caught.value.facts["step"] == "resolve"

    def test_a_host_name_that_cannot_be_one(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            SftpStorage(server.config(tmp_path / "storage", host="a" * 70 + ".invalid"), SHORT)
        assert caught.value.facts["step"] == "resolve"

    def test_a_server_that_says_nothing_times_out(self, server, tmp_path):
        with Proxy(server.port) as proxy:
            proxy.stall()
            begin = time.monotonic()
            with pytest.raises(StorageUnreachable) as caught:
                behind(proxy, server.config(tmp_path / "storage"), SHORT)
            assert 0.9 < time.monotonic() - begin < 10
        assert "handshake" in caught.value.facts["step"]

    def test_a_server_that_hangs_up_at_once(self, server, tmp_path):
        with Proxy(server.port) as proxy:
            proxy.refuse()
            with pytest.raises(StorageUnreachable) as caught:
                behind(proxy, server.config(tmp_path / "storage"))
        assert caught.value.facts["step"] in {"connect", "handshake"}

    @pytest.mark.parametrize("kib", [0.01, 0.5, 1, 2, 3, 4, 5, 6])
    def test_a_cut_at_any_step_of_the_handshake(self, server, tmp_path, kib):
        with Proxy(server.port) as proxy:
            proxy.cut_after(int(kib * KIB), "down")
            error = raised(lambda: behind(proxy, server.config(tmp_path / "storage")).close())
            if error is None:
                assert proxy.bytes["down"] < kib * KIB  # it needed less
            else:
                assert isinstance(error, StorageUnreachable)

    def test_a_server_without_sftp(self, tmp_path):
        with Sshd(tmp_path, options=["ForceCommand /bin/false"]) as server:
            with pytest.raises(StorageUnreachable) as caught:
                SftpStorage(server.config(tmp_path / "storage"))
        assert caught.value.facts["step"] == "open SFTP"

    def test_the_source_address_is_the_chosen_one(self, server, tmp_path):
        logged = len(server.log_path.read_text())
        with SftpStorage(server.config(tmp_path / "storage", bind_address="127.0.0.9")):
            pass
        assert "from 127.0.0.9 " in server.log_path.read_text()[logged:]

    def test_a_source_address_this_host_has_not(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            SftpStorage(server.config(tmp_path / "storage", bind_address="203.0.113.9"))
        assert caught.value.facts["step"] == "bind to 203.0.113.9"

    def test_the_ssh_library_is_no_noise_in_the_log(self, server, tmp_path):
        """It would log the traceback of an error that we raise; nothing of it may reach the root logger's handlers."""
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[assignment]  # a list is handler enough
        root, level = logging.getLogger(), logging.getLogger().level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            with Proxy(server.port) as proxy:
                proxy.cut_after(500, "down")
                with pytest.raises(StorageUnreachable):
                    behind(proxy, server.config(tmp_path / "storage"))
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        assert [record for record in records if record.name != "asyncio"] == []


class TestFolder:
    def test_it_is_made_but_not_the_one_above(self, server, tmp_path):
        SftpStorage(server.config(tmp_path / "new")).close()
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        with pytest.raises(StorageError) as caught:
            SftpStorage(server.config(tmp_path / "no/parent"))
        assert caught.value.facts["step"] == "make folder"

    def test_a_file_is_no_folder(self, server, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError):
            SftpStorage(server.config(tmp_path / "file"))

    def test_a_slash_at_the_end_does_no_harm(self, server, tmp_path):
        with SftpStorage(server.config(f"{tmp_path}/storage/")) as storage:
            storage.put("d/object", b"x")
        assert (tmp_path / "storage/d/object").read_bytes() == b"x"

    def test_a_server_that_denies_changes(self, tmp_path):
        (tmp_path / "storage/d").mkdir(parents=True)
        (tmp_path / "storage/d/object").write_bytes(b"x")
        with Sshd(tmp_path, read_only=True) as server:
            with SftpStorage(server.config(tmp_path / "storage")) as storage:
                assert storage.get("d/object") == b"x"
                with pytest.raises(StorageDenied) as caught:
                    storage.put("d/new", b"")
                assert caught.value.reason == "STORAGE_PERMISSION_DENIED"
                with pytest.raises(StorageDenied):
                    storage.delete("d/object")
            with pytest.raises(StorageDenied):
                SftpStorage(server.config(tmp_path / "absent"))

    def test_a_read_only_disk(self, server, tmp_path):
        with small_disk(tmp_path / "disk", 4 * MIB) as disk:
            (disk / "object").write_bytes(b"x")
            remount_read_only(disk)
            with SftpStorage(server.config(disk)) as storage:
                assert storage.get("object") == b"x"
                with pytest.raises(StorageDenied):
                    storage.put("new", b"")
                with pytest.raises(StorageDenied):
                    storage.delete("object")


# ---- full disks ---------------------------------------------------------------------------------------------------------


class TestFull:
    @pytest.mark.parametrize("mib", [5, 9, 40])
    def test_it_is_named_and_leaves_nothing(self, server, tmp_path, mib):
        with small_disk(tmp_path / "disk", 4 * MIB) as disk, SftpStorage(server.config(disk)) as storage:
            storage.put("kept", bytes(1 * MIB))
            with pytest.raises(StorageFull) as caught:
                storage.put("d/large", bytes(mib * MIB))
            assert caught.value.reason == "STORAGE_FULL"
            assert [path.name for path in disk.iterdir()] == ["kept"]

    def test_one_byte_too_many_is_noticed(self, server, tmp_path):
        """The last write's failure arrives after everything has been sent; it must not be missed."""
        with small_disk(tmp_path / "disk", 4 * MIB) as disk, SftpStorage(server.config(disk)) as storage:
            with pytest.raises(StorageFull):
                storage.put("large", bytes(4 * MIB + 1))
            storage.put("fits", bytes(4 * MIB))
            with pytest.raises(StorageFull):
                storage.put("another", b"x")

    def test_room_that_comes_back_heals_nothing_that_was_lost(self, server, tmp_path):
        with small_disk(tmp_path / "disk", 4 * MIB) as disk, SftpStorage(server.config(disk)) as storage:
            (disk / "ballast").write_bytes(bytes(3 * MIB))
            upload = storage.create("object")
            upload.__enter__()
            assert isinstance(first_error(lambda: upload.write(bytes(300 * KIB))), StorageFull)
            (disk / "ballast").unlink()
            with pytest.raises(StorageFull):
                upload.__exit__(None, None, None)
            assert list(storage.list()) == []


# ---- connections that end -----------------------------------------------------------------------------------------------


class TestLostConnection:
    def test_between_objects_it_is_made_anew(self, own_server, tmp_path):
        with SftpStorage(own_server.config(tmp_path / "storage"), QUICK) as storage:
            storage.put("one", b"1")
            assert own_server.kill_sessions() > 0
            storage.put("two", b"2")
            own_server.kill_sessions()
            assert {entry.name for entry in storage.list()} == {"one", "two"}
            own_server.kill_sessions()
            storage.delete("one")
            own_server.kill_sessions()
            assert storage.get("two") == b"2"

    def test_a_reader_goes_on_after_it(self, own_server, tmp_path):
        data = os.urandom(2 * MIB)
        with SftpStorage(own_server.config(tmp_path / "storage"), QUICK) as storage:
            storage.put("object", data)
            reader = storage.open("object")
            for offset in (0, 100, 1 * MIB):
                own_server.kill_sessions()
                assert reader.read_at(offset, 1 * MIB) == data[offset : offset + 1 * MIB]
            reader.close()

    def test_pauses_grow_and_attempts_end(self, own_server, tmp_path):
        pauses: list[float] = []
        patience = replace(QUICK, attempts=4, pause_seconds=1)
        with SftpStorage(own_server.config(tmp_path / "storage"), patience, pauses.append) as storage:
            own_server.stop()
            with pytest.raises(StorageUnreachable):
                storage.size("object")
        assert len(pauses) == 3
        for pause, nominal in zip(pauses, (1, 2, 4), strict=True):
            assert 0.75 * nominal <= pause <= 1.25 * nominal

    def test_a_server_that_returns_is_found_again(self, own_server, tmp_path):
        def back_after_first_pause(seconds: float) -> None:
            own_server.start()

        with SftpStorage(own_server.config(tmp_path / "storage"), QUICK, back_after_first_pause) as storage:
            storage.put("object", b"x")
            own_server.stop()
            assert storage.get("object") == b"x"

    def test_a_server_killed_while_uploading(self, own_server, tmp_path):
        with SftpStorage(own_server.config(tmp_path / "storage"), QUICK) as storage:
            upload = storage.create("d/object")
            upload.__enter__()
            upload.write(bytes(3 * MIB))
            own_server.stop()
            error = first_error(lambda: upload.write(bytes(1 * MIB)))
            assert isinstance(error, StorageUnreachable)
            upload.__exit__(type(error), error, None)
            own_server.start()
            assert list(storage.list()) == []
            storage.sweep("d")
            assert list((tmp_path / "storage").iterdir()) == []

    @pytest.mark.parametrize("byte_count", [1, 60, 130, 200])
    def test_a_connection_that_is_lost_while_removing_is_replaced(self, server, tmp_path, byte_count):
        """Nobody can know that a session has ended before it is used: here the request to remove is what finds out."""
        with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage")) as storage:

            def fail() -> None:
                with storage.create("d/object") as sink:
                    sink.write(b"x" * 1000)
                    proxy.cut_after(byte_count)
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                fail()
            assert list((tmp_path / "storage").iterdir()) == []

    def test_cuts_around_the_commit_cost_nothing(self, server, tmp_path):
        """Cut after every few bytes of the last requests: close, rename and their replies."""
        data = os.urandom(50_000)
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage")) as storage:
                before = proxy.bytes["up"]
                storage.put("measured", data)
                size = proxy.bytes["up"] - before
                cuts: list[tuple[Direction, int]] = [("up", size - back) for back in range(0, 600, 60)]
                cuts += [("down", limit) for limit in range(40, 700, 60)]
                for direction, limit in cuts:
                    name = f"{direction}/{limit}"
                    proxy.cut_after(limit, direction)
                    error = raised(partial(storage.put, name, data))
                    proxy.cut_after(1 << 40, direction)
                    assert error is None, (name, error)
                    assert storage.get(name) == data
        assert not list((tmp_path / "storage").rglob("*.part"))

    @pytest.mark.parametrize("limit", [20, 60, 100, 140, 180])
    def test_a_rename_whose_reply_is_lost_is_settled(self, server, tmp_path, limit, monkeypatch):
        """The cut comes `limit` bytes into what the server says after the close, so before, in or after the reply."""
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage")) as storage:
                upload = storage.create("d/object")
                upload.__enter__()
                upload.write(b"content")
                publish = type(upload)._publish

                def cut_and_publish(self):
                    proxy.cut_after(limit, "down")
                    publish(self)

                monkeypatch.setattr(type(upload), "_publish", cut_and_publish)
                upload.__exit__(None, None, None)
                assert storage.get("d/object") == b"content"
                assert [path.name for path in (tmp_path / "storage/d").iterdir()] == ["object"]

    @pytest.mark.parametrize("mib", [0.1, 1, 4.2])
    def test_a_read_cut_anywhere_is_repeated(self, server, tmp_path, mib):
        data = os.urandom(5 * MIB)
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage")) as storage:
                storage.put("object", data)
                connections = proxy.connections
                proxy.cut_after(int(mib * MIB), "down")
                assert storage.get("object") == data
                assert proxy.connections == connections + 1

    def test_a_stalled_read_times_out(self, server, tmp_path):
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage"), SHORT) as storage:
                storage.put("object", bytes(1 * MIB))
                proxy.stall()
                begin = time.monotonic()
                with pytest.raises(StorageUnreachable):
                    storage.get("object")
                assert time.monotonic() - begin < 15
                proxy.resume()
                assert len(storage.get("object")) == 1 * MIB

    def test_a_stalled_upload_times_out(self, server, tmp_path):
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage"), SHORT) as storage:
                upload = storage.create("object")
                upload.__enter__()
                upload.write(bytes(1 * MIB))
                proxy.stall()
                begin = time.monotonic()
                error = first_error(lambda: upload.write(bytes(4 * MIB)))
                assert isinstance(error, StorageUnreachable)
                assert time.monotonic() - begin < 20
                proxy.resume()
                upload.__exit__(type(error), error, None)
                assert list(storage.list()) == []

    @pytest.mark.parametrize("work", ["read", "write", "list", "connect"])
    def test_an_interrupt_ends_a_stalled_call_at_once(self, server, tmp_path, work):
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage"), QUICK) as storage:
                storage.put("object", bytes(1 * MIB))
                proxy.stall()
                if work == "connect":
                    storage.connection().cut()
                ended: list[BaseException | None] = []
                calls = {
                    "read": lambda: storage.get("object"),
                    "write": lambda: storage.put("new", bytes(64 * MIB)),
                    "list": lambda: list(storage.list()),
                    "connect": lambda: storage.size("object"),
                }
                thread = threading.Thread(target=lambda: ended.append(raised(calls[work])), daemon=True)
                stalled = proxy.connections + (1 if work == "connect" else 0)
                thread.start()
                wait_until(lambda: proxy.connections >= stalled, WAIT_SECONDS, "the call to be under way")
                begin = time.monotonic()
                storage.interrupt()
                thread.join(WAIT_SECONDS)
                assert time.monotonic() - begin < 5
                assert isinstance(ended[0], StorageUnreachable)
                assert "interrupted" in str(ended[0])

    def test_latency_slows_but_does_not_break(self, server, tmp_path):
        data = os.urandom(4 * MIB)
        with Proxy(server.port) as proxy:
            with behind(proxy, server.config(tmp_path / "storage")) as storage:
                proxy.delay(0.05)
                begin = time.monotonic()
                storage.put("object", data)
                assert storage.get("object") == data
                # 4 MiB are 17 requests each way; one after the other they alone would take 1.7 s more.
                assert time.monotonic() - begin < 3

    def test_two_racing_servers_connections_have_one_winner(self, server, tmp_path):
        with SftpStorage(server.config(tmp_path / "s")) as one, SftpStorage(server.config(tmp_path / "s")) as two:
            first, second = one.create("object"), two.create("object")
            first.__enter__()
            second.__enter__()
            first.write(b"first")
            second.write(b"second")
            second.__exit__(None, None, None)
            with pytest.raises(ObjectExists):
                first.__exit__(None, None, None)
            assert one.get("object") == b"second"


class TestSessions:
    def test_a_server_that_allows_one_session_is_enough(self, tmp_path):
        with Sshd(tmp_path, options=["MaxSessions 1"]) as server:
            with SftpStorage(server.config(tmp_path / "storage")) as storage:
                uploads = [storage.create(f"{number}") for number in range(6)]
                for upload in uploads:
                    upload.__enter__()
                for upload in uploads:
                    upload.write(b"x" * 100_000)
                for upload in uploads:
                    upload.__exit__(None, None, None)
                assert len(list(storage.list())) == 6

    def test_a_refused_commit_closes_no_other_upload(self, tmp_path, monkeypatch):
        """A server gives the number of a closed file to the next one: closing it twice would close that."""
        with Sshd(tmp_path, options=["MaxSessions 1"]) as server:
            with SftpStorage(server.config(tmp_path / "storage")) as storage:
                late, other = storage.create("object"), storage.create("other")
                late.__enter__()
                storage.put("object", b"early")
                publish = type(late)._publish

                def begin_other_and_publish(self):
                    if self is late:
                        other.__enter__()
                    publish(self)

                monkeypatch.setattr(type(late), "_publish", begin_other_and_publish)
                with pytest.raises(ObjectExists):
                    late.__exit__(None, None, None)
                other.write(b"whole")
                other.__exit__(None, None, None)
                assert storage.get("other") == b"whole"

    def test_nothing_is_left_running(self, server, tmp_path):
        with SftpStorage(server.config(tmp_path / "storage")) as storage:
            uploads = [storage.create(f"{number}") for number in range(6)]
            for upload in uploads:
                upload.__enter__()
            assert any(thread.name == "sftp-receive" for thread in threading.enumerate())
            for upload in uploads:
                upload.__exit__(None, None, None)
        wait_until(
            lambda: not any(thread.name == "sftp-receive" for thread in threading.enumerate()),
            WAIT_SECONDS,
            "the receiving threads to end",
        )


# ---- helpers ------------------------------------------------------------------------------------------------------------


def raised(work: Callable[[], object]) -> Exception | None:
    try:
        work()
    except Exception as error:
        return error
    return None


def first_error(work: Callable[[], object]) -> Exception:
    """Repeat `work` until it raises: a write into a dead connection may still find room in a buffer."""
    for _ in range(1000):
        if (error := raised(work)) is not None:
            return error
    raise AssertionError("it never fails")


def fingerprint(public_key: str, folder: Path) -> str:
    path = folder / "key.pub"
    path.write_text(public_key + "\n")
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(path)], check=True, capture_output=True, text=True)
    return shown.stdout.split()[1]


def make_key(kind: str, form: str, passphrase: str) -> tuple[str, str]:
    make: dict[str, Callable[[], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey]] = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    key = make[kind]()
    protection = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    private = key.private_bytes(serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), protection)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def assert_tells_nothing(error: BaseException, secrets: list[str]) -> None:
    """Neither the error nor anything it was raised from holds one of `secrets`."""
    link: BaseException | None = error
    while link is not None:
        text = f"{link!r} {link} {getattr(link, 'facts', '')}"
        for secret in secrets:
            assert len(secret) < 8 or secret not in text
            assert base64.b64encode(secret.encode()).decode() not in text or len(secret) < 8
        link = link.__cause__ or link.__context__
