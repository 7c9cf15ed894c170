"""The agent's rules without any I/O: shares, waiting, scrubbing, telemetry's limits."""

import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from grpc import aio
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import shares, telemetry
from agent.backoff import AWAY_LIMIT_SECONDS, LIMIT_SECONDS, REFUSED_LIMIT_SECONDS, Backoff
from agent.scrub import MASK, Scrubber
from agent.telemetry import Feed, Progress, Rate, make_line
from clients import connect
from clients.errors import refusal
from clients.gen.backupmanager.v1 import system_service_pb2, system_service_pb2_grpc
from tests.clients.authority import Authority

if TYPE_CHECKING:
    from agent.records import Verb

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.feature("P1", "S27")
@settings(deadline=None)
@given(
    workers=st.integers(1, 64), read=st.integers(0, 1 << 40), upload=st.integers(0, 1 << 40), count=st.integers(1, 100)
)
def test_shares_sum_to_the_budget(workers: int, read: int, upload: int, count: int) -> None:
    grants = shares.split(shares.Budget(workers, read, upload), ["backup"] * count)

    assert len(grants) == count
    assert sum(grant.workers for grant in grants) == max(workers, count)
    assert max(grant.workers for grant in grants) - min(grant.workers for grant in grants) <= 1
    for total, own in ((read, [one.read_limit for one in grants]), (upload, [one.upload_limit for one in grants])):
        assert all(share == 0 for share in own) if total == 0 else all(share > 0 for share in own)
        assert sum(own) == total or total < count


def test_three_servers_and_four_workers_are_four_threads() -> None:
    grants = shares.split(shares.Budget(4, 0, 0), ["backup"] * 3)

    assert [grant.workers for grant in grants] == [2, 1, 1]


@pytest.mark.feature("P1", "P8", "P9")
def test_only_who_uses_something_takes_a_share_of_it() -> None:
    verbs: list[Verb] = ["delete", "backup", "restore", "test", "backup", "verify"]

    grants = shares.split(shares.Budget(8, 1000, 101), verbs)

    assert [grant.workers for grant in grants] == [1, 2, 2, 1, 2, 2]
    assert [(grants[one].read_limit, grants[one].upload_limit) for one in (1, 4)] == [(500, 51), (500, 50)]


@pytest.mark.feature("P1")
def test_without_a_user_nothing_is_divided() -> None:
    assert shares.split(shares.Budget(8, 1000, 0), []) == []
    assert shares.split(shares.Budget(8, 1000, 0), ["reindex"]) == [shares.Grant(1, 1000, 0)]


def test_backoff_grows_to_its_limit_and_begins_anew_after_a_good_session() -> None:
    backoff = Backoff(luck=lambda: 0.999)

    waits = [backoff.seconds() for _ in range(12)]

    assert waits == sorted(waits)
    assert waits[0] < 1
    assert LIMIT_SECONDS * 0.9 < waits[-1] < LIMIT_SECONDS
    backoff.reset()
    assert backoff.seconds() < 1


def test_a_refusal_is_asked_about_rarely_whatever_the_luck() -> None:
    assert Backoff(luck=lambda: 0.0).seconds("HYPERVISOR_BANNED") >= 15
    lucky = Backoff(luck=lambda: 0.999)
    assert max(lucky.seconds("HYPERVISOR_BANNED") for _ in range(20)) <= REFUSED_LIMIT_SECONDS


async def test_who_finds_nobody_listening_dials_again_soon_however_long_it_lasts() -> None:
    backoff = Backoff(luck=lambda: 0.999)
    authority = Authority()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        async with connect.channel(f"127.0.0.1:{closed.getsockname()[1]}", authority.pem) as link:
            with pytest.raises(aio.AioRpcError) as caught:
                await system_service_pb2_grpc.SystemServiceStub(link).GetVersion(
                    system_service_pb2.GetVersionRequest(), timeout=20
                )
    why = refusal(caught.value)

    waits = [backoff.seconds(why.reason, why.message) for _ in range(12)]

    assert AWAY_LIMIT_SECONDS * 0.9 < waits[-1] < AWAY_LIMIT_SECONDS
    assert backoff.seconds(why.reason, "Handshake failed") > AWAY_LIMIT_SECONDS


@pytest.mark.feature("S28")
@given(
    secret=st.text(st.characters(codec="utf-8", exclude_characters="[]"), min_size=6, max_size=60),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_a_secret_is_masked_wherever_it_stands(secret: str, before: str, after: str) -> None:
    text = Scrubber([secret]).text(before + secret + after)

    assert secret not in text.replace(MASK, "")


@pytest.mark.feature("S28")
def test_the_shapes_of_secrets() -> None:
    key = bytes(range(32))
    pem = "-----BEGIN PRIVATE KEY-----\nAAAABBBBCCCCDDDD\nEEEEFFFFGGGGHHHH\nab==\n-----END PRIVATE KEY-----\n"
    scrubber = Scrubber([key.hex(), pem, "pw"])

    texts = [key.hex().upper(), repr(key), "line EEEEFFFFGGGGHHHH of it", repr(pem), pem, "the password is pw!"]
    clean = scrubber.text("\n".join(texts))

    assert key.hex() not in clean.lower()
    assert "AAAABBBB" not in clean
    assert "EEEEFFFF" not in clean
    assert "is [secret]!" in clean
    assert "\\x1f" not in clean
    assert scrubber.text("a powder") == "a powder"  # two letters inside a word are no secret
    assert scrubber.json({"pw": ["pw", 1, None]}) == {MASK: [MASK, 1, None]}
    assert "AAAA" not in repr(scrubber)


def test_the_newest_progress_wins_and_comes_once_a_second() -> None:
    feed = Feed()
    for done in range(5):
        feed.progress(Progress("job", 1, NOW, "read", done, 10), 100.0)

    assert [one.bytes_done for one in feed.take_progress(100.0)] == [4]
    feed.progress(Progress("job", 1, NOW, "read", 9, 10), 100.5)
    assert feed.take_progress(100.9) == []
    assert [one.bytes_done for one in feed.take_progress(101.0)] == [9]


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    for second in range(100):
        measured = rate.take(float(second), 1000 * second if second < 50 else 50_000 + 10 * second)

    assert measured == 10
    assert rate.take(101.0, 0) == 0  # a new stage


@given(lengths=st.lists(st.integers(0, 6000), max_size=200))
def test_log_lines_keep_their_order_and_their_limits(lengths: list[int]) -> None:
    feed = Feed()
    for number, length in enumerate(lengths, start=1):
        feed.log(make_line(("job", 1), number, NOW, "info", "x" * length))

    taken = []
    while batch := feed.take_lines(64 << 10):
        assert sum(line.size for line in batch) <= 64 << 10
        taken += batch

    assert [line.sequence for line in taken] == list(range(1, len(lengths) + 1))
    assert all(len(line.message) <= telemetry.LINE_MAX for line in taken)


def test_lines_beyond_the_limit_are_counted() -> None:
    feed = Feed()
    for number in range(1, 2001):
        feed.log(make_line(("job", 1), number, NOW, "info", "x" * 4000))

    taken = []
    while batch := feed.take_lines(256 << 10):
        taken += batch

    assert sum(line.size for line in taken) <= telemetry.LOG_BYTES_MAX + 4096
    assert taken[-1].sequence == 2000
    assert taken[-1].message.startswith(f"{2000 - len(taken) + 1} lines up to here were left out")


def test_a_line_is_one_line_of_a_known_level() -> None:
    line = make_line(("job", 1), 1, NOW, "fatal", "one\ntwo \ud800")

    assert (line.level, line.message) == ("info", "one two ?")
