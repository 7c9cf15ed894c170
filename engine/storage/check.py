"""The test of a storage (S24): does everything that a backup and a restore will need, and measures each step.

write ─► refuse a second write ─► size ─► read ─► range reads ─► list ─► delete      and nothing is left behind
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.errors import ObjectExists, ObjectNotFound, StorageError
from engine.storage.base import Storage
from engine.units import KIB, MIB

TEST_BYTES = 8 * MIB  # two frames: enough to see a rate, little enough for a slow link
RANGE_BYTES = 4 * KIB
RANGES = 8
FOLDER = "test"  # no name of the format lies there: readers of the repository leave it alone


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that worked. `bytes_per_second` is 0 for a step that only has a latency; `seconds` then is one call's."""

    name: str
    seconds: float
    bytes_per_second: int


def storage_test(
    storage: Storage, byte_count: int = TEST_BYTES, clock: Callable[[], float] = time.perf_counter
) -> tuple[Step, ...]:
    """Return the steps of a test that went well, in order. `storage` is connected already; the caller closes it.

    Raises the error of the step that failed, and StorageError where the storage does not keep what it promises: bytes
    come back changed, a name is given twice, a deleted object stays.
    """
    run = _Run(storage, byte_count, clock)
    try:
        run.all()
    except BaseException:
        _remove(storage, run.name)
        raise
    return tuple(run.steps)


class _Run:
    def __init__(self, storage: Storage, byte_count: int, clock: Callable[[], float]) -> None:
        self.steps: list[Step] = []
        self.name = f"{FOLDER}/{os.urandom(8).hex()}"
        self._storage, self._clock = storage, clock
        self._data = os.urandom(byte_count)  # random: what a link or a disk compresses would look too fast

    def all(self) -> None:
        self._write()
        self._refuse()
        self._read()
        self._read_ranges()
        self._list()
        self._delete()

    def _write(self) -> None:
        with self._step("write", byte_count=len(self._data)):
            self._storage.put(self.name, self._data)
        with self._step("size"):
            size = self._storage.size(self.name)
        self._expect(size == len(self._data), "write", f"{size} bytes are there, {len(self._data)} were written")

    def _refuse(self) -> None:
        with self._step("refuse_second_write"):
            try:
                self._storage.put(self.name, b"second")
            except ObjectExists:
                return
        self._expect(False, "refuse_second_write", "an object was overwritten")

    def _read(self) -> None:
        with self._step("read", byte_count=len(self._data)):
            found = self._storage.get(self.name)
        self._expect(found == self._data, "read", "what was read is not what was written")

    def _read_ranges(self) -> None:
        length = min(RANGE_BYTES, len(self._data))
        with self._step("range_read", calls=RANGES):
            reader = self._storage.open(self.name)
            try:
                for number in range(RANGES):
                    offset = (len(self._data) - length) * number // RANGES
                    found = reader.read_at(offset, length)
                    self._expect(found == self._data[offset : offset + length], "range_read", "a range is wrong")
            finally:
                reader.close()

    def _list(self) -> None:
        with self._step("list"):
            listed = {entry.name: entry.size_bytes for entry in self._storage.list(FOLDER)}
        self._expect(listed.get(self.name) == len(self._data), "list", "the object just written is not listed")

    def _delete(self) -> None:
        with self._step("delete"):
            self._storage.delete(self.name)
        try:
            self._storage.size(self.name)
        except ObjectNotFound:
            return
        self._expect(False, "delete", "a deleted object is still there")

    @contextmanager
    def _step(self, name: str, *, byte_count: int = 0, calls: int = 1) -> Iterator[None]:
        begin = self._clock()
        yield
        seconds = max(self._clock() - begin, 1e-6) / calls
        self.steps.append(Step(name, seconds, int(byte_count / seconds)))

    def _expect(self, condition: bool, step: str, detail: str) -> None:
        if not condition:
            raise StorageError(storage=self._storage.label, step=step, detail=detail)


def _remove(storage: Storage, name: str) -> None:
    """Remove what a failed test left; if that fails too, the first failure is the one to tell."""
    try:
        storage.delete(name)
    except StorageError:
        return
