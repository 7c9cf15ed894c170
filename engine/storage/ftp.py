"""Objects as files on an FTP server; `ftp_reader` and `ftp_upload` read and write them, `ftp_connect` opens the connections.

Connections come and go, the storage stays: what may be repeated (looking, reading, listing, deleting) is repeated on a new
connection after a pause, and an upload goes on behind the last byte that the server has.
A rename overwrites here, and there is no exclusive create: `ftp_lock` says what holds instead. How much room is left, no server
tells.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

from engine.errors import (
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StoragePathInvalid,
    StorageUnreachable,
    StorageUntrusted,
)
from engine.spec import FtpConfig
from engine.storage import ftp_tree
from engine.storage.base import Abilities, Entry, Storage, Usage, check_name, is_name, is_own_part
from engine.storage.ftp_connect import Dialer, Pool, TooMany, url_host
from engine.storage.ftp_list import Listed
from engine.storage.ftp_lock import Manners, probe
from engine.storage.ftp_reader import FtpReader
from engine.storage.ftp_upload import FtpUpload
from engine.storage.ftp_wire import Control, Lost, Refused
from engine.storage.sftp_connect import BRIEF, Patience, reason_of
from engine.storage.walk import Walk

log = logging.getLogger(__name__)
T = TypeVar("T")

_ZONES_SECONDS = 14 * 3600.0  # how far a clock on a wall may be from UTC
_QUARTER_SECONDS = 900.0
_FULL_WORDS = ("no space", "disk full", "quota", "insufficient", "exceeded", "writing to local file")


class FtpStorage(Storage):
    """A storage in the folder `config.path` of an FTP server; the folder is made if its parent exists and `make` says so.

    `patience` and `sleep` (which waits between attempts) are for tests.
    """

    # Exclusive it is on servers whose MKD has shown that it refuses what is there (see ftp_lock): asked before the first object gets its name.
    abilities = Abilities(atomic_rename=True, exclusive_create=False, resume=True, usage=False, bind_address=True)

    def __init__(
        self,
        config: FtpConfig,
        *,
        brief: bool = False,
        make: bool = True,
        patience: Patience | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        scheme = "ftp" if config.tls_disabled else "ftps"
        path = config.path if config.path.startswith("/") else f"/{config.path}"
        self.label = f"{scheme}://{config.username}@{url_host(config.host)}:{config.port}{path}"
        self.patience = patience or (BRIEF if brief else Patience())
        self.root = path.rstrip("/")
        self.tells_growth = True  # a file that is being written tells its size so far
        self._interrupted = threading.Event()
        self.sleep: Callable[[float], object] = sleep or self._interrupted.wait
        self._manners: Manners | None = None
        self._manners_lock = threading.Lock()
        self._zone_seconds: float | None = None  # what to add to the times of this server's LIST
        self._dialer = Dialer(config, self.label, self.patience)
        self.pool = Pool(self._dialer.dial, self.label, self.patience)
        try:
            self.attempt("open", "the folder", lambda control: self._find_root(control, make=make), once=True)
        except BaseException:
            self.close()
            raise

    def create(self, name: str, size_hint: int = 0) -> FtpUpload:
        return FtpUpload(self, check_name(name), size_hint)

    def open(self, name: str) -> FtpReader:
        return FtpReader(self, name, self.size(name))

    def size(self, name: str) -> int:
        path = self.path(check_name(name))
        size = self.attempt("look at", name, lambda control: ftp_tree.size(control, path))
        if size is None:
            raise ObjectNotFound(storage=self.label, step="look at", name=name)
        return size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        above: tuple[str, ...] = ()
        walk = Walk(self.label, (prefix and check_name(prefix), above))
        for folder, above in walk:
            for one in self._entries(folder):
                path = f"{folder}/{one.name}".lstrip("/")
                if one.folder and (not one.identity or one.identity not in above):
                    walk.add((path, (*above, one.identity)))
                elif one.file:
                    walk.found()
                    yield Entry(path, one.size, one.time or 0.0)

    def folders(self, prefix: str = "") -> Iterator[str]:
        for one in self._entries(prefix and check_name(prefix)):
            if one.folder:
                yield one.name

    def delete(self, name: str) -> None:
        path = self.path(check_name(name))

        def remove(control: Control) -> None:
            ftp_tree.remove(control, path)
            self.remove_empty(control, name.split("/")[:-1])

        self.attempt("delete", name, remove)

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        path = self.path(check_name(prefix))
        kept = {self.path(check_name(name)) for name in keep}

        def remove(control: Control) -> None:
            ftp_tree.sweep(control, path, kept)
            self.remove_empty(control, prefix.split("/")[:-1])

        self.attempt("sweep", prefix, remove)

    def usage(self) -> Usage | None:
        return None

    def parts(self, folder: str) -> Sequence[Entry]:
        """Also folders: locks, and what a trial of the server's manners has left."""
        found = self._entries(folder, lambda name: is_own_part(name.rpartition("/")[2]))
        return [
            Entry(f"{folder}/{one.name}".lstrip("/"), one.size, one.time or 0.0)
            for one in found
            if one.file or one.folder
        ]

    def remove_part(self, name: str) -> None:
        path = self.path(name)

        def remove(control: Control) -> None:
            if ftp_tree.is_folder(control, path):
                ftp_tree.sweep(control, path)
            else:
                ftp_tree.remove(control, path)

        self.attempt("remove", name, remove)

    def interrupt(self) -> None:
        self._interrupted.set()
        self._dialer.interrupt()
        self.pool.interrupt()

    def close(self) -> None:
        self._interrupted.set()
        self.pool.close()

    # ---- used by the readers and uploads --------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def learn_manners(self, control: Control) -> Manners:
        """Return what the server's commands for folders really do, tried once, before the first object gets its name. Raises Refused, Lost."""
        with self._manners_lock:
            if self._manners is None:
                self._manners = probe(control, self.root)
                self.abilities = replace(self.abilities, exclusive_create=self._manners.makes_once)
                if not self._manners.makes_once:
                    log.warning("this server makes a folder twice: nothing here is exclusive storage=%s", self.label)
            return self._manners

    def remove_empty(self, control: Control, parts: Sequence[str]) -> None:
        """Remove the folder `parts` and those above it that are empty; nothing on a server that removes full ones."""
        if parts and self.learn_manners(control).keeps_full:
            ftp_tree.remove_empty(control, self.root, parts)

    def attempt(self, step: str, name: str, work: Callable[[Control], T], *, once: bool = False) -> T:
        """Return `work(connection)`; repeat it, which must be harmless, on a new connection while the old one is lost."""

        def on_lease() -> T:
            with self.pool.lease() as control:
                return work(control)

        return self.attempt_bound(step, name, on_lease, once=once)

    def attempt_bound(
        self, step: str, name: str, work: Callable[[], T], *, enduring: bool = False, once: bool = False
    ) -> T:
        """Like `attempt`, for work that keeps a connection. `enduring`: try for minutes, since much would be lost."""
        patience = self.patience
        deadline = time.monotonic() + patience.enduring_seconds
        pause = patience.pause_seconds
        attempts = 1 if once else patience.enduring_attempts if enduring else patience.attempts
        for number in range(1, attempts + 1):
            try:
                if self._interrupted.is_set():
                    raise StorageUnreachable(storage=self.label, step=step, detail="interrupted")
                return work()
            except Refused as refused:
                raise self.failure(refused, step, name) from refused
            except (Lost, StorageUnreachable, TooMany) as error:
                late = enduring and time.monotonic() + pause > deadline
                if number == attempts or late or self._interrupted.is_set():
                    raise self.unreachable(step, error) from error
                log.warning(
                    "storage lost, trying again storage=%s step=%s attempt=%d reason=%s",
                    self.label, step, number, reason_of(error),
                )  # fmt: skip
            self.pool.distrust()
            self.sleep(pause * random.uniform(0.75, 1.25))
            pause = min(2 * pause, patience.pause_seconds_max)
        raise AssertionError("unreachable")

    def unreachable(self, step: str, error: BaseException) -> StorageError:
        """Return a lost connection as our error."""
        if isinstance(error, StorageError):
            return error
        detail = "interrupted" if self._interrupted.is_set() else reason_of(error)
        return StorageUnreachable(storage=self.label, step=step, detail=detail, cause="lost")

    def failure(self, refused: Refused, step: str, name: str) -> StorageError:
        """Return a refused command as our error. Source: RFC 959, 4.2; RFC 4217, and what servers say beside the code."""
        words = refused.text.lower()
        if refused.code in {452, 552} or any(one in words for one in _FULL_WORDS):
            # 552 is "exceeded storage allocation", a quota, unless its words are of a disk.
            disk = "no space" in words or "disk full" in words
            quota = "quota" in words or "exceeded" in words or (refused.code == 552 and not disk)
            return StorageFull(storage=self.label, step=step, name=name, **({"cause": "quota"} if quota else {}))
        if refused.code in {521, 522, 534, 536}:
            return StorageUntrusted(storage=self.label, step=f"{step} {name}", detail=str(refused), cause="protocol")
        if refused.code in {530, 532, 550, 553}:
            return StorageDenied(storage=self.label, step=step, name=name, detail=str(refused))
        return StorageError(storage=self.label, step=f"{step} {name}", detail=str(refused))

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _find_root(self, control: Control, *, make: bool) -> None:
        root = self.root or "/"
        if ftp_tree.is_folder(control, root, leave=False):
            return
        try:
            if ftp_tree.exists(control, root):
                if ftp_tree.size(control, root) is None:
                    raise StorageDenied(storage=self.label, step="open", name="the folder")
                self._path_invalid("open folder", "it is not a folder", "not_a_folder")
            if not make:
                raise ObjectNotFound(storage=self.label, step="open", name="the folder")
            ftp_tree.make_folder(control, root)
        except Refused as refused:
            if not ftp_tree.is_folder(control, root.rpartition("/")[0] or "/"):
                self._path_invalid("make folder", "the folder above it does not exist", "missing")
            raise self.failure(refused, "make", "the folder") from refused

    def _path_invalid(self, step: str, detail: str, cause: str) -> NoReturn:
        raise StoragePathInvalid(storage=self.label, step=step, detail=detail, cause=cause) from None

    def _entries(self, folder: str, is_wanted: Callable[[str], bool] = is_name) -> Sequence[Listed]:
        """Return what is in a folder and has a name of ours, with times that are never too early."""
        path = self.path(folder) if folder else self.root or "/"

        def look(control: Control) -> Sequence[Listed]:
            found = [
                one
                for one in ftp_tree.entries(control, path)
                if "/" not in one.name and is_wanted(f"{folder}/{one.name}".lstrip("/"))
            ]
            return found if "MLST" in control.features else self._to_utc(control, path, found)

        return self.attempt("list", folder or "the folder", look)

    def _to_utc(self, control: Control, path: str, found: Sequence[Listed]) -> Sequence[Listed]:
        """Move the times of LIST, which are a wall clock's, by what MDTM says of one file; else so far that none is too early."""
        if self._zone_seconds is None:
            for one in [one for one in found if one.file and one.time is not None][:3]:
                exact = ftp_tree.modified_time(control, f"{path.rstrip('/')}/{one.name}")
                if exact is not None and one.time is not None and abs(exact - one.time) <= _ZONES_SECONDS:
                    self._zone_seconds = round((exact - one.time) / _QUARTER_SECONDS) * _QUARTER_SECONDS
                    break
        zone = _ZONES_SECONDS if self._zone_seconds is None else self._zone_seconds
        now = datetime.now(UTC).timestamp()
        return [one if one.time is None else replace(one, time=min(now, one.time + zone)) for one in found]
