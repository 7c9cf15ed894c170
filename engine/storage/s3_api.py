"""The requests of S3 that we need, on one bucket: signed, repeated while that may help, their answers read.

    call ─► sign ─► Wire.exchange ─► 2xx: the answer
              ▲                      the server is busy, or the connection was lost: pause, with jitter, and again
              └──────────────────────┘  anything else: Refused, or our error for it (s3_errors.py)

Names here are keys, as the bucket has them: the storage's prefix is part of them.
"""

import base64
import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import unquote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from engine.errors import BackupManagerError, StorageError, StorageUnreachable, StorageUntrusted
from engine.spec import S3Config
from engine.storage.s3_errors import Refused, error_of
from engine.storage.s3_parts import PARTS_MAX
from engine.storage.s3_sign import EMPTY_SHA256, Signer, path_text, query_text
from engine.storage.s3_wire import Address, Answer, Body, Lost, Oversized, Patience, Untrusted, Wire
from engine.storage.s3_xml import Listing, Upload, document, listing, parse, uploads
from engine.storage.trouble import cause_of, tls_cause
from engine.units import KIB, MIB

log = logging.getLogger(__name__)

ANSWER_BYTES_MAX = 8 * MIB  # a page of a listing has 1,000 keys of 1,024 bytes at most, quoted threefold
ERROR_BYTES_MAX = 256 * KIB
DELETES_MAX = 1000  # of one request
PAGES_MAX = 100_000  # of one listing: as many keys as a whole repository may have (engine/listing.py), at 1,000 a page
# A success may turn into a failure after its status was sent, when a completion takes long.
_ERROR = re.compile(rb"\s*(<\?xml[^>]*\?>)?\s*<Error[\s>]")
NONE_YET = {"if-none-match": "*"}


@dataclass(frozen=True, slots=True)
class Head:
    """What a server tells of an object."""

    size_bytes: int
    etag: str
    token: str  # who wrote it, "" where the server does not keep that


class S3Api:
    """Requests to the bucket of `config`. Any thread may call any method; `clock` returns Unix seconds."""

    def __init__(
        self,
        config: S3Config,
        label: str,
        patience: Patience,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.label, self.patience, self.clock = label, patience, clock
        self._signer = Signer(config.access_key, config.secret_key, config.region or "us-east-1")
        address, host, self._base = _place(config)
        self._host_header = address.authority.replace(address.host, host, 1)
        self.wire = Wire(address, host, patience, config.bind_address, config.ca_certificate)
        self.interrupted = threading.Event()
        self._sleep: Callable[[float], object] = sleep or self.interrupted.wait

    # ---- objects --------------------------------------------------------------------------------------------------------

    def head(self, step: str, key: str) -> Head | None:
        """Return what the server tells of an object, or None if there is none."""
        try:
            answer = self.call(step, key, "HEAD", key)
        except Refused as refused:
            if refused.status == 404:
                return None
            # An answer to HEAD has no text: what is wrong, the same question by GET tells.
            refused = self._asked_again(step, key) or refused
            raise self.error(refused, step, key) from refused
        headers = answer.headers
        token = headers.get("x-amz-meta-writer", "")
        return Head(int(headers.get("content-length", "0")), headers.get("etag", "").strip('"'), token)

    def get(self, key: str, offset: int, length: int, into: memoryview | None = None) -> Answer:
        """Return the answer to a ranged read; `into`, of `length` bytes, may have taken its body. Raises Refused with 404 or 416."""
        headers = {"range": f"bytes={offset}-{offset + length - 1}"}
        return self.call(
            "read", key, "GET", key, headers=headers, answer_bytes_max=max(length, ERROR_BYTES_MAX), enduring=True,
            into=into,
        )  # fmt: skip

    def put(self, step: str, key: str, body: Body, token: str, *, exclusive: bool, again: Callable[[], None]) -> str:
        """Write an object whole, and return its ETag. Raises Refused, with 412 if the name is taken (`exclusive`)."""
        headers = {"x-amz-meta-writer": token, **(NONE_YET if exclusive else {})}
        answer = self.call(step, key, "PUT", key, headers=headers, body=body, enduring=True, again=again)
        return answer.headers.get("etag", "").strip('"')

    def delete(self, step: str, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        try:
            self.call(step, key, "DELETE", key)
        except Refused as refused:
            if refused.status != 404:
                raise self.error(refused, step, key) from refused

    def delete_many(self, step: str, keys: Sequence[str]) -> None:
        """Remove up to DELETES_MAX objects by one request, or one by one what that leaves or where it is not understood."""
        left = keys
        if len(keys) > 1 and all(key.isprintable() for key in keys):
            try:
                left = self._delete_batch(step, keys)
            except Refused as refused:
                log.info("batch delete is not understood storage=%s answer=%s", self.label, refused)
        for key in left:
            self.delete(step, key)

    def list(self, prefix: str, delimiter: str = "", limit: int = 1000) -> Iterator[Listing]:
        """Yield pages of the keys that begin with `prefix`."""
        token = ""
        for _ in range(PAGES_MAX):
            query = {"list-type": "2", "prefix": prefix, "max-keys": str(limit), "encoding-type": "url"}
            query |= ({"delimiter": delimiter} if delimiter else {}) | ({"continuation-token": token} if token else {})
            page = listing(self._document("list", prefix or "the bucket", "GET", "", query))
            yield page
            if not page.next_token:
                return
            if page.next_token == token:
                raise StorageError(
                    storage=self.label, step="list", detail="the server answers with the same page again"
                )
            token = page.next_token
        raise self._endless("list")

    # ---- uploads in parts -----------------------------------------------------------------------------------------------

    def begin_upload(self, key: str, token: str, again: Callable[[], None] = lambda: None) -> str:
        """Begin an upload in parts and return its id. `again` hears that it may have been begun twice."""
        headers = {"x-amz-meta-writer": token}
        answer = self._document(
            "create", key, "POST", key, {"uploads": ""}, headers=headers, enduring=True, again=again
        )
        upload_id = answer.findtext("UploadId", "")
        if not upload_id:
            raise StorageError(storage=self.label, step=f"create {key}", detail="the answer names no upload")
        return upload_id

    def upload_part(self, key: str, upload_id: str, number: int, body: Body, again: Callable[[], None]) -> str:
        """Send a part and return its ETag."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        try:
            answer = self.call("write", key, "PUT", key, query, body=body, enduring=True, again=again)
        except Refused as refused:
            raise self.error(refused, "write", key) from refused
        etag = answer.headers.get("etag", "").strip('"')
        if not etag:
            raise StorageError(storage=self.label, step=f"write {key}", detail="the answer to a part has no ETag")
        return etag

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str], *, exclusive: bool) -> None:
        """Make the object of its parts. Raises Refused: 412 if the name is taken, 404 if the upload is not there (any more)."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        self.call(
            "commit", key, "POST", key, {"uploadId": upload_id}, headers=NONE_YET if exclusive else {}, body=body,
            seconds=self.patience.complete_seconds, enduring=True,
        )  # fmt: skip

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Give up an upload and its parts; one that is not there is no error."""
        try:
            self.call("abort", key, "DELETE", key, {"uploadId": upload_id})
        except Refused as refused:
            if refused.status != 404:
                raise self.error(refused, "abort", key) from refused

    def refuses_wrong_body(self, key: str) -> bool:
        """Tell whether the server refuses a body that is not what was signed; False also where that is not known."""
        wrong = hashlib.sha256(b"signed").hexdigest()
        try:
            answer = self._once("PUT", key, {}, {}, b"sent", wrong, ERROR_BYTES_MAX, 0)
        except (Lost, Untrusted):
            return False
        return 400 <= answer.status < 500

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """Yield the uploads in parts that are not complete, of keys that begin with `prefix`."""
        markers: tuple[str, str] = ("", "")
        for _ in range(PAGES_MAX):
            query = {"uploads": "", "prefix": prefix, "encoding-type": "url"}
            query |= {"key-marker": markers[0], "upload-id-marker": markers[1]} if markers[0] else {}
            found, following = uploads(self._document("list uploads", prefix or "the bucket", "GET", "", query))
            for one in found:
                # Ceph 16 quotes the keys of this listing alone, unasked, and does not say so.
                plain = one if one.key.startswith(prefix) else replace(one, key=unquote(one.key))
                if plain.key.startswith(prefix):
                    yield plain
            if not following[0] or following == markers:
                return
            markers = following
        raise self._endless("list uploads")

    def last_part_time(self, upload: Upload) -> float | None:
        """Return when the youngest part of an upload came, Unix seconds, or when it began if it has none; None if it is gone."""
        newest, marker = upload.initiated_time, ""
        for _ in range(PARTS_MAX):
            query = {"uploadId": upload.upload_id} | ({"part-number-marker": marker} if marker else {})
            try:
                page = self._document("list parts", upload.key, "GET", upload.key, query)
            except StorageError:
                return None  # completed or aborted meanwhile, or not to be read by us: then not ours to judge
            times = [parse(part.findtext("LastModified", "")) for part in page.iterfind("Part")]
            newest = max([newest, *times])
            following = page.findtext("NextPartNumberMarker", "")
            if page.findtext("IsTruncated") != "true" or not following or following == marker:
                return newest
            marker = following
        return None  # more parts than an upload can have: nothing that such a server says of ages is to be believed

    # ---- any request ----------------------------------------------------------------------------------------------------

    def call(
        self,
        step: str,
        name: str,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        seconds: float = 0,
        enduring: bool = False,
        again: Callable[[], None] = lambda: None,
        into: memoryview | None = None,
    ) -> Answer:
        """Return the answer to a request that may be repeated without harm. `again` is called before each repetition.

        `enduring`: try for minutes, since much would be lost. Raises Refused for what the server answers on purpose, and
        StorageUnreachable, StorageUntrusted, StorageThrottled.
        """
        patience, pause = self.patience, self.patience.pause_seconds
        deadline = time.monotonic() + patience.enduring_seconds
        attempts = patience.enduring_attempts if enduring else patience.attempts
        hashed = hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
        for number in range(1, attempts + 1):
            if number > 1:
                again()
            try:
                answer = self._once(
                    method, key, query or {}, headers or {}, body, hashed, answer_bytes_max, seconds, into
                )
                if answer.status < 300 and not (method == "POST" and _ERROR.match(answer.body)):
                    return answer
                refused = Refused(answer)
                if not (refused.again or _folder_vanished(method, refused)):
                    raise refused
                problem: Exception = refused
            except Lost as lost:
                problem = lost
            except Oversized as error:
                raise StorageError(storage=self.label, step=f"{step} {name}", detail=str(error)) from error
            except Untrusted as error:
                raise StorageUntrusted(storage=self.label, detail=str(error), cause=tls_cause(error) or "") from error
            late = enduring and time.monotonic() + pause > deadline
            if number == attempts or late or self.interrupted.is_set():
                raise self._given_up(problem, step, name) from problem
            log.warning(
                "storage failed, trying again storage=%s step=%s name=%s attempt=%d reason=%s",
                self.label, step, name, number, problem,
            )  # fmt: skip
            self._sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, patience.pause_seconds_max)
        raise AssertionError("unreachable")

    def error(self, refused: Refused, step: str, name: str) -> BackupManagerError:
        """Return what a server answered as our error."""
        return error_of(refused, self.label, step, name, self.clock())

    def interrupt(self) -> None:
        self.interrupted.set()
        self.wire.interrupt()

    def close(self) -> None:
        self.interrupted.set()
        self.wire.close()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _once(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body,
        body_sha256: str,
        answer_bytes_max: int,
        seconds: float,
        into: memoryview | None = None,
    ) -> Answer:
        path = self._base + ("/" + path_text(key) if key else "") or "/"
        now = datetime.fromtimestamp(self.clock(), UTC)
        signed = self._signer.sign(method, path, query, {"host": self._host_header, **headers}, body_sha256, now)
        target = path + ("?" + query_text(query) if query else "")
        return self.wire.exchange(
            method, target, signed, body, answer_bytes_max=answer_bytes_max, seconds=seconds, into=into
        )

    def _endless(self, step: str) -> StorageError:
        return StorageError(storage=self.label, step=step, detail=f"the answer has more than {PAGES_MAX} pages")

    def _given_up(self, problem: Exception, step: str, name: str) -> BackupManagerError:
        if self.interrupted.is_set():
            return StorageUnreachable(storage=self.label, step=step, detail="interrupted")
        if isinstance(problem, Refused):
            return self.error(problem, step, name)
        where = problem.step if isinstance(problem, Lost) else step
        cause = "dns" if where == "resolve" else cause_of(problem) or "lost"
        return StorageUnreachable(storage=self.label, step=f"{step}: {where}", detail=str(problem), cause=cause)

    def _asked_again(self, step: str, key: str) -> Refused | None:
        try:
            self.call(step, key, "GET", key, headers={"range": "bytes=0-0"})
        except Refused as refused:
            return refused
        return None

    def _document(
        self,
        step: str,
        name: str,
        method: str,
        key: str,
        query: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        enduring: bool = False,
        again: Callable[[], None] = lambda: None,
    ) -> ET.Element:
        """Return an answer's XML, names without their namespace."""
        try:
            answer = self.call(step, name, method, key, query, headers=headers, enduring=enduring, again=again)
        except Refused as refused:
            raise self.error(refused, step, name) from refused
        return self._parsed(step, answer)

    def _parsed(self, step: str, answer: Answer) -> ET.Element:
        try:
            return document(answer.body)
        except ET.ParseError as error:
            raise StorageError(storage=self.label, step=step, detail=f"the answer is no XML: {error}") from error

    def _delete_batch(self, step: str, keys: Sequence[str]) -> Sequence[str]:
        """Ask for the removal of `keys`, and return those that the server did not remove."""
        objects = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        answer = self.call(step, "objects", "POST", "", {"delete": ""}, headers={"content-md5": digest}, body=body)
        failed = {error.findtext("Key", "") for error in self._parsed(step, answer).iterfind("Error")}
        return [key for key in keys if key in failed]


def _folder_vanished(method: str, refused: Refused) -> bool:
    """Tell whether a gateway to a file system lost the folder of what is being written to whoever removed the last name in it.

    An object store cannot answer NoSuchKey to who writes: nothing that we ask needs the key to be there.
    """
    return method in {"PUT", "POST"} and refused.code == "NoSuchKey"


def _place(config: S3Config) -> tuple[Address, str, str]:
    """Return the endpoint's address, the host to connect to, and what stands before a key in the path."""
    region = config.region or "us-east-1"
    ending = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    address = Address.parse(config.endpoint or f"https://s3.{region}.{ending}")
    virtual = config.addressing == "virtual" or (
        # A bucket's dots would be a deeper name than the server's certificate is for.
        config.addressing == "auto" and not config.endpoint and "." not in config.bucket
    )
    if virtual:
        return address, f"{config.bucket}.{address.host}", address.path
    return address, address.host, f"{address.path}/{path_text(config.bucket)}"
