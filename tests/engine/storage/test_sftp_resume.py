"""Uploads over SFTP that go on after a lost connection: cut, stalled, restarted, refused, full, cancelled (C12)."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.errors import StorageError, StorageFull, StorageHostKeyChanged, StorageUnreachable
from engine.storage.sftp import SftpStorage
from engine.storage.sftp_connect import Patience
from engine.storage.sftp_upload import KEPT_BYTES_MAX, STUCK_MAX
from engine.storage.throttled import ThrottledStorage
from engine.units import KIB, MIB
from tests.engine.storage.test_sftp import QUICK, SHORT, WAIT_SECONDS, behind, first_error, raised
from tests.servers.proxy import Proxy
from tests.servers.small_disk import small_disk
from tests.servers.sshd import Sshd
from tests.waiting import wait_until

pytestmark = [pytest.mark.feature("C12"), pytest.mark.feature("S4")]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path) -> Iterator[Sshd]:
    """A server that a test may break."""
    with Sshd(tmp_path) as server:
        yield server


@pytest.mark.parametrize("mib", [0.02, 0.3, 1, 3.5, 7.9])
def test_a_cut_anywhere_costs_one_connection(server, tmp_path, mib):
    data = os.urandom(8 * MIB)
    with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage")) as storage:
        before = proxy.connections
        proxy.cut_after(int(mib * MIB))
        storage.put("d/object", data)
        assert proxy.connections == before + 1
        assert storage.get("d/object") == data
        assert [path.name for path in (tmp_path / "storage/d").iterdir()] == ["object"]
        assert proxy.bytes["up"] < len(data) + KEPT_BYTES_MAX + 1 * MIB  # it went on, it did not begin anew


@pytest.mark.feature("P8")
def test_what_is_sent_again_counts_against_the_upload_limit(server, tmp_path):
    """Nothing leaves this host that the limit has not granted, but for the envelope: requests, SSH, logins."""
    data, granted = os.urandom(8 * MIB), []

    class Counting:
        def portions(self, total: int, bytes_max: int) -> Iterator[int]:
            while total > 0:
                granted.append(min(total, bytes_max))
                total -= granted[-1]
                yield granted[-1]

    with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage")) as inner:
        begun = proxy.bytes["up"]
        with ThrottledStorage(inner, Counting()) as storage:
            for mib in (1, 2, 2):
                proxy.cut_after(int(mib * MIB))
                storage.put(f"d/object{len(granted)}", data[: 3 * MIB])
            storage.put("d/last", b"x")  # which pays what was sent twice at the end of the one before
        assert sum(granted) > 9 * MIB + 1
        assert proxy.bytes["up"] - begun <= sum(granted) + 256 * KIB


@pytest.mark.parametrize(("direction", "extra"), [("up", 600 * KIB), ("up", 300 * KIB), ("down", 400)])
def test_a_connection_that_never_lasts_is_enough(server, tmp_path, direction, extra):
    """Every connection ends after some hundred KiB, or after some replies: a little more is there each time."""
    data = os.urandom(6 * MIB)
    with Proxy(server.port) as proxy:
        behind(proxy, server.config(tmp_path / "storage")).close()
        login = proxy.bytes[direction]
        with behind(proxy, server.config(tmp_path / "storage")) as storage:
            proxy.cut_each_after(login + extra, direction)
            proxy.cut()
            storage.put("d/object", data)
            proxy.cut_each_after(0)
            assert proxy.connections > 5
            assert storage.get("d/object") == data
        assert [path.name for path in (tmp_path / "storage/d").iterdir()] == ["object"]


def test_a_stalled_connection_is_given_up_and_replaced(server, tmp_path):
    data = os.urandom(8 * MIB)
    patience = replace(SHORT, enduring_attempts=8)
    with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage"), patience) as storage:
        proxy.stall_after(2 * MIB)

        def wake() -> None:
            wait_until(lambda: proxy.connections > 1, WAIT_SECONDS, "a second connection")
            proxy.resume()

        waker = threading.Thread(target=wake)
        waker.start()
        storage.put("d/object", data)  # what was held back arrives late, in a session that nobody listens to any more
        waker.join()
        assert storage.get("d/object") == data
        assert [path.name for path in (tmp_path / "storage/d").iterdir()] == ["object"]


def test_a_restarted_server_is_waited_for(own_server, tmp_path):
    data = os.urandom(9 * MIB)
    pauses: list[float] = []

    def come_back_late(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            own_server.start()

    patience = Patience(connect_seconds=10, stall_seconds=10, attempts=1, pause_seconds=1, enduring_attempts=6)
    with SftpStorage(own_server.config(tmp_path / "storage"), patience, come_back_late) as storage:
        with storage.create("d/object") as sink:
            sink.write(data[: 5 * MIB])
            own_server.stop()
            sink.write(data[5 * MIB :])
        assert storage.get("d/object") == data
    assert len(pauses) == 3


def test_pauses_grow_up_to_a_limit_and_end(own_server, tmp_path):
    pauses: list[float] = []
    patience = replace(QUICK, pause_seconds=1, pause_seconds_max=4, enduring_attempts=6)
    with SftpStorage(own_server.config(tmp_path / "storage"), patience, pauses.append) as storage:
        upload = storage.create("object")
        upload.__enter__()
        upload.write(bytes(1 * MIB))
        own_server.stop()
        error = first_error(lambda: upload.write(bytes(1 * MIB)))
        assert isinstance(error, StorageUnreachable)
        assert len(pauses) == 5
        for pause, nominal in zip(pauses, (1, 2, 4, 4, 4), strict=True):
            assert 0.75 * nominal <= pause <= 1.25 * nominal
        assert raised(lambda: upload.write(bytes(1 * MIB))) is error
        upload.__exit__(type(error), error, None)


def test_the_time_is_limited_too(own_server, tmp_path):
    patience = replace(QUICK, pause_seconds=0.2, pause_seconds_max=0.2, enduring_attempts=10_000, enduring_seconds=1)
    with SftpStorage(own_server.config(tmp_path / "storage"), patience) as storage:
        upload = storage.create("object")
        upload.__enter__()
        own_server.stop()
        begin = time.monotonic()
        error = first_error(lambda: upload.write(bytes(1 * MIB)))
        assert isinstance(error, StorageUnreachable)
        assert 0.5 < time.monotonic() - begin < 10
        upload.__exit__(type(error), error, None)


def test_an_upload_that_gets_nowhere_is_given_up(server, tmp_path):
    """Each connection logs in and dies at the first write: trying on for ever would help nobody."""
    with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage")) as storage:
        upload = storage.create("object")
        upload.__enter__()
        proxy.cut_each_after(24 * KIB)  # less than a request, more than a login
        proxy.cut()
        begun = proxy.connections
        error = first_error(lambda: upload.write(bytes(1 * MIB)))
        assert isinstance(error, StorageUnreachable)
        assert proxy.connections - begun <= STUCK_MAX * QUICK.enduring_attempts + 1
        proxy.cut_each_after(0)
        upload.__exit__(type(error), error, None)
        assert list(storage.list()) == []


def test_a_disk_that_is_full_after_the_return_is_named(own_server, tmp_path):
    with small_disk(tmp_path / "disk", 8 * MIB) as disk, SftpStorage(own_server.config(disk), QUICK) as storage:
        upload = storage.create("d/object")
        upload.__enter__()
        upload.write(bytes(3 * MIB))
        own_server.kill_sessions()
        (disk / "ballast").write_bytes(bytes(4 * MIB))
        error = first_error(lambda: upload.write(bytes(1 * MIB)))
        assert isinstance(error, StorageFull)
        upload.__exit__(type(error), error, None)
        assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_another_host_key_after_the_return_is_refused(own_server, tmp_path):
    with SftpStorage(own_server.config(tmp_path / "storage"), QUICK) as storage:
        upload = storage.create("object")
        upload.__enter__()
        upload.write(bytes(1 * MIB))
        own_server.change_host_key()
        error = first_error(lambda: upload.write(bytes(1 * MIB)))
        assert isinstance(error, StorageHostKeyChanged)
        with pytest.raises(StorageHostKeyChanged):
            upload.__exit__(None, None, None)
        assert not (tmp_path / "storage/object").exists()


@pytest.mark.parametrize("refusing", [True, False])
def test_an_interrupt_ends_the_wait_for_a_new_connection_at_once(server, tmp_path, refusing):
    """While the port refuses (a pause of ten seconds goes by), and while a handshake stands still."""
    patience = Patience(connect_seconds=30, stall_seconds=30, pause_seconds=10)
    with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage"), patience) as storage:
        upload = storage.create("object")
        upload.__enter__()
        upload.write(bytes(1 * MIB))
        before = proxy.connections
        if refusing:
            proxy.refuse()
            proxy.cut()
        else:
            proxy.cut()
            proxy.stall()
        ended: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: ended.append(raised(lambda: upload.__exit__(None, None, None))))
        thread.start()
        wait_until(lambda: proxy.connections > before, WAIT_SECONDS, "an attempt to connect again")
        begin = time.monotonic()
        storage.interrupt()
        thread.join(WAIT_SECONDS)
        assert time.monotonic() - begin < 5
        assert isinstance(ended[0], StorageUnreachable)
        assert "interrupted" in str(ended[0])


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_a_part_that_is_not_what_was_acknowledged_is_no_beginning(own_server, tmp_path, change):
    with SftpStorage(own_server.config(tmp_path / "storage"), QUICK) as storage:
        upload = storage.create("object")
        upload.__enter__()
        for _ in range(8):
            upload.write(bytes(1 * MIB))  # more than is kept: some of it was acknowledged
        own_server.kill_sessions()
        (part,) = (tmp_path / "storage").glob("*.part")
        if change == "gone":
            part.unlink()
        else:
            os.truncate(part, 100 * KIB if change == "shorter" else 50 * MIB)
        error = first_error(lambda: upload.write(bytes(1 * MIB)))
        assert type(error) is StorageError
        assert "resume" in error.facts["step"]
        upload.__exit__(type(error), error, None)
        assert list((tmp_path / "storage").iterdir()) == []


def test_what_is_kept_is_bounded(server, tmp_path):
    """While nothing is acknowledged, a writer waits as soon as the buffer is full."""
    with Proxy(server.port) as proxy, behind(proxy, server.config(tmp_path / "storage")) as storage:
        upload = storage.create("object")
        upload.__enter__()
        proxy.delay(0.05)
        for _ in range(40):
            upload.write(bytes(1 * MIB))
            assert upload._sent - upload._settled <= KEPT_BYTES_MAX
            assert sum(len(one.data) for one in upload._kept) == upload._sent - upload._settled
        proxy.delay(0)
        upload.__exit__(None, None, None)
        assert storage.size("object") == 40 * MIB
