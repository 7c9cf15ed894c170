"""An object being written to a remote of rclone, for `RcloneStorage`.

    up to 1 MiB   kept until the block ends, so that a lost connection costs nothing: sent again
    beyond        a form that grows as the writes come ─► <name>.<random>.part ─► size as sent? ─► name free? ─► move
                                                        └► <name> itself where the remote shows whole uploads alone

rclone repeats by itself what it can (a part of a multipart upload, a login), but it can resume nothing: when the stream breaks
the upload has failed, and what is left of it is removed. A move of unknown outcome is settled by looking.
"""

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.errors import ObjectExists, ObjectNotFound, StorageError, StorageFull, StorageUnreachable
from engine.storage.base import Buffer, part_name
from engine.storage.rclone_stale import give_up_one
from engine.storage.rclone_wire import Lost, Refused, UploadStream, Wire
from engine.units import MIB

if TYPE_CHECKING:
    from engine.storage.rclone import RcloneStorage

log = logging.getLogger(__name__)

KEPT_BYTES_MAX = 1 * MIB
_ROOM_BYTES_MIN = 1 * MIB
_REMOVE_TRIES = 2  # rclone may have ended, and is then started again
_RACE_TRIES = 10  # a folder that rclone just made may be removed, still empty, by a delete beside us


class RcloneUpload:
    """An object on its way; the `with` block's end publishes or removes it."""

    def __init__(self, storage: "RcloneStorage", name: str) -> None:
        self._storage, self._name = storage, name
        self._parts: set[str] = set()  # temporary names that may be there
        self._begun = False
        self._kept = bytearray()
        self._stream: UploadStream | None = None
        self._target = ""  # what the stream writes to
        self.resent_bytes = 0  # of a small object that was sent again; ThrottledStorage counts them too
        self._sent = 0
        self._failed: StorageError | None = None

    def __enter__(self) -> Self:
        self._refuse_taken("create")
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if self._failed is not None:
            raise self._failed
        if self._stream is None and len(self._kept) + len(view) <= KEPT_BYTES_MAX:
            self._kept += view
            return
        try:
            if self._stream is None:
                self._stream = self._begin(self._storage.wire())
                self._send(self._stream, self._kept)
                self._kept = bytearray()
            self._send(self._stream, view)
        except (Refused, Lost) as error:
            self._failed = self._explained(self._storage.failure(error, "write", self._name))
            raise self._failed from error
        except StorageError as error:
            self._failed = error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published = False
        try:
            if kind is None:
                if self._failed is not None:
                    raise self._failed  # whoever swallows the error of a write gets no object
                if self._stream is None:
                    self._put_kept()
                else:
                    self._finish(self._stream)
                published = True
        finally:
            if (
                not published or self._parts or self.resent_bytes
            ):  # a small object that was sent again, by another temporary name each time
                self._remove()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _begin(self, wire: Wire) -> UploadStream:
        """Begin a form: to a new temporary name, or to the final one where that is safe."""
        storage = self._storage
        self._begun, self._sent = True, 0
        self._target = self._name if storage.remote.writes_whole else part_name(self._name)
        if self._target != self._name:
            self._parts.add(self._target)
        folder, _, base = self._target.rpartition("/")
        # What rclone compares afterwards: by itself it would be times, and the server's is not that of the form.
        compared = {"CheckSum": True} if storage.remote.checks_hash else {"SizeOnly": True, "IgnoreChecksum": True}
        return wire.upload(storage.fs, folder, base, compared, storage.patience.answer_seconds)

    def _send(self, stream: UploadStream, data: Buffer) -> None:
        stream.send(data)
        self._sent += len(data)

    def _put_kept(self) -> None:
        """Write a small object; what it takes is repeated as a whole, since we still have all of it."""
        storage = self._storage
        sent_before = False

        def put(wire: Wire) -> None:
            nonlocal sent_before
            if storage.remote.writes_whole and self._is_taken(wire):
                if sent_before and self._holds_ours(wire):
                    return  # the answer to the try before was lost
                raise ObjectExists(storage=storage.label, step="create", name=self._name)
            if sent_before:
                self.resent_bytes += len(self._kept)
            sent_before = True
            stream = self._begin(wire)
            try:
                self._send(stream, self._kept)
                stream.finish(storage.patience.commit_seconds)
            finally:
                stream.abort(storage.patience.abort_seconds)
            self._check_size(wire)

        for number in range(1, _RACE_TRIES + 1):
            try:
                storage.attempt("write", self._name, put)
                break
            except ObjectNotFound:
                if number == _RACE_TRIES:
                    raise
            except StorageError as error:
                raise self._explained(error) from error.__cause__
        self._publish()

    def _finish(self, stream: UploadStream) -> None:
        """End the form, and make sure of what lies there."""
        storage = self._storage
        try:
            if self._target == self._name:
                self._refuse_taken("commit")  # the last moment: with the form's end it appears
            stream.finish(storage.patience.commit_seconds)
        except (Refused, Lost) as error:
            failed = self._explained(storage.failure(error, "write", self._name))
            if not isinstance(failed, StorageUnreachable) or not self._is_there():
                raise failed from error
            return
        storage.attempt("write", self._name, self._check_size)
        self._publish()

    def _is_there(self) -> bool:
        """Tell whether the answer to the form's end was lost, not the object: it is whole where only whole ones are to be seen."""
        storage = self._storage
        if self._target != self._name or storage.interrupted:
            return False
        return storage.attempt("look at", self._name, lambda wire: storage.size_of(wire, self._name)) == self._sent

    def _explained(self, failed: StorageError) -> StorageError:
        """Return why an upload failed, where rclone says that its connection was lost, or nothing but that it failed.

        Who was shut out loses the connection first; the next request tells. And SFTP has no word for a disk without room, nor
        rclone one of its own: full it was if what was sent would not fit, now that rclone has removed what it wrote of it.
        """
        storage = self._storage
        try:
            if failed.facts.get("cause") == "lost":
                storage.attempt("look at", self._name, self._is_taken, attempts=1)
            elif type(failed) is StorageError and not storage.interrupted:
                room = storage.usage()
                if room is not None and room.free_bytes < self._sent + _ROOM_BYTES_MIN:
                    return StorageFull(storage=storage.label, step="write", name=self._name)
        except StorageUnreachable:
            pass
        except StorageError as cause:
            return cause
        return failed

    def _check_size(self, wire: Wire) -> None:
        size = self._storage.size_of(wire, self._target)
        if size == self._sent:
            return
        found = "nothing is" if size is None else f"{size} bytes are"
        if self._target == self._name and size is not None:
            self._storage.remove(wire, self._name)  # it is ours, it was not there when its form ended
        detail = f"{found} there, {self._sent} were sent"
        raise StorageError(storage=self._storage.label, step=f"write {self._name}", detail=detail)

    def _publish(self) -> None:
        """Move to the final name, and where an answer was lost find out what became of it.

        Only our own move takes our temporary name away. So: it is gone and the final name is there, then we did it.
        """
        if self._target == self._name:
            return
        storage, part, tried = self._storage, self._target, False

        def is_moved(wire: Wire) -> bool:
            if not self._is_taken(wire):
                return False
            if tried and storage.size_of(wire, part) is None:
                return True
            raise ObjectExists(storage=storage.label, step="create", name=self._name)

        def move(wire: Wire) -> None:
            nonlocal tried
            if is_moved(wire):
                return
            tried = True
            try:
                self._move(wire, part)
            except Refused:
                if not is_moved(wire):
                    raise

        storage.attempt("commit", self._name, move)
        self._parts.discard(part)  # what is left of them is of tries that were lost

    def _move(self, wire: Wire, part: str) -> None:
        storage = self._storage
        options = {"IgnoreChecksum": not storage.remote.checks_hash}
        wire.call(
            "operations/movefile", storage.patience.commit_seconds,
            srcFs=storage.fs, srcRemote=part, dstFs=storage.fs, dstRemote=self._name, _config=options,
        )  # fmt: skip

    def _is_taken(self, wire: Wire) -> bool:
        return self._storage.size_of(wire, self._name) is not None

    def _refuse_taken(self, step: str) -> None:
        if self._storage.attempt("look at", self._name, self._is_taken):
            raise ObjectExists(storage=self._storage.label, step=step, name=self._name)

    def _holds_ours(self, wire: Wire) -> bool:
        storage, size = self._storage, len(self._kept)
        if storage.size_of(wire, self._name) != size:
            return False
        return not size or wire.read(storage.fs, self._name, 0, size, storage.patience.answer_seconds) == self._kept

    def _remove(self) -> None:
        """Remove what was written, without waiting for a remote that is gone; of an interrupted one nothing can be."""
        storage = self._storage
        if self._stream is not None:
            self._stream.abort(0.0 if storage.interrupted else storage.patience.abort_seconds)
        if storage.interrupted or not self._begun:
            return
        try:
            storage.attempt("remove", self._name, self._remove_by, attempts=_REMOVE_TRIES)
            give_up_one(storage, self._name)
        except StorageError as error:
            log.warning("unfinished object stays storage=%s name=%s error=%s", storage.label, self._name, error)

    def _remove_by(self, wire: Wire) -> None:
        for part in self._parts:
            self._storage.remove(wire, part)
        self._storage.remove_empty(wire, self._name)
