"""The two limits as several servers use them at once, on a clock that moves only when everybody waits: any window of 10 s."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator

import pytest

from engine.storage.throttled import PIECE_BYTES_MAX
from engine.throttle import Throttle
from engine.units import KIB, MB, MIB

pytestmark = pytest.mark.feature("P8", "P9")

WINDOW_SECONDS = 10.0
FRAME_BYTES = 4 * MIB
REQUEST_BYTES = 255 * KIB  # what OpenSSH takes at once: an SFTP upload gathers as much before anything leaves
Passed = list[tuple[float, int]]


class SharedClock:
    """Seconds that pass only while every thread waits: as much as the first of them waits for."""

    def __init__(self, threads: int) -> None:
        self.seconds = 0.0
        self._running = threads
        self._wakes: list[float] = []
        self._changed = threading.Condition()

    def now(self) -> float:
        return self.seconds

    def wait(self, stop: threading.Event, seconds: float) -> None:
        with self._changed:
            wake = self.seconds + seconds
            self._wakes.append(wake)
            self._move_on()
            assert self._changed.wait_for(lambda: self.seconds >= wake, 60)
            self._wakes.remove(wake)

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._move_on()

    def _move_on(self) -> None:
        asleep = sum(wake > self.seconds for wake in self._wakes)
        if self._wakes and asleep == len(self._wakes) == self._running:
            self.seconds = min(self._wakes)
            self._changed.notify_all()


class Scene:
    """`servers` threads that each read frames and upload half of what they read, for `seconds` of the clock."""

    def __init__(
        self, read: int, upload: int, servers: int, seconds: float, changes: tuple[tuple[float, int, int], ...] = ()
    ) -> None:
        """`changes` are grants, ascending: (time, read limit, upload limit)."""
        self.clock = SharedClock(servers)
        self.read, self.upload = Throttle(read, self.clock), Throttle(upload, self.clock)
        self.was_read: Passed = []
        self.uploaded: Passed = []
        self.left: Passed = []  # as an SFTP session sends it
        self._seconds = seconds
        self._changes = deque(changes)
        self._lock = threading.Lock()
        threads = [threading.Thread(target=self._serve) for _ in range(servers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for passed in (self.was_read, self.uploaded, self.left):
            passed.sort()

    def _serve(self) -> None:
        stop, gathered = threading.Event(), 0
        try:
            while self.clock.now() < self._seconds:
                for portion in self.read.portions(FRAME_BYTES, stop):
                    self._note(self.was_read, portion)
                for portion in self.upload.portions(FRAME_BYTES // 2, stop, PIECE_BYTES_MAX):
                    self._note(self.uploaded, portion)
                    gathered += portion
                    while gathered >= REQUEST_BYTES:
                        self._note(self.left, REQUEST_BYTES)
                        gathered -= REQUEST_BYTES
        finally:
            self.clock.leave()

    def _note(self, passed: Passed, count: int) -> None:
        with self._lock:
            now = self.clock.now()
            while self._changes and self._changes[0][0] <= now:
                _, self.read.rate, self.upload.rate = self._changes.popleft()
            passed.append((now, count))


def windows(passed: Passed, end: float) -> Iterator[tuple[float, float, int]]:
    """Yield (first, last, bytes) of every window of at most 10 s that begins and ends with something that passed."""
    window: deque[tuple[float, int]] = deque()
    inside = 0
    for at, group in itertools.groupby(passed, key=lambda one: one[0]):
        if at > end:
            return
        count = sum(one for _, one in group)
        window.append((at, count))
        inside += count
        while at - window[0][0] > WINDOW_SECONDS:
            inside -= window.popleft()[1]
        yield window[0][0], at, inside


def most(passed: Passed, end: float) -> int:
    return max(inside for _, _, inside in windows(passed, end))


def least(passed: Passed, end: float) -> int:
    """Return the fewest bytes of any whole window of 10 s."""
    times = [at for at, _ in passed if at <= end - WINDOW_SECONDS]
    return min(sum(count for at, count in passed if start < at <= start + WINDOW_SECONDS) for start in times[::37])


@pytest.mark.parametrize(
    ("read", "upload", "servers", "seconds"),
    [
        (1 * MB, 0, 1, 40),
        (0, 1 * MB, 1, 40),
        (0, 1 * MB, 4, 40),
        (1 * MB, 0, 4, 40),
        (200 * MB, 0, 4, 14),
        (0, 200 * MB, 3, 12),
        (1 * MB, 200 * MB, 3, 40),
        (200 * MB, 1 * MB, 3, 40),
        (1 * MB, 1 * MB, 4, 40),
        (200 * MB, 90 * MB, 4, 12),
        (100_000, 50_000, 2, 400),
    ],
)
def test_any_ten_seconds_hold_both_limits_within_5_percent(read: int, upload: int, servers: int, seconds: int) -> None:
    scene = Scene(read, upload, servers, seconds)
    left = (upload if upload >= MB else 0, scene.left)  # below, one request is seconds' worth
    for rate, passed in ((read, scene.was_read), (upload, scene.uploaded), left):
        if rate:
            assert most(passed, seconds) <= 1.05 * rate * WINDOW_SECONDS


@pytest.mark.parametrize(
    ("read", "upload", "servers"), [(1 * MB, 0, 1), (0, 1 * MB, 1), (1 * MB, 0, 4), (0, 1 * MB, 4)]
)
def test_a_limit_that_binds_is_used_within_5_percent(read: int, upload: int, servers: int) -> None:
    scene = Scene(read, upload, servers, 40)
    assert least(scene.was_read if read else scene.uploaded, 40) >= 0.95 * MB * WINDOW_SECONDS


def test_changing_grants_hold_in_every_window() -> None:
    changes = ((5.0, MB, MB // 4), (12.0, 20 * MB, 10 * MB), (20.0, MB // 2, 5 * MB), (29.0, 8 * MB, MB))
    steps = [(0.0, 4 * MB, 2 * MB), *changes, (60.0, 0, 0)]
    scene = Scene(4 * MB, 2 * MB, 3, 36, changes)
    for which, passed in ((1, scene.was_read), (2, scene.uploaded)):
        for first, last, inside in windows(passed, 36):
            allowed = sum(
                step[which] * max(0.0, min(last, following[0] + 0.2) - max(first, step[0]))
                for step, following in itertools.pairwise(steps)
            )
            rates = [step[which] for step in steps if step[0] <= last]
            assert inside <= allowed + 0.05 * WINDOW_SECONDS * max(rates)
