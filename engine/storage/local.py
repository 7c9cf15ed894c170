"""Objects as files below a folder of this machine: a disk, or a NAS that is mounted here.

    create  ──►  <name>.<random>.part  ──fsync──►  link to <name>, which fails if the name is taken  ──►  unlink .part, fsync folder
                 the disk is told of each 4 MiB, so that little is left for the fsync

Every path is walked part by part from the root's descriptor without following a link, so that nobody who can write into
the storage can lead us out of it. All calls are plain system calls: they release the GIL and need no lock.
"""

import ctypes
import errno
import logging
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from engine.errors import (
    ObjectExists,
    ObjectNotFound,
    ObjectTruncated,
    StorageDenied,
    StorageError,
    StorageFull,
    StoragePathInvalid,
    StorageUnreachable,
)
from engine.storage.base import (
    Abilities,
    Buffer,
    Entry,
    ObjectReader,
    Storage,
    Usage,
    check_name,
    is_name,
    is_own_part,
    part_name,
)
from engine.storage.trouble import cause_of
from engine.units import MIB
from engine.writeback import begin_writeback

log = logging.getLogger(__name__)

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a planted FIFO must not hang us
_PART_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Told of so much at a time, the disk writes while we compress. The flush in the end of 128 MiB took 0.01 instead of 0.14 s. Past the
# page cache (O_DIRECT) they took 0.28 s in all instead of 0.16 s, at the same CPU time: one piece waits for the other.
_WRITEBACK_BYTES = 4 * MIB
_RACE_TRIES = 10  # a folder we just made may be removed, still empty, by a delete beside us
_RENAME_NOREPLACE = 1  # linux/fs.h
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_GONE = {errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ETIMEDOUT}  # a NAS that went away
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # FAT and some network file systems


class LocalStorage(Storage):
    """A storage in the folder `path`, which is made if its parent exists and `make` says so."""

    abilities = Abilities(atomic_rename=True, exclusive_create=True, resume=False, usage=True, bind_address=False)

    def __init__(self, path: str, *, make: bool = True) -> None:
        self.label = f"local:{path}"
        self._interrupted = False
        with self.failures("open folder", path), self._path_failures(make=make):
            if make:
                with suppress(FileExistsError):
                    Path(path).mkdir(0o700)
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def create(self, name: str, size_hint: int = 0) -> "_LocalUpload":  # noqa: ARG002  # a file needs no plan
        return _LocalUpload(self, check_name(name))

    def open(self, name: str) -> "_LocalReader":
        *parents, base = check_name(name).split("/")
        with self.failures("open", name), self.folder(parents) as folder:
            handle = os.open(base, _FILE_FLAGS, dir_fd=folder)
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise ObjectNotFound(storage=self.label, step="open", name=name)
            except BaseException:
                os.close(handle)
                raise
            return _LocalReader(self, name, handle, status.st_size)

    def size(self, name: str) -> int:
        *parents, base = check_name(name).split("/")
        with self.failures("look at", name), self.folder(parents) as folder:
            status = os.stat(base, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFound(storage=self.label, step="look at", name=name)
        return status.st_size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        waiting = [prefix and check_name(prefix)]
        while waiting:
            folder = waiting.pop()
            for name, status in self._entries(folder):
                path = f"{folder}/{name}" if folder else name
                if not is_name(path):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)
                elif stat.S_ISREG(status.st_mode):
                    yield Entry(path, status.st_size, status.st_mtime)

    def folders(self, prefix: str = "") -> Iterator[str]:
        for name, status in self._entries(prefix and check_name(prefix)):
            if stat.S_ISDIR(status.st_mode) and is_name(name):
                yield name

    def delete(self, name: str) -> None:
        *parents, base = check_name(name).split("/")
        with self.failures("delete", name):
            with suppress(FileNotFoundError), self.folder(parents) as folder:
                os.unlink(base, dir_fd=folder)
                os.fsync(folder)
            self.remove_empty(parents)

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        parts = check_name(prefix).split("/")
        kept = {check_name(name) for name in keep}
        with self.failures("sweep", prefix):
            self._sweep(parts, kept)
            self.remove_empty(parts[:-1])

    def usage(self) -> Usage:
        with self.failures("usage", "the folder"):
            status = os.fstatvfs(self._root)
        return Usage(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def parts(self, folder: str) -> Sequence[Entry]:
        found = self._entries(folder)
        files = [(name, status) for name, status in found if is_own_part(name) and stat.S_ISREG(status.st_mode)]
        return [Entry(f"{folder}/{name}".lstrip("/"), status.st_size, status.st_mtime) for name, status in files]

    def remove_part(self, name: str) -> None:
        *parents, base = name.split("/")
        with self.failures("remove", name), suppress(FileNotFoundError), self.folder(parents) as folder:
            os.unlink(base, dir_fd=folder)

    def interrupt(self) -> None:
        """End the work of all threads at their next call; a system call on a local disk cannot be cut short."""
        self._interrupted = True

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # ---- used by the readers and uploads below --------------------------------------------------------------------------

    @contextmanager
    def failures(self, step: str, name: str) -> Iterator[None]:
        """Refuse to begin once interrupted, and turn what the system calls of the block raise into our errors."""
        if self._interrupted:
            raise StorageUnreachable(storage=self.label, step=step, detail="interrupted")
        try:
            yield
        except OSError as error:
            self._fail(error, step, name)

    @contextmanager
    def folder(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Give a descriptor of the folder `parts`, made on the way if `make` says so."""
        current = os.dup(self._root)
        try:
            for part in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=current)
                        os.fsync(current)
                following = os.open(part, _FOLDER_FLAGS, dir_fd=current)
                os.close(current)
                current = following
            yield current
        finally:
            os.close(current)

    def remove_empty(self, parts: Sequence[str]) -> None:
        """Remove the folder `parts` and those above it, up to the first that holds something; never the root."""
        for depth in range(len(parts), 0, -1):
            try:
                with self.folder(parts[: depth - 1]) as folder:
                    os.rmdir(parts[depth - 1], dir_fd=folder)
            except FileNotFoundError:
                continue
            except OSError:
                return

    # ---- inner ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _path_failures(self, *, make: bool) -> Iterator[None]:
        """Turn a root that is no folder, or whose own parent is missing while it is to be made, into StoragePathInvalid."""
        step = "open folder"
        try:
            yield
        except NotADirectoryError as error:
            detail = "it, or a folder above it, is not a folder"
            raise StoragePathInvalid(storage=self.label, step=step, detail=detail, cause="not_a_folder") from error
        except FileNotFoundError as error:
            if not make:
                raise
            detail = "the folder above it does not exist"
            raise StoragePathInvalid(storage=self.label, step="make folder", detail=detail, cause="missing") from error

    def _fail(self, error: OSError, step: str, name: str) -> NoReturn:
        code = error.errno or 0
        if code in _FULL:
            raise StorageFull(storage=self.label, step=step, name=name, cause=self._full_cause(code)) from error
        if code in _DENIED:
            cause = "read_only" if code == errno.EROFS else ""
            raise StorageDenied(storage=self.label, step=step, name=name, cause=cause) from error
        if code in _GONE:
            raise StorageUnreachable(
                storage=self.label, step=step, detail=error.strerror, cause=cause_of(error)
            ) from error
        if code == errno.EEXIST:
            raise ObjectExists(storage=self.label, step=step, name=name) from error
        if code == errno.ENOENT:
            raise ObjectNotFound(storage=self.label, step=step, name=name) from error
        raise StorageError(storage=self.label, step=f"{step} {name}", detail=error.strerror) from error

    def _full_cause(self, code: int) -> str:
        """Return why there is no room, as remedies.py names it: "" for the bytes of the file system."""
        if code == errno.EDQUOT:
            return "quota"
        try:
            status = os.fstatvfs(self._root)
        except (OSError, AttributeError):  # AttributeError: the root itself could not be opened
            return ""
        return "files" if status.f_files and not status.f_favail else ""

    def _entries(self, prefix: str) -> Sequence[tuple[str, os.stat_result]]:
        found: list[tuple[str, os.stat_result]] = []
        with self.failures("list", prefix or "the folder"):
            try:
                with self.folder(prefix.split("/") if prefix else []) as folder, os.scandir(folder) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # deleted beside us
                            found.append((entry.name, entry.stat(follow_symlinks=False)))
            except (FileNotFoundError, NotADirectoryError):
                return []
        return found

    def _sweep(self, parts: Sequence[str], keep: Collection[str]) -> None:
        path = "/".join(parts)
        with suppress(FileNotFoundError):
            with self.folder(parts) as folder:
                for name in os.listdir(folder):  # noqa: PTH208 -- of a descriptor, which pathlib cannot
                    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        self._sweep([*parts, name], keep)
                    elif f"{path}/{name}" not in keep:
                        os.unlink(name, dir_fd=folder)
            if any(name.startswith(path + "/") for name in keep):
                return
            with self.folder(parts[:-1]) as above:
                os.rmdir(parts[-1], dir_fd=above)
                os.fsync(above)


class _LocalReader(ObjectReader):
    """An open file. Threads share it without a lock: pread has no position."""

    def __init__(self, storage: LocalStorage, name: str, handle: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._storage, self._name, self._handle = storage, name, handle

    def read_at(self, offset: int, length: int) -> bytes:
        target = bytearray(length)
        self.read_into(offset, memoryview(target))
        return bytes(target)

    def read_into(self, offset: int, target: memoryview) -> None:
        done = 0
        with self._storage.failures("read", self._name):
            while done < len(target):
                count = os.preadv(self._handle, [target[done:]], offset + done)
                if not count:
                    raise ObjectTruncated(
                        storage=self._storage.label,
                        step="read",
                        name=self._name,
                        end=min(self.size_bytes, offset + done),
                        wanted=offset + len(target),
                    )
                done += count

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class _LocalUpload:
    """A file being written under its temporary name; the `with` block's end publishes or removes it."""

    def __init__(self, storage: LocalStorage, name: str) -> None:
        self._storage, self._name = storage, name
        *self._parents, self._base = name.split("/")
        self._part = part_name(self._base)
        self._handle = self._folder = -1
        self._position = 0
        self._told = 0  # of bytes in the page cache before this one the disk was told to begin with them
        self._failed = False

    def __enter__(self) -> Self:
        with self._storage.failures("create", self._name):
            for attempt in range(1, _RACE_TRIES + 1):
                try:
                    self._begin()
                    break
                except FileNotFoundError:
                    if attempt == _RACE_TRIES:
                        raise
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._failed = True  # until the write is through: whoever swallows its error gets no object
        with self._storage.failures("write", self._name):
            while view:
                count = os.write(self._handle, view)
                self._position += count
                view = view[count:]
            if self._position - self._told >= _WRITEBACK_BYTES:
                begin_writeback(self._handle, self._told, self._position)
                self._told = self._position
        self._failed = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published = False
        try:
            if kind is None:
                with self._storage.failures("commit", self._name):
                    if self._failed:
                        raise OSError(errno.EIO, "a write of it failed")
                    os.fsync(self._handle)
                    self._publish()
                    published = True
        finally:
            self._end(published)

    def _begin(self) -> None:
        with self._storage.folder(self._parents, make=True) as folder:
            if _exists(self._base, folder):
                raise FileExistsError(errno.EEXIST, "exists")
            self._handle = os.open(self._part, _PART_FLAGS, 0o600, dir_fd=folder)
            self._folder = os.dup(folder)

    def _publish(self) -> None:
        """Give the file its name unless that is taken; both ways are one atomic system call."""
        folder = self._folder
        try:
            os.link(self._part, self._base, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            # NFS repeats a request whose reply was lost, and then reports our own link as taken.
            seen = os.stat(self._base, dir_fd=folder, follow_symlinks=False)
            if not os.path.samestat(seen, os.fstat(self._handle)):
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            rename_exclusively(folder, self._part, self._base)
        with suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=folder)
        os.fsync(folder)

    def _end(self, published: bool) -> None:
        """Close what is open; of an object that was not published, remove every trace."""
        if self._handle < 0:
            return
        try:
            if not published:
                with suppress(FileNotFoundError):
                    os.unlink(self._part, dir_fd=self._folder)
                self._storage.remove_empty(self._parents)
        except OSError as error:
            log.warning("unfinished object stays storage=%s name=%s error=%s", self._storage.label, self._name, error)
        finally:
            os.close(self._handle)
            os.close(self._folder)
            self._handle = self._folder = -1


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def rename_exclusively(folder: int, source: str, target: str) -> None:
    """Rename within a folder, failing with FileExistsError if the target exists. Source: renameat2(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(folder, source.encode(), folder, target.encode(), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the file system knows neither links nor exclusive renames: {os.strerror(code)}")
