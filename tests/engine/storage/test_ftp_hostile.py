"""A server that lies, or says what no server should: nothing of it is believed, and nobody waits for ever."""

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from engine.errors import (
    BackupManagerError,
    ObjectExists,
    ObjectNotFound,
    ObjectTruncated,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLoginFailed,
    StorageThrottled,
    StorageUnreachable,
    StorageUntrusted,
)
from engine.storage import ftp_lock, ftp_upload
from engine.storage.ftp import FtpStorage
from engine.storage.sftp_connect import Patience
from engine.units import MIB
from tests.servers.scripted_ftp import PASSWORD, ScriptedFtp

pytestmark = pytest.mark.feature("S13")

QUICK = Patience(
    connect_seconds=2, stall_seconds=2, sync_seconds=2, attempts=2, pause_seconds=0.01, pause_seconds_max=0.02,
    enduring_attempts=2, enduring_seconds=10,
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[ScriptedFtp]:
    with ScriptedFtp() as server:
        yield server


def opened(server: ScriptedFtp) -> FtpStorage:
    return FtpStorage(server.config(), patience=QUICK)


def list_line(name: str, kind: str = "-") -> str:
    return f"{kind}rw-r--r--   1 root     root            5 Nov 23 13:24 {name}"


class TestListings:
    HOSTILE = (
        "..",
        ".",
        "../x",
        "/etc/passwd",
        "a/b",
        "nul\0",
        "with space",
        ".hidden",
        "x.part",
        "-dash",
        "\x1b[31mred",
        "é",
    )

    @pytest.mark.parametrize("word", ["LIST", "MLSD"])
    def test_only_our_names_are_taken_from_it(self, server, word):
        if word == "MLSD":
            server.features.append("MLST size*;type*;")
            lines = [f"type=file;size=5;modify=20261123132400; {name}" for name in (*self.HOSTILE, "good")]
        else:
            lines = [list_line(name) for name in (*self.HOSTILE, "good")]
        server.listings[word] = "\r\n".join(lines).encode() + b"\r\n"
        with opened(server) as storage:
            assert [entry.name for entry in storage.list()] == ["good"]
            assert list(storage.folders()) == []

    def test_a_sweep_leaves_what_lies_elsewhere_alone(self, server):
        server.folders |= {"/s/d"}
        server.files["/s/x"] = server.files["/etc"] = b"kept"
        server.listings["LIST"] = "\r\n".join(
            [list_line("../x"), list_line(".."), list_line("..", "d"), list_line("/etc"), list_line("x\rDELE /etc")]
        ).encode()
        with opened(server) as storage:
            storage.sweep("d")
        assert all(line.startswith("DELE /s/d/") for line in server.said("DELE"))
        assert {"/s/x", "/etc"} <= server.files.keys()

    def test_a_line_break_in_a_name_reaches_no_command(self, server):
        server.features.append("MLST size*;type*;")
        server.folders |= {"/s/d"}
        server.listings["MLSD"] = b"type=file;size=1; a\rDELE /s/other\ntype=dir;size=1; b\0c\n"
        with opened(server) as storage:
            storage.sweep("d")
        assert server.said("DELE") == []

    def test_a_tree_without_end_ends(self, server, monkeypatch):
        monkeypatch.setattr("engine.storage.walk.BARREN_MAX", 30)
        server.answers["CWD"] = "250 of course"
        server.listings["LIST"] = (list_line("d", "d") + "\r\n" + list_line("e", "d") + "\r\n").encode()
        with opened(server) as storage, pytest.raises(StorageError):
            list(storage.list())

    def test_a_sweep_of_a_tree_without_end_ends(self, server, monkeypatch):
        monkeypatch.setattr("engine.storage.walk.DEPTH_MAX", 10)
        server.answers |= {"CWD": "250 of course", "DELE": "550 it is a folder", "RMD": "550 it is not empty"}
        server.listings["LIST"] = (list_line("d", "d") + "\r\n").encode()
        with opened(server) as storage, pytest.raises(StorageError, match="without an end"):
            storage.sweep("d")

    def test_a_listing_without_end_ends(self, server, monkeypatch):
        monkeypatch.setattr("engine.storage.ftp_tree.LISTING_BYTES_MAX", 1 * MIB)
        server.listings["LIST"] = list_line("a" * 50).encode() * 100_000
        with opened(server) as storage, pytest.raises(StorageUnreachable):
            list(storage.list())

    def test_a_folder_that_may_not_be_read_is_not_an_empty_one(self, server):
        server.listings["LIST"] = b""
        server.answers["LIST"] = "550 Permission denied."
        with opened(server) as storage, pytest.raises(StorageDenied):
            list(storage.list())

    def test_a_refusal_without_reason_is_not_an_empty_folder(self, server):
        server.answers["LIST"] = "550 Something."
        with opened(server) as storage, pytest.raises(StorageError):
            list(storage.list())

    def test_names_alone_are_enough(self, server):
        """A server of neither MLSD nor a form of LIST that we know: each name is asked about."""
        server.listings["LIST"] = b"OBJECT;1   5/7  23-NOV-2026 13:24\r\n"
        server.listings["NLST"] = b"object\r\n/s/d\r\n..\r\nno-more\r\n"
        server.files["/s/object"] = b"12345"
        server.folders |= {"/s/d"}
        with opened(server) as storage:
            assert list(storage.folders()) == ["d"]
            server.listings["NLST"] = b"object\r\n"
            assert [(entry.name, entry.size_bytes) for entry in storage.list()] == [("object", 5)]

    def test_the_wall_clock_of_a_listing_is_set_right_by_one_question(self, server):
        server.listings["LIST"] = (list_line("object") + "\r\n").encode()
        server.answers["MDTM"] = "213 20261123112400"
        with opened(server) as storage:
            times = [entry.modified_time for _ in range(2) for entry in storage.list()]
            assert [time % 86_400 for time in times] == [11 * 3600 + 24 * 60] * 2
        assert len(server.said("MDTM")) == 1


class TestSizes:
    def test_a_size_that_is_a_lie_makes_no_object(self, server):
        with opened(server) as storage:
            server.answers["SIZE"] = lambda path: "213 9999" if path.endswith(".part") else "550 no"
            with pytest.raises(StorageError) as caught:
                storage.put("object", b"content")
            assert "9999" in str(caught.value)
        assert not any(name.endswith("object") for name in server.files)

    def test_a_size_that_is_no_number_is_no_size(self, server):
        server.answers["SIZE"] = "213 many"
        with opened(server) as storage, pytest.raises(StorageUnreachable):
            storage.size("object")

    def test_an_object_shorter_than_its_size_is_never_read_as_whole(self, server):
        server.files["/s/object"] = b"content"
        server.answers["SIZE"] = "213 1000"
        with opened(server) as storage, pytest.raises(StorageError):
            storage.get("object")

    def test_a_transfer_that_ends_early_with_success_is_no_content(self, server):
        server.files["/s/object"] = b"content"
        server.cut_data = 3
        with opened(server) as storage, pytest.raises(StorageUnreachable):
            storage.get("object")

    def test_an_object_that_became_shorter_is_named(self, server):
        server.files["/s/object"] = b"content"
        with opened(server) as storage:
            reader = storage.open("object")
            server.files["/s/object"] = b"con"
            with pytest.raises(ObjectTruncated):
                reader.read_at(0, 7)
            reader.close()

    @pytest.mark.feature("C12")
    def test_a_server_that_tells_no_size_of_a_growing_file_is_ended_now_and_then(self, server, monkeypatch):
        """Its last reply is the acknowledgement then: what is kept stays bounded, and the object whole."""
        monkeypatch.setattr(ftp_upload, "KEPT_BYTES_MAX", 1 * MIB)
        monkeypatch.setattr(ftp_upload, "_SILENT_SECONDS", 0.05)
        data = bytes(range(256)) * (3 * MIB // 256) + b"end"
        with opened(server) as storage:
            storage.put("object", data)
        assert server.files["/s/object"] == data
        assert len(server.said("REST")) >= 2

    @pytest.mark.feature("C12")
    def test_a_server_of_one_connection_is_enough(self, server, monkeypatch):
        monkeypatch.setattr(ftp_upload, "KEPT_BYTES_MAX", 1 * MIB)
        data = bytes(range(256)) * (3 * MIB // 256)
        with opened(server) as storage:
            server.greeting = "421 Too many connections"
            storage.put("object", data)
            assert storage.get("object") == data
            with storage.create("other"), pytest.raises(StorageThrottled):
                storage.size("object")
        assert server.files["/s/object"] == data


class TestReplies:
    @pytest.mark.parametrize(
        "reply",
        ["", "what?", "2", "999 beyond", "220-" + "x" * 100_000, "\r\n".join(["220-more"] * 5000), "220-never ends"],
    )
    def test_what_is_no_reply_ends_the_connection(self, server, reply):
        server.greeting = reply
        with pytest.raises(StorageUnreachable):
            opened(server)

    @pytest.mark.parametrize("reply", ["229 nothing", "229 (|||0|)", "229 (|||99999|)", "229 (||||)"])
    def test_an_epsv_without_a_port(self, server, reply):
        server.files["/s/object"] = b"x"
        server.answers["EPSV"] = reply
        with opened(server) as storage, pytest.raises(StorageUnreachable):
            storage.get("object")

    def test_the_address_in_a_pasv_reply_is_not_dialed(self, server):
        """Neither a server's own behind its NAT, nor one that somebody would like us to connect to."""
        server.features.remove("EPSV")
        server.answers["EPSV"] = "500 unknown"
        server.files["/s/object"] = b"content"
        with socket.socket() as victim:
            victim.bind(("127.0.0.7", 0))
            victim.listen()
            victim.setblocking(False)
            server.pasv_address = "127.0.0.7"
            with opened(server) as storage:
                assert storage.get("object") == b"content"
            with pytest.raises(BlockingIOError):
                victim.accept()

    def test_a_server_that_knows_pasv_alone(self, server):
        server.answers["EPSV"] = "500 unknown"
        with opened(server) as storage:
            storage.put("object", b"content")
            assert storage.get("object") == b"content"
        assert len(server.said("EPSV")) <= 2  # asked once a connection

    def test_ipv6_goes_by_epsv(self):
        with ScriptedFtp("::1") as server:
            server.files["/s/object"] = b"content"
            with opened(server) as storage:
                assert storage.get("object") == b"content"
                assert "[::1]" in storage.label
            assert server.said("PASV") == []

    @pytest.mark.parametrize(
        ("reply", "expected"),
        [
            ("452 no room", StorageFull),
            ("552 over the limit", StorageFull),
            ("552 no space left on device", StorageFull),
            ("451 Disk quota exceeded", StorageFull),
            ("550 Permission denied", StorageDenied),
            ("553 not this name", StorageDenied),
            ("522 session reuse required", StorageUntrusted),
            ("504 what", StorageError),
        ],
    )
    def test_what_a_refused_upload_means(self, server, reply, expected):
        with opened(server) as storage:
            server.answers["STOR"] = reply
            with pytest.raises(expected) as caught:
                storage.put("object", b"x")
            quota = reply in {"552 over the limit", "451 Disk quota exceeded"}
            assert ("Raise the quota" in caught.value.message) == quota
            assert server.files == {}, "nothing under a final name"


class TestLogin:
    def test_a_password_that_the_server_repeats_is_in_no_error_and_no_log(self, server, caplog):
        caplog.set_level(logging.DEBUG)
        server.answers["PASS"] = lambda given: f"530 {given} is not the password of someone"
        with pytest.raises(StorageLoginFailed) as caught:
            opened(server)
        seen: BaseException | None = caught.value
        while seen is not None:
            assert PASSWORD not in f"{seen} {seen!r} {getattr(seen, 'facts', '')}"
            seen = seen.__cause__
        assert PASSWORD not in caplog.text
        assert "***" in str(caught.value)

    def test_nor_when_a_later_reply_does(self, server):
        with opened(server) as storage:
            server.answers["DELE"] = f"553 {PASSWORD}"
            server.files["/s/object"] = b"x"
            with pytest.raises(BackupManagerError) as caught:
                storage.delete("object")
            assert PASSWORD not in repr(caught.value.__cause__)
            assert PASSWORD not in str(caught.value.facts)

    @pytest.mark.parametrize(
        "reply", ["530 Non-anonymous sessions must use encryption.", "522 SSL required", "550 SSL/TLS required"]
    )
    def test_a_server_that_wants_tls_is_named(self, server, reply):
        server.answers["USER"] = reply
        with pytest.raises(StorageUntrusted) as caught:
            opened(server)
        assert caught.value.facts["cause"] == "protocol"
        assert "TLS is disabled" in str(caught.value)

    def test_a_server_without_tls_gets_no_password(self, server):
        config = server.config()
        with pytest.raises(StorageUntrusted):
            FtpStorage(type(config)(config.host, config.username, config.path, PASSWORD, config.port), patience=QUICK)
        assert server.commands == ["AUTH TLS"]

    def test_too_many_connections_are_named(self, server):
        server.greeting = "421 Too many users"
        with pytest.raises(StorageThrottled):
            opened(server)


def come_late(server: ScriptedFtp, storage: FtpStorage) -> None:
    with storage.create("object") as sink:
        sink.write(b"second")
        server.files["/s/object"] = b"first"


class TestLock:
    """Of two that write one name at the same instant one wins, though RNTO overwrites."""

    def test_a_name_that_came_meanwhile_is_kept(self, server):
        with opened(server) as storage:
            with pytest.raises(ObjectExists):
                come_late(server, storage)
        assert server.files == {"/s/object": b"first"}
        assert server.folders == {"/", "/s"}

    def test_a_dead_writers_lock_is_passed_after_its_time(self, server, monkeypatch):
        monkeypatch.setattr(ftp_lock, "STALE_SECONDS", 0.3)
        server.folders.add("/s/object.0.lock.part")
        with opened(server) as storage:
            storage.put("object", b"content")
            assert [one for one in server.folders if "lock" in one] == []
        assert server.files == {"/s/object": b"content"}

    def test_a_living_writers_lock_is_waited_for(self, server):
        server.folders.add("/s/object.0.lock.part")
        ended = threading.Event()
        with opened(server) as storage:

            def write() -> None:
                storage.put("object", b"content")
                ended.set()

            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            assert not ended.wait(0.3)
            server.folders.remove("/s/object.0.lock.part")
            assert ended.wait(10)
            thread.join()

    def test_the_loser_of_a_race_waits_for_no_dead_lock(self, server):
        server.folders.add("/s/object.0.lock.part")
        with opened(server) as storage:
            with pytest.raises(ObjectExists):
                come_late(server, storage)

    def test_a_server_that_makes_a_folder_twice_promises_nothing(self, server):
        with opened(server) as storage:
            storage.put("first", b"")
            assert storage.abilities.exclusive_create
        server.answers["MKD"] = '257 "of course"'
        with opened(server) as storage:
            storage.put("second", b"")
            assert not storage.abilities.exclusive_create

    def test_a_server_that_removes_full_folders_is_given_none(self, server):
        server.folders |= {"/s/d"}
        server.files |= {"/s/d/object": b"x", "/s/d/other": b"kept"}

        def remove(path: str) -> str:
            server.folders -= {one for one in server.folders if one == path or one.startswith(path + "/")}
            for one in [one for one in server.files if one.startswith(path + "/")]:
                del server.files[one]
            return "250 all gone"

        server.answers["RMD"] = remove
        with opened(server) as storage:
            storage.delete("d/object")
            with pytest.raises(ObjectNotFound):
                storage.size("d/object")
        assert server.files == {"/s/d/other": b"kept"}
