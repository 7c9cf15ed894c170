"""An object of a bucket being read in ranges. Each range is a request of its own: threads share a reader without waiting."""

from typing import TYPE_CHECKING

from engine.errors import ObjectTruncated, StorageError
from engine.storage.base import ObjectReader
from engine.storage.s3_errors import Refused
from engine.storage.s3_wire import Answer

if TYPE_CHECKING:
    from engine.storage.s3 import S3Storage


class S3Reader(ObjectReader):
    """An object of `size_bytes`, as it was when it was opened."""

    def __init__(self, storage: "S3Storage", name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._storage, self._name = storage, name

    def read_at(self, offset: int, length: int) -> bytes:
        return self._read(offset, length, None)

    def read_into(self, offset: int, target: memoryview) -> None:
        if data := self._read(offset, len(target), target):
            target[:] = data

    def close(self) -> None:
        """Do nothing: a reader holds no connection."""

    def _read(self, offset: int, length: int, into: memoryview | None) -> bytes:
        """Return the bytes asked for, none if they went into `into`."""
        if offset + length > self.size_bytes:
            raise self._truncated(self.size_bytes, offset + length)
        if not length:
            return b""
        api, key = self._storage.api, self._storage.key(self._name)
        try:
            answer = api.get(key, offset, length, into)
        except Refused as refused:
            if refused.status == 416:
                raise self._truncated(self._storage.size(self._name), offset + length) from refused
            raise api.error(refused, "read", self._name) from refused
        return self._checked(answer, offset, length)

    def _checked(self, answer: Answer, offset: int, length: int) -> bytes:
        """Return the bytes of an answer that has those asked for, none if they went elsewhere."""
        found = length if answer.filled else len(answer.body)
        if (
            answer.status == 200
        ):  # the whole object, which a server without ranges sends, and which may be what was asked for
            if offset or found > length:
                raise StorageError(
                    storage=self._storage.label, step=f"read {self._name}", detail="the server does not read ranges"
                )
        elif not answer.headers.get("content-range", "").startswith(f"bytes {offset}-"):
            shown = answer.headers.get("content-range", "none")
            raise StorageError(storage=self._storage.label, step=f"read {self._name}", detail=f"another range: {shown}")
        if found != length:
            raise self._truncated(offset + found, offset + length)
        return answer.body

    def _truncated(self, end: int, wanted: int) -> ObjectTruncated:
        return ObjectTruncated(
            storage=self._storage.label, step="read", name=self._name, end=min(end, self.size_bytes), wanted=wanted
        )
