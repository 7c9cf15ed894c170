"""What goes on beside the data of an upload to S3, so that it costs no time of its own: the storage's trial, the look at the name."""

import threading

import pytest

from engine.errors import ObjectExists
from engine.storage.s3_api import S3Api
from engine.storage.s3_cleanup import PROBE
from engine.storage.s3_parts import PART_BYTES_MIN
from tests.engine.storage.test_s3_faults import DATA, place, proxy, write  # noqa: F401  # fixtures
from tests.servers.http_rules import Request

pytestmark = pytest.mark.feature("S5", "S6")

WAIT_SECONDS = 30.0


def test_the_trial_runs_beside_the_first_part_and_only_once(place, proxy, monkeypatch):  # noqa: F811  # fixtures
    """Its two lines are held back until both have begun, and the first part came: who waited for another would be here long."""
    part_came, both_lines = threading.Event(), threading.Barrier(2, timeout=WAIT_SECONDS)
    held: list[str] = []

    def hold_back(name: str) -> None:
        real = getattr(S3Api, name)

        def late(api: S3Api, *arguments: object, **options: object) -> object:
            if any(PROBE in str(one) for one in arguments) and name not in held:
                held.append(name)
                assert part_came.wait(WAIT_SECONDS)
                both_lines.wait()
            return real(api, *arguments, **options)

        monkeypatch.setattr(S3Api, name, late)

    def note(request: Request) -> None:
        if "/d/object" in request.target and "partNumber=1" in request.target:
            part_came.set()

    hold_back("put")
    hold_back("begin_upload")
    proxy.answer(note)
    with place.open() as storage:
        write(storage)
        tried = [one for one in proxy.requests if PROBE in one.target]
        write(storage, "d/second")
        assert [one for one in proxy.requests if PROBE in one.target] == tried
        assert storage.get("d/second") == DATA
    assert sorted(held) == ["begin_upload", "put"]


def test_a_taken_name_is_told_long_before_the_end(place, proxy):  # noqa: F811  # fixtures
    with place.open() as storage:
        storage.put("d/object", b"first")
        sent = 0
        with pytest.raises(ObjectExists), storage.create("d/object", 1000 * PART_BYTES_MIN) as sink:  # noqa: PT012
            for _ in range(1000):
                sink.write(bytes(PART_BYTES_MIN))
                sent += 1
        assert sent < 100
        assert storage.get("d/object") == b"first"
    ends = [
        one for one in proxy.requests if one.method == "POST" and "uploadId" in one.target and PROBE not in one.target
    ]
    assert ends == [], "nothing was completed"
    assert place.files() == ["d/object"]
