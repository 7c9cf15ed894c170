"""The test of a storage (S24): does everything that a backup and a restore will need, and measures each step.

    connect ─► repository ─► write ─► rename ─► size ─► refuse a second write ─► read ─► range reads ─► list ─► delete
    └ the caller's ──────┘                                                            and nothing is left behind

A step that fails ends the test. What had worked before, and what was never come to, is as much of an answer as the failure:
`Trial` keeps all of it. Where no object is renamed on its way to its final name, that step is called "complete".
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from engine.errors import ObjectExists, ObjectNotFound, StorageError
from engine.storage.base import Storage
from engine.units import KIB, MIB

TEST_BYTES = 8 * MIB  # two frames: enough to see a rate, little enough for a slow link
RANGE_BYTES = 4 * KIB
RANGES = 8
FOLDER = "test"  # no name of the format lies there: readers of the repository leave it alone
_TRIAL = re.compile(rf"{FOLDER}/[0-9a-f]{{16}}(-small)?")
CLOCK_SECONDS_MAX = 300  # S3 servers refuse what was signed a quarter of an hour off; a third of that is a warning
BEFORE = ("connect", "repository")
STEPS = ("write", "rename", "size", "refuse_second_write", "read", "range_read", "list", "delete")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried. `bytes_per_second` is 0 for a step that only has a latency; `seconds` then is one call's."""

    name: str
    seconds: float
    bytes_per_second: int
    failed: bool = False


class Trial:
    """The steps of one test, as they come. `begin` hears the name of each before it is done."""

    def __init__(
        self, begin: Callable[[str], None] = lambda _: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.steps: list[Step] = []
        self.hints: list[str] = []
        self._plan: tuple[str, ...] = (*BEFORE, *STEPS)
        self._begin, self._clock = begin, clock

    @property
    def pending(self) -> list[str]:
        """The names of the steps that were not come to, in order."""
        done = {step.name for step in self.steps}
        return [name for name in self._plan if name not in done]

    def adapt(self, storage: Storage) -> None:
        """Plan for what `storage` can do, and take over what it has to say to who sets it up."""
        self._plan = (*BEFORE, *(finish_name(storage) if name == "rename" else name for name in STEPS))
        self.hints.extend(storage.hints)

    @contextmanager
    def step(self, name: str, *, byte_count: int = 0, calls: int = 1) -> Iterator[None]:
        """Time the block as the step `name`; one that raises is noted as failed, with the time until then."""
        self._begin(name)
        begun = self._clock()
        try:
            yield
        except BaseException:
            self.steps.append(Step(name, self._since(begun), 0, failed=True))
            raise
        seconds = self._since(begun) / calls
        self.steps.append(Step(name, seconds, int(byte_count / seconds)))

    def _since(self, begun: float) -> float:
        return max(self._clock() - begun, 1e-6)


def is_trial(name: str) -> bool:
    """Tell whether a test gives its objects such names. What is older than any test was left by one that was killed."""
    return _TRIAL.fullmatch(name) is not None


def finish_name(storage: Storage) -> str:
    """Return what the end of an upload is called on this storage."""
    return "rename" if storage.abilities.atomic_rename else "complete"


def storage_test(
    storage: Storage, trial: Trial, byte_count: int = TEST_BYTES, now: Callable[[], float] = time.time
) -> None:
    """Do the steps of a test in order, into `trial`. `storage` is connected already; the caller closes it.

    Raises the error of the step that failed, and StorageError where the storage does not keep what it promises: bytes
    come back changed, a name is given twice, a deleted object stays. `now` is this host's clock, in Unix seconds.
    """
    run = _Run(storage, trial, byte_count, now)
    try:
        run.all()
    except BaseException:
        run.remove()
        raise


class _Run:
    def __init__(self, storage: Storage, trial: Trial, byte_count: int, now: Callable[[], float]) -> None:
        self.name = f"{FOLDER}/{os.urandom(8).hex()}"
        self.small = f"{self.name}-small"
        self._storage, self._trial, self._now = storage, trial, now
        self._data = os.urandom(byte_count)  # random: what a link or a disk compresses would look too fast

    def all(self) -> None:
        self._write()
        self._rename()
        self._size()
        self._refuse()
        self._read()
        self._read_ranges()
        self._list()
        self._delete()

    def remove(self) -> None:
        """Remove what a failed test left; if that fails too, the first failure is the one to tell."""
        for name in (self.name, self.small):
            try:
                self._storage.delete(name)
            except StorageError:
                return

    def _write(self) -> None:
        """Whole, with what makes it durable: what is only on its way has no rate to tell."""
        with self._trial.step("write", byte_count=len(self._data)):
            self._storage.put(self.name, self._data)

    def _rename(self) -> None:
        """Of a small object, so that the time is the end's alone."""
        with ExitStack() as stack:
            sink = stack.enter_context(self._storage.create(self.small, 1))
            sink.write(b"x")
            with self._trial.step(finish_name(self._storage)):
                stack.close()

    def _size(self) -> None:
        with self._trial.step("size"):
            for name, wanted in ((self.name, len(self._data)), (self.small, 1)):
                size = self._storage.size(name)
                self._expect(size == wanted, "size", f"{size} bytes are there, {wanted} were written")

    def _refuse(self) -> None:
        with self._trial.step("refuse_second_write"):
            try:
                self._storage.put(self.name, b"second")
            except ObjectExists:
                return
            self._expect(False, "refuse_second_write", "an object was overwritten")

    def _read(self) -> None:
        with self._trial.step("read", byte_count=len(self._data)):
            found = self._storage.get(self.name)
            self._expect(found == self._data, "read", "what was read is not what was written")

    def _read_ranges(self) -> None:
        length = min(RANGE_BYTES, len(self._data))
        with self._trial.step("range_read", calls=RANGES):
            reader = self._storage.open(self.name)
            try:
                for number in range(RANGES):
                    offset = (len(self._data) - length) * number // RANGES
                    found = reader.read_at(offset, length)
                    self._expect(found == self._data[offset : offset + length], "range_read", "a range is wrong")
            finally:
                reader.close()

    def _list(self) -> None:
        with self._trial.step("list"):
            listed = {entry.name: entry for entry in self._storage.list(FOLDER)}
            found = listed.get(self.name)
            seen = found is not None and found.size_bytes == len(self._data)
            self._expect(seen, "list", "the object just written is not listed")
        if found is not None and found.modified_time:
            self._compare_clocks(found.modified_time)

    def _compare_clocks(self, modified_time: float) -> None:
        """Hint at a storage whose clock is far from ours: the age of what lies there is told by it."""
        ahead = modified_time - self._now()
        if abs(ahead) > CLOCK_SECONDS_MAX:
            way = "ahead of" if ahead > 0 else "behind"
            self._trial.hints.append(
                f"the storage's clock is {abs(ahead) / 60:.0f} minutes {way} this hypervisor's: set both by NTP"
            )

    def _delete(self) -> None:
        with self._trial.step("delete"):
            self._storage.delete(self.name)
            self._storage.delete(self.small)
            try:
                self._storage.size(self.name)
            except ObjectNotFound:
                return
            self._expect(False, "delete", "a deleted object is still there")

    def _expect(self, condition: bool, step: str, detail: str) -> None:
        if not condition:
            raise StorageError(storage=self._storage.label, step=step, detail=detail)
