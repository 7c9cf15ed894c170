"""Uploads in parts that were begun and never completed: invisible to a listing, and paid for (C10).

    stale   of a name below our prefix that is ours, begun longer ago than `age_seconds`, and no part came since then either

    trials  objects and uploads of who tried the storage out (`S3Storage.promises`) and died of it, older than that: no listing has them

Ages are by the storage's own clock. So an upload that is young, or that somebody is still sending parts to, is never touched, whoever's
it is. What a killed backup leaves in its folder goes earlier: with the folder (`sweep`).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from engine.storage.s3_errors import Refused

if TYPE_CHECKING:
    from engine.storage.s3 import S3Storage

PROBE = ".probe-"  # no name of ours begins so: it is in no listing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StaleUpload:
    """An upload that nobody goes on with. Times are Unix seconds by the storage's clock."""

    name: str
    upload_id: str
    begin_time: float
    last_time: float


def is_stale(begin_time: float, last_time: float, now: float, age_seconds: float) -> bool:
    """Tell whether nothing has come for longer than `age_seconds`; a time that is not known (0) is no age."""
    return min(begin_time, last_time) > 0 and now - max(begin_time, last_time) > age_seconds


def _trials(storage: "S3Storage", now: float, age_seconds: float) -> Iterator[str]:
    """Yield the keys that a trial of the storage has left."""
    for page in storage.api.list(storage.key(PROBE)):
        for one in page.keys:
            if one.key.startswith(storage.key(PROBE)) and is_stale(
                one.modified_time, one.modified_time, now, age_seconds
            ):
                yield one.key


def stale_uploads(storage: "S3Storage", age_seconds: float) -> Iterator[StaleUpload]:
    """Yield the stale uploads below the storage's prefix. Raises StorageError."""
    now = _storage_time(storage)
    for upload in list(storage.api.uploads(storage.key(""))):
        name = storage.name_of(upload.key)
        if upload.key.startswith(storage.key(PROBE)):
            name = upload.key.removeprefix(storage.key(""))
        if not name or not is_stale(upload.initiated_time, upload.initiated_time, now, age_seconds):
            continue
        last_time = storage.api.last_part_time(upload)
        if last_time is not None and is_stale(upload.initiated_time, last_time, now, age_seconds):
            yield StaleUpload(name, upload.upload_id, upload.initiated_time, last_time)


def remove_stale(storage: "S3Storage", age_seconds: float, *, dry_run: bool = False) -> list[StaleUpload]:
    """Abort the stale uploads, or with `dry_run` only find them, and return them. Raises StorageError."""
    found = list(stale_uploads(storage, age_seconds))
    for one in found if not dry_run else ():
        storage.api.abort_upload(storage.key(one.name), one.upload_id)
        log.info("a stale upload was aborted storage=%s name=%s", storage.label, one.name)
    if not dry_run:
        for key in list(_trials(storage, _storage_time(storage), age_seconds)):
            storage.api.delete("clean", key)
    return found


def _storage_time(storage: "S3Storage") -> float:
    """Return the storage's clock as its answers tell it, or ours if they do not."""
    try:
        answer = storage.api.call("look at the clock", "the bucket", "GET", "", {"list-type": "2", "max-keys": "1"})
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except Refused as refused:
        raise storage.api.error(refused, "look at", "the bucket") from refused
    except ValueError:
        return storage.api.clock()
