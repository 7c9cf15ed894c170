"""A second connection beside an upload by FTP, which tells how much of it the server has by now.

    upload begins ──► a thread dials ──► pool ──► SIZE … SIZE … ──► upload ends ──► a thread learns the server's manners on it

Far away a login takes a second: nothing that the upload itself does not need keeps it waiting. Used by the upload's thread alone.
"""

import threading
from typing import TYPE_CHECKING

from engine.errors import StorageError
from engine.storage.ftp_wire import Control, Lost, Refused

if TYPE_CHECKING:
    from engine.storage.ftp import FtpStorage


class Onlooker:
    """Asks for the size of the file at `path`. Where there is no second connection it just has no answer."""

    def __init__(self, storage: "FtpStorage", path: str) -> None:
        self._storage, self._path = storage, path
        self._control: Control | None = None  # on it the answer to SIZE is awaited
        self._dialing: threading.Thread | None = None

    @property
    def asked(self) -> bool:
        """Tell whether `answer` is to be called."""
        return self._control is not None

    @property
    def answers(self) -> bool:
        """Tell whether `answer` would not wait."""
        return self._control is not None and self._control.reply_waits()

    def prepare(self) -> None:
        """Have a connection made, beside the caller, if the server tells the size of what is being written."""
        if self._storage.tells_growth and (self._dialing is None or not self._dialing.is_alive()):
            self._dialing = threading.Thread(target=self._dial, name="ftp-onlooker", daemon=True)
            self._dialing.start()

    def ask(self, *, patient: bool = False) -> bool:
        """Ask how large the file is by now; False where no connection is free. `patient`: wait until one is made."""
        if not self._storage.tells_growth:
            return False
        control = self._storage.pool.take_free()
        if control is None:
            self.prepare()
            if not patient or self._dialing is None:
                return False
            self._dialing.join()
            control = self._storage.pool.take_free()
        if control is None:
            return False
        self._control = control
        try:
            control.send_command(f"SIZE {self._path}")
        except Lost:
            self.drop()
            return False
        return True

    def answer(self) -> int | None:
        """Wait for the size and return it; None where the server does not tell it, or the connection was lost."""
        control, self._control = self._control, None
        assert control is not None, "nothing was asked"
        try:
            text = control.reply()[4:].strip()
        except Lost:
            control.broken = True
            return None
        except Refused:
            self._storage.tells_growth = False
            return None
        finally:
            self._storage.pool.release(control)
        return int(text) if text.isascii() and text.isdigit() else None

    def drop(self) -> None:
        """Ask no more; a connection with an answer under way is hung up."""
        control, self._control = self._control, None
        if control is not None:
            control.broken = True
            self._storage.pool.release(control)

    def learn_manners(self) -> None:
        """Ask no more, and use the connection to find out, beside the caller, what the upload's end has to know."""
        asked, control = self.asked, self._control or self._storage.pool.take_free()
        self._control = None
        if control is not None:
            threading.Thread(target=self._learn, args=(control, asked), name="ftp-manners", daemon=True).start()

    # ---- in threads of their own ----------------------------------------------------------------------------------------

    def _dial(self) -> None:
        control = self._storage.pool.try_acquire()
        if control is not None:
            self._storage.pool.release(control)

    def _learn(self, control: Control, asked: bool) -> None:
        try:
            if asked:
                control.reply()
            self._storage.learn_manners(control)
        except (Refused, Lost, StorageError):  # the upload's end asks itself, and has the error
            control.broken = True
        finally:
            self._storage.pool.release(control)
