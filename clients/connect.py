"""How a client comes to a controller: whom to trust, how to say who we are, and when to try again.

    first contact   fetch_authority(address) ── TLS handshake, nothing sent ──► the authority's certificate, fingerprint
                    a person (or an enrollment token) confirms the fingerprint; it is pinned from then on
    every contact   channel(address, authority_pem, …) ── TLS to the constant name `controller.backup-manager` ──► calls

The controller's certificate is made by its own authority and always carries that constant name, so a controller may be
reached under any address, and no public authority is asked. Used by bmctl (access token) and by the agent (client
certificate).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import random
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clients.errors import AuthorityChanged, ControllerUnreachable, EnrollmentTokenMalformed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grpc import aio

SERVER_NAME = "controller.backup-manager"
ENROLLMENT_PREFIX = "bm1."
# A peer that is frozen or cut off is noticed after about 28 s: 20 s of silence, then 10 s for the ping's answer
# (`ping_timeout_ms` is what covers a frozen process; `keepalive_timeout_ms` alone does not). A server has to permit pings
# this often (`grpc.http2.min_ping_interval_without_data_ms` <= 20000), or it ends the connection with "Too many pings".
KEEPALIVE_MS = 20_000
# What gRPC calls the least wait between two dials is what it gives one to succeed, TCP and TLS together: 250 ms, which stood here,
# shut out whoever is 80 ms away, and a thousand agents that dialed a busy controller at once made each other fail again and again.
CONNECT_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 10_000
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The default waits up to 120 s between two dials; a controller that comes back is wanted sooner.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.enable_retries", 0),  # ours knows which calls may be repeated
)
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0)  # between five tries; each is shortened by up to half, by luck
_IDEMPOTENT = re.compile(r"/(Get|List|Preview|Poll)[A-Za-z]*$")
# UNAVAILABLE is also a living controller's word that some host is away. Repeating that within seconds is no help.
_REASONS_WORTH_A_RETRY = frozenset({"", "SHUTTING_DOWN"})


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What an agent shows: private key and certificate chain, both PEM."""

    key: bytes = field(repr=False)
    chain: bytes


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """The parts of an enrollment token; `authority` is the fingerprint that the controller has to show."""

    secret: str = field(repr=False)
    authority: str


def parse_enrollment_token(text: str) -> EnrollmentToken:
    """Return the parts of `bm1.` + base64url(JSON {"secret", "ca"}); white space around it is no harm.

    Raises EnrollmentTokenMalformed, whose message holds nothing of the text.
    """
    text = text.strip()
    if not text.startswith(ENROLLMENT_PREFIX):
        raise EnrollmentTokenMalformed(problem=f"it does not begin with {ENROLLMENT_PREFIX}")
    body = text.removeprefix(ENROLLMENT_PREFIX)
    try:
        data = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise EnrollmentTokenMalformed(problem="it is cut short or damaged") from None  # the cause would quote the text
    secret, authority = (data.get("secret"), data.get("ca")) if isinstance(data, dict) else (None, None)
    if not isinstance(secret, str) or not isinstance(authority, str) or not secret:
        raise EnrollmentTokenMalformed(problem="a part is missing")
    return EnrollmentToken(secret, normalize_fingerprint(authority))


def normalize_fingerprint(text: str) -> str:
    """Return a SHA-256 fingerprint as 64 lower-case hexadecimal digits; colons and white space may stand between them.

    Anything else comes back as it is without those, and then matches no certificate.
    """
    return re.sub(r"[\s:]", "", text).lower()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[IPV6]:PORT`. Raises ControllerUnreachable where it is neither."""
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in bare) != host.startswith("["):
        raise ControllerUnreachable(address=address, detail="an address is HOST:PORT, or [IPV6]:PORT")
    return bare, int(port)


def fetch_authority(address: str, *, expected: str = "", seconds: float = 10.0) -> tuple[str, str]:
    """Return the authority's certificate (PEM) and its SHA-256 fingerprint (hex), as the controller shows them.

    Nothing is sent and nothing is trusted yet: the caller compares the fingerprint, or gives the `expected` one and gets
    AuthorityChanged when no certificate of the chain has it. Blocks for at most `seconds` per step; raises
    ControllerUnreachable.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # this is how we learn whom to trust
    context.set_alpn_protocols(["h2"])  # a gRPC server ends the handshake without it
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as connection,
        ):
            chain = _unverified_chain(connection)
    except OSError as error:
        raise ControllerUnreachable(address=address, detail=error.strerror or str(error)) from error
    fingerprints = [hashlib.sha256(certificate).hexdigest() for certificate in chain]
    wanted = normalize_fingerprint(expected)
    if wanted and wanted not in fingerprints:
        raise AuthorityChanged(address=address, seen=fingerprints[-1], expected=wanted)
    position = fingerprints.index(wanted) if wanted else len(chain) - 1  # the leaf comes first, its authority last
    return ssl.DER_cert_to_PEM_cert(chain[position]), fingerprints[position]


def fingerprint_of(authority_pem: str) -> str:
    """Return the SHA-256 fingerprint (hex) of the first certificate of a PEM text."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority_pem)).hexdigest()


def channel(
    address: str,
    authority_pem: str,
    *,
    token: str | None = None,
    certificate: ClientCertificate | None = None,
) -> aio.Channel:
    """Return a channel to the controller that trusts only `authority_pem`; use it as an `async with` block.

    `token` is an access token and goes along with every call; `certificate` is an agent's. Unary calls that may be
    repeated are, while the controller is away or restarts. Make it inside the event loop that uses it.
    """
    import grpc
    from grpc import aio

    split_address(address)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority_pem.encode(),
        private_key=certificate.key if certificate else None,
        certificate_chain=certificate.chain if certificate else None,
    )
    if token is not None:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return aio.secure_channel(address, credentials, options=OPTIONS, interceptors=[_retry_interceptor()])


def is_idempotent(method: str, request: object) -> bool:
    """Tell whether a call may be sent twice: it only reads, or carries the `request_id` that makes two of it one job."""
    return bool(_IDEMPOTENT.search(method)) or bool(getattr(request, "request_id", ""))


def backoff_seconds(luck: Callable[[], float] = random.random) -> Iterator[float]:
    """Yield the waits between the tries of one call, in seconds; `luck` is in [0, 1) and spreads many clients out."""
    for seconds in RETRY_SECONDS:
        yield seconds * (1 - luck() / 2)


def _retry_interceptor() -> aio.UnaryUnaryClientInterceptor:
    import grpc
    from grpc import aio

    class Retry(aio.UnaryUnaryClientInterceptor):
        """Repeats a call that may be repeated, while the transport or a stopping controller refuses it."""

        async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            method = client_call_details.method
            method = method.decode() if isinstance(method, bytes) else method
            waits = backoff_seconds() if is_idempotent(method, request) else iter(())
            while True:
                call = await continuation(client_call_details, request)
                if await call.code() is not grpc.StatusCode.UNAVAILABLE:
                    return call
                trailers = dict(tuple(await call.trailing_metadata() or ()))
                seconds = next(waits, None)
                if seconds is None or trailers.get("backupmanager-reason", "") not in _REASONS_WORTH_A_RETRY:
                    return call
                await asyncio.sleep(seconds)

    return Retry()


def _unverified_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the chain that the peer showed, leaf first, as DER. Public since Python 3.13, private before."""
    public: Any = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return [bytes(certificate) for certificate in public()]
    certificates: Any = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]  # noqa: SLF001
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in certificates or ()]
