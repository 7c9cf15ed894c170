"""What rclone says when something fails, as our errors. It has one form for everything, a sentence: so it is read for words.

The order matters: a sentence may hold several of them, and the first that fits is the most telling. What fits nothing stays a
StorageError with the sentence. Values of the configuration that may be secrets are blotted out, should rclone name one.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum, auto

from engine.errors import (
    ObjectNotFound,
    RcloneConfigInvalid,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLoginFailed,
    StorageUnreachable,
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
    LOGIN = auto()
    NOT_FOUND = auto()
    UNREACHABLE = auto()
    DENIED = auto()
    OTHER = auto()


_WORDS = {
    Kind.REMOTE_MISSING: (r"didn't find section in config", r"didn't find backend called", r"unknown remote"),
    Kind.FULL: (
        r"no space left", r"disk full", r"quota ?exceeded", r"over quota", r"storage ?quota", r"insufficient storage",
        r"storage ?full", r"not enough (free )?space", r"cap exceeded",
    ),
    Kind.LOGIN: (
        r"unable to authenticate", r"knownhosts", r"host key", r"InvalidAccessKeyId", r"SignatureDoesNotMatch",
        r"AuthorizationHeaderMalformed", r"RequestTimeTooSkewed", r"unauthorized", r"invalid_grant", r"couldn't fetch token",
        r"empty token", r"token expired", r"login (incorrect|failed|error)", r"bad credentials", r"NoCredentialProviders",
        r"private key", r"couldn't decrypt",
    ),
    Kind.NOT_FOUND: (
        r"directory not found", r"object not found", r"no such file", r"NoSuchKey", r"NoSuchBucket", r"file does not exist",
    ),
    Kind.UNREACHABLE: (
        r"no such host", r"connection (refused|reset|lost)", r"broken pipe", r"i/o timeout", r"deadline exceeded",
        r"network is unreachable", r"no route to host", r"cannot assign requested address", r"server misbehaving", r"tls: ",
        r"x509: ", r"couldn't connect", r"use of closed", r"\bEOF\b", r"context canceled", r"SlowDown", r"TooManyRequests",
        r"status code: 50\d", r"InternalError", r"ServiceUnavailable", r"RequestTimeout",
    ),
    Kind.DENIED: (
        r"permission denied", r"access ?denied", r"forbidden", r"read-only file system", r"operation not permitted",
    ),
}  # fmt: skip
_PATTERNS = tuple((kind, re.compile("|".join(words), re.IGNORECASE)) for kind, words in _WORDS.items())


def kind_of(refused: Refused) -> Kind:
    """Return what a refusal is about."""
    for kind, pattern in _PATTERNS:
        if pattern.search(refused.text):
            return kind
    return Kind.NOT_FOUND if refused.status == 404 else Kind.OTHER


def failure(
    refused: Refused, *, label: str, step: str, name: str, config_path: str, secrets: Iterable[str]
) -> StorageError:
    """Return a refusal as our error; `secrets` are values that must not be told."""
    detail = told(refused.text, secrets)
    match kind_of(refused):
        case Kind.REMOTE_MISSING:
            return RcloneConfigInvalid(storage=label, path=config_path, problem="has no such remote")
        case Kind.FULL:
            return StorageFull(storage=label, step=step, name=name)
        case Kind.LOGIN:
            return StorageLoginFailed(storage=label, detail=detail)
        case Kind.NOT_FOUND:
            return ObjectNotFound(storage=label, step=step, name=name)
        case Kind.UNREACHABLE:
            return StorageUnreachable(storage=label, step=f"{step} {name}".strip(), detail=detail)
        case Kind.DENIED:
            return StorageDenied(storage=label, step=step, name=name)
        case Kind.OTHER:
            return StorageError(
                storage=label, step=f"{step} {name}".strip(), detail=detail or "rclone does not say why"
            )


def secrets_of(section: Mapping[str, str]) -> list[str]:
    """Return the values of a configuration's section that may be secrets."""
    return [value for option, value in section.items() if _SECRET_OPTION.search(option) and len(value) >= _SECRET_MIN]


def told(text: str, secrets: Iterable[str]) -> str:
    """Return a sentence of rclone's fit to be read by anybody: one line, of limited length, without secrets."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return _QUERY.sub("?…", " ".join(text.split()))[:_TEXT_MAX]
