"""Signatures of requests to S3: AWS Signature Version 4. Pure. Source: Amazon S3 API reference, "Authenticating requests".

    canonical request = method, path, query, headers, their names, SHA-256 of the body
    signature         = HMAC(key of this day, region and service,  time ─ scope ─ SHA-256 of the canonical request)

Every header given is signed. The body's SHA-256 goes along, so that the server refuses a body that was changed on its way.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class Signer:
    """Who asks, and which region is asked."""

    access_key: str
    secret_key: str = field(repr=False)
    region: str

    def sign(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body_sha256: str,
        now: datetime,
    ) -> dict[str, str]:
        """Return `headers` with those of the signature. `path` is quoted already; `headers` hold the host, names in lower case."""
        time = now.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{time[:8]}/{self.region}/s3/aws4_request"
        signed = {**headers, "x-amz-date": time, "x-amz-content-sha256": body_sha256}
        names = ";".join(sorted(signed))
        lines = [f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed)]
        canonical = "\n".join([method, path, query_text(query), *lines, "", names, body_sha256])
        to_sign = "\n".join([ALGORITHM, time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        signature = hmac.new(self._key(time[:8]), to_sign.encode(), hashlib.sha256).hexdigest()
        signed["authorization"] = (
            f"{ALGORITHM} Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def _key(self, day: str) -> bytes:
        key = f"AWS4{self.secret_key}".encode()
        for text in (day, self.region, "s3", "aws4_request"):
            key = hmac.new(key, text.encode(), hashlib.sha256).digest()
        return key


def query_text(query: Mapping[str, str]) -> str:
    """Return a query as it is signed and sent: quoted, then sorted."""
    return "&".join(
        f"{name}={value}" for name, value in sorted((quote(name, "-_.~"), quote(query[name], "-_.~")) for name in query)
    )


def path_text(key: str) -> str:
    """Return an object's key as it is signed and sent."""
    return quote(key, "/-_.~")
