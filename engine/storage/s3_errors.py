"""What an S3 server answers, as our errors. Pure. Source: Amazon S3 API reference, "Error responses"; MinIO's and Ceph's own codes."""

import re
from email.utils import parsedate_to_datetime

from engine.errors import (
    BucketNotFound,
    InvalidSpec,
    ObjectNotFound,
    StorageClockSkewed,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLoginFailed,
    StorageThrottled,
)
from engine.storage.s3_wire import Answer

_LOGIN = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "ExpiredToken", "InvalidToken", "NotSignedUp",
    "TokenRefreshRequired", "InvalidClientTokenId", "AuthorizationHeaderMalformed",
}  # fmt: skip
_FULL = {
    "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "StorageFull",
    "InsufficientCapacity", "OverQuota", "BucketQuotaExceeded",
}  # fmt: skip
_DENIED = {
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "MethodNotAllowed",
    "InvalidObjectState",
    "ObjectLocked",
}
_THROTTLED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "TooManyRequests",
}
_AGAIN = _THROTTLED | {
    "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict",
    "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody", "503",
}  # fmt: skip
_NEVER_AGAIN = {501, 505, 507}
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9._-]{1,80})\s*</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{0,300})")


class Refused(Exception):
    """An answer that is no success; `code` is S3's word for it, "" where the answer has none."""

    def __init__(self, answer: Answer) -> None:
        code, message = _CODE.search(answer.body), _MESSAGE.search(answer.body)
        self.answer = answer
        self.status = answer.status
        self.code = code.group(1).decode() if code else ""
        self.text = message.group(1).decode("utf-8", "replace").strip() if message else ""
        super().__init__(f"{self.code or answer.status} {self.text}".strip())

    @property
    def again(self) -> bool:
        """Tell whether the same request may succeed a little later."""
        if self.code in _FULL or self.status in _NEVER_AGAIN:
            return False
        return self.code in _AGAIN or self.status == 429 or self.status >= 500

    @property
    def throttled(self) -> bool:
        return self.code in _THROTTLED or self.status in {429, 503}


def error_of(refused: Refused, label: str, step: str, name: str, now: float) -> StorageError | InvalidSpec:
    """Return a refusal as our error; `now` is this host's clock, Unix seconds."""
    code, status = refused.code, refused.status
    if code == "RequestTimeTooSkewed":
        return StorageClockSkewed(storage=label, seconds=_skew(refused.answer, now))
    if code == "NoSuchBucket":
        return BucketNotFound(storage=label)
    if wanted := _wanted_region(refused):
        return InvalidSpec(field="s3.region", problem=f"the bucket lies in {wanted}")
    if code in _LOGIN or status == 401:
        return StorageLoginFailed(storage=label, detail=str(refused))
    if code in _FULL or status == 507:
        known = {"cause": "quota"} if "Quota" in code else {}
        return StorageFull(storage=label, step=step, name=name, **known)
    if code in _DENIED or status == 403:
        return StorageDenied(storage=label, step=step, name=name)
    if status == 404 and code in {"", "NoSuchKey", "NotFound"}:
        return ObjectNotFound(storage=label, step=step, name=name)
    if refused.throttled:
        return StorageThrottled(storage=label, step=f"{step} {name}", detail=str(refused))
    return StorageError(storage=label, step=f"{step} {name}", detail=str(refused))


def _wanted_region(refused: Refused) -> str:
    """Return the region that a server sends us to, "" if it is not about that."""
    if refused.code not in {
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "IllegalLocationConstraintException",
    } and (refused.status not in {301, 307}):
        return ""
    told = refused.answer.headers.get("x-amz-bucket-region", "")
    found = _REGION.search(refused.answer.body)
    return told or (found.group(1).decode() if found else "")


def _skew(answer: Answer, now: float) -> str:
    """Return by how many seconds our clock is ahead of the server's, "?" if it does not say."""
    try:
        return f"{now - parsedate_to_datetime(answer.headers.get('date', '')).timestamp():+.0f}"
    except ValueError:
        return "?"
