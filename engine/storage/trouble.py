"""From what the system or a library raised on the way to a server, to our error with its cause. Every backend maps through here.

raise way_in_failed(error, storage=self.label, step="connect") from error
"""

import errno
import socket
from collections.abc import Iterator

from engine.errors import StorageError, StorageUnreachable, StorageUntrusted

_BY_ERRNO = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timed_out",
    errno.EHOSTUNREACH: "no_route",
    errno.ENETUNREACH: "no_route",
    errno.EHOSTDOWN: "no_route",
    errno.EADDRNOTAVAIL: "bind",
    errno.ECONNRESET: "lost",
    errno.EPIPE: "lost",
    errno.ECONNABORTED: "lost",
    errno.ENOTCONN: "lost",
    errno.ESTALE: "lost",
}
# X509 verification results. Source: OpenSSL, X509_V_ERR_* in x509_vfy.h.
_EXPIRED = {9, 10}  # not yet valid, has expired
_HOSTNAME = {62, 64}  # name mismatch, address mismatch
_CHAIN_MAX = 16


def way_in_failed(error: BaseException, *, storage: str, step: str, detail: str = "") -> StorageError:
    """Return a failed way to a server as StorageUntrusted or StorageUnreachable, its cause with it.

    `detail` stands for what `error` says itself. What the exception was made from is looked at as well: libraries wrap.
    """
    text = detail or _sentence(error)
    tls = tls_cause(error)
    if tls is not None:
        return StorageUntrusted(storage=storage, step=step, detail=text, cause=tls)
    return StorageUnreachable(storage=storage, step=step, detail=text, cause=cause_of(error))


def cause_of(error: BaseException) -> str:
    """Return the `cause` of a STORAGE_UNREACHABLE (see engine/remedies.py), "" where nothing is known."""
    import ssl

    for one in _origins(error):
        if isinstance(one, (socket.gaierror, socket.herror)):
            return "dns"
        if isinstance(one, TimeoutError):
            return "timed_out"
        if isinstance(one, (EOFError, ssl.SSLEOFError)):
            return "lost"
        if isinstance(one, OSError) and (found := _BY_ERRNO.get(one.errno or 0)):
            return found
    return ""


def tls_cause(error: BaseException) -> str | None:
    """Return the `cause` of a STORAGE_UNTRUSTED, None where TLS has no part in it: a lost connection is no fault of TLS."""
    import ssl

    for one in _origins(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return {**dict.fromkeys(_EXPIRED, "expired"), **dict.fromkeys(_HOSTNAME, "hostname")}.get(
                one.verify_code, "untrusted"
            )
        if isinstance(one, ssl.SSLError) and not isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return "protocol"
    return None


def _origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it was made from: its cause, its context, and what libraries keep within."""
    waiting, seen = [error], list[int]()
    while waiting and len(seen) < _CHAIN_MAX:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.append(id(one))
        yield one
        within = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        waiting += [inner for inner in within if isinstance(inner, BaseException)]


def _sentence(error: BaseException) -> str:
    """Return the first line of what an exception says, without its errno."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return (str(error).splitlines() or [""])[0] or type(error).__name__
