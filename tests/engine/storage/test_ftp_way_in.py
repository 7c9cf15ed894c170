"""Who is let in over FTP and FTPS, from where, and how each step that fails is named: on real servers."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engine.errors import (
    InvalidSpec,
    ObjectNotFound,
    StorageDenied,
    StorageLoginFailed,
    StoragePathInvalid,
    StorageUnreachable,
    StorageUntrusted,
)
from engine.spec import FtpConfig
from engine.storage.ftp import FtpStorage
from engine.storage.sftp_connect import Patience
from engine.units import MIB
from tests.servers.certificate import make_certificate
from tests.servers.proxy import Proxy
from tests.servers.pyftpdlib import Pyftpdlib
from tests.servers.sshd import free_port
from tests.servers.vsftpd import PASSWORD, Vsftpd

LINE_HOST = "127.0.0.2"
pytestmark = pytest.mark.feature("S13")

SHORT = Patience(connect_seconds=2, stall_seconds=2, attempts=2, pause_seconds=0.01, enduring_attempts=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vsftpd]:
    with Vsftpd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def modern_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pyftpdlib]:
    with Pyftpdlib(tmp_path_factory.mktemp("modern")) as server:
        yield server


def opened(config: FtpConfig) -> FtpStorage:
    return FtpStorage(config, patience=SHORT)


def round_trip(config: FtpConfig) -> None:
    with opened(config) as storage:
        storage.put("d/object", b"content")
        assert storage.get("d/object") == b"content"
        assert [entry.name for entry in storage.list()] == ["d/object"]


def tls_versions(storage: FtpStorage) -> str:
    control = storage.pool.acquire()
    try:
        assert control.sock is not None
        return control.sock.version() or ""  # type: ignore[attr-defined]  # a TLS socket, as the test knows
    finally:
        storage.pool.release(control)


class TestTls:
    @pytest.mark.parametrize(("most", "spoken"), [("1.3", "TLSv1.3"), ("1.2", "TLSv1.2")])
    def test_the_session_is_reused_with_either_version(self, server, tmp_path, most, spoken):
        config = server.config(tmp_path / "storage", tls_version_max=most)
        round_trip(config)
        with opened(config) as storage:
            assert tls_versions(storage) == spoken

    def test_a_server_of_the_older_version_alone(self, tmp_path):
        with Vsftpd(tmp_path, tls="1.2") as server:
            round_trip(server.config(tmp_path / "storage"))
            with opened(server.config(tmp_path / "storage")) as storage:
                assert tls_versions(storage) == "TLSv1.2"

    def test_a_certificate_that_nobody_vouches_for(self, server, tmp_path):
        with pytest.raises(StorageUntrusted) as caught:
            opened(server.config(tmp_path / "storage", ca_certificate=""))
        assert caught.value.facts["cause"] == "untrusted"
        assert "PASS" not in server.log().rpartition("AUTH TLS")[2]
        round_trip(server.config(tmp_path / "storage", ca_certificate="", skip_tls_verify=True))

    def test_a_certificate_for_another_name(self, tmp_path):
        certificate = tmp_path / "other"
        certificate.mkdir()
        made = make_certificate(certificate, names=("backup.example",))
        with Vsftpd(
            tmp_path, options=[f"rsa_cert_file={made.certificate_path}", f"rsa_private_key_file={made.key_path}"]
        ) as server:
            with pytest.raises(StorageUntrusted) as caught:
                opened(server.config(tmp_path / "storage", ca_certificate=made.pem))
            assert caught.value.facts["cause"] == "hostname"

    def test_a_certificate_past_its_time(self, tmp_path):
        certificate = tmp_path / "old"
        certificate.mkdir()
        made = make_certificate(certificate, expired=True)
        with Vsftpd(
            tmp_path, options=[f"rsa_cert_file={made.certificate_path}", f"rsa_private_key_file={made.key_path}"]
        ) as server:
            with pytest.raises(StorageUntrusted) as caught:
                opened(server.config(tmp_path / "storage", ca_certificate=made.pem))
            assert caught.value.facts["cause"] == "expired"

    def test_what_is_no_certificate_is_an_invalid_spec(self, server, tmp_path):
        with pytest.raises(InvalidSpec) as caught:
            opened(server.config(tmp_path / "storage", ca_certificate="nonsense"))
        assert caught.value.facts["field"] == "ftp.ca_certificate"

    def test_plainly_only_when_told(self, tmp_path):
        with Vsftpd(tmp_path, tls="none") as server:
            with pytest.raises(StorageUntrusted):
                opened(server.config(tmp_path / "storage", tls_disabled=False))
            assert PASSWORD not in server.log()
            assert '"USER' not in server.log()
            round_trip(server.config(tmp_path / "storage"))

    @pytest.mark.parametrize("name", ["server", "modern_server"])
    def test_a_server_that_insists_on_tls_is_named(self, request, tmp_path, name):
        config = request.getfixturevalue(name).config(tmp_path / "storage", tls_disabled=True)
        with pytest.raises(StorageUntrusted) as caught:
            opened(config)
        assert "TLS is disabled for this storage" in str(caught.value)


class TestLogin:
    @pytest.mark.parametrize("name", ["server", "modern_server"])
    def test_a_wrong_password_is_named_and_told_to_nobody(self, request, tmp_path, caplog, name):
        caplog.set_level(logging.DEBUG)
        config = request.getfixturevalue(name).config(tmp_path / "storage", password="wrong battery staple")
        with pytest.raises(StorageLoginFailed) as caught:
            opened(config)
        assert caught.value.facts["cause"] == "password"
        assert "battery" not in f"{caught.value!r} {caught.value.facts} {caplog.text} {config!r}"

    @pytest.mark.parametrize("field", ["username", "password", "path", "host"])
    @pytest.mark.parametrize("text", ["a\r\nDELE x", "a\nb", "a\0b"])
    def test_no_field_brings_a_command_of_its_own(self, server, tmp_path, field, text):
        with pytest.raises(InvalidSpec) as caught:
            opened(replace(server.config(tmp_path / "storage"), **{field: text}))
        assert caught.value.facts["field"] == f"ftp.{field}"
        assert "DELE" not in str(caught.value)

    def test_a_password_of_any_letters(self, server, tmp_path):
        with pytest.raises(StorageLoginFailed):
            opened(server.config(tmp_path / "storage", password="пароль ü"))


class TestUnreachable:
    def test_a_refused_port(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            opened(server.config(tmp_path / "storage", port=free_port()))
        assert (caught.value.facts["step"], caught.value.facts["cause"]) == ("connect", "refused")

    def test_an_unknown_host(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            opened(server.config(tmp_path / "storage", host="no-such-host.invalid"))
        assert (caught.value.facts["step"], caught.value.facts["cause"]) == ("resolve", "dns")

    def test_a_server_that_says_nothing(self, server, tmp_path):
        with Proxy(server.port, LINE_HOST, server.data_ports) as line:
            line.stall()
            begin = time.monotonic()
            with pytest.raises(StorageUnreachable) as caught:
                opened(server.config(tmp_path / "storage", host=LINE_HOST, port=line.port))
            assert 1 < time.monotonic() - begin < 20
        assert caught.value.facts["step"].startswith("greeting")

    def test_brief_gives_up_within_seconds(self, server, tmp_path):
        with Proxy(server.port, LINE_HOST, server.data_ports) as line:
            line.stall()
            begin = time.monotonic()
            with pytest.raises(StorageUnreachable):
                FtpStorage(server.config(tmp_path / "storage", host=LINE_HOST, port=line.port), brief=True)
            assert time.monotonic() - begin < 10

    @pytest.mark.parametrize("count", [10, 100, 900, 1500, 2500])
    def test_a_cut_at_any_step_of_the_way_in(self, server, tmp_path, count):
        with Proxy(server.port, LINE_HOST, server.data_ports) as line:
            line.cut_after(count, "down")
            try:
                opened(server.config(tmp_path / "storage", host=LINE_HOST, port=line.port)).close()
            except StorageUnreachable:
                return
            assert line.bytes["down"] < count  # it needed less


@pytest.mark.feature("D19")
class TestBindAddress:
    def test_control_and_data_come_from_it(self, server, tmp_path):
        """vsftpd takes a data connection only from where its control connection comes from, and logs that."""
        before = len(server.log())
        config = server.config(tmp_path / "storage", bind_address="127.0.0.2")
        with opened(config) as storage:
            storage.put("object", bytes(2 * MIB))
            reader = storage.open("object")
            try:
                reader.read_at(0, MIB)
                own = [one for one in psutil.Process().net_connections("tcp") if one.raddr and one.raddr.port != 0]
                to_server = [one for one in own if one.raddr.port == server.port or one.raddr.port in server.data_ports]
                assert {one.laddr.ip for one in to_server if one.status == "ESTABLISHED"} == {"127.0.0.2"}
                assert any(one.raddr.port in server.data_ports for one in to_server), "a data connection is open"
            finally:
                reader.close()
        told = server.log()[before:]
        assert 'FTP command: Client "127.0.0.2"' in told
        assert 'FTP command: Client "127.0.0.1"' not in told  # goodbyes of tests before this one may come late

    def test_an_address_this_host_has_not(self, server, tmp_path):
        with pytest.raises(StorageUnreachable) as caught:
            opened(server.config(tmp_path / "storage", bind_address="203.0.113.9"))
        assert (caught.value.facts["step"], caught.value.facts["cause"]) == ("bind to 203.0.113.9", "bind")


class TestAddresses:
    def test_ipv6(self, tmp_path):
        with Vsftpd(tmp_path, address="::1") as server:
            round_trip(server.config(tmp_path / "storage"))

    def test_a_server_behind_its_nat(self, tmp_path):
        """It tells an address that nobody can reach; and knows no EPSV."""
        with Pyftpdlib(tmp_path, masquerade="203.0.113.9", missing=("EPSV",)) as server:
            round_trip(server.config(tmp_path / "storage"))


class TestFolder:
    def test_it_is_made_but_not_the_one_above(self, server, tmp_path):
        opened(server.config(tmp_path / "new")).close()
        assert (tmp_path / "new").is_dir()
        with pytest.raises(StoragePathInvalid) as caught:
            opened(server.config(tmp_path / "no/parent"))
        assert caught.value.facts["cause"] == "missing"
        with pytest.raises(ObjectNotFound):
            FtpStorage(server.config(tmp_path / "absent"), make=False)
        assert not (tmp_path / "absent").exists()

    def test_a_file_is_no_folder(self, server, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StoragePathInvalid) as caught:
            opened(server.config(tmp_path / "file"))
        assert caught.value.facts["cause"] == "not_a_folder"

    def test_a_name_that_a_shell_would_read(self, server, modern_server, tmp_path):
        for one in (server, modern_server):
            folder = tmp_path / f"-a [b]* {one.port}?"
            round_trip(one.config(folder))
            assert (folder / "d/object").read_bytes() == b"content"

    def test_a_user_who_may_not_write(self, tmp_path):
        folder = tmp_path / "storage"
        (folder / "d").mkdir(parents=True)
        (folder / "d/object").write_bytes(b"x")
        with Pyftpdlib(tmp_path, permissions="elr") as server, opened(server.config(folder)) as storage:
            assert storage.get("d/object") == b"x"
            with pytest.raises(StorageDenied):
                storage.put("d/new", b"")
            with pytest.raises(StorageDenied):
                storage.delete("d/object")

    def test_the_settings_show_no_secret(self, server, tmp_path):
        config = server.config(tmp_path / "storage")
        with opened(config) as storage:
            assert PASSWORD not in f"{config!r} {storage.label} {storage!r}"


def test_few_connections_are_enough(tmp_path: Path) -> None:
    """A hoster's limit: what an upload would like to have beside its own it does without."""
    data = bytes(range(256)) * (12 * MIB // 256)
    with Pyftpdlib(tmp_path, connections=3) as server, opened(server.config(tmp_path / "storage")) as storage:
        with storage.create("d/object") as sink:
            sink.write(data[: 6 * MIB])
            with pytest.raises(ObjectNotFound):
                storage.size("d/object")
            sink.write(data[6 * MIB :])
        readers = [storage.open("d/object") for _ in range(4)]
        for offset in range(0, 4 * MIB, MIB):
            for reader in readers:
                assert reader.read_at(offset, 1000) == data[offset : offset + 1000]
        for reader in readers:
            reader.close()
