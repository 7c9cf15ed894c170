"""An HTTP proxy on loopback that answers some requests itself: what a server says when it has too much to do, or has enough of us.

    with HttpRules(server.port) as proxy:
        proxy.answer(lambda request: SLOW_DOWN if request.method == "PUT" else None)

What no rule answers goes to the real server as it came, its Host header too: signatures stay good. Each request is noted.
"""

import http.client
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, TypeAlias


@dataclass(frozen=True)
class Request:
    """`number` counts from 1; `target` is path and query."""

    number: int
    method: str
    target: str


@dataclass(frozen=True)
class Told:
    """What the proxy answers. `after` passes the request on first, and keeps the server's answer to itself."""

    status: int
    code: str
    after: bool = False


SLOW_DOWN = Told(503, "SlowDown")
Rule: TypeAlias = Callable[[Request], Told | None]


class HttpRules:
    """Forwards to `target_port` on 127.0.0.1; `port` is its own."""

    def __init__(self, target_port: int) -> None:
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._rule: Rule = lambda _: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client went away
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self._serve
                raise AttributeError(name)

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                told = outer.judge(self.command, self.path)
                answer = None
                if told is None or told.after:
                    connection = http.client.HTTPConnection("127.0.0.1", target_port, timeout=30)
                    try:
                        connection.request(self.command, self.path, body, dict(self.headers.items()))
                        response = connection.getresponse()
                        answer = response.status, response.getheaders(), response.read()
                    finally:
                        connection.close()
                if told is not None:
                    text = f"<Error><Code>{told.code}</Code><Message>told by a test</Message></Error>".encode()
                    answer = told.status, [("Content-Type", "application/xml")], text
                assert answer is not None
                self._say(*answer)

            def _say(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in {"transfer-encoding", "connection"} and (
                        name.lower() != "content-length" or self.command == "HEAD"
                    ):
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def answer(self, rule: Rule) -> None:
        """Let `rule` decide about each request from now on: what it returns is answered, None passes the request on."""
        with self._lock:
            self._rule = rule

    def secure(self, context: ssl.SSLContext) -> None:
        """Speak TLS, by `context`, with whoever connects from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def judge(self, method: str, target: str) -> Told | None:
        with self._lock:
            self.requests.append(Request(len(self.requests) + 1, method, target))
            return self._rule(self.requests[-1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
