"""An object being written into a bucket: by one request if it is small, in parts that go up side by side if not.

    begun: what the server promises is tried out, beside a large object (s3_promises.py)
    write ──► part being filled ──full──► worker: PUT of the part, repeated while the connection is lost or the server busy
                    ▲                        │
                    └── the part's memory ◄──┘      at most `parts.in_flight` of them (s3_parts.py); then `write` waits
    end   ──► look: is the name taken? ──► complete ──► of the size that was sent?          failed: abort, no trace

A part that was acknowledged is never sent again, whatever happens to connections: that is the resume. An end of unknown
outcome is settled by looking: every object bears the token of who wrote it, and where a server drops that, its ETag tells.
"""

import hashlib
import logging
import mmap
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.errors import BackupManagerError, ObjectExists, StorageError, StorageUnreachable
from engine.storage.base import Buffer
from engine.storage.s3_api import Head
from engine.storage.s3_errors import Refused
from engine.storage.s3_parts import Parts

if TYPE_CHECKING:
    from engine.storage.s3 import S3Storage

log = logging.getLogger(__name__)

_TAKEN = {412, 409}


class S3Upload:
    """An object being written; the `with` block's end publishes it, or gives it up."""

    def __init__(self, storage: "S3Storage", name: str, parts: Parts, *, large: bool) -> None:
        """`large`: it is known to be more than a part."""
        self.resent_bytes = 0  # sent again after a lost connection; ThrottledStorage counts them too
        self._storage, self._api, self._name, self._parts = storage, storage.api, name, parts
        self._key = storage.key(name)
        self._token = os.urandom(16).hex()
        self._upload_id = ""
        self._repeated = False  # the request that began the upload was sent twice: there may be two of them
        self._pool: ThreadPoolExecutor | None = None
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        self._made = 0  # buffers
        self._buffer: mmap.mmap | None = None
        self._filled = self._sent = 0
        self._etags: list[str] = []
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        self._ended = False
        self._large = large

    def __enter__(self) -> Self:
        if self._large:
            self._storage.try_out()  # beside us: what it finds is needed in the end
        else:
            self._storage.promises()
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            if self._failed is not None:
                raise self._failed
            if self._filled == self._parts.size_bytes:
                self._dispatch()
            if self._buffer is None:
                self._buffer = self._next_buffer()
            count = min(len(view), self._parts.size_bytes - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                self._upload_id, self._repeated = "", False
        finally:
            self._end()

    # ---- parts ----------------------------------------------------------------------------------------------------------

    def _next_buffer(self) -> mmap.mmap:
        """Return memory for a part: pages that cost nothing until they are written. Waits while too much is under way."""
        if self._made < self._parts.in_flight:
            self._made += 1
            return mmap.mmap(-1, self._parts.size_bytes)
        buffer = self._free.get()
        if self._failed is not None:
            raise self._failed
        return buffer

    def _dispatch(self) -> None:
        """Send what was filled as the next part, in a thread of its own."""
        if self._pool is None:
            self._begin()
            self._pool = ThreadPoolExecutor(self._parts.in_flight - 1, "s3-part")
            self._pool.submit(self._look_first)
        assert self._buffer is not None
        self._etags.append("")
        self._sent += self._filled
        self._pool.submit(self._send, len(self._etags), self._buffer, self._filled)
        self._buffer, self._filled = None, 0

    def _begin(self) -> None:
        def again() -> None:
            self._repeated = True

        self._upload_id = self._api.begin_upload(self._key, self._token, again)

    def _look_first(self) -> None:
        """Let the upload fail as soon as can be seen that the name is taken. Runs in a worker, beside the first part."""
        try:
            if not self._ended and self._look() is not None:
                raise self._taken()
        except BaseException as error:
            with self._lock:
                self._failed = self._failed or error

    def _send(self, number: int, buffer: mmap.mmap, size_bytes: int) -> None:
        """Send a part and note its ETag, or the first failure. Runs in a worker."""

        def again() -> None:
            if self._ended or self._failed is not None:
                raise StorageUnreachable(storage=self._storage.label, step="write", detail="the upload was given up")
            with self._lock:
                self.resent_bytes += size_bytes

        try:
            if self._ended or self._failed is not None:
                return
            with memoryview(buffer) as whole, whole[:size_bytes] as body:
                etag = self._api.upload_part(self._key, self._upload_id, number, body, again)
                self._check(etag, body)
            self._etags[number - 1] = etag
        except BaseException as error:
            with self._lock:
                self._failed = self._failed or error
        finally:
            self._free.put(buffer)

    def _check(self, etag: str, body: memoryview) -> None:
        """Compare what the server says it has of a part with what was sent, if it did not do so itself."""
        if self._storage.promises().etag_is_md5 and etag != hashlib.md5(body, usedforsecurity=False).hexdigest():
            detail = "what arrived is not what was sent"
            raise StorageError(storage=self._storage.label, step=f"write {self._name}", detail=detail)

    # ---- the end --------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self._pool is None:
            if self._failed is not None:
                raise self._failed
            self._put()
            return
        if self._filled:
            self._dispatch()
        self._pool.shutdown(wait=True)
        if self._failed is not None:
            raise self._failed
        self._complete()
        if self._repeated:
            self._abort_others()

    def _put(self) -> None:
        with memoryview(self._buffer or b"") as whole, whole[: self._filled] as body:
            exclusive = self._storage.promises().exclusive_put
            if not exclusive and self._look() is not None:
                raise self._taken()

            def again() -> None:
                self.resent_bytes += self._filled

            try:
                etag = self._api.put("create", self._key, body, self._token, exclusive=exclusive, again=again)
            except Refused as refused:
                if refused.status not in _TAKEN:
                    raise self._api.error(refused, "create", self._name) from refused
                head = self._look()
                wanted = hashlib.md5(body, usedforsecurity=False).hexdigest()
                if head is None or not self._is_ours(head, self._filled, wanted):
                    raise self._taken() from refused
                etag = head.etag
            if not etag and (head := self._look()) is not None:
                etag = head.etag
            try:
                self._check(etag, body)
            except StorageError:
                self._remove_ours()
                raise

    def _complete(self) -> None:
        exclusive = self._storage.promises().exclusive_complete
        if not exclusive and self._look() is not None:
            raise self._taken()
        try:
            self._api.complete_upload(self._key, self._upload_id, self._etags, exclusive=exclusive)
        except Refused as refused:
            head = self._look()
            if head is None:
                raise self._api.error(refused, "commit", self._name) from refused
            if not self._is_ours(head, self._sent, self._joint_etag()):
                raise self._taken() from refused
        head = self._look()
        if head is None or head.size_bytes != self._sent:
            self._remove_ours()
            found = "nothing is" if head is None else f"{head.size_bytes} bytes are"
            detail = f"{found} there, {self._sent} bytes were sent"
            raise StorageError(storage=self._storage.label, step=f"commit {self._name}", detail=detail)

    def _remove_ours(self) -> None:
        """Remove what lies under the name and is not what was sent, unless it bears another writer's token.

        A server that keeps no tokens has just told us that it took our object for this name, which was free.
        """
        try:
            head = self._look()
            if head is not None and head.token in {"", self._token}:
                self._api.delete("remove", self._key)
        except BackupManagerError as error:
            log.warning("a wrong object stays storage=%s name=%s error=%s", self._storage.label, self._name, error)

    def _look(self) -> Head | None:
        return self._api.head("look at", self._key)

    def _is_ours(self, head: Head, size_bytes: int, etag: str) -> bool:
        """Tell whether an object is the one that we have written."""
        if head.token:
            return head.token == self._token
        return head.size_bytes == size_bytes and head.etag == etag

    def _joint_etag(self) -> str:
        """Return the ETag that an object of our parts has. Source: Amazon S3 user guide, "Checking object integrity"."""
        digests = b"".join(bytes.fromhex(etag) for etag in self._etags if len(etag) == 32)
        return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._etags)}"

    def _taken(self) -> ObjectExists:
        return ObjectExists(storage=self._storage.label, step="create", name=self._name)

    def _abort_others(self) -> None:
        """Abort what a lost answer left of our own beginning; any other upload to this name could not become an object."""
        try:
            for upload in list(self._api.uploads(self._key)):
                if upload.key == self._key:
                    self._api.abort_upload(self._key, upload.upload_id)
        except BackupManagerError as error:
            log.warning(
                "an unfinished upload stays storage=%s name=%s error=%s", self._storage.label, self._name, error
            )

    def _end(self) -> None:
        """Wait for the workers, and give up what did not become an object. With the storage interrupted, it stays."""
        self._ended = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._buffer = None
        self._storage.end_trial()
        if (self._upload_id or self._repeated) and not self._api.interrupted.is_set():
            try:
                if self._upload_id:
                    self._api.abort_upload(self._key, self._upload_id)
                if self._repeated:
                    self._abort_others()
            except BackupManagerError as error:
                log.warning(
                    "an unfinished upload stays storage=%s name=%s error=%s", self._storage.label, self._name, error
                )
        self._upload_id = ""
