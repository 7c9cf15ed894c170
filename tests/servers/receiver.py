"""A webhook's receiver as a `with` block: a real HTTP or HTTPS server that answers as a test wants.

    with Receiver() as receiver:                    # 204 to everything
        receiver.answers = [503, "stall"]           # to the next two, and 204 again
    receiver.headers = ["Retry-After: 7"]       # of all answers
        receiver.url, receiver.requests             # (headers in lower case, body) of each POST

Answers are a status, or "stall" (nothing until the end), "cut" (the connection is closed), "garbage" (no HTTP), "drip" (headers
without end, slowly), "redirect" (302 to `receiver.location`), "interim" (100 and 103 first).
"""

import socketserver
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Receiver:
    """Listens on the loopback from `__enter__` to `__exit__`. With `certificate` and `key` (PEM files) it speaks TLS."""

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        self.answers: list[int | str] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.connections = 0
        self.location = ""
        self.headers: list[str] = []
        self._ended = threading.Event()
        receiver = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                receiver._serve(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A sender that hangs up is no fault here."""

            def get_request(self) -> Any:
                connection, address = super().get_request()
                connection.settimeout(10)
                return connection, address

        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate, key)
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}/hook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        self.connections += 1
        if self._context is not None:
            handler.connection = self._context.wrap_socket(handler.request, server_side=True)
            handler.rfile = handler.connection.makefile("rb")
        handler.rfile.readline()
        headers: dict[str, str] = {}
        while line := handler.rfile.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = handler.rfile.read(int(headers.get("content-length", "0")))
        answer = self.answers.pop(0) if self.answers else 204
        self.requests.append((headers, body))
        self._answer(handler.connection, answer)

    def _answer(self, connection: Any, answer: int | str) -> None:
        if answer == "stall":
            self._ended.wait(30)
        elif answer == "drip":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n")
            while not self._ended.wait(0.02):
                connection.sendall(b"X-Drip: y\r\n")
        elif answer == "garbage":
            connection.sendall(b"220 mail.example ESMTP\r\n" * 200)
        elif answer == "redirect":
            connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {self.location}\r\n\r\n".encode())
        elif answer == "interim":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        elif answer != "cut":
            lines = [f"HTTP/1.1 {answer} Whatever", *self.headers, "Content-Length: 0"]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
