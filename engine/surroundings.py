"""What a job's verbs need beside their own spec: its operation, storage, keys, catalog and clock."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engine.format.crypto import ServerKey
from engine.limit import Limit
from engine.spec import Job, Operation
from engine.step_report import StepReport
from engine.storage.base import Storage
from engine.throttle import Throttle
from engine.work import Work

if TYPE_CHECKING:
    from engine.catalog import Keys
    from engine.inventory import HostCatalog


def keys_of(server_keys: Mapping[str, str]) -> "Keys":
    """Return a job's server keys, by key id; the spec has them in hex."""
    return {key_id: ServerKey(key_id, bytes.fromhex(text)) for key_id, text in server_keys.items()}


class Surroundings:
    """What verbs need beside their own spec: the operation, the storage (opened once, again on demand), and the clock."""

    def __init__(self, job: Job, operation: Operation, work: Work) -> None:
        self.job = job
        self.operation = operation
        self.work = work
        self.lock_folder = Path(operation.lock_folder)
        self.scratch_folder = Path(operation.scratch_folder)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def catalog(self) -> "HostCatalog":
        """Return this host's own catalog of the operation's repository; of use only where the operation has a folder for it."""
        from engine.inventory import HostCatalog

        return HostCatalog(Path(self.operation.catalog_folder), self.operation.storage.repository_id)

    def job_warnings(self) -> list[str]:
        """Return what was warned of so far."""
        report = self.work.report
        return list(report.warnings) if isinstance(report, StepReport) else []

    def connect(self, *, brief: bool = False) -> Storage:
        """Open the storage, its uploads under the upload limit. The caller closes it. `brief`: do not wait long for it."""
        from engine.storage.open import open_storage
        from engine.storage.throttled import ThrottledStorage

        bucket = _Bucket(self.work.upload, self.work.stop.event, self.work.workers)
        return ThrottledStorage(open_storage(self.operation.storage, brief=brief), bucket)

    @contextmanager
    def repository(self, *, write: bool = False, initialize: bool = False) -> Iterator[Storage]:
        """Open the storage and make sure that its repository is the operation's.

        `write` is for new backups: the operation's keys are seen to as well. With `initialize` too, a repository is made
        where there is none, if the operation does not know that there was one.
        """
        from engine.repository import check_repository, open_repository

        stop = self.work.stop
        with stop.obtain(self.connect, Storage.close) as storage, stop.waking(storage.interrupt):
            if write:
                initialize = initialize and not self.operation.storage.initialized
                open_repository(storage, self.operation.storage, self.now(), initialize=initialize)
            else:
                check_repository(storage, self.operation.storage)
            yield storage


@dataclass(frozen=True, slots=True)
class _Bucket:
    throttle: Throttle
    stop: threading.Event
    workers: Limit

    def portions(self, total: int, bytes_max: int) -> Iterator[int]:
        for portion in self.throttle.portions(total, self.stop, bytes_max):
            self.workers.step_aside(self.stop)
            yield portion
