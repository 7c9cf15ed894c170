"""One HTTP POST to a webhook's receiver, with its signature: to an address that was looked at, and nowhere else.

    resolve ──► addresses ──permitted?──► connect to that very address ──TLS for the name──► POST ──► status line

The connection goes to the address that was checked, so that a name cannot mean another one between the look and the use. A
redirect is an answer like any other failure: its target was not looked at. Of the reply only the status is read, of a failure its
headers too, for Retry-After; then the connection is closed. So a receiver that talks without end costs some kilobytes, and one that
stalls, TIMEOUT_SECONDS.
"""

import asyncio
import hmac
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controller.errors import InvalidField
from controller.rules import targets
from controller.rules.deliveries import hold_of
from controller.rules.targets import Network, Target

TIMEOUT_SECONDS = 10.0
LINE_BYTES_MAX = 1024
INFORMATIONAL_MAX = 5  # interim replies (1xx) before the real one
_HEADER_LINES_MAX = 100


class PostFailed(Exception):
    """The receiver did not take it; the text says why, for the webhook's owner. `status` is 0 for no answer.

    `hold` is for how long it wants nothing more, as it said itself.
    """

    def __init__(self, problem: str, status: int = 0, hold: timedelta = timedelta(0)) -> None:
        super().__init__(problem)
        self.status = status
        self.hold = hold


@dataclass(frozen=True, slots=True)
class Post:
    """What is sent, and where. Each of the `secrets` signs it. `ca_certificate` is PEM, "" for the host's own trust."""

    url: str
    delivery_id: str
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)
    ca_certificate: str = ""
    user_agent: str = "backup-manager"


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a body sent at a time (seconds since 1970), as 64 hexadecimal digits."""
    return hmac.digest(secret.encode(), b"%d.%b" % (timestamp, body), "sha256").hex()


async def send(post: Post, allowed: Sequence[Network], now: datetime, seconds: float = TIMEOUT_SECONDS) -> int:
    """Send it and return the status, one of 200 to 299. Raises PostFailed for all else, after `seconds` at the latest."""
    try:
        target = targets.parse(post.url)
    except InvalidField as error:
        raise PostFailed(f"the URL {error.facts['problem']}") from None
    try:
        async with asyncio.timeout(seconds):
            status, retry_after = await _send(target, post, allowed, now)
    except TimeoutError:
        raise PostFailed(f"no answer within {seconds:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise PostFailed(f"the receiver's certificate is not trusted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise PostFailed(f"TLS failed: {error.reason or 'the peer is no TLS server'}") from None
    except OSError as error:
        raise PostFailed(f"cannot connect: {_reason(error)}") from None
    if 300 <= status < 400:
        raise PostFailed(f"answered {status}; redirects are not followed, so give the final URL", status)
    if not 200 <= status < 300:
        raise PostFailed(f"answered {status}", status, hold_of(retry_after, now))
    return status


async def _send(target: Target, post: Post, allowed: Sequence[Network], now: datetime) -> tuple[int, str]:
    """Return the status, and of a failure what its Retry-After says."""
    context = await asyncio.to_thread(_context, post.ca_certificate) if target.scheme == "https" else None
    reader, writer = await _connect(target, allowed, context)
    try:
        writer.write(_request(target, post, int(now.timestamp())))
        await writer.drain()
        status = await _status(reader)
        return status, "" if 200 <= status < 300 else await _retry_after(reader)
    finally:
        writer.close()
        with suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


async def _connect(
    target: Target, allowed: Sequence[Network], context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    failure: OSError | None = None
    for address in await _addresses(target, allowed):
        name = target.host if context else None
        try:
            return await asyncio.open_connection(
                address, target.port, ssl=context, server_hostname=name, limit=LINE_BYTES_MAX
            )
        except ssl.SSLError:
            raise
        except OSError as error:
            failure = error
    raise failure or PostFailed("the host has no address")


async def _addresses(target: Target, allowed: Sequence[Network]) -> list[str]:
    """Return the addresses of a host that may be used, in the resolver's order. Raises PostFailed when there is none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PostFailed("the host's name cannot be resolved") from None
    texts = list(dict.fromkeys(str(one[4][0]) for one in found))
    good = [one for one in texts if targets.is_permitted(ipaddress.ip_address(one.partition("%")[0]), allowed)]
    if not good:
        raise PostFailed("the host has no public address, and webhook_networks allows no other")
    return good


def _context(ca_certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca_certificate or None)


async def _retry_after(reader: asyncio.StreamReader) -> str:
    """Return the header's value, "" where there is none, or a reply that makes no sense: it is a failure in any case."""
    with suppress(PostFailed, OSError, ssl.SSLError):
        for _ in range(_HEADER_LINES_MAX):
            name, colon, value = (await _line(reader)).decode("latin-1").partition(":")
            if not colon:
                break
            if name.lower() == "retry-after":
                return value.strip()
    return ""


def _request(target: Target, post: Post, timestamp: int) -> bytes:
    signatures = ", ".join(f"v1={signature(one, timestamp, post.body)}" for one in post.secrets)
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {target.authority}",
        f"User-Agent: {post.user_agent}",
        "Content-Type: application/json",
        f"Content-Length: {len(post.body)}",
        f"Backup-Manager-Delivery: {post.delivery_id}",
        f"Backup-Manager-Timestamp: {timestamp}",
        f"Backup-Manager-Signature: {signatures}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + post.body


async def _status(reader: asyncio.StreamReader) -> int:
    for _ in range(INFORMATIONAL_MAX):
        words = (await _line(reader)).split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not (len(words[1]) == 3 and words[1].isdigit()):
            raise PostFailed("answered something that is not HTTP")
        status = int(words[1])
        if status >= 200:
            return status
        for _ in range(_HEADER_LINES_MAX):  # an interim reply; the real one follows its headers
            if not (await _line(reader)).strip():
                break
    raise PostFailed("answered with interim replies only")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        raise PostFailed("closed the connection without an answer") from None
    except asyncio.LimitOverrunError:
        raise PostFailed("answered something that is not HTTP") from None
