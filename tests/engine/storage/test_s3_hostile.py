"""A bucket's server that lies: listings without an end, small objects that are not what was sent, objects of another size."""

import os
from collections.abc import Iterator

import pytest

from engine.errors import StorageError
from engine.storage import s3, s3_api, s3_cleanup
from engine.storage.s3 import S3Storage
from engine.storage.s3_parts import PART_BYTES_MIN
from tests.engine.storage.test_s3 import QUICK
from tests.servers.endless_s3 import EndlessS3

pytestmark = pytest.mark.feature("S5")
PAGES = 10


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndlessS3]:
    monkeypatch.setattr(s3_api, "PAGES_MAX", PAGES)
    monkeypatch.setattr(s3_api, "PARTS_MAX", PAGES)
    with EndlessS3() as server:
        yield server


@pytest.mark.parametrize("names", [True, False])
def test_a_listing_without_an_end_ends(endless, names):
    endless.names = names
    with S3Storage(endless.config(), QUICK) as storage:
        for ask in (
            lambda: list(storage.list("servers")),
            lambda: list(storage.folders("servers")),
            lambda: storage.sweep("servers"),
            lambda: list(storage.api.uploads("")),
        ):
            before = endless.pages
            with pytest.raises(StorageError, match="pages"):
                ask()
            assert endless.pages == before + PAGES


@pytest.mark.feature("C10")
def test_an_upload_of_endless_parts_is_not_judged(endless):
    with S3Storage(endless.config(), QUICK) as storage:
        upload = next(iter(storage.api.uploads("")))
        before = endless.pages
        assert storage.api.last_part_time(upload) is None
        assert endless.pages == before + PAGES


def test_a_sweep_does_not_collect_names_without_an_end(endless, monkeypatch):
    monkeypatch.setattr(s3_api.S3Api, "uploads", lambda *_: [])
    monkeypatch.setattr(s3, "SWEEP_KEYS_MAX", 300)
    with S3Storage(endless.config(), QUICK) as storage, pytest.raises(StorageError, match="300 names"):
        storage.sweep("servers")
    assert endless.pages <= 5


# ---- what arrived is not what was sent ----------------------------------------------------------------------------------


def test_a_small_object_that_arrived_changed_is_removed(weed, monkeypatch):
    """SeaweedFS compares no hash of a body, so we compare its ETag: of small objects too."""
    place = weed.place(QUICK)
    with place.open() as storage:
        storage.promises()
        real = storage.api.put
        monkeypatch.setattr(storage.api, "put", lambda step, key, body, token, **how: real(step, key, bytes(len(body)), token, **how))  # fmt: skip
        with pytest.raises(StorageError, match="not what was sent"):
            storage.put("d/manifest.json", b"as it was written")
    assert place.files() == []


def test_an_object_whose_size_is_not_what_was_sent_does_not_stay(juicefs, monkeypatch):
    """The server forgot a part: what lies under the name is ours, and no object of ours may be less than it was."""
    place = juicefs.place(QUICK, part_size_bytes=PART_BYTES_MIN)
    with place.open() as storage:
        real = storage.api.complete_upload
        monkeypatch.setattr(storage.api, "complete_upload", lambda key, upload_id, etags, **how: real(key, upload_id, etags[:-1], **how))  # fmt: skip
        with pytest.raises(StorageError, match="were sent"), storage.create("d/object") as sink:
            sink.write(os.urandom(2 * PART_BYTES_MIN + 5))
    assert place.files() == []


@pytest.mark.feature("C10")
def test_what_a_trial_of_the_storage_left_when_it_died_is_cleaned_up(weed):
    place = weed.place(QUICK)
    with place.open() as storage:
        key = storage.key(f"{s3_cleanup.PROBE}0123456789abcdef")
        storage.api.put("try out", key, b"x", "", exclusive=False, again=lambda: None)
        place.begin_upload(f"{s3_cleanup.PROBE}0123456789abcdef")
        assert storage.remove_stale(3600) == []
        storage.remove_stale(-1, dry_run=True)
        assert len(place.files()) == 2
        storage.remove_stale(-1)
        assert place.files() == []


def test_an_upload_whose_beginning_got_no_answer_is_given_up_where_it_can_be_found(weed):
    """The server began it each time, and each time its answer was lost: none of them stays."""
    place = weed.place(QUICK, part_size_bytes=PART_BYTES_MIN)
    with place.open() as storage:
        storage.promises()
        real = storage.api.begin_upload

        def lost(key: str, token: str, again: object = None) -> str:
            real(key, token)
            again()  # type: ignore[operator]  # the upload's own
            real(key, token)
            raise StorageError(storage="s3", step="create", detail="no answer")

        storage.api.begin_upload = lost
        upload = storage.create("d/object")
        with pytest.raises(StorageError), upload as sink:
            sink.write(bytes(2 * PART_BYTES_MIN))
    assert place.files() == []
