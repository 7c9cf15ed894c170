"""One FTP connection: commands and replies on the control connection, and a data connection for each transfer.

    control   command ─►  ◄─ reply         one thread at a time; a reply is bounded in lines, bytes and time
    data      EPSV, else PASV ─► dial the host of the control connection, whatever address the reply names
              ─► (REST) RETR, STOR, … ─► TLS with the session of the control connection ─► bytes

The library's class has the parsing of passive replies; what waits, dials or trusts a server's words stands here. Nothing that
the server says may hold a secret by the time it is in an error: what was sent as password is cut out of its text.
"""

import ftplib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from engine.storage.sftp_connect import Patience, reason_of
from engine.storage.trouble import tls_cause
from engine.units import KIB

LINE_BYTES_MAX = 8 * KIB
REPLY_LINES_MAX = 1000
_RECEIVE_BYTES = 16 * KIB
_TEXT_CHARACTERS_MAX = 200
_GONE = 421  # the server ends the connection, whatever was asked. Source: RFC 959, 4.2.1
_RETRIED = (425, 426)  # no data connection, or it was lost: the next one may live


class Lost(Exception):
    """The connection is of no use any more, or the server broke the protocol on it; the text says why."""


class Refused(Exception):
    """The server answered with an error. `code` is the reply's; the text is the server's, short and without secrets."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}".rstrip())
        self.code, self.text = code, text


class NotTrusted(Exception):
    """TLS failed for good; `cause` is that of STORAGE_UNTRUSTED (see engine/remedies.py)."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


class Transfer:
    """A data connection between the server's 1xx and its last reply. `sock` carries the bytes."""

    def __init__(self, control: "Control", sock: socket.socket, *, ended: bool) -> None:
        self._control, self.sock, self._ended = control, sock, ended

    def finish(self, seconds: float = 0) -> str:
        """Say that this is all, and return the server's last reply, waiting for it up to `seconds`. Raises Lost, Refused."""
        if isinstance(self.sock, ssl.SSLSocket):
            with suppress(
                OSError, ValueError
            ):  # some servers hang up instead of saying goodbye; the size is what counts
                self.sock.unwrap()
        self._control.drop_data(self.sock)
        return "" if self._ended else self._control.reply(seconds)

    def abandon(self) -> None:
        """End a transfer before its end; the server's complaint about it is dropped. Raises Lost."""
        self._control.drop_data(self.sock)
        if not self._ended:
            try:
                self._control.reply()
            except Refused:
                pass
            except Lost:
                if self._control.broken:
                    raise


class Control(ftplib.FTP):
    """A control connection on the connected socket `sock`. One thread at a time; `cut` comes from any.

    `host` is the name that a certificate must be for. `dial` connects a data connection's socket to (host, port).
    """

    encoding = "latin-1"  # of replies: every byte is a character, so that no server's text breaks the reading

    def __init__(
        self,
        sock: socket.socket,
        host: str,
        context: ssl.SSLContext | None,
        dial: Callable[[str, int], socket.socket],
        patience: Patience,
    ) -> None:
        super().__init__()
        self.sock, self.af, self.host = sock, sock.family, host
        self.features: dict[str, str] = {}
        self.idle_since = time.monotonic()
        self._peer: str = sock.getpeername()[0]
        self._context, self._dial, self._patience = context, dial, patience
        self._extended = True  # EPSV first: its reply has no address that could be wrong
        self._private = False  # the data connections are to be by TLS
        self._secrets: tuple[str, ...] = ()
        self._received = bytearray()
        self._data: socket.socket | None = None
        self._cut = threading.Event()
        self.broken = False

    # ---- the session ----------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Wait for the server's first words, which may announce themselves."""
        if self.reply(self._patience.connect_seconds)[0] == "1":
            self.reply()

    def secure(self) -> None:
        """Continue by TLS. Raises Refused where the server has none, NotTrusted for its certificate, Lost."""
        assert self._context is not None
        self.command("AUTH TLS")
        if self._received:
            raise self._lose("the server said more than it was asked before TLS began")
        assert self.sock is not None
        self.sock = self._wrap(self.sock, None)

    def log_in(self, username: str, password: str) -> None:
        """Raises Refused with the server's words, the password cut out of them."""
        self._secrets = (password,) if password else ()
        if self.command(f"USER {username}")[0] == "3" and self.command(f"PASS {password}")[0] == "3":
            raise Refused(332, "the server also wants an account")

    def prepare(self) -> None:
        """Agree on how data is sent: as it is, and by TLS if the control connection is."""
        self.learn_features()
        if "UTF8" in self.features:
            with suppress(Refused):
                self.command("OPTS UTF8 ON")
        if isinstance(self.sock, ssl.SSLSocket):
            self.command("PBSZ 0")
            self.command("PROT P")
            self._private = True
        self.command("TYPE I")

    def learn_features(self) -> None:
        """Ask what the server knows beyond the oldest standard. Source: RFC 2389."""
        with suppress(Refused):
            for line in self.command("FEAT").splitlines()[1:-1]:
                name, _, rest = line.strip().partition(" ")
                self.features[name.upper()] = rest.upper()

    # ---- commands -------------------------------------------------------------------------------------------------------

    def command(self, line: str, seconds: float = 0) -> str:
        """Send a command and return the server's reply, a positive one. Raises Refused, Lost."""
        self.send_command(line)
        return self.reply(seconds)

    def send_command(self, line: str) -> None:
        """Send a command alone; `reply` is then to be called once. A line break in it is a bug, and reaches no server."""
        if any(character in line for character in "\r\n\0"):
            raise ValueError("a command of several lines")
        assert self.sock is not None
        try:
            self.sock.sendall(line.encode("utf-8", "surrogateescape") + b"\r\n")
        except (OSError, ValueError) as error:
            raise self._lose(reason_of(error)) from None

    def reply(self, seconds: float = 0) -> str:
        """Return the next reply, waiting up to `seconds` (else the usual patience) for it. Raises Refused, Lost."""
        text = self._receive_reply(time.monotonic() + (seconds or self._patience.stall_seconds))
        self.idle_since = time.monotonic()
        code = int(text[:3])
        if code == _GONE:
            raise self._lose(self.decent(text))
        if code in _RETRIED:
            raise Lost(self.decent(text))  # the data connection alone; this one may serve on
        if code >= 400:
            raise Refused(code, self.decent(text[4:]))
        return text

    def reply_waits(self) -> bool:
        """Tell whether a reply, or the connection's end, is there to be read."""
        assert self.sock is not None
        if self._received or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
            return True
        if self.broken or self.sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def decent(self, text: str) -> str:
        """Return a server's words as they may stand in an error: short, printable, without what it was told in secret."""
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(secret.encode("utf-8", "replace").decode("latin-1"), "***")
        return "".join(one if one.isprintable() else " " for one in text)[:_TEXT_CHARACTERS_MAX].strip()

    # ---- data connections -----------------------------------------------------------------------------------------------

    def transfer(self, command: str, start: int = 0) -> Transfer:
        """Begin a transfer at the byte `start`. Raises Refused, Lost."""
        sock = self._open_data()
        try:
            if start:
                self.command(f"REST {start}")
            answer = self.command(command)
            if answer.startswith("200"):  # some servers say this first, and 150 then
                answer = self.reply()
            ended = answer[0] == "2"  # nothing to send, and said at once
            if self._private and not ended:
                sock = self._data = self._wrap(
                    sock, self.sock.session if isinstance(self.sock, ssl.SSLSocket) else None
                )
        except BaseException as error:
            self.drop_data(sock)
            if isinstance(error, NotTrusted):
                raise self._lose(str(error)) from error
            raise
        sock.settimeout(self._patience.stall_seconds)
        return Transfer(self, sock, ended=ended)

    def drop_data(self, sock: socket.socket) -> None:
        self._data = None
        with suppress(OSError):
            sock.close()

    def _open_data(self) -> socket.socket:
        host, port = self.makepasv()
        try:
            sock = self._dial(host, port)
        except OSError as error:
            if self._extended and self.af == socket.AF_INET:
                self._extended = False  # a middlebox may understand PASV alone
                host, port = self.makepasv()
                try:
                    sock = self._dial(host, port)
                except OSError as again:
                    raise Lost(f"data connection to {host} port {port}: {reason_of(again)}") from again
            else:
                raise Lost(f"data connection to {host} port {port}: {reason_of(error)}") from error
        self._data = sock
        if self._cut.is_set():
            self.drop_data(sock)
            raise self._lose("interrupted")
        return sock

    def makepasv(self) -> tuple[str, int]:
        """Return where the server listens for the next transfer: on the host that we talk to, on whatever port it says.

        The address in the reply to PASV is the server's own behind its NAT, or that of a host that we should attack for it.
        """
        if self._extended or self.af != socket.AF_INET:
            try:
                answer = self.command("EPSV")
            except Refused:
                if self.af != socket.AF_INET:
                    raise
                self._extended = False
            else:
                return self._peer, self._port(answer)
        return self._peer, self._port(self.command("PASV"))

    def _port(self, answer: str) -> int:
        """Return the port in a reply to EPSV or PASV."""
        try:
            if answer.startswith("229"):
                port = int(ftplib.parse229(answer, (self._peer, 0))[1])  # noqa: S321 -- it parses a text
            else:
                port = int(ftplib.parse227(answer)[1])  # noqa: S321 -- it parses a text
        except (ftplib.Error, ValueError, IndexError):
            port = 0
        if not 1 <= port <= 65535:
            raise self._lose(f"the server names no port for a data connection: {self.decent(answer)}")
        return port

    # ---- the end --------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End everything at once: a thread that is blocked here gets Lost."""
        self._cut.set()
        self.broken = True
        for sock in (self._data, self.sock):
            if sock is not None:
                shut_raw(sock)

    def close(self) -> None:
        """Hang up, without a goodbye that could wait."""
        self.cut()
        for sock in (self._data, self.sock):
            if sock is not None:
                with suppress(OSError):
                    sock.close()

    # ---- inner ----------------------------------------------------------------------------------------------------------

    def _lose(self, reason: str) -> Lost:
        """Note that the connection is of no use any more."""
        self.broken = True
        return Lost("interrupted" if self._cut.is_set() else reason)

    def _wrap(self, sock: socket.socket, session: ssl.SSLSession | None) -> ssl.SSLSocket:
        """Shake hands by TLS. With `session` the server can tell that both connections come from one client."""
        assert self._context is not None
        try:
            return self._context.wrap_socket(sock, server_hostname=self.host, session=session)
        except (OSError, ValueError) as error:
            lost = self._lose(f"TLS: {reason_of(error)}")
            cause = tls_cause(error)
            if cause is None or self._cut.is_set():
                raise lost from error
            raise NotTrusted(cause, getattr(error, "verify_message", "") or reason_of(error)) from error

    def _receive_reply(self, deadline: float) -> str:
        """Return a reply, of several lines joined by line breaks. Source: RFC 959, 4.2."""
        lines = [self._receive_line(deadline)]
        code = lines[0][:3]
        if not (len(code) == 3 and code.isascii() and code.isdigit() and "1" <= code[0] <= "5"):
            raise self._lose("the server does not speak FTP")
        if lines[0][3:4] == "-":
            while lines[-1][:4].rstrip() != code:
                if len(lines) >= REPLY_LINES_MAX:
                    raise self._lose(f"a reply of more than {REPLY_LINES_MAX} lines")
                lines.append(self._receive_line(deadline))
        return "\n".join(lines)

    def _receive_line(self, deadline: float) -> str:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > LINE_BYTES_MAX:
                raise self._lose(f"a reply line of more than {LINE_BYTES_MAX} bytes")
            self._receive_more(deadline)
        if end > LINE_BYTES_MAX:
            raise self._lose(f"a reply line of more than {LINE_BYTES_MAX} bytes")
        line = self._received[:end].decode("latin-1").rstrip("\r")
        del self._received[: end + 1]
        return line

    def _receive_more(self, deadline: float) -> None:
        assert self.sock is not None
        seconds = deadline - time.monotonic()
        try:
            if seconds <= 0:
                raise TimeoutError
            self.sock.settimeout(seconds)
            piece = self.sock.recv(_RECEIVE_BYTES)
            self.sock.settimeout(self._patience.stall_seconds)
        except TimeoutError:
            raise self._lose("no answer in time") from None
        except (OSError, ValueError) as error:
            raise self._lose(reason_of(error)) from error
        if not piece:
            raise self._lose("the server closed the connection")
        self._received += piece


def shut_raw(sock: socket.socket) -> None:
    """Wake whoever is blocked on a socket. Not by the TLS layer's own method, which would let a sender go on in clear."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
