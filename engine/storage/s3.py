"""Objects in a bucket, by S3's protocol: AWS and whatever speaks like it.

    S3Storage ─► s3_upload, s3_reader ─► s3_api (requests, repeated) ─► s3_wire (connections)      s3_sign, s3_parts, s3_xml: pure

What servers that call themselves S3 really do differs. What matters is tried out, once, before the first object gets its name (`s3_promises`):
does the server refuse a second object under a name (`If-None-Match`), for single objects and for those in parts, and does it refuse
a body that is not what was signed? Where it does not, we look before we write, and compare ETags.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from itertools import islice

from engine.errors import InvalidSpec, ObjectNotFound, StorageError
from engine.spec import S3Config
from engine.storage.base import Abilities, Bucket, Entry, Storage, check_name, is_name
from engine.storage.s3_api import DELETES_MAX, S3Api
from engine.storage.s3_cleanup import PROBE, remove_stale
from engine.storage.s3_parts import PART_BYTES_MAX, PART_BYTES_MIN, parts_of
from engine.storage.s3_promises import Promises, probe
from engine.storage.s3_reader import S3Reader
from engine.storage.s3_upload import S3Upload
from engine.storage.s3_wire import BRIEF, Patience

log = logging.getLogger(__name__)

SWEEP_KEYS_MAX = 2_000_000  # of one folder, as engine/listing.py has it
SWEEPS_MAX = 8  # servers on file systems list a folder as soon as it is empty, and then the one above it
CONCURRENCY_MAX = 64
TRIAL_SECONDS = 5.0  # what a trial under way gets to end when nobody waits for what it finds


class S3Storage(Storage):
    """A storage below `config.prefix` in the bucket `config.bucket`, which must be there.

    `brief`: try for seconds only. `sleep` waits between attempts and `clock` returns Unix seconds; a test may pass its own.
    """

    def __init__(
        self,
        config: S3Config,
        patience: Patience | None = None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
        *,
        brief: bool = False,
        make: bool = True,  # noqa: ARG002  # a prefix is there as soon as something lies below it
    ) -> None:
        _check(config)
        prefix = config.prefix.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.label = f"s3:{config.endpoint.rstrip('/') or config.region}/{config.bucket}/{self._prefix}".rstrip("/")
        # What can be written over, only a try can tell: see `promises`.
        self.abilities = Abilities(
            atomic_rename=False, exclusive_create=False, resume=True, usage=False, bind_address=True
        )
        self.api = S3Api(config, self.label, patience or (BRIEF if brief else Patience()), sleep, clock)
        self._config = config
        self._probing = threading.Lock()
        self._promises: Promises | None = None
        self._trial: Future[Promises] | None = None  # under way, or done and not looked at
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def create(self, name: str, size_hint: int = 0) -> S3Upload:
        parts = parts_of(size_hint, self._config.part_size_bytes, self._config.concurrency)
        return S3Upload(self, check_name(name), parts, large=size_hint > parts.size_bytes)

    def open(self, name: str) -> S3Reader:
        return S3Reader(self, name, self.size(name))

    def size(self, name: str) -> int:
        head = self.api.head("look at", self.key(check_name(name)))
        if head is None:
            raise ObjectNotFound(storage=self.label, step="look at", name=name)
        return head.size_bytes

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for page in self.api.list(self._folder(prefix)):
            for one in page.keys:
                name = self.name_of(one.key)
                if name and one.size_bytes >= 0:
                    yield Entry(name, one.size_bytes, one.modified_time)

    def folders(self, prefix: str = "") -> Iterator[str]:
        folder = self._folder(prefix)
        for page in self.api.list(folder, delimiter="/"):
            for one in page.folders:
                name = one.removeprefix(folder).removesuffix("/")
                if one.startswith(folder) and is_name(name) and "/" not in name:
                    yield name

    def delete(self, name: str) -> None:
        self.api.delete("delete", self.key(check_name(name)))

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        folder = self._folder(check_name(prefix))
        kept = {self.key(check_name(name)) for name in keep}
        # An upload first: completed between the two, it is an object that the listing then shows.
        for upload in [*self.api.uploads(folder)]:
            self.api.abort_upload(upload.key, upload.upload_id)
        for _ in range(SWEEPS_MAX):
            keys = (one.key for page in self.api.list(folder) for one in page.keys)
            found = (key for key in keys if key.startswith(folder) and key not in kept)
            doomed = [*islice(found, SWEEP_KEYS_MAX + 1)]
            if not doomed:
                return
            if len(doomed) > SWEEP_KEYS_MAX:
                detail = f"it has more than {SWEEP_KEYS_MAX} names, as no backup has"
                raise StorageError(storage=self.label, step=f"sweep {prefix}", detail=detail)
            for start in range(0, len(doomed), DELETES_MAX):
                self.api.delete_many("sweep", doomed[start : start + DELETES_MAX])

    def remove_stale(self, age_seconds: float, *, dry_run: bool = False) -> Sequence[str]:
        return [one.name for one in remove_stale(self, age_seconds, dry_run=dry_run)]

    def usage(self) -> None:
        return None

    def pace(self, bucket: Bucket) -> bool:
        self.api.wire.bucket = bucket
        return True

    def interrupt(self) -> None:
        self.api.interrupt()

    def close(self) -> None:
        self.end_trial()
        self.api.close()

    # ---- used by the uploads and readers --------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        return self._prefix + name

    def name_of(self, key: str) -> str:
        """Return the name of the object under `key`, "" if it is none of ours."""
        name = key[len(self._prefix) :]
        return name if key.startswith(self._prefix) and is_name(name) else ""

    def try_out(self) -> None:
        """Begin to find out what `promises` tells, beside the caller, unless that is known or was begun."""
        with self._probing:
            if self._promises is None:
                self._begin_trial()

    def end_trial(self) -> None:
        """Let a trial under way remove its object, as long as that takes a moment only."""
        trial = self._trial
        if trial is not None and not self.api.interrupted.is_set():
            wait([trial], TRIAL_SECONDS)

    def promises(self) -> Promises:
        """Return what the server was seen to do; the first call waits until it was tried out, with an object of its own."""
        with self._probing:
            if self._promises is None:
                trial, self._trial = self._begin_trial(), None
                self._promises = trial.result()
                self.abilities = replace(self.abilities, exclusive_create=self._promises.exclusive_put)
                log.info("storage was tried out storage=%s promises=%s", self.label, self._promises)
            return self._promises

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _folder(self, prefix: str) -> str:
        return self._prefix + (f"{check_name(prefix)}/" if prefix else "")

    def _look(self) -> None:
        """Ask for one key: so the way in, the credentials and the bucket are known to be right."""
        for _ in islice(self.api.list(self._prefix, limit=1), 1):
            pass

    def _begin_trial(self) -> "Future[Promises]":
        if self._trial is None:
            self._trial = Future()
            threading.Thread(target=self._probe, args=(self._trial,), name="s3-trial", daemon=True).start()
        return self._trial

    def _probe(self, trial: "Future[Promises]") -> None:
        try:
            trial.set_result(probe(self.api, self.key(f"{PROBE}{os.urandom(8).hex()}")))
        except BaseException as error:  # for whoever waits for the result
            trial.set_exception(error)


def _check(config: S3Config) -> None:
    """Raise InvalidSpec for what cannot be a bucket's settings."""

    def expect(condition: bool, field: str, problem: str) -> None:
        if not condition:
            raise InvalidSpec(field=f"s3.{field}", problem=problem)

    expect(bool(config.bucket) and "/" not in config.bucket, "bucket", "must be a bucket's name")
    expect(bool(config.access_key) and config.access_key.isprintable(), "access_key", "must be given")
    expect(bool(config.secret_key), "secret_key", "must be given")
    expect(config.prefix.isprintable(), "prefix", "must be printable text")
    parts = config.prefix.strip("/").split("/")
    expect(
        parts == [""] or not {"", ".", ".."} & set(parts), "prefix", "must be names with single slashes between them"
    )
    size = config.part_size_bytes
    expect(not size or PART_BYTES_MIN <= size <= PART_BYTES_MAX, "part_size_bytes", "must be 0, or 5 to 512 MiB")
    expect(1 <= config.concurrency <= CONCURRENCY_MAX, "concurrency", f"must be 1 to {CONCURRENCY_MAX}")
