"""A reader that keeps to a read limit, and between two portions to the number of workers."""

import threading
from collections.abc import Iterator

from engine.extents import Extent
from engine.limit import Limit
from engine.source.disk import Reader
from engine.throttle import Throttle


class ThrottledReader:
    """A `Reader` (see disk.py) that asks `throttle` before each portion; its calls raise Cancelled once `stop` is set."""

    def __init__(self, reader: Reader, throttle: Throttle, workers: Limit, stop: threading.Event) -> None:
        self._reader = reader
        self._throttle = throttle
        self._workers = workers
        self._stop = stop

    def read_into(self, extents: tuple[Extent, ...], buffer: memoryview) -> None:
        done = 0
        for portion in self._throttle.portions(len(buffer), self._stop):
            self._workers.step_aside(self._stop)
            part = tuple(_part(extents, done, portion))
            self._reader.read_into(part, buffer[done : done + portion])
            done += portion

    def close(self) -> None:
        self._reader.close()


def _part(extents: tuple[Extent, ...], skip: int, length: int) -> Iterator[Extent]:
    """Yield what lies `skip` bytes into the extents' content and is `length` bytes long."""
    for extent in extents:
        begin = min(skip, extent.length)
        count = min(extent.length - begin, length)
        if count:
            yield Extent(extent.start + begin, count, extent.zero)
        skip -= begin
        length -= count
