"""An FTP server that says what a test tells it to: for answers that no real server gives. Plain, on loopback, files in memory.

    with ScriptedFtp() as server:
        server.files["/s/object"] = b"content"
        server.answers["SIZE"] = "213 999999"            # whatever the truth is
        storage = FtpStorage(server.config("/s"))

Each connection has a thread. What no answer is given for is done honestly, as far as the storage needs it.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

from engine.spec import FtpConfig

Answer: TypeAlias = str | Callable[[str], str]
PASSWORD = "correct horse"


class ScriptedFtp:
    """`answers` maps a command's word to the reply that it gets (or a function of its argument); "" hangs up.

    `listings` maps LIST, MLSD and NLST to the bytes that are sent for them; `features` are told by FEAT. `cut_data` ends a RETR
    after so many bytes, with a reply of success. `commands` has every line that came; `sources` every data connection's source;
    `pasv_address` stands in the replies to PASV.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = {"/", "/s"}
        self.answers: dict[str, Answer] = {}
        self.listings: dict[str, bytes] = {}
        self.features: list[str] = ["SIZE", "REST STREAM", "EPSV"]
        self.greeting = "220 scripted"
        self.cut_data = -1
        self.pasv_address = "127.0.0.1"
        self.commands: list[str] = []
        self.sources: list[str] = []
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.socket(self._family)
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = {self._listener}
        self._ended = False

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def config(self, path: str = "/s") -> FtpConfig:
        return FtpConfig(self.address, "someone", path, PASSWORD, self.port, tls_disabled=True)

    def said(self, word: str) -> list[str]:
        """Return the commands with that first word."""
        return [line for line in self.commands if line.split(" ")[0] == word]

    def __enter__(self) -> Self:
        self._listener.bind((self.address, 0))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        for sock in tuple(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ended:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(sock)
            self._start(_Session(self, sock).serve)

    def forget(self, sock: socket.socket) -> None:
        sock.close()
        self._sockets.discard(sock)

    def listen(self) -> socket.socket:
        """Return a listener for one data connection."""
        listener = socket.socket(self._family)
        listener.settimeout(10)
        listener.bind((self.address, 0))
        listener.listen(1)
        self._sockets.add(listener)
        return listener


class _Session:
    def __init__(self, server: ScriptedFtp, sock: socket.socket) -> None:
        self._server, self._sock = server, sock
        self._listener: socket.socket | None = None
        self._start, self._renamed = 0, ""

    def serve(self) -> None:
        try:
            with self._sock.makefile("rb") as lines:
                self._say(self._server.greeting)
                for raw in lines:
                    line = raw.decode().rstrip("\r\n")
                    self._server.commands.append(line)
                    word, _, rest = line.partition(" ")
                    answer = self._server.answers.get(word)
                    reply = answer(rest) if callable(answer) else answer
                    if reply is None:
                        reply = getattr(self, f"_{word.lower()}", self._unknown)(rest)
                    if not reply:
                        return
                    self._say(reply)
        except (OSError, ValueError):
            return
        finally:
            if self._listener is not None:
                self._server.forget(self._listener)
            self._server.forget(self._sock)

    def _say(self, text: str) -> None:
        self._sock.sendall(text.encode("latin-1") + b"\r\n")

    def _unknown(self, _rest: str) -> str:
        return "500 unknown"

    def _user(self, _rest: str) -> str:
        return "331 password"

    def _pass(self, rest: str) -> str:
        return "230 welcome" if rest == PASSWORD else f"530 no {rest} here"

    def _feat(self, _rest: str) -> str:
        return "\r\n".join(["211-features", *(f" {one}" for one in self._server.features), "211 end"])

    def _type(self, _rest: str) -> str:
        return "200 fine"

    _noop = _opts = _type

    def _cwd(self, rest: str) -> str:
        return "250 fine" if rest in self._server.folders else "550 no"

    def _mkd(self, rest: str) -> str:
        if rest in self._server.folders | self._server.files.keys() or rest.rpartition("/")[0] not in {
            *self._server.folders,
            "",
        }:
            return "550 no"
        self._server.folders.add(rest)
        return f'257 "{rest}"'

    def _rmd(self, rest: str) -> str:
        below = [one for one in (*self._server.folders, *self._server.files) if one.startswith(rest + "/")]
        if rest not in self._server.folders or below:
            return "550 no"
        self._server.folders.remove(rest)
        return "250 gone"

    def _dele(self, rest: str) -> str:
        return "550 no" if self._server.files.pop(rest, None) is None else "250 gone"

    def _size(self, rest: str) -> str:
        return f"213 {len(self._server.files[rest])}" if rest in self._server.files else "550 no"

    def _rest(self, rest: str) -> str:
        self._start = int(rest)
        return "350 go on"

    def _rnfr(self, rest: str) -> str:
        self._renamed = rest
        return "350 and now" if rest in self._server.files or rest in self._server.folders else "550 no"

    def _rnto(self, rest: str) -> str:
        if self._renamed not in self._server.files:
            return "550 no"
        self._server.files[rest] = self._server.files.pop(self._renamed)
        return "250 renamed"

    def _epsv(self, _rest: str) -> str:
        self._listen()
        assert self._listener is not None
        return f"229 here (|||{self._listener.getsockname()[1]}|)"

    def _pasv(self, _rest: str) -> str:
        self._listen()
        assert self._listener is not None
        high, low = divmod(self._listener.getsockname()[1], 256)
        return f"227 here ({self._server.pasv_address.replace('.', ',')},{high},{low})"

    def _listen(self) -> None:
        if self._listener is not None:
            self._server.forget(self._listener)
        self._listener = self._server.listen()

    def _data(self) -> socket.socket:
        assert self._listener is not None
        self._say("150 here it comes")
        sock, address = self._listener.accept()
        self._server.sources.append(address[0])
        sock.settimeout(10)
        return sock

    def _stor(self, rest: str) -> str:
        if rest.rpartition("/")[0] not in self._server.folders:
            return "553 no"
        pieces = []
        with self._data() as sock:
            while piece := sock.recv(1 << 16):
                pieces.append(piece)
        before = self._server.files.get(rest, b"")[: self._start]
        self._server.files[rest] = before + b"".join(pieces)
        self._start = 0
        return "226 done"

    def _retr(self, rest: str) -> str:
        if rest not in self._server.files:
            return "550 no"
        data = self._server.files[rest][self._start :]
        self._start = 0
        if self._server.cut_data >= 0:
            data = data[: self._server.cut_data]
        try:
            with self._data() as sock:
                sock.sendall(data)
        except OSError:
            return "426 you hung up"
        return "226 done"

    def _list(self, _rest: str) -> str:
        return self._listing("LIST")

    def _mlsd(self, _rest: str) -> str:
        return self._listing("MLSD")

    def _nlst(self, _rest: str) -> str:
        return self._listing("NLST")

    def _listing(self, word: str) -> str:
        if word not in self._server.listings:
            return "500 unknown"
        with suppress(OSError), self._data() as sock:
            sock.sendall(self._server.listings[word])
        return "226 done"
