"""What all our S3 servers have: credentials, buckets, settings for the storage, and a client that is not ours (boto3).

That client looks past the storage, plants what a neighbor could leave, and so is a second opinion on what our requests did.
"""

import itertools
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.spec import S3Config, StorageSpec
from engine.storage.s3 import S3Storage
from tests.storage_places import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

    from engine.storage.s3_wire import Patience

PREFIX = "backups/of this host"  # a blank must not matter


class S3Server:
    """A server at `port` on loopback. A subclass starts and ends it."""

    access_key = "testkey"
    secret_key = "testsecret"

    def __init__(self) -> None:
        self.port = 0
        self.scheme = "http"
        self.ca_certificate = ""
        self.ca_path = ""  # the same as a file, for the other client
        self._numbers = itertools.count(1)
        self._shared = ""
        self._clients: dict[tuple[float, str, str], S3Client] = {}

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def client(self, timeout_seconds: float = 30) -> "S3Client":
        """Return a client that is not ours. To make one takes long: it is kept while the server is where it was."""
        key = (timeout_seconds, self.endpoint, self.secret_key)
        if key not in self._clients:
            self._clients[key] = self._make_client(timeout_seconds)
        return self._clients[key]

    def _make_client(self, timeout_seconds: float) -> "S3Client":
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=self.ca_path or None,
            config=Config(
                connect_timeout=timeout_seconds,
                read_timeout=timeout_seconds,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )

    def bucket(self) -> str:
        """Make a new bucket and return its name."""
        name = f"bucket-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    @property
    def shared_bucket(self) -> str:
        """Return a bucket that many use, each below a prefix of its own: some servers have room for few."""
        if not self._shared:
            self._shared = self.bucket()
        return self._shared

    def place(self, patience: "Patience", cut: "Callable[[], object] | None" = None, **changes: Any) -> "BucketPlace":
        """Return a new, empty place; `changes` replace fields of its settings."""
        changes = {"prefix": f"{PREFIX}/{next(self._numbers)}", **changes}
        return BucketPlace(self, self.spec(self.shared_bucket, **changes), patience, cut)

    def config(self, bucket: str, **changes: Any) -> S3Config:
        """Return the settings of a storage in `bucket`; `changes` replace fields."""
        config = S3Config(
            bucket=bucket,
            region="us-east-1",
            access_key=self.access_key,
            secret_key=self.secret_key,
            endpoint=self.endpoint,
            prefix=PREFIX,
            ca_certificate=self.ca_certificate,
        )
        return replace(config, **changes)

    def spec(self, bucket: str, **changes: Any) -> StorageSpec:
        return StorageSpec(repository_id="r", installation_id="i", s3=self.config(bucket, **changes))


@dataclass(frozen=True)
class BucketPlace(Place):
    """A storage in a bucket, looked at by another client."""

    server: S3Server
    spec: StorageSpec
    patience: "Patience"
    cut: "Callable[[], object] | None" = None

    def open(self) -> S3Storage:
        assert self.spec.s3 is not None
        return S3Storage(self.spec.s3, self.patience)

    @property
    def where(self) -> str:  # type: ignore[override]  # a property is as good as a field to who reads it
        assert self.spec.s3 is not None
        return f"{self.spec.s3.bucket}/{self.spec.s3.prefix}"

    @property
    def bucket(self) -> str:
        assert self.spec.s3 is not None
        return self.spec.s3.bucket

    @property
    def prefix(self) -> str:
        assert self.spec.s3 is not None
        return f"{self.spec.s3.prefix}/" if self.spec.s3.prefix else ""

    def files(self) -> list[str]:
        unfinished = [f"{key} (upload)" for key in self.uploads()]
        return sorted(key.removeprefix(self.prefix) for key in [*self.keys(), *unfinished])

    def keys(self) -> list[str]:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def uploads(self) -> list[str]:
        """Return the keys of all uploads in parts that are not complete."""
        found = self.server.client().list_multipart_uploads(Bucket=self.bucket)
        return [one["Key"] for one in found.get("Uploads", ()) if one["Key"].startswith(self.prefix)]

    def plant(self, name: bytes, data: bytes = b"?") -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            key = self.prefix + name.decode()
        except UnicodeDecodeError:
            return  # a key is text
        before = set(self.keys())
        with suppress(ClientError, BotoCoreError):
            self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data)
        for other in set(self.keys()) - before - {key}:  # servers on file systems take `a//b` for `a/b`: another name
            self.server.client().delete_object(Bucket=self.bucket, Key=other)

    def plant_unfinished(self, name: str) -> None:
        self.begin_upload(name)

    def begin_upload(self, name: str, part: bytes = b"half") -> str:
        """Leave an upload with one part, and return its id."""
        client, key = self.server.client(), self.prefix + name
        upload_id = client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=self.bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=part)
        return upload_id

    def truncate(self, name: str, size_bytes: int) -> None:
        client, key = self.server.client(), self.prefix + name
        data = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        client.put_object(Bucket=self.bucket, Key=key, Body=data[:size_bytes])


def free_ports(count: int, also: int = 0) -> list[int]:
    """Return ports of loopback that nobody listens on; where `also` is given, nor on those so much higher."""
    held: list[socket.socket] = []
    found: list[int] = []
    try:
        while len(found) < count:
            one = socket.socket()
            held.append(one)
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if also:
                if port + also > 65_535:
                    continue
                other = socket.socket()
                held.append(other)
                try:
                    other.bind(("127.0.0.1", port + also))
                except OSError:
                    continue
            found.append(port)
    finally:
        for one in held:
            one.close()
    return found
