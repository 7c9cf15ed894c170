"""An object on an FTP server being written, for `FtpStorage`; a lost connection is replaced, and the upload goes on.

    <name>.<random>.part  ◄── STOR ── kept until the server has it, KEPT_BYTES_MAX at most ◄── write
         │                     │  └── SIZE of the .part, asked on a second connection as we go (ftp_onlooker): what the server has
         │                     └── connection lost: a new one, SIZE, and STOR from there on with what was kept
         └──► last reply, SIZE as sent? ──► lock, RNFR, RNTO to <name>

FTP acknowledges nothing before the end, so a lost connection may have lost what is in the buffers on the way. Where a server
tells no size of a file that is being written, or lends no second connection, the transfer is ended and taken up again
each time that too much is kept: its last reply is an acknowledgement too. A rename of unknown outcome is settled by looking.
"""

import logging
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.errors import ObjectExists, StorageError
from engine.storage import ftp_tree
from engine.storage.base import Buffer, part_name
from engine.storage.ftp_lock import NameLock, Taken
from engine.storage.ftp_onlooker import Onlooker
from engine.storage.ftp_wire import Control, Lost, Refused, Transfer
from engine.storage.sftp_connect import reason_of
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from engine.storage.ftp import FtpStorage

log = logging.getLogger(__name__)

BLOCK_BYTES = 256 * KIB
# What is kept for a resume. The kernels on both sides hold up to 10 MiB of a fast connection over a long way; this is what one
# with 100 ms of latency needs for 60 MB/s.
KEPT_BYTES_MAX = 8 * MIB
_ASK_BYTES = 1 * MIB  # ask for the size again when so much more was sent
_SILENT_SECONDS = 5.0  # a size that does not grow for so long, with everything sent, will not tell us anything
_PAUSE_SECONDS = 0.02
_SETTLE_SECONDS = 0.2  # between two looks at a size that must have come to rest
_SETTLE_TRIES = 50
_RACE_TRIES = 10  # a folder we just made may be removed, still empty, by a delete beside us
_STRANGE_MAX = 3  # refusals with the folder there when we looked: it is not its absence that is refused
RESUMES_MAX = 1000  # of one object
STUCK_MAX = 5  # resumes in a row that brought nothing forward: then it is the upload that kills the connection


class FtpUpload:
    """A file being written under its temporary name; the `with` block's end publishes or removes it."""

    def __init__(self, storage: "FtpStorage", name: str, size_hint: int) -> None:
        self._storage, self._name = storage, name
        self._parents = name.split("/")[:-1]
        self._final = storage.path(name)
        self._part = storage.path(part_name(name))
        self._lock = NameLock(self._final, storage.sleep)
        self._control: Control | None = None
        self._transfer: Transfer | None = None
        self._onlooker = Onlooker(storage, self._part)
        self._size_hint = size_hint
        self._small = bytearray()  # writes smaller than a block wait here for more
        self._kept: deque[memoryview] = deque()
        self._sent = self._settled = 0  # bytes sent, and known to be there
        self._asked = 0  # bytes sent when the size was asked for last
        self.resent_bytes = 0  # sent again after a lost connection; ThrottledStorage counts them too
        self._resumes = self._stuck = 0
        self._settled_before = -1  # at the last resume
        self._begun = False
        self._failed: StorageError | None = None

    def __enter__(self) -> Self:
        self._storage.attempt_bound("create", self._name, self._begin)
        return self

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if self._small:
            room = BLOCK_BYTES - len(self._small)
            self._small += view[:room]
            view = view[room:]
            if len(self._small) < BLOCK_BYTES:
                return
            self._send(bytes(self._small))
            self._small.clear()
        while len(view) >= BLOCK_BYTES:
            self._send(bytes(view[:BLOCK_BYTES]))
            view = view[BLOCK_BYTES:]
        self._small += view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published = False
        try:
            if kind is None:
                self._finish()
                self._storage.attempt_bound("commit", self._name, self._publish, enduring=True)
                published = True
        finally:
            if not published:
                self._remove()
            self._onlooker.drop()
            self._release(self._control)
            self._control = None
            self._kept.clear()

    # ---- beginning ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        control = self._connect()
        if self._size_hint > _ASK_BYTES:
            self._onlooker.prepare()
        if ftp_tree.exists(control, self._final):
            raise ObjectExists(storage=self._storage.label, step="create", name=self._name)
        self._begun = True
        self._transfer = self._store(control)

    def _connect(self) -> Control:
        """Return this upload's connection, another one if it has none that is of use."""
        if self._control is not None and self._control.broken:
            self._release(self._control)
            self._control = None
        if self._control is None:
            self._control = self._storage.pool.acquire()
        return self._control

    def _release(self, control: Control | None) -> None:
        if control is not None:
            if control is self._control and self._transfer is not None:
                control.broken = True  # a transfer is still under way on it
            self._storage.pool.release(control)

    def _store(self, control: Control) -> Transfer:
        """Begin the file, its folders if need be."""
        folder, strange = self._part.rpartition("/")[0], 0
        for attempt in range(1, _RACE_TRIES + 1):
            try:
                return control.transfer(f"STOR {self._part}")
            except Refused as refused:
                strange += ftp_tree.is_folder(control, folder)
                if ftp_tree.denied(refused) or strange >= _STRANGE_MAX or attempt == _RACE_TRIES:
                    raise
            try:
                ftp_tree.make_folders(control, self._storage.root, self._parents)
            except Refused as refused:
                if ftp_tree.denied(refused) or attempt == _RACE_TRIES:
                    raise
        raise AssertionError("unreachable")

    # ---- writing --------------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Send one block, and learn what the server has by now; wait for that when too much is kept."""
        if self._failed is not None:
            raise self._failed
        self._kept.append(memoryview(data))
        self._sent += len(data)
        try:
            try:
                self._push(data)
                self._learn()
            except Lost as lost:
                self._resume(lost)
        except Refused as refused:
            self._failed = self._storage.failure(refused, "write", self._name)
            raise self._failed from refused
        except StorageError as error:
            self._failed = error
            raise

    def _push(self, data: Buffer) -> None:
        """Send bytes on the data connection. Raises Refused with the server's reason where it was the one to end it."""
        assert self._transfer is not None, "written outside of the block"
        try:
            self._transfer.sock.sendall(data)
        except (OSError, ValueError) as error:
            transfer, self._transfer = self._transfer, None
            self._verdict(transfer)
            raise Lost(reason_of(error)) from error

    def _verdict(self, transfer: Transfer) -> None:
        """Raise Refused if the server says why it ended a transfer; be silent if it does not."""
        assert self._control is not None
        try:
            transfer.finish(self._storage.patience.connect_seconds)
        except Lost:
            pass
        finally:
            self._control.broken = True

    def _learn(self) -> None:
        """Take in an answer to SIZE if there is one, ask again if it is time, and come to an end with what is kept."""
        if self._onlooker.answers:
            self._take_answer()
        if self._sent - self._settled >= KEPT_BYTES_MAX:
            self._wait_for_room()
        elif not self._onlooker.asked and self._sent - max(self._asked, self._settled) >= _ASK_BYTES:
            self._ask()

    def _ask(self, *, patient: bool = False) -> bool:
        """Ask how large the file is by now; False where there is no connection for it."""
        self._asked = self._sent
        return self._onlooker.ask(patient=patient)

    def _take_answer(self) -> None:
        """Wait for the answer to SIZE, and keep no longer what the server has."""
        size = self._onlooker.answer()
        if size is not None:
            self._settle(size)

    def _settle(self, size: int) -> None:
        """Drop what the server has from what is kept. A size that is less than it was is old, or a lie: the end tells."""
        if size > self._sent:
            detail = f"{size} bytes are there, {self._sent} were sent"
            raise StorageError(storage=self._storage.label, step=f"write {self._name}", detail=detail)
        while self._settled < size:
            done = min(len(self._kept[0]), size - self._settled)
            if done == len(self._kept[0]):
                self._kept.popleft()
            else:
                self._kept[0] = self._kept[0][done:]
            self._settled += done

    def _wait_for_room(self) -> None:
        """Wait until less is kept: for the server to tell of more, else by ending the transfer and taking it up again."""
        begin = time.monotonic()
        settled = self._settled
        while self._sent - self._settled >= KEPT_BYTES_MAX:
            if not self._onlooker.asked and not self._ask(patient=True):
                break
            self._take_answer()
            if self._settled > settled:
                begin, settled = time.monotonic(), self._settled
            elif time.monotonic() - begin > _SILENT_SECONDS:
                self._storage.tells_growth = self._settled > 0
                break
            else:
                self._storage.sleep(_PAUSE_SECONDS)
        else:
            return
        self._check_point()

    def _check_point(self) -> None:
        """End the transfer, and begin the next one where it ended."""
        assert self._control is not None
        assert self._transfer is not None
        transfer, self._transfer = self._transfer, None
        transfer.finish(self._storage.patience.sync_seconds)
        self._compare(self._control)
        self._settle(self._sent)
        self._transfer = self._append(self._control)

    def _append(self, control: Control) -> Transfer:
        """Begin a transfer behind what the server has."""
        if self._settled and "STREAM" not in control.features.get("REST", ""):
            return control.transfer(f"APPE {self._part}")
        return control.transfer(f"STOR {self._part}", self._settled)

    # ---- a lost connection ----------------------------------------------------------------------------------------------

    def _resume(self, lost: Lost) -> None:
        """Go on with a new connection; when this returns, all that was sent is on its way again.

        Raises StorageUnreachable when that takes too long or does not help, and what else the server answers.
        """
        self._give_up_connection()
        self._storage.pool.distrust()
        self._resumes += 1
        self._stuck = self._stuck + 1 if self._settled == self._settled_before else 1
        self._settled_before = self._settled
        if self._stuck > STUCK_MAX or self._resumes > RESUMES_MAX:
            raise self._storage.unreachable(f"write {self._name}", lost) from lost
        self._storage.attempt_bound("write", self._name, self._take_up, enduring=True)
        log.warning(
            "an upload goes on after a lost connection storage=%s name=%s at=%d reason=%s",
            self._storage.label, self._name, self._settled, reason_of(lost),
        )  # fmt: skip

    def _give_up_connection(self) -> None:
        self._onlooker.drop()
        self._transfer = None
        if self._control is not None:
            self._control.cut()
            self._release(self._control)
            self._control = None

    def _take_up(self) -> None:
        """Look at what the server has, and send the rest of what was kept."""
        if self._transfer is not None or (self._control is not None and self._control.broken):
            self._give_up_connection()
        control = self._connect()
        size = self._size_at_rest(control)
        if size is None and self._settled:
            detail = "what was uploaded of it is gone"
            raise StorageError(storage=self._storage.label, step=f"resume {self._name}", detail=detail)
        if not self._settled <= (size or 0) <= self._sent:
            detail = f"{size} bytes are there, {self._settled} were there before and {self._sent} sent"
            raise StorageError(storage=self._storage.label, step=f"resume {self._name}", detail=detail)
        self._settle(size or 0)
        self._transfer = self._append(control) if size else self._store(control)
        try:
            for block in tuple(self._kept):
                self._push(block)
                self.resent_bytes += len(block)
        except Lost:
            if self._settled == self._settled_before:
                raise
            # It had come forward before: not a failed try. Whoever uses the connection next notices that it is lost.
            self._transfer = None

    def _size_at_rest(self, control: Control) -> int | None:
        """Return the file's size when the lost transfer writes nothing more: what it still had on its way comes late."""
        known = ftp_tree.size(control, self._part)
        for _ in range(_SETTLE_TRIES):
            self._storage.sleep(_SETTLE_SECONDS)
            size = ftp_tree.size(control, self._part)
            if size == known:
                return size
            known = size
        raise Lost("the file goes on growing after its transfer was lost")

    # ---- the end --------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Send the rest, hear the server's last word, and make sure that as much lies there as was sent."""
        if self._failed is not None:
            raise self._failed  # whoever swallows the error of a write gets no object
        if self._small:
            self._send(bytes(self._small))
            self._small.clear()
        self._onlooker.learn_manners()
        try:
            while True:
                try:
                    return self._seal()
                except Lost as lost:
                    self._resume(lost)
        except Refused as refused:
            raise self._storage.failure(refused, "write", self._name) from refused

    def _seal(self) -> None:
        if self._transfer is None:
            raise Lost("the data connection was lost")
        assert self._control is not None
        transfer, self._transfer = self._transfer, None
        transfer.finish(self._storage.patience.sync_seconds)
        self._compare(self._control)
        self._settle(self._sent)

    def _compare(self, control: Control) -> None:
        """Raise unless as many bytes are there as were sent."""
        size = ftp_tree.size(control, self._part)
        if size != self._sent:
            detail = f"{size or 0} bytes are there, {self._sent} were sent"
            raise StorageError(storage=self._storage.label, step=f"write {self._name}", detail=detail)

    def _publish(self) -> None:
        """Rename, and where a reply was lost find out what became of it.

        Only our own rename takes our temporary name away. So: it is gone and the final name is there, then we did it.
        """
        control = self._connect()
        self._storage.learn_manners(control)
        try:
            self._lock.acquire(control)
            if ftp_tree.exists(control, self._final):
                raise Taken
            control.command(f"RNFR {self._part}")
            if not self._lock.held:
                raise Lost("the server took too long to be sure of the name")
            control.command(f"RNTO {self._final}")
        except Taken:
            if ftp_tree.exists(control, self._part):
                self._lock.release(control)
                raise ObjectExists(storage=self._storage.label, step="create", name=self._name) from None
        except Refused:
            self._lock.release(control)
            raise
        with suppress(Lost):  # it has its name: a lock that stays becomes stale
            self._lock.release(control)

    def _remove(self) -> None:
        """Remove what was written. With the connection lost there is one try on a new one, with it interrupted none."""
        if not self._begun or self._storage.interrupted:
            return
        try:
            try:
                self._remove_part()
            except Lost:
                self._give_up_connection()
                self._remove_part()
        except (Refused, Lost, StorageError) as error:
            log.warning("unfinished object stays storage=%s name=%s error=%s", self._storage.label, self._name, error)

    def _remove_part(self) -> None:
        transfer, self._transfer = self._transfer, None
        if transfer is not None and self._control is not None and not self._control.broken:
            transfer.abandon()
        control = self._connect()
        ftp_tree.remove(control, self._part)
        self._storage.remove_empty(control, self._parents)
