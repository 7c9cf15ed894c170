"""The two limits of a storage in real time, seen from outside: an engine process backs a stopped domain's disk up to a local folder.

    disk ──qemu-nbd──► engine, limits granted ──► folder
             ▲ bytes it has read (/proc)             ▲ bytes that lie there        each every 20 ms

Over any 10 s a flow may differ from its limit by 5 %: from its first byte to its last, at 1 and at 200 MB/s, alone and both
together. Of both at once the slower one governs, and that are the uploads, which begin when the first frame has been read. Then the limit changes while the engine works, up and down. The disk's bytes do not compress and are stored as they are,
so that what is read and what is uploaded is the same and both limits can be seen at once.
"""

import random
import shutil
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from engine.ids import new_id
from engine.spec import Job, Settings
from engine.units import MB, MIB
from tests.bench.bench import Bench
from tests.bench.figures import figure, note
from tests.bench.rounds import progress
from tests.engine.engine_process import EngineProcess, Meter, bytes_below, bytes_read
from tests.engine.rig import Rig
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

RATES = (1 * MB, 200 * MB)
WINDOW_SECONDS = 10.0
LONG_SECONDS = 24.0  # of each flow, so that there are windows from its beginning to its end
GRANT_SECONDS = 8.0  # how long each new limit is looked at, and the window that it has to hold in is half of that
ROUNDS_MAX = 3  # half a minute each
Samples = Sequence[tuple[float, int]]


def measure(bench: Bench) -> bool:
    folder = bench.scratch("rates")
    rounds, long = min(bench.rounds, ROUNDS_MAX), LONG_SECONDS if bench.part == 1 else WINDOW_SECONDS + 2
    met = True
    with Libvirtd(folder / "libvirtd") as libvirtd:
        for rate in RATES:
            for kind in ("read", "upload", "both"):
                with _Host(bench.scratch("case"), libvirtd.uri, int(rate * long)) as host:
                    name = f"{'both limits' if kind == 'both' else f'the {kind} limit alone'}, {rate // MB} MB/s"
                    progress(name)
                    met &= _steady(name, [host.run(rate, kind) for _ in range(rounds)], rate, kind)
        for rate, then in ((RATES[1], RATES[1] // 4), (RATES[0], RATES[1] // 4)):
            with _Host(bench.scratch("case"), libvirtd.uri, int((rate + then) * GRANT_SECONDS * 1.5)) as host:
                progress(f"from {rate // MB} to {then // MB} MB/s")
                lags = [host.change(rate, then) for _ in range(rounds)]
                title = f"a grant of {then // MB} instead of {rate // MB} MB/s: seconds until it is obeyed"
                met &= figure(title, lags, "<= 1")
    shutil.rmtree(folder)
    return met


@dataclass(frozen=True)
class _Flows:
    read: Samples
    stored: Samples


def _steady(name: str, runs: Sequence[_Flows], rate: int, kind: str) -> bool:
    met = True
    for flow, samples in (("read", [one.read for one in runs]), ("upload", [one.stored for one in runs])):
        if kind not in {flow, "both"}:
            continue
        seen = [[count / WINDOW_SECONDS / rate - 1 for count in windows(one, WINDOW_SECONDS)] for one in samples]
        if (kind, flow) == ("both", "read"):  # the uploads govern: it waits for them where memory is full
            met &= figure(
                f"{name}: how far reads exceed it over any 10 s, at most", [max(0, *one) for one in seen], "<= 0.05"
            )
        else:
            most = [max(map(abs, one)) for one in seen]
            met &= figure(f"{name}: how far {flow}s differ from it over any 10 s, at most", most, "<= 0.05")
        note(f"{name}: {flow}s", [(statistics.median(one) + 1) * rate / MB for one in seen], "MB/s")
    return met


def windows(samples: Samples, seconds: float, after: float = 0.0) -> Iterator[int]:
    """Yield how many bytes came in each window of `seconds`, from the first byte to the last one. Raises RuntimeError if there is none.

    `after`: only windows that begin at that time or later, if any.
    """
    total = samples[-1][1]
    first = next((index for index, one in enumerate(samples) if one[1] > samples[0][1]), 0)
    last = next(index for index, one in enumerate(samples) if one[1] == total)
    moving = samples[max(0, first - 1) : last + 1]
    times = [at for at, _ in moving]
    found = False
    for at, count in moving:
        end = bisect_left(times, at + seconds)
        if at >= after and end < len(moving):
            found = True
            # As if it had come evenly between two samples, which lie 20 ms apart.
            before, beyond = moving[end - 1], moving[end]
            share = (at + seconds - before[0]) / max(beyond[0] - before[0], 1e-9)
            yield int(before[1] + (beyond[1] - before[1]) * share) - count
    if not found and not after:
        raise RuntimeError(f"it moved for less than {seconds} s: {moving[0]} to {moving[-1]}")


class _Host:
    """A stopped domain with a raw disk of bytes that do not compress. A `with` block."""

    def __init__(self, folder: Path, uri: str, size_bytes: int) -> None:
        self._folder, self._size_bytes = folder, -(-size_bytes // MIB) * MIB
        self._disk = folder / "vda.raw"
        self._rig = Rig.make(folder, uri)
        self._domain = BlankDomain(uri, [DiskFile("vda", self._disk, "raw")], running=False)

    def __enter__(self) -> Self:
        block = random.Random(1).randbytes(64 * MIB)
        with self._disk.open("wb") as file:
            for start in range(0, self._size_bytes, len(block)):
                file.write(block[: self._size_bytes - start])
        self._domain.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._domain.close()
        shutil.rmtree(self._folder)

    def run(self, rate: int, kind: str) -> _Flows:
        """Back the disk up under `rate` and return both flows."""
        read, upload = (0 if kind == "upload" else rate), (0 if kind == "read" else rate)
        with self._engine(_settings(read, upload)) as (_, flows):
            pass
        return flows

    def change(self, rate: int, then: int) -> float:
        """Grant `then` for both limits in the middle of a backup under `rate`; return the seconds until it holds."""
        with self._engine(Settings(compression_level=0, workers=2, read_limit=rate, upload_limit=rate)) as (
            engine,
            flows,
        ):
            self._pass(GRANT_SECONDS)
            engine.grant(workers=2, read=then, upload=then)
            changed = time.monotonic()
            self._pass(GRANT_SECONDS)
            engine.grant(workers=2)
        return max(_lag(flows.read, changed, then, least=0), _lag(flows.stored, changed, then, least=0.95))

    @staticmethod
    def _pass(seconds: float) -> None:
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until, seconds + 5, "time to pass")

    @contextmanager
    def _engine(self, settings: Settings) -> Iterator[tuple[EngineProcess, _Flows]]:
        """Run the backup to its end, with the block beside it."""
        job = Job(new_id(datetime.now(UTC)), backup=self._rig.backup_job(self._domain.uuid, type="copy"))
        operation = replace(self._rig.operation(job), settings=settings, concurrency=1)
        storage, process = self._folder / "storage", self._folder / f"process-{job.job_id}"
        before = bytes_below(storage)
        opened: list[int] = []
        try:
            with EngineProcess(process, operation, [job]) as engine:
                wait_until(lambda: engine.children("qemu-nbd") or not engine.running, 60, "the disk's server")
                servers = engine.children("qemu-nbd")
                if not servers:
                    raise RuntimeError(f"the engine has ended: {engine.events('finished')}")
                opened.append(bytes_read(servers))
                with (
                    Meter(lambda: bytes_below(storage) - before) as stored,
                    Meter(_grows(lambda: bytes_read(servers) - opened[0])) as read,
                ):
                    yield engine, _Flows(read.samples, stored.samples)
                    states = [one["state"] for one in engine.wait(600)]
            if states != ["completed"]:
                raise RuntimeError(f"the backup ended {states}: {engine.events('finished')}")
        finally:
            for copy in (storage / "servers").glob("*"):
                shutil.rmtree(copy)


def _settings(read: int, upload: int) -> Settings:
    return Settings(compression_level=0, workers=2, read_limit=read, upload_limit=upload)


def _grows(value: Callable[[], int]) -> Callable[[], int]:
    """Return a number that never becomes smaller: a process that has ended tells 0."""
    most = [0]

    def told() -> int:
        most[0] = max(most[0], value())
        return most[0]

    return told


def _lag(samples: Samples, changed: float, rate: int, least: float) -> float:
    """Return the seconds after `changed` from which on every window of half the time has `least` to 1.05 of `rate`, 99 for never."""
    seconds = GRANT_SECONDS / 2
    seen = [(at, value) for at, value in samples if changed <= at <= changed + GRANT_SECONDS]
    for at, _ in seen:
        shares = [count / seconds / rate for count in windows(seen, seconds, after=at)]
        if not shares:
            break
        if all(least <= share <= 1.05 for share in shares):
            return at - changed
    return 99.0
