"""The controller's recovery bundles on a storage: sealed by the controller, opaque to us (N11).

    controller/<bundle_id>/0001-of-0003   …   0003-of-0003        parts, because a message to an agent has at most 1 MiB

A bundle is there when all of its parts are. Each is written by a job of its own, in any order, and none is ever rewritten; ids
sort by time, so the newest whole one is the last. Whoever lacks the recovery key learns nothing of it but its size.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import InvalidSpec, ObjectNotFound, StorageError
from engine.ids import is_id
from engine.results import BundleResult
from engine.spec import BundleJob
from engine.storage.base import Storage

FOLDER = "controller"
PARTS_MAX = 9999
_NAME = re.compile(rf"{FOLDER}/([^/]+)/(\d{{4}})-of-(\d{{4}})")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle as it lies there. `names` are its parts in order; one that is not `whole` is being written, or never was."""

    bundle_id: str
    part_count: int
    names: tuple[str, ...]
    stored_bytes: int

    @property
    def whole(self) -> bool:
        return len(self.names) == self.part_count


def part_name(bundle_id: str, number: int, count: int) -> str:
    """Return the name of a part, counted from 1. Raises InvalidSpec."""
    if not is_id(bundle_id):
        raise InvalidSpec(field="bundle_id", problem=f"{bundle_id!r} is not an id")
    if not 1 <= number <= count <= PARTS_MAX:
        raise InvalidSpec(field="bundle.number", problem=f"{number} of {count} is no part")
    return f"{FOLDER}/{bundle_id}/{number:04d}-of-{count:04d}"


def find(storage: Storage) -> list[Bundle]:
    """Return the bundles on a storage, oldest first; names that are none of ours are passed over. Raises StorageError."""
    found: dict[tuple[str, int], list[tuple[int, str, int]]] = {}
    for entry in storage.list(FOLDER):
        match = _NAME.fullmatch(entry.name)
        if match and is_id(match[1]) and 1 <= int(match[2]) <= int(match[3]):
            found.setdefault((match[1], int(match[3])), []).append((int(match[2]), entry.name, entry.size_bytes))
    return [
        Bundle(bundle_id, count, tuple(name for _, name, _ in sorted(parts)), sum(size for _, _, size in parts))
        for (bundle_id, count), parts in sorted(found.items())
    ]


def write_part(storage: Storage, name: str, data: bytes) -> None:
    """Put a part there and read it back; one that is there already, from an attempt that was cut short, has to be the same.

    Raises StorageError.
    """
    try:
        there = storage.get(name)
    except ObjectNotFound:
        storage.put(name, data)
        there = storage.get(name)
    if there != data:
        raise StorageError(storage="", step="read back", name=name, detail="what lies there is not what was written")


def write(storage: Storage, job: BundleJob) -> BundleResult:
    """Write the part that a job has, and remove old bundles where it says so. Raises InvalidSpec, StorageError."""
    name = part_name(job.bundle_id, job.number, job.count)
    try:
        data = base64.b64decode(job.data, validate=True)
    except ValueError as error:
        raise InvalidSpec(field="bundle.data", problem="is not base64") from error
    write_part(storage, name, data)
    return BundleResult(name, len(data), remove_old(storage, job.keep))


def read(storage: Storage, bundle: Bundle) -> bytes:
    """Return a whole bundle. Raises StorageError."""
    return b"".join(storage.get(name) for name in bundle.names)


def remove_old(storage: Storage, keep: int) -> int:
    """Remove what is older than the newest `keep` whole bundles, halves too; return how many went. Raises StorageError.

    While there are fewer than `keep` whole ones nothing goes, so that a bundle that cannot be finished costs no other.
    """
    if keep < 1:
        return 0
    known = find(storage)
    whole = [one.bundle_id for one in known if one.whole]
    if len(whole) < keep:
        return 0
    old = [one for one in known if one.bundle_id < whole[-keep]]
    _delete(storage, (name for one in old for name in one.names))
    return len(old)


def _delete(storage: Storage, names: Iterable[str]) -> None:
    for name in names:
        storage.delete(name)
