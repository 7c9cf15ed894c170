"""What rclone says when something fails, as our errors. It has one form for everything, a sentence: so it is read for words.

The order matters: a sentence may hold several of them, and the first that fits is the most telling. What fits nothing stays a
StorageError with the sentence. Values of the configuration that may be secrets are blotted out, should rclone name one.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum, auto

from engine.errors import (
    BucketNotFound,
    ObjectNotFound,
    RcloneConfigInvalid,
    StorageClockSkewed,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageHostKeyChanged,
    StorageLoginFailed,
    StorageThrottled,
    StorageUnreachable,
    StorageUntrusted,
)
from engine.storage.rclone_wire import Refused

_TEXT_MAX = 300
_SECRET_MIN = 6  # shorter values would blot out words
_SECRET_OPTION = re.compile(
    r"pass|secret|key|token|auth|cred|sas|cookie|session|bearer|pem|account|client_id", re.IGNORECASE
)
_QUERY = re.compile(r"\?[^\s\"']+")  # a signed URL


class Kind(Enum):
    REMOTE_MISSING = auto()
    FULL = auto()
    HOST_KEY = auto()
    CLOCK = auto()
    LOGIN = auto()
    BUCKET = auto()
    NOT_FOUND = auto()
    THROTTLED = auto()
    UNTRUSTED = auto()
    UNREACHABLE = auto()
    DENIED = auto()
    OTHER = auto()


# What it is, its cause (see engine/remedies.py), and the words that tell.
_WORDS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    (Kind.REMOTE_MISSING, "", (r"didn't find section in config", r"didn't find backend called", r"unknown remote")),
    (Kind.FULL, "quota", (r"quota ?exceeded", r"over quota", r"storage ?quota", r"disk quota", r"cap exceeded")),
    (Kind.FULL, "", (r"no space left", r"disk full", r"insufficient storage", r"storage ?full", r"not enough (free )?space")),
    (Kind.HOST_KEY, "", (r"knownhosts", r"host key")),
    (Kind.CLOCK, "", (r"RequestTimeTooSkewed",)),
    (Kind.LOGIN, "key", (r"unable to authenticate", r"private key", r"couldn't decrypt")),
    (Kind.LOGIN, "account", (r"InvalidAccessKeyId", r"invalid_grant", r"NoCredentialProviders")),
    (Kind.LOGIN, "password", (r"SignatureDoesNotMatch", r"login (incorrect|failed|error)", r"bad credentials")),
    (
        Kind.LOGIN, "",
        (r"AuthorizationHeaderMalformed", r"unauthorized", r"couldn't fetch token", r"empty token", r"token expired"),
    ),
    (Kind.BUCKET, "", (r"NoSuchBucket",)),
    (
        Kind.NOT_FOUND, "",
        (r"directory not found", r"object not found", r"no such file", r"NoSuchKey", r"file does not exist"),
    ),
    (Kind.THROTTLED, "", (r"SlowDown", r"TooManyRequests", r"too many requests", r"rate ?limit")),
    (Kind.UNTRUSTED, "expired", (r"certificate has expired",)),
    (Kind.UNTRUSTED, "hostname", (r"certificate is (not )?valid for", r"doesn't contain any (IP )?SANs")),
    (Kind.UNTRUSTED, "untrusted", (r"unknown authority", r"x509: ")),
    (Kind.UNTRUSTED, "protocol", (r"tls: ", r"HTTP response to HTTPS")),
    (Kind.UNREACHABLE, "dns", (r"no such host", r"server misbehaving")),
    (Kind.UNREACHABLE, "refused", (r"connection refused",)),
    (Kind.UNREACHABLE, "timed_out", (r"i/o timeout", r"deadline exceeded", r"timed out", r"RequestTimeout")),
    (Kind.UNREACHABLE, "no_route", (r"network is unreachable", r"no route to host")),
    (Kind.UNREACHABLE, "bind", (r"cannot assign requested address",)),
    # NoSuchUpload: rclone said the end of an upload again, whose first answer was lost.
    (
        Kind.UNREACHABLE, "lost",
        (r"connection (reset|lost)", r"broken pipe", r"use of closed", r"\bEOF\b", r"NoSuchUpload"),
    ),
    (
        Kind.UNREACHABLE, "",
        (r"couldn't connect", r"context canceled", r"status code: 50\d", r"InternalError", r"ServiceUnavailable"),
    ),
    (Kind.DENIED, "read_only", (r"read-only file system",)),
    (Kind.DENIED, "", (r"permission denied", r"access ?denied", r"forbidden", r"operation not permitted")),
)  # fmt: skip
_PATTERNS = tuple((kind, cause, re.compile("|".join(words), re.IGNORECASE)) for kind, cause, words in _WORDS)


def meaning(refused: Refused) -> tuple[Kind, str]:
    """Return what a refusal is about, and its cause where that is known."""
    for kind, cause, pattern in _PATTERNS:
        if pattern.search(refused.text):
            return kind, cause
    return Kind.NOT_FOUND if refused.status == 404 else Kind.OTHER, ""


def failure(
    refused: Refused, *, label: str, step: str, name: str, config_path: str, secrets: Iterable[str]
) -> StorageError:
    """Return a refusal as our error; `secrets` are values that must not be told."""
    detail, at = told(refused.text, secrets), f"{step} {name}".strip()
    kind, cause = meaning(refused)
    known = {"cause": cause} if cause else {}
    match kind:
        case Kind.REMOTE_MISSING:
            return RcloneConfigInvalid(storage=label, path=config_path, problem="has no such remote")
        case Kind.FULL:
            return StorageFull(storage=label, step=step, name=name, **known)
        case Kind.HOST_KEY:
            return StorageHostKeyChanged(
                storage=label, seen="another one", pinned="the one that rclone's configuration names"
            )
        case Kind.CLOCK:
            return StorageClockSkewed(storage=label, seconds="?")
        case Kind.LOGIN:
            return StorageLoginFailed(storage=label, detail=detail, **known)
        case Kind.BUCKET:
            return BucketNotFound(storage=label)
        case Kind.NOT_FOUND:
            return ObjectNotFound(storage=label, step=step, name=name)
        case Kind.THROTTLED:
            return StorageThrottled(storage=label, step=at, detail=detail)
        case Kind.UNTRUSTED:
            return StorageUntrusted(storage=label, step=step, detail=detail, **known)
        case Kind.UNREACHABLE:
            return StorageUnreachable(storage=label, step=at, detail=detail, **known)
        case Kind.DENIED:
            return StorageDenied(storage=label, step=step, name=name, **known)
        case Kind.OTHER:
            return StorageError(storage=label, step=at, detail=detail or "rclone does not say why")


def secrets_of(section: Mapping[str, str]) -> list[str]:
    """Return the values of a configuration's section that may be secrets."""
    return [value for option, value in section.items() if _SECRET_OPTION.search(option) and len(value) >= _SECRET_MIN]


def told(text: str, secrets: Iterable[str]) -> str:
    """Return a sentence of rclone's fit to be read by anybody: one line, of limited length, without secrets."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return _QUERY.sub("?…", " ".join(text.split()))[:_TEXT_MAX]
