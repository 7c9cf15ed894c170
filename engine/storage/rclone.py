"""Objects below a folder of an rclone remote. One `rclone rcd` serves an open storage, for all requests of all threads.

    RcloneStorage ── Wire, HTTP on loopback ──► rclone rcd ── whatever the remote speaks ──► the storage
       └── rclone_upload, rclone_reader            └── started, watched and ended by rclone_daemon

rclone has the credentials, in a file on this host that we never read: even of a remote's type only rclone tells us. It takes
about 70 MiB beside the engine's own memory. Which remotes are accepted is in rclone_remote, what its errors mean in
rclone_errors. No remote has an exclusive create, so before each write it is looked; two writers of one name at the same
instant are not told apart (names of the repository are used once, and a server has one writer).
"""

import logging
import random
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from engine.errors import (
    BucketNotFound,
    InvalidSpec,
    ObjectNotFound,
    RcloneConfigInvalid,
    RcloneRemoteRefused,
    StorageError,
    StoragePathInvalid,
    StorageThrottled,
    StorageUnreachable,
)
from engine.spec import RcloneConfig
from engine.storage.base import PART_SUFFIX, Abilities, Entry, Storage, Usage, check_name, is_name, is_own_part
from engine.storage.rclone_daemon import BRIEF, Daemon, Patience
from engine.storage.rclone_errors import Kind, failure, meaning, secrets_of, told
from engine.storage.rclone_reader import RcloneReader
from engine.storage.rclone_remote import Remote, check_place, hints_for, sections, why_impossible, why_refused
from engine.storage.rclone_stale import give_up
from engine.storage.rclone_upload import RcloneUpload
from engine.storage.rclone_wire import Lost, Overlong, Refused, Wire, reason_of
from engine.storage.walk import Walk

log = logging.getLogger(__name__)
T = TypeVar("T")
Items: TypeAlias = list[dict[str, Any]]  # a listing as rclone gives it

_SWEEPERS = 4  # deletions side by side
_DEEP = 1  # folders so deep (`servers/ID`) are listed with all below them in one request; above, one request a folder


class RcloneStorage(Storage):
    """A storage in the folder `config.path` of a remote; the folder is made if its parent exists and `make` says so.

    `brief`: try for seconds only. `sleep` waits between attempts; a test may pass its own.
    Raises RcloneMissing, RcloneConfigInvalid and RcloneRemoteRefused before the remote is asked anything.
    """

    def __init__(
        self,
        config: RcloneConfig,
        patience: Patience | None = None,
        sleep: Callable[[float], None] | None = None,
        *,
        brief: bool = False,
        make: bool = True,
    ) -> None:
        self.fs = check_place(config.remote, config.path)
        self.label = f"rclone:{self.fs}"
        self.patience = patience or (BRIEF if brief else Patience())
        self._config = config
        self._interrupted = threading.Event()
        self._sleep: Callable[[float], object] = sleep or self._interrupted.wait
        self._secrets: tuple[str, ...] = ()
        self.root = ""  # the storage's folder as the remote itself names it: of a bucket with the bucket's name
        self._daemon = Daemon(config, self.label, self.patience)
        try:
            self.remote = self._accept()
            self._find_root(make=make)
        except BaseException:
            self.close()
            raise
        self.hints = hints_for(self.remote)
        self.abilities = Abilities(
            atomic_rename=self.remote.features.get("Move", False),
            exclusive_create=False,
            resume=False,
            usage=self.remote.features.get("About", False),
            bind_address=True,
            server_side_copy=self.remote.features.get("Copy", False),
        )

    def create(self, name: str, size_hint: int = 0) -> RcloneUpload:  # noqa: ARG002  # rclone's part sizes fit any segment
        return RcloneUpload(self, check_name(name))

    def open(self, name: str) -> RcloneReader:
        return RcloneReader(self, name, self.size(name))

    def size(self, name: str) -> int:
        check_name(name)
        size = self.attempt("look at", name, lambda wire: self.size_of(wire, name))
        if size is None:
            raise ObjectNotFound(storage=self.label, step="look at", name=name)
        return size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        waiting = Walk(self.label, prefix and check_name(prefix))
        for folder in waiting:
            items, deep = self._items_below(folder)
            for item in items:
                path = str(item["Path"])
                if not is_name(path):
                    continue
                if not item["IsDir"]:
                    waiting.found()
                    yield Entry(path, int(item["Size"]), _unix_time(item))
                elif not deep:
                    waiting.add(path)

    def folders(self, prefix: str = "") -> Iterator[str]:
        for item in self._items(prefix and check_name(prefix), dirsOnly=True):
            name = str(item["Name"])
            if item["IsDir"] and is_name(name) and "/" not in name:
                yield name

    def delete(self, name: str) -> None:
        check_name(name)

        def delete(wire: Wire) -> None:
            self.remove(wire, name)
            self.remove_empty(wire, name)

        self.attempt("delete", name, delete)

    def remove_stale(self, age_seconds: float, *, dry_run: bool = False) -> Sequence[str]:
        parts = super().remove_stale(age_seconds, dry_run=dry_run)
        return [*parts, *give_up(self, "", age_seconds, dry_run=dry_run)]

    def parts(self, folder: str) -> Sequence[Entry]:
        return [
            Entry(str(one["Path"]), int(one["Size"]), _unix_time(one))
            for one in self._items(folder, filesOnly=True)
            if is_own_part(str(one["Name"]))
        ]

    def remove_part(self, name: str) -> None:
        self.attempt("remove", name, lambda wire: self.remove(wire, name))

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        check_name(prefix)
        kept = {check_name(name) for name in keep}
        found = [str(one["Path"]) for one in self._items(prefix, recurse=True, filesOnly=True)]

        def remove(name: str) -> None:
            if name.startswith(f"{prefix}/") and name not in kept:
                self.attempt("sweep", name, lambda wire: self.remove(wire, name))

        with ThreadPoolExecutor(_SWEEPERS) as pool:
            for _ in pool.map(remove, found):
                pass
        give_up(self, prefix, -1)
        if self.remote.has_folders:
            self.attempt("sweep", prefix, lambda wire: self._remove_empty_below(wire, prefix))

    def usage(self) -> Usage | None:
        if not self.abilities.usage:
            return None
        found = self.attempt("usage", "the folder", self._about)
        total, free = found.get("total"), found.get("free")
        return None if total is None or free is None else Usage(int(total), int(free))

    def interrupt(self) -> None:
        self._interrupted.set()
        self._daemon.interrupt()

    def close(self) -> None:
        self._interrupted.set()
        self._daemon.close()

    # ---- used by the readers and uploads --------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def wire(self) -> Wire:
        """Return the way to rclone, which is started (again) if it is not there."""
        return self._daemon.wire()

    def attempt(self, step: str, name: str, work: Callable[[Wire], T], attempts: int = 0) -> T:
        """Return `work(wire)`; repeat it, which must be harmless, while rclone or its remote cannot be reached."""
        attempts, pause = attempts or self.patience.attempts, self.patience.pause_seconds
        for number in range(1, attempts + 1):
            try:
                return work(self.wire())
            except Overlong as error:
                detail = "it has more names than fit into one answer of rclone's"
                raise StorageError(storage=self.label, step=f"{step} {name}".strip(), detail=detail) from error
            except (Refused, Lost) as error:
                failed = self.failure(error, step, name)
                if (
                    not isinstance(failed, (StorageUnreachable, StorageThrottled))
                    or number == attempts
                    or self.interrupted
                ):
                    raise failed from error
                log.warning(
                    "storage lost, trying again storage=%s step=%s attempt=%d reason=%s",
                    self.label, step, number, failed.facts["detail"],
                )  # fmt: skip
            self._sleep(pause * random.uniform(0.75, 1.25))
            pause = min(2 * pause, self.patience.pause_seconds_max)
        raise AssertionError("unreachable")

    def failure(self, error: Refused | Lost, step: str, name: str) -> StorageError:
        """Return what rclone said, or that it said nothing, as our error."""
        if self.interrupted:
            return StorageUnreachable(storage=self.label, step=step, detail="interrupted")
        if isinstance(error, Lost):
            return StorageUnreachable(storage=self.label, step=step, detail=f"rclone: {reason_of(error)}")
        path = self._config.config_path
        return failure(error, label=self.label, step=step, name=name, config_path=path, secrets=self._secrets)

    def told(self, text: str) -> str:
        """Return what rclone said, fit to be read by anybody."""
        return told(text, self._secrets)

    def ask(self, wire: Wire, command: str, **parameters: object) -> dict[str, Any]:
        return wire.call(command, self.patience.answer_seconds, fs=self.fs, **parameters)

    def size_of(self, wire: Wire, name: str) -> int | None:
        """Return an object's size, None where there is no such object (a folder is none)."""
        options = {"filesOnly": True, "noMimeType": True, "noModTime": True}
        try:
            item = self.ask(wire, "operations/stat", remote=name, opt=options)["item"]
        except Refused as refused:
            if is_missing(refused):
                return None
            raise self._why(wire, name, refused) from refused
        return None if item is None or item["IsDir"] else int(item["Size"])

    def remove(self, wire: Wire, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        try:
            self.ask(wire, "operations/deletefile", remote=name)
        except Refused as refused:
            if not is_missing(refused):
                raise

    def remove_empty(self, wire: Wire, name: str) -> None:
        """Remove the folders above the object `name`, up to the first that holds something; never the root."""
        parents = name.split("/")[:-1]
        for depth in range(len(parents) if self.remote.has_folders else 0, 0, -1):
            try:
                self.ask(wire, "operations/rmdir", remote="/".join(parents[:depth]))
            except Refused as refused:
                if not is_missing(refused):
                    return

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _accept(self) -> Remote:
        """Return the remote, if it is one that backups can lie on. What is in its configuration stays in this object."""

        def look_up(name: str) -> dict[str, str]:
            return self.attempt("read the configuration", name, lambda wire: _section(wire, name, self.patience))

        found = tuple(sections(self._config.remote, look_up))
        if not found[0].get("type"):
            path = self._config.config_path
            raise RcloneConfigInvalid(storage=self.label, path=path, problem=f"has no remote {self._config.remote}")
        self._secrets = tuple(secret for section in found for secret in secrets_of(section))
        refusal = why_refused(Remote(found, {"PutStream": True}))
        if refusal is None or self._config.force:
            info = self.attempt("connect", "", lambda wire: self.ask(wire, "operations/fsinfo"))
            remote = Remote(found, {str(name): bool(value) for name, value in info["Features"].items()})
            self.root = str(info["Root"]).rstrip("/")
            if remote.is_bucket and not self.root:
                raise InvalidSpec(field="rclone.path", problem="must begin with the name of a bucket")
            refusal = why_impossible(remote) or (None if self._config.force else why_refused(remote))
        if refusal is not None:
            raise RcloneRemoteRefused(storage=self.label, kind=refusal[0], why=refusal[1])
        return remote

    def _find_root(self, *, make: bool) -> None:
        """See to it that the folder is there. Where folders are only names, its bucket has to be; that is never made."""
        try:
            self.attempt("open", "the folder", lambda wire: self._list(wire, self.fs))
            return
        except ObjectNotFound:
            if not make:
                raise
        if self.remote.is_bucket:
            raise BucketNotFound(storage=self.label)
        if "/" in self._config.path.strip("/"):
            above = self.fs.rstrip("/").rpartition("/")[0]
            try:
                self.attempt("open", "the folder above", lambda wire: self._list(wire, above))
            except ObjectNotFound as error:
                detail = "the folder above it does not exist"
                raise StoragePathInvalid(
                    storage=self.label, step="make folder", detail=detail, cause="missing"
                ) from error
        self.attempt("make", "the folder", lambda wire: self.ask(wire, "operations/mkdir", remote=""))

    def _list(self, wire: Wire, fs: str, folder: str = "", **options: bool) -> Items:
        options = {"noMimeType": True, **options}
        answer = wire.call("operations/list", self.patience.answer_seconds, fs=fs, remote=folder, opt=options)
        found: Items = answer["list"] or []
        return found

    def _items_below(self, folder: str) -> tuple[Items, bool]:
        """Return what a folder holds; True with it where that is at any depth: deep down, unless it is too much for one answer."""
        if folder.count("/") >= _DEEP:
            try:
                return self._items(folder, recurse=True), True
            except StorageError as error:
                if not isinstance(error.__cause__, Overlong):
                    raise
        return self._items(folder), False

    def _items(self, folder: str, **options: bool) -> Items:
        """Return what a folder holds; one that is not there, or is an object, holds nothing."""
        try:
            return self.attempt(
                "list", folder or "the folder", lambda wire: self._list(wire, self.fs, folder, **options)
            )
        except ObjectNotFound:
            return []
        except StorageError as error:
            if (
                type(error) is StorageError
                and not isinstance(error.__cause__, Overlong)
                and folder
                and self.attempt("list", folder, lambda wire: self.size_of(wire, folder)) is not None
            ):
                return []
            raise

    def _why(self, wire: Wire, name: str, refused: Refused) -> Refused:
        """Return a refusal that says more: a bucket's server refuses a look without a word, and tells why when it is to list."""
        if self.remote.is_bucket and meaning(refused)[0] is Kind.DENIED:
            try:
                self._list(wire, self.fs, f"{name}{PART_SUFFIX}")  # which has nothing in it
            except Refused as telling:
                if meaning(telling)[0] in {Kind.LOGIN, Kind.CLOCK, Kind.BUCKET}:
                    return telling
        return refused

    def _about(self, wire: Wire) -> dict[str, Any]:
        try:
            return self.ask(wire, "operations/about")
        except Refused as refused:
            log.info("no usage storage=%s reason=%s", self.label, self.told(refused.text))
            return {}

    def _remove_empty_below(self, wire: Wire, folder: str) -> None:
        try:
            self.ask(wire, "operations/rmdirs", remote=folder)
        except Refused as refused:
            if not is_missing(refused):
                raise
        self.remove_empty(wire, f"{folder}/x")


def is_missing(refused: Refused) -> bool:
    """Tell whether a refusal says that an object or a folder is not there."""
    return refused.status == 404 or "no such file" in refused.text or "not found" in refused.text


def _section(wire: Wire, name: str, patience: Patience) -> dict[str, str]:
    found = wire.call("config/get", patience.answer_seconds, name=name)
    return {str(option): str(value) for option, value in found.items()}


def _unix_time(item: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(item["ModTime"])[:19] + "+00:00").timestamp()
    except ValueError:
        return 0.0
