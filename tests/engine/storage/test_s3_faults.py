"""S3 when things go wrong, on real servers: cut lines, a server that has too much to do, lost answers, credentials, clocks."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace

import pytest

from engine.errors import (
    BucketNotFound,
    ObjectExists,
    StorageClockSkewed,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLoginFailed,
    StorageThrottled,
    StorageUnreachable,
    StorageUntrusted,
)
from engine.storage.s3 import S3Storage
from engine.storage.s3_parts import PART_BYTES_MIN
from engine.storage.throttled import ThrottledStorage
from engine.throttle import Throttle
from engine.units import MIB
from tests.engine.storage.test_s3 import QUICK
from tests.servers.http_rules import SLOW_DOWN, HttpRules, Request, Told
from tests.servers.proxy import Proxy
from tests.servers.s3 import free_ports
from tests.waiting import wait_until

DATA = os.urandom(17 * MIB)  # four parts
WAIT_SECONDS = 30.0


@pytest.fixture
def proxy(weed):
    with HttpRules(weed.port) as proxy:
        yield proxy


@pytest.fixture
def place(weed, proxy):
    return weed.place(QUICK, endpoint=f"http://127.0.0.1:{proxy.port}", part_size_bytes=PART_BYTES_MIN)


def write(storage, name="d/object", data=DATA) -> None:
    with storage.create(name, len(data)) as sink:
        for start in range(0, len(data), MIB):
            sink.write(data[start : start + MIB])


# ---- interrupted uploads ------------------------------------------------------------------------------------------------


@pytest.mark.feature("C12")
def test_acknowledged_parts_are_not_sent_again(place, proxy):
    """The line is gone for good at the third part: nothing is left. With it back, the first parts are not sent twice."""
    fails = {"3": 3}

    def third_fails(request: Request) -> Told | None:
        number = request.target.partition("partNumber=")[2].partition("&")[0]
        if request.method == "PUT" and fails.get(number, 0):
            fails[number] -= 1
            return Told(500, "InternalError")
        return None

    with place.open() as storage:
        proxy.answer(third_fails)
        upload = storage.create("d/object")
        with upload as sink:
            sink.write(DATA)
        assert storage.get("d/object") == DATA
        assert upload.resent_bytes == 3 * PART_BYTES_MIN
    sent = [one.target.partition("partNumber=")[2][:1] for one in proxy.requests if "partNumber" in one.target]
    assert sorted(sent)[1:] == ["1", "2", "3", "3", "3", "3", "4"]  # the first was to try the storage out


def test_a_storm_of_slow_down_is_ridden_out(place, proxy):
    seen: Counter[tuple[str, str]] = Counter()

    def twice(request: Request) -> Told | None:
        seen[request.method, request.target] += 1
        return SLOW_DOWN if seen[request.method, request.target] % 3 else None

    with place.open() as storage:
        proxy.answer(twice)
        write(storage)
        storage.put("d/small", b"x")
        assert storage.get("d/object") == DATA
        assert sorted(entry.name for entry in storage.list()) == ["d/object", "d/small"]
        storage.sweep("d")
    assert place.files() == []


def test_a_folder_that_vanished_under_a_gateway_is_made_again(place, proxy):
    """Who removes the last name in a folder takes it from whoever writes the next: that answers as if a key were missing."""
    told: Counter[tuple[str, str]] = Counter()

    def once(request: Request) -> Told | None:
        told[request.method, request.target] += 1
        writes = request.method in {"PUT", "POST"} and "delete" not in request.target
        return Told(404, "NoSuchKey") if writes and told[request.method, request.target] == 1 else None

    with place.open() as storage:
        storage.promises()
        proxy.answer(once)
        write(storage)
        storage.put("d/small", b"x")
        assert storage.get("d/object") == DATA
        assert storage.get("d/small") == b"x"
    assert [count for (method, _), count in told.items() if method == "POST"] == [2, 2]


def test_a_storm_without_an_end_is_named_and_leaves_nothing(place, proxy):
    with place.open() as storage:
        storage.promises()
        proxy.answer(lambda request: SLOW_DOWN if request.method == "PUT" else None)
        with pytest.raises(StorageThrottled):
            write(storage)
    assert place.files() == []


@pytest.mark.parametrize("conditions", [True, False])
def test_a_lost_answer_to_the_end_is_settled_by_looking(place, proxy, conditions):
    """The server has done it, and says that it has not: with conditions the repetition is refused as taken, by ourselves."""
    lost: list[Request] = []

    def lose_once(request: Request) -> Told | None:
        end = (request.method == "POST" and "uploadId" in request.target) or request.target.endswith("small")
        if not end or request.method not in {"POST", "PUT"} or request.target in [one.target for one in lost]:
            return None
        lost.append(request)
        return Told(500, "InternalError", after=True)

    with place.open() as storage:
        promises = storage.promises()
        if not conditions:
            storage._promises = replace(promises, exclusive_put=False, exclusive_complete=False)
        proxy.answer(lose_once)
        write(storage)
        storage.put("d/small", b"x")
        assert len(lost) == 2
        assert storage.get("d/object") == DATA
        assert storage.get("d/small") == b"x"
        with pytest.raises(ObjectExists):
            storage.put("d/small", b"x")
    assert place.files() == ["d/object", "d/small"]


def test_an_upload_begun_twice_leaves_one(place, proxy):
    lost: list[Request] = []

    def lose_once(request: Request) -> Told | None:
        if request.method != "POST" or "uploads=" not in request.target or lost:
            return None
        lost.append(request)
        return Told(500, "InternalError", after=True)

    with place.open() as storage:
        storage.promises()
        proxy.answer(lose_once)
        write(storage)
    assert len(lost) == 1
    assert place.files() == ["d/object"]


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (Told(403, "InvalidAccessKeyId"), StorageLoginFailed),
        (Told(403, "AccessDenied"), StorageDenied),
        (Told(403, "QuotaExceeded"), StorageFull),
        (Told(507, "XMinioStorageFull"), StorageFull),
        (Told(404, "NoSuchBucket"), BucketNotFound),
    ],
)
def test_what_ends_an_upload_in_its_middle_is_named(place, proxy, told, error):
    with place.open() as storage:
        storage.promises()
        proxy.answer(lambda request: told if "partNumber=2" in request.target else None)
        with pytest.raises(error) as caught:
            write(storage)
        assert (caught.value.facts.get("cause") == "quota") == ("Quota" in told.code)
        assert ("Raise the quota" in caught.value.message) == ("Quota" in told.code)
        proxy.answer(lambda _: None)
        assert list(storage.list()) == []
    assert place.files() == []


def test_a_part_that_arrived_changed_is_refused(place):
    """SeaweedFS compares no hash of a body, so we compare its ETag."""

    with place.open() as storage:
        upload = storage.create("d/object")
        real = storage.api.upload_part

        def other(key, upload_id, number, body, again):
            return real(key, upload_id, number, bytes(len(body)), again)

        storage.api.upload_part = other
        with pytest.raises(StorageError), upload as sink:
            sink.write(DATA)
    assert place.files() == []


def test_an_interrupt_ends_a_stalled_upload(weed):
    with Proxy(weed.port) as proxy:
        place = weed.place(
            replace(QUICK, stall_seconds=120), endpoint=f"http://127.0.0.1:{proxy.port}", part_size_bytes=PART_BYTES_MIN
        )
        with place.open() as storage:
            storage.promises()
            proxy.stall_after(3 * MIB)
            ended: list[BaseException] = []

            def run() -> None:
                try:
                    write(storage)
                except BaseException as error:
                    ended.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            wait_until(lambda: proxy.stalled, WAIT_SECONDS, "the stall")
            storage.interrupt()
            thread.join(WAIT_SECONDS)
            assert isinstance(ended[0], StorageUnreachable)


@pytest.mark.feature("P8")
def test_a_limit_holds_on_the_wire(weed):
    """Parts are collected before they leave: the limit counts when they do."""
    with Proxy(weed.port) as proxy:
        place = weed.place(QUICK, endpoint=f"http://127.0.0.1:{proxy.port}", part_size_bytes=PART_BYTES_MIN)
        throttle, stop = Throttle(8 * MIB), threading.Event()

        class Bucket:
            def portions(self, total, bytes_max):
                return throttle.portions(total, stop, bytes_max)

        with ThrottledStorage(place.open(), Bucket()) as storage:
            storage.put("first", b"x")
            begun, before = time.monotonic(), proxy.bytes["up"]
            write(storage)
            rate = (proxy.bytes["up"] - before) / (time.monotonic() - begun)
    assert rate < 1.2 * 8 * MIB  # a burst is allowed at the beginning


# ---- the way in ---------------------------------------------------------------------------------------------------------


def test_wrong_credentials_are_refused(weed, juicefs):
    for server in (weed, juicefs):
        for changes in ({"secret_key": "wrong-secret"}, {"access_key": "nobody"}):
            with pytest.raises(StorageLoginFailed) as caught:
                server.place(QUICK, **changes).open()
            assert "wrong-secret" not in caught.value.message


def test_a_missing_bucket_is_named(weed, juicefs):
    for server in (weed, juicefs):
        with pytest.raises(BucketNotFound):
            S3Storage(server.config("never-made"), QUICK)


def test_a_clock_that_is_wrong_is_named(juicefs):
    config = juicefs.config(juicefs.shared_bucket)
    with pytest.raises(StorageClockSkewed) as caught:
        S3Storage(config, QUICK, clock=lambda: time.time() - 3600)
    assert -3660 < float(caught.value.facts["seconds"]) < -3540


@pytest.mark.parametrize(
    "endpoint", ["http://no.such.host.invalid", "http://127.0.0.1:{closed}", "http://127.0.0.1:{silent}"]
)
def test_no_way_there_is_unreachable(weed, endpoint):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = endpoint.format(closed=free_ports(1)[0], silent=silent.getsockname()[1])
        with pytest.raises(StorageUnreachable):
            S3Storage(
                weed.config("b", endpoint=endpoint), replace(QUICK, connect_seconds=2, stall_seconds=1, attempts=2)
            )


@pytest.mark.feature("D18")
def test_it_binds_to_the_address_asked_for(weed):
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: seen.append(_accept(server)))
        thread.start()
        config = weed.config("b", endpoint=f"http://127.0.0.1:{server.getsockname()[1]}", bind_address="127.0.0.7")
        with pytest.raises(StorageUnreachable):
            S3Storage(config, replace(QUICK, attempts=1))
        thread.join(WAIT_SECONDS)
    assert seen == ["127.0.0.7"]
    with pytest.raises(StorageUnreachable) as caught:
        weed.place(QUICK, bind_address="192.0.2.1").open()
    assert "192.0.2.1" in str(caught.value)
    with weed.place(QUICK, bind_address="127.0.0.7").open() as storage:
        storage.put("object", b"x")


def _accept(server: socket.socket) -> str:
    connection, (address, _) = server.accept()
    connection.close()
    return str(address)


def test_a_certificate_that_nobody_signed_is_refused(weed, tmp_path):
    import ssl

    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "k.pem", "-out", "c.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with HttpRules(weed.port) as proxy:
        proxy.secure(context)
        place = weed.place(QUICK, endpoint=f"https://127.0.0.1:{proxy.port}")
        with pytest.raises(StorageUntrusted):
            place.open()
        certificate = (tmp_path / "c.pem").read_text()
        with weed.place(
            QUICK, endpoint=f"https://127.0.0.1:{proxy.port}", ca_certificate=certificate
        ).open() as storage:
            storage.put("object", b"x")
            assert storage.get("object") == b"x"
    with pytest.raises((StorageUntrusted, StorageUnreachable)):
        weed.place(QUICK, endpoint=f"https://127.0.0.1:{weed.port}").open()


# ---- stale uploads ------------------------------------------------------------------------------------------------------


@pytest.mark.feature("C10")
def test_stale_uploads_are_found_and_aborted(weed):
    place = weed.place(QUICK)
    other = weed.place(QUICK)
    other.plant_unfinished("servers/a/0000.data")
    with place.open() as storage:
        place.plant_unfinished("servers/a/0000.data")
        place.plant_unfinished("foreign name")
        assert storage.remove_stale(3600) == []
        assert len(place.uploads()) == 2, "a young one stays"
        assert storage.remove_stale(-1, dry_run=True) == ["servers/a/0000.data"]
        assert len(place.uploads()) == 2
        assert storage.remove_stale(-1) == ["servers/a/0000.data"]
        assert place.files() == ["foreign name (upload)"]
    assert other.files() == ["servers/a/0000.data (upload)"], "below another prefix"


@pytest.mark.feature("C10")
def test_a_person_lists_and_aborts_stale_uploads(weed, tmp_path):
    place = weed.place(QUICK)
    place.plant_unfinished("servers/a/0000.data")
    file = tmp_path / "storage.json"
    file.write_text(json.dumps({"type": "s3", **asdict(place.spec.s3)}))

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "engine.cli",
            "--output",
            "json",
            "s3-cleanup",
            "--storage",
            str(file),
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run("--older-than", "1")
    assert (refused.returncode, json.loads(refused.stdout)["error"]["reason"]) == (2, "INVALID_FIELD")
    done = run()
    assert json.loads(done.stdout) == {"uploads": [], "aborted": True}, done.stderr
    assert weed.secret_key not in done.stdout + done.stderr
    assert place.files() == ["servers/a/0000.data (upload)"], "it is young"
