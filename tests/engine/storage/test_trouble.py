"""What stands in a storage's way has a reason, a cause and a remedy: each is brought about at a real server."""

import datetime as dt
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.errors import StorageError, StorageUnreachable
from engine.remedies import REMEDIES, remedy
from engine.spec import FtpConfig, S3Config, StorageSpec
from engine.storage.local import LocalStorage
from engine.storage.open import open_storage
from engine.storage.sftp import SftpStorage
from engine.storage.sftp_connect import Patience
from engine.storage.trouble import cause_of, way_in_failed
from engine.units import MIB
from tests.servers.proxy import Proxy
from tests.servers.small_disk import remount_read_only, small_disk
from tests.servers.sshd import Sshd, free_port, key_pair

SHORT = Patience(connect_seconds=1, stall_seconds=1, sync_seconds=1, attempts=1, enduring_attempts=1)
WORDS = re.compile(r"[a-z]+(_[a-z]+)*|")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Sshd(tmp_path_factory.mktemp("trouble")) as running:
        yield running


def error_of(work: Callable[[], object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        work()
    return caught.value


def expect(error: StorageError, reason: str, cause: str = "") -> None:
    """The reason, the cause, and the remedy in the sentence that people read."""
    assert (error.reason, error.facts.get("cause", "")) == (reason, cause)
    assert remedy(reason, cause)
    assert error.message == f"{error}. {remedy(reason, cause)}"
    assert error.facts["storage"] in error.message


@pytest.mark.feature("S24")
class TestSftp:
    def test_a_name_that_nobody_knows(self, server, tmp_path):
        config = server.config(tmp_path / "storage", host="nas.invalid")
        error = error_of(lambda: SftpStorage(config, SHORT))
        expect(error, "STORAGE_UNREACHABLE", "dns")
        assert error.facts["step"] == "resolve"

    def test_a_port_where_nothing_listens(self, server, tmp_path):
        error = error_of(lambda: SftpStorage(server.config(tmp_path / "storage", port=free_port()), SHORT))
        expect(error, "STORAGE_UNREACHABLE", "refused")

    def test_a_listener_that_never_answers(self, server, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            config = server.config(tmp_path / "storage", port=silent.getsockname()[1])
            expect(error_of(lambda: SftpStorage(config, SHORT)), "STORAGE_UNREACHABLE", "timed_out")

    def test_a_port_that_swallows_the_first_packet(self, server, tmp_path):
        """As a firewall does that drops: here a listener whose queue is full, to which the kernel answers nothing."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as busy, socket.socket() as waiting:
            waiting.connect(busy.getsockname())
            config = server.config(tmp_path / "storage", port=busy.getsockname()[1])
            error = error_of(lambda: SftpStorage(config, SHORT))
            expect(error, "STORAGE_UNREACHABLE", "timed_out")
            assert error.facts["step"] == "connect"

    def test_a_server_that_hangs_up(self, server, tmp_path):
        with Proxy(server.port) as proxy:
            proxy.refuse()
            config = server.config(tmp_path / "storage", port=proxy.port)
            expect(error_of(lambda: SftpStorage(config, SHORT)), "STORAGE_UNREACHABLE", "lost")

    def test_an_address_this_host_has_not(self, server, tmp_path):
        config = server.config(tmp_path / "storage", bind_address="203.0.113.9")
        expect(error_of(lambda: SftpStorage(config, SHORT)), "STORAGE_UNREACHABLE", "bind")

    def test_another_host_key(self, server, tmp_path):
        config = server.config(tmp_path / "storage", host_key=key_pair()[1])
        expect(error_of(lambda: SftpStorage(config, SHORT)), "STORAGE_HOST_KEY_CHANGED")

    def test_a_key_that_is_not_let_in(self, server, tmp_path):
        config = server.config(tmp_path / "storage", private_key=key_pair()[0])
        expect(error_of(lambda: SftpStorage(config, SHORT)), "STORAGE_LOGIN_FAILED", "key")

    def test_a_path_without_a_parent_and_one_that_is_a_file(self, server, tmp_path):
        (tmp_path / "file").touch()
        missing = error_of(lambda: SftpStorage(server.config(tmp_path / "no/parent"), SHORT))
        expect(missing, "STORAGE_PATH_INVALID", "missing")
        file = error_of(lambda: SftpStorage(server.config(tmp_path / "file"), SHORT))
        expect(file, "STORAGE_PATH_INVALID", "not_a_folder")

    def test_a_disk_that_is_read_only_full_or_out_of_inodes(self, server, tmp_path):
        with small_disk(tmp_path / "disk", 4 * MIB) as disk, SftpStorage(server.config(disk), SHORT) as storage:
            expect(error_of(lambda: storage.put("large", bytes(6 * MIB))), "STORAGE_FULL")
            with without_inodes(disk):
                expect(error_of(lambda: storage.put("one-more", b"x")), "STORAGE_FULL", "files")
            remount_read_only(disk)
            expect(error_of(lambda: storage.put("new", b"x")), "STORAGE_PERMISSION_DENIED", "read_only")

    def test_a_server_that_permits_no_change(self, tmp_path):
        (tmp_path / "storage").mkdir()
        with Sshd(tmp_path, read_only=True) as server, SftpStorage(server.config(tmp_path / "storage")) as storage:
            expect(error_of(lambda: storage.put("new", b"x")), "STORAGE_PERMISSION_DENIED")


@pytest.mark.feature("S24")
class TestLocal:
    def test_a_path_without_a_parent_and_one_that_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        expect(error_of(lambda: LocalStorage(str(tmp_path / "no/parent"))), "STORAGE_PATH_INVALID", "missing")
        expect(error_of(lambda: LocalStorage(str(tmp_path / "file"))), "STORAGE_PATH_INVALID", "not_a_folder")
        expect(error_of(lambda: LocalStorage(str(tmp_path / "file/below"))), "STORAGE_PATH_INVALID", "not_a_folder")

    def test_a_disk_that_is_full_out_of_inodes_or_read_only(self, tmp_path):
        with small_disk(tmp_path / "disk", 4 * MIB) as disk, LocalStorage(str(disk)) as storage:
            expect(error_of(lambda: storage.put("large", bytes(6 * MIB))), "STORAGE_FULL")
            with without_inodes(disk):
                expect(error_of(lambda: storage.put("one-more", b"x")), "STORAGE_FULL", "files")
            remount_read_only(disk)
            expect(error_of(lambda: storage.put("new", b"x")), "STORAGE_PERMISSION_DENIED", "read_only")


@pytest.mark.feature("S24")
@pytest.mark.parametrize("kind", ["s3", "ftp"])
def test_the_way_in_of_the_other_servers_has_the_same_causes(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as busy, socket.socket() as waiting:
        waiting.connect(busy.getsockname())  # its queue is full: as behind a firewall that drops
        for host, port, source, cause in (
            ("nas.invalid", 9, "", "dns"),
            ("127.0.0.1", free_port(), "", "refused"),
            ("127.0.0.1", free_port(), "203.0.113.9", "bind"),
            ("127.0.0.1", busy.getsockname()[1], "", "timed_out"),
        ):
            s3 = S3Config("bucket", "r", "key", "secret", endpoint=f"http://{host}:{port}", bind_address=source)
            ftp = FtpConfig(host, "user", "/vault", "secret", port=port, bind_address=source)
            spec = StorageSpec("", "", s3=s3) if kind == "s3" else StorageSpec("", "", ftp=ftp)
            with pytest.raises(StorageError) as caught:
                open_storage(spec, brief=True)
            expect(caught.value, "STORAGE_UNREACHABLE", cause)


@pytest.mark.feature("S24")
class TestTls:
    """A real handshake with a server whose certificate is wrong in one way, mapped as every backend maps it."""

    @pytest.mark.parametrize(
        ("name", "days", "trusted", "cause"),
        [
            ("localhost", 10, False, "untrusted"),
            ("localhost", -1, True, "expired"),
            ("other.example", 10, True, "hostname"),
        ],
    )
    def test_a_certificate_that_does_not_hold(self, tmp_path, name, days, trusted, cause):
        certificate = make_certificate(tmp_path, name, days)
        client = ssl.create_default_context(cafile=str(certificate) if trusted else None)
        with tls_server(certificate) as port:
            expect(handshake(client, port), "STORAGE_UNTRUSTED", cause)

    def test_a_server_of_an_old_version_and_one_that_speaks_no_tls(self, tmp_path):
        certificate = make_certificate(tmp_path, "localhost", 10)
        client = ssl.create_default_context(cafile=str(certificate))
        client.minimum_version = ssl.TLSVersion.TLSv1_3
        with tls_server(certificate, ssl.TLSVersion.TLSv1_2) as port:
            expect(handshake(client, port), "STORAGE_UNTRUSTED", "protocol")
        with plain_server() as port:
            expect(handshake(client, port), "STORAGE_UNTRUSTED", "protocol")

    def test_a_connection_lost_in_the_handshake_is_no_fault_of_tls(self, server):
        with Proxy(server.port) as proxy:
            proxy.refuse()
            expect(handshake(ssl.create_default_context(), proxy.port), "STORAGE_UNREACHABLE", "lost")


@pytest.mark.feature("S24")
def test_what_a_library_wrapped_is_found() -> None:
    wrapped = RuntimeError("request failed", ConnectionRefusedError(111, "Connection refused"))
    assert cause_of(wrapped) == "refused"
    outer = RuntimeError("again")
    outer.__cause__ = wrapped
    assert cause_of(outer) == "refused"
    loop = RuntimeError("a ring")
    loop.__cause__ = outer
    outer.__context__ = loop
    assert cause_of(loop) == "refused"
    assert cause_of(RuntimeError("nothing known")) == ""
    error = way_in_failed(RuntimeError("nothing known"), storage="s3://b", step="connect")
    assert isinstance(error, StorageUnreachable)
    assert "cause" not in error.facts
    assert error.advice == remedy("STORAGE_UNREACHABLE")


@pytest.mark.feature("S24")
def test_every_reason_has_a_remedy_of_its_own_and_every_remedy_reads_as_a_sentence() -> None:
    for (reason, cause), text in REMEDIES.items():
        assert (reason, "") in REMEDIES, reason
        assert WORDS.fullmatch(cause)
        assert text[0].isupper()
        assert not text.endswith(".")
    assert remedy("STORAGE_LOGIN_FAILED", "something new") == remedy("STORAGE_LOGIN_FAILED")
    assert remedy("SOMETHING_ELSE") == ""


def test_the_page_for_administrators_has_every_remedy() -> None:
    page = (Path(__file__).parents[3] / "docs" / "storages.md").read_text()
    for (reason, cause), text in REMEDIES.items():
        assert f"| `{reason}` |{f' `{cause}`' if cause else ''} | {text} |" in page


# ---- what the tests stand on --------------------------------------------------------------------------------------------


@contextmanager
def without_inodes(disk: Path) -> Iterator[None]:
    """A small disk that has room for bytes and none for a further file."""
    subprocess.run(["mount", "-o", "remount,nr_inodes=1", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(disk)], check=True)


def make_certificate(folder: Path, name: str, days: int) -> Path:
    """A certificate that signs itself, valid until so many days from now, with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(days=30))
    builder = builder.not_valid_after(now + dt.timedelta(days=days))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return path


@contextmanager
def serving(greet: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server on loopback whose one connection is `greet`'s."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            peer, _ = listening.accept()
            with peer:
                greet(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            thread.join(10)


def tls_server(certificate: Path, version: ssl.TLSVersion | None = None) -> AbstractContextManager[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if version is not None:
        context.maximum_version = version

    def greet(peer: socket.socket) -> None:
        try:
            context.wrap_socket(peer, server_side=True).close()
        except OSError:
            return  # the client went away, which is the point

    return serving(greet)


def plain_server() -> AbstractContextManager[int]:
    def greet(peer: socket.socket) -> None:
        peer.sendall(b"220 ready\r\n")
        peer.recv(1000)

    return serving(greet)


def handshake(client: ssl.SSLContext, port: int) -> StorageError:
    """Our error for a handshake of `client` that fails."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        try:
            client.wrap_socket(sock, server_hostname="localhost").close()
        except OSError as error:
            return way_in_failed(error, storage="ftp://localhost", step="handshake")
    raise AssertionError("the handshake went well")
