"""What an S3 server really does, tried out with an object of our own, before what it does matters.

    PUT ──► HEAD ──► PUT again ──► complete ──┬──► DELETE        does it refuse a second object under a name, both ways?
    begin ──► part ───────────────────┘       │                  is an ETag the MD5?
                      PUT of another body ────┘                  does it refuse a body that is not what was signed?

Two lines run side by side: far away each request costs its way, and an upload that is under way waits for the answer in the end.
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from engine.errors import BackupManagerError
from engine.storage.s3_api import S3Api
from engine.storage.s3_errors import Refused

_NOT_UNDERSTOOD = {400, 405, 501}
_TAKEN = {409, 412}


@dataclass(frozen=True, slots=True)
class Promises:
    """What a server was seen to do.

    `etag_is_md5` is only asked of one that does not check bodies itself, and says that an ETag can do it instead.
    """

    exclusive_put: bool
    exclusive_complete: bool
    etag_is_md5: bool


def probe(api: S3Api, key: str) -> Promises:
    """Return what the server does with objects under `key`, which is free before and afterwards. Raises our errors."""
    body = os.urandom(16)
    upload = _Upload(api, key)
    try:
        with ThreadPoolExecutor(1, "s3-probe") as beside:
            begun = beside.submit(upload.begin)
            understood = _put(api, key, body, exclusive=True, first=True)
            if not understood:
                _put(api, key, body, exclusive=False)
            head = api.head("try out", key)
            md5 = head is not None and head.etag == hashlib.md5(body, usedforsecurity=False).hexdigest()
            exclusive = understood and not _put(api, key, body, exclusive=True)
            checked = beside.submit(api.refuses_wrong_body, key)
            return Promises(exclusive, exclusive and upload.is_refused(begun), md5 and not checked.result())
    finally:
        upload.abort()
        with suppress(BackupManagerError):  # the failure that brought us here is the one to tell
            api.delete("try out", key)


def _put(api: S3Api, key: str, body: bytes, *, exclusive: bool, first: bool = False) -> bool:
    """Tell whether an object could be written; False if the server refuses that because of the condition."""
    repeated: list[bool] = []
    try:
        api.put("try out", key, body, "", exclusive=exclusive, again=lambda: repeated.append(True))
    except Refused as refused:
        if first and repeated and refused.status in _TAKEN:
            return True  # by ourselves, with the request whose answer was lost: the key is random
        if exclusive and refused.status in _NOT_UNDERSTOOD | _TAKEN:
            return False
        raise api.error(refused, "create", "an object to try the storage out") from refused
    return True


class _Upload:
    """An upload in one part, of which only the end is of interest."""

    def __init__(self, api: S3Api, key: str) -> None:
        self._api, self._key, self._upload_id = api, key, ""
        self._repeated = False  # there may be two of them

    def begin(self) -> str:
        """Return the part's ETag. Raises our errors."""

        def again() -> None:
            self._repeated = True

        self._upload_id = self._api.begin_upload(self._key, "", again)
        return self._api.upload_part(self._key, self._upload_id, 1, b"part", again=lambda: None)

    def is_refused(self, begun: Future[str]) -> bool:
        """Tell whether it cannot be completed under the name, which is taken. Raises what `begin` raised."""
        etag = begun.result()
        try:
            self._api.complete_upload(self._key, self._upload_id, [etag], exclusive=True)
        except Refused as refused:
            return refused.status in _TAKEN
        self._upload_id = ""
        return False

    def abort(self) -> None:
        with suppress(BackupManagerError):
            if self._upload_id:
                self._api.abort_upload(self._key, self._upload_id)
            if self._repeated:
                for one in list(self._api.uploads(self._key)):
                    self._api.abort_upload(one.key, one.upload_id)
