"""A hostile S3 server on loopback: every listing of it has one more page, with names or without, and never the same token.
Told to, it has one object too, `object_name`, of whatever size it likes and with more bytes than anybody asks for.

with EndlessS3() as server:
    server.names = True
    config = server.config(...)

It takes and keeps nothing; any other object is not there.
"""

import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from engine.spec import S3Config

_PIECE = bytes(64 << 10)


class EndlessS3:
    """`pages` counts what it has told so far; each page has so many `keys`. `sent_bytes` counts what went of the object."""

    def __init__(self) -> None:
        self.names = True
        self.keys = 100
        self.object_name = ""
        self.object_bytes = 5  # as a HEAD tells it
        self.sent_bytes = 0
        self.pages = 0
        self._numbers = itertools.count(1)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self._is_object():
                    self._flood()
                    return
                self._say(outer.page(parse_qs(urlsplit(self.path).query, keep_blank_values=True)))

            def do_HEAD(self) -> None:
                self.send_response_only(200 if self._is_object() else 404)
                if self._is_object():
                    self.send_header("Content-Length", str(outer.object_bytes))
                    self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
                self.end_headers()

            def _is_object(self) -> bool:
                return bool(outer.object_name) and urlsplit(self.path).path.endswith(f"/{outer.object_name}")

            def _flood(self) -> None:
                self.send_response_only(206 if self.headers.get("Range") else 200)
                self.send_header("Content-Range", f"bytes 0-{1 << 40}/{1 << 41}")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                while True:  # until the client goes away
                    outer.sent_bytes += self.connection.send(_PIECE)

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client went away
                    self.close_connection = True

            def _say(self, body: bytes) -> None:
                self.send_response_only(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def config(self) -> S3Config:
        return S3Config("bucket", "us-east-1", "key", "secret", endpoint=f"http://127.0.0.1:{self.port}")

    def page(self, query: dict[str, list[str]]) -> bytes:
        """Return the next page of whatever is asked for."""
        number = next(self._numbers)
        self.pages += 1
        prefix = query.get("prefix", [""])[0]
        time = "<LastModified>2026-01-02T03:04:05.000Z</LastModified>"
        if "uploads" in query:
            upload = f"<Upload><Key>{prefix}u{number}</Key><UploadId>{number}</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>"
            markers = f"<NextKeyMarker>k{number}</NextKeyMarker><NextUploadIdMarker>{number}</NextUploadIdMarker>"
            return _document("ListMultipartUploadsResult", f"{upload if self.names else ''}{markers}")
        if "uploadId" in query:
            part = f"<Part><PartNumber>{number}</PartNumber>{time}</Part>"
            return _document("ListPartsResult", f"{part}<NextPartNumberMarker>{number}</NextPartNumberMarker>")
        if query.get("max-keys") == ["1"]:  # who looks whether the bucket is there
            return _document("ListBucketResult", "", more=False)
        keys = "".join(
            f"<Contents><Key>{prefix}o{number}-{one}</Key><Size>5</Size>{time}</Contents>" for one in range(self.keys)
        )
        folders = f"<CommonPrefixes><Prefix>{prefix}f{number}/</Prefix></CommonPrefixes>"
        following = (
            f"<NextContinuationToken>t{number}</NextContinuationToken><NextMarker>{prefix}o{number}</NextMarker>"
        )
        return _document("ListBucketResult", f"{keys + folders if self.names else ''}{following}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _document(name: str, inner: str, *, more: bool = True) -> bytes:
    truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{space}">{truncated}{inner}</{name}>'.encode()
