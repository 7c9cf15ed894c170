"""One POST to real receivers that take it, refuse it, stall, redirect, and are not where they seem to be."""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import posting
from controller.posting import Post, PostFailed
from tests.servers.receiver import Receiver

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECRET = "a secret of the receiver"
BODY = json.dumps({"a": 1}).encode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def post(receiver: Receiver, **values: Any) -> Post:
    return replace(Post(receiver.url, "delivery-1", BODY, (SECRET,)), **values)


async def failure(post: Post, allowed: Any = LOOPBACK, seconds: float = 5) -> tuple[str, int]:
    with pytest.raises(PostFailed) as caught:
        await posting.send(post, allowed, NOW, seconds)
    return str(caught.value), caught.value.status


@pytest.mark.feature("N6")
async def test_a_receiver_can_check_who_sent_what_and_when(receiver: Receiver) -> None:
    assert await posting.send(post(receiver), LOOPBACK, NOW) == 204

    [(headers, body)] = receiver.requests
    assert body == BODY
    assert headers["content-type"] == "application/json"
    assert headers["backup-manager-delivery"] == "delivery-1"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    timestamp = headers["backup-manager-timestamp"]
    assert timestamp == str(int(NOW.timestamp()))
    wanted = hmac.new(SECRET.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["backup-manager-signature"] == f"v1={wanted}"
    assert SECRET not in repr(post(receiver))


@pytest.mark.feature("N6")
async def test_each_secret_signs(receiver: Receiver) -> None:
    """A receiver that knows either of two secrets finds its signature, as docs/events.md tells it to look for it."""
    await posting.send(post(receiver, secrets=(SECRET, "the one before it")), LOOPBACK, NOW)
    [(headers, body)] = receiver.requests
    signed = headers["backup-manager-timestamp"].encode() + b"." + body
    given = {one.strip() for one in headers["backup-manager-signature"].split(",")}
    assert given == {
        f"v1={hmac.new(one.encode(), signed, hashlib.sha256).hexdigest()}" for one in (SECRET, "the one before it")
    }


@pytest.mark.feature("N6")
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 120", 120),
        ("retry-after:  Mon, 23 Nov 2026 12:05:00 GMT", 300),
        ("Retry-After: 999999999999", 3600),
        ("Retry-After: Mon, 23 Nov 2026 11:00:00 GMT", 0),
        ("Retry-After: soon", 0),
        ("Retry-After: -5", 0),
        ("Retry-After: Mon, 99 Nov 2026 12:05:00 GMT", 0),
        ("X-Other: 5", 0),
    ],
)
async def test_a_receiver_says_for_how_long_it_wants_nothing_more(
    receiver: Receiver, header: str, seconds: int
) -> None:
    receiver.answers, receiver.headers = [503], ["Server: a", header]
    with pytest.raises(PostFailed) as caught:
        await posting.send(post(receiver), LOOPBACK, NOW)
    assert caught.value.hold == timedelta(seconds=seconds)


@pytest.mark.feature("N6")
@pytest.mark.parametrize(("answer", "status"), [(500, 500), (404, 404), (199, 199), (304, 304)])
async def test_a_status_that_is_no_success_is_a_failure(receiver: Receiver, answer: int, status: int) -> None:
    if answer < 200:
        receiver.answers = ["interim"]
        assert await posting.send(post(receiver), LOOPBACK, NOW) == 200
        return
    receiver.answers = [answer]
    assert (await failure(post(receiver)))[1] == status


@pytest.mark.feature("N6")
@pytest.mark.parametrize(
    ("answer", "word"), [("stall", "no answer within"), ("drip", "answer"), ("cut", "closed"), ("garbage", "not HTTP")]
)
async def test_a_receiver_that_misbehaves_costs_its_time_limit_at_most(
    receiver: Receiver, answer: str, word: str
) -> None:
    receiver.answers = [answer]
    started = asyncio.get_running_loop().time()
    text, status = await failure(post(receiver), seconds=0.4)
    assert word in text
    assert status == 0
    assert asyncio.get_running_loop().time() - started < 3


@pytest.mark.feature("N6")
async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with Receiver() as inner:
        receiver.answers, receiver.location = ["redirect"], inner.url
        text, status = await failure(post(receiver))
        assert (status, "not followed" in text) == (302, True)
        assert inner.connections == 0


@pytest.mark.feature("N6")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "127.1", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_the_loopback_is_not_reached_by_any_of_its_names(receiver: Receiver, host: str) -> None:
    text, _ = await failure(post(receiver, url=f"http://{host}:{receiver.port}/"), allowed=())
    assert "no public address" in text
    assert receiver.connections == 0


@pytest.mark.feature("N6")
async def test_a_name_is_asked_once_and_its_address_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers with a good address first and a bad one later (DNS rebinding) gets no second question."""
    asked: list[str] = []
    answers = ["192.0.2.1", "127.0.0.1"]

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[len(asked) - 1], port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", _only_names(resolve))
    url = f"http://rebind.example:{receiver.port}/"
    allowed = (ipaddress.ip_network("192.0.2.0/24"),)
    text, _ = await failure(post(receiver, url=url), allowed, seconds=0.3)
    assert "public" not in text  # it tried 192.0.2.1, where nobody is
    assert asked == ["rebind.example"]
    assert "no public address" in (await failure(post(receiver, url=url), allowed))[0]
    assert receiver.connections == 0


def _only_names(resolve: Any) -> Any:
    """Return a resolver for names; asyncio asks it about addresses too, and those are what they are."""

    async def ask(host: str, port: int, **options: Any) -> Any:
        if host.endswith(".example"):
            return await resolve(host, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    return ask


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a key and of a certificate for 127.0.0.1 that signs itself."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=receiver", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.mark.feature("N6")
async def test_a_certificate_is_checked(tmp_path: Path) -> None:
    key, certificate = await asyncio.to_thread(make_certificate, tmp_path)
    with Receiver(certificate, key) as secure:
        text, _ = await failure(post(secure))
        assert "not trusted" in text
        assert secure.requests == []
        assert await posting.send(post(secure, ca_certificate=certificate.read_text()), LOOPBACK, NOW) == 204
        other = post(secure, url=secure.url.replace("127.0.0.1", "localhost"), ca_certificate=certificate.read_text())
        assert "not trusted" in (await failure(other))[0], "signed by whom we trust, for another name"
    with Receiver() as plain:
        text, _ = await failure(post(plain, url=plain.url.replace("http:", "https:")), seconds=2)
        assert "TLS" in text or "connect" in text or "no answer" in text
